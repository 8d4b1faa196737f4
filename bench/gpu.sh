#!/usr/bin/env bash
# Everything worth doing on a machine with a GPU, offline: OUT=dir bash bench/gpu.sh [tests] [kernels] [throughput] [latent] [cod] [tokenizing] [train] [paper] [rates]
#   tests       the GPU tests: values, known answers, graphs     -> gpu_tests.xml
#   kernels     every kernel and the baselines                   -> kernels.json
#   throughput  encode and decode end to end                     -> throughput.json
#   latent      Stable Diffusion 2.1, SDXL, SD3 and Flux, random weights, beside bare network, Turbo-DDCM's and DiffC's loops; needs
#               diffusers, which `pip download --no-deps -d carry/wheels diffusers importlib_metadata zipp` packs -> latent.json
#   cod         CoD of full size, random weights: tokens a second, a decode -> cod_speed.json
#   tokenizing  `noisebook tokenize` from a folder, tars and Parquet beside the codec by itself, on what carry/ has or random images;
#               needs pyarrow -> tokenizing.json
#   train       $MODEL (default photo; cifar10-edm, cifar10-flow, cifar10-consistency, cifar10-cod, realism); needs what `python -m tools.carry photos`
#               or `... cifar10` packs, realism both photos and `... vgg16 FILE` -> $MODEL.safetensors, $MODEL.json, state*.pt
#               a run whose files are in carry/runs/$MODEL goes on from there
#               realism begins with the network and the codec of $INIT (default photo-2; a file of your own needs $CURVE, too)
#   paper       the experiments of bench/paper; needs `python -m bench.paper.run --carry carry/paper`. Resumes -> paper.json
#   rates       bench/quality/rate_distortion.py; needs `python -m bench.quality.rate_distortion --carry carry/rates`. Resumes -> rate_distortion.json
# machine.json says what it ran on and how each step ended. A step that fails does not stop the others; the exit code is 1 then.
# Minutes: INSTALL_MINUTES, TESTS_MINUTES, KERNELS_MINUTES, THROUGHPUT_MINUTES, LATENT_MINUTES, COD_MINUTES, TOKENIZING_MINUTES, PAPER_MINUTES, RATES_MINUTES, and MINUTES of training (8), in all:
# with twice as many a second call continues the run in runs/$MODEL while the machine is warm; two calls are what a model
# may cost. The first three steps stay below nine.
# DRY=1, and any machine without CUDA: all at tiny sizes on the CPU, which proves this script and measures nothing.
# To publish: cp $OUT/kernels.json bench/results/gpu_kernels.json, the same for throughput, latent and tokenizing, then
# python -m bench.report, python -m bench.speed.latent_speed --report and python -m bench.speed.tokenizing --report
set -uo pipefail
OUT=$(mkdir -p "${OUT:?where results go}" && cd "$OUT" && pwd)
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python}
[ $# -gt 0 ] || set -- tests kernels throughput train
for step; do
  case $step in tests | kernels | throughput | latent | cod | tokenizing | train | paper | rates) ;; *) echo "unknown step: $step" >&2; exit 2 ;; esac
done

within() { timeout -s INT -k 10 "${1}m" "$PYTHON" "${@:2}"; }  # minutes, what Python is to run

"$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || DRY=1
dry=${DRY:+--dry}
failed=
if [ -n "$dry" ]; then
  export TRITON_INTERPRET=1 CUDA_VISIBLE_DEVICES=
else  # there is no network here
  within "${INSTALL_MINUTES:-1.5}" -m pip install --quiet --no-deps --no-build-isolation -e . || failed=install
fi
"$PYTHON" -c 'import noisebook, noisebook_kernels' 2>/dev/null || export PYTHONPATH="$PWD/engine:$PWD/kernels:${PYTHONPATH:-}"
"$PYTHON" -m bench.lib.record machine "$OUT/machine.json" $dry || exit 1
[ -z "$failed" ] || "$PYTHON" -m bench.lib.record step "$OUT/machine.json" install 1 "$SECONDS"

train() {  # model
  local state=runs/$1 what fresh=(--patch 2 --widths 64 96 128 --optimizer muon --learning-rate 2e-3)
  case $1 in
    photo) what=(edm carry/photos256.npz --pixels 196608 --widths 112 144 160) ;;  # 5.2 million weights, 204 kFLOP a pixel
    cifar10-edm) what=(edm carry/cifar10.npz --sizes 32 --level -0.2 1.1 "${fresh[@]}") ;;
    cifar10-flow) what=(flow carry/cifar10.npz --sizes 32 "${fresh[@]}") ;;
    cifar10-consistency) what=(consistency carry/cifar10.npz --sizes 32 --init cifar10-edm --learning-rate 1e-4) ;;
    cifar10-cod) what=(cod carry/cifar10.npz --sizes 32 --widths 64 32 --blocks 12 --bits 4 --learning-rate 1e-3) ;;
    realism)
      what=(realism carry/photos256.npz --init "${INIT:-photo-2}" ${CURVE:+--curve "$CURVE"} --features carry/vgg16.safetensors --pixels 262144)
      ;;
    *) echo "unknown model: $1" >&2; return 2 ;;
  esac
  [[ $1 != cifar10-* ]] || what+=(--pixels 262144 --held-out 256)
  [ -z "$dry" ] || { echo "train: not in a dry run"; return 0; }
  [ -e "$state" ] || [ ! -d "carry/runs/$1" ] || { mkdir -p runs && cp -r "carry/runs/$1" "$state"; }
  "$PYTHON" -m noisebook train "${what[@]}" -o "$state" --minutes "${MINUTES:-8}" --save-every 2 --device cuda \
    && cp "$state/model.safetensors" "$OUT/$1.safetensors" && cp "$state/log.json" "$OUT/$1.json" \
    && rm -f "$OUT"/state*.pt && cp "$state"/state*.pt "$OUT/"
}

run_step() {
  case $1 in
    tests)
      local what=(tests/kernels/test_gpu.py tests/kernels/test_triton.py tests/kernels/test_triton_[!c]*.py tests/codebook/test_codebook.py)
      what+=(tests/bench/test_bench_gpu.py tests/bench/test_latent_speed.py -k "not gpu_sh")
      [ -z "$dry" ] || what=(tests/kernels/test_triton.py -k "known_answers and 48")
      "$PYTHON" -c 'import xdist' 2>/dev/null && [ -z "$dry" ] && what+=(-n 8)  # most of the time is compilation
      within "${TESTS_MINUTES:-2.5}" -m pytest -m "" "${what[@]}" -p no:cacheprovider --junitxml="$OUT/gpu_tests.xml" ;;
    kernels)
      within "${KERNELS_MINUTES:-3}" -m bench.speed.gpu_kernels "$OUT/kernels.json" --minutes "${KERNELS_MINUTES:-3}" $dry ;;
    throughput)
      within "${THROUGHPUT_MINUTES:-1.75}" -m bench.speed.throughput "$OUT/throughput.json" \
        --minutes "${THROUGHPUT_MINUTES:-1.75}" $dry ;;
    latent)
      "$PYTHON" -c 'import diffusers' 2>/dev/null \
        || within "${INSTALL_MINUTES:-1.5}" -m pip install --quiet --no-index --no-deps carry/wheels/*.whl || return
      within "${LATENT_MINUTES:-6}" -m bench.speed.latent_speed "$OUT/latent.json" --minutes "${LATENT_MINUTES:-5}" $dry ;;
    cod)
      within "${COD_MINUTES:-2}" -m bench.speed.cod_speed "$OUT/cod_speed.json" --minutes "${COD_MINUTES:-2}" $dry ;;
    tokenizing)  # needs pyarrow, which the package asks for with the extra `datasets`
      NOISEBOOK_DATA=${NOISEBOOK_DATA:-carry} within "${TOKENIZING_MINUTES:-3}" -m bench.speed.tokenizing "$OUT/tokenizing.json" \
        --minutes "${TOKENIZING_MINUTES:-2.25}" --rounds 2 $dry ;;
    train) train "${MODEL:-photo}" ;;
    paper)
      local results=runs/paper.json device=(--device cuda --minutes "${PAPER_MINUTES:-8}")
      [ -z "$dry" ] || results=$OUT/paper.json device=(--dry --only finish)
      mkdir -p runs
      NOISEBOOK_DATA=${NOISEBOOK_DATA:-carry/paper} within "${PAPER_MINUTES:-9}" -m bench.paper.run "${device[@]}" --out "$results" \
        && { [ "$results" = "$OUT/paper.json" ] || cp "$results" "$OUT/"; } ;;
    rates)
      local results=runs/rate_distortion.json device=(--device cuda --minutes "${RATES_MINUTES:-5}")
      [ -z "$dry" ] || { echo "rates: not in a dry run"; return 0; }
      mkdir -p runs
      NOISEBOOK_DATA=${NOISEBOOK_DATA:-carry/rates} within "$((${RATES_MINUTES:-5} + 1))" \
        -m bench.quality.rate_distortion "${device[@]}" --no-report --out "$results"
      cp "$results" "$OUT/" ;;
  esac
}

for step; do
  echo "== $step"
  begin=$SECONDS
  run_step "$step" || { code=$?; failed=$step; echo "== $step FAILED: exit code $code" >&2; }
  "$PYTHON" -m bench.lib.record step "$OUT/machine.json" "$step" "${code:-0}" $((SECONDS - begin))
  unset code
done
[ -z "$failed" ]
