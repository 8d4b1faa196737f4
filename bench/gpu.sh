#!/usr/bin/env bash
# Everything worth doing on a machine with a GPU, offline: OUT=dir bash bench/gpu.sh [tests] [kernels] [throughput] [tune] [train]
#   tests       the GPU tests: values, known answers, graphs     -> gpu_tests.xml
#   kernels     every kernel and the baselines                   -> kernels.json
#   throughput  encode and decode end to end                     -> throughput.json
#   tune        launch settings                                  -> tuned.json (and kernels/noisebook_kernels/tuned.json)
#   train       the embedded network; needs carry/photos256.npz (python bench/carry.py) -> model.safetensors, log.json
# machine.json says what it ran on and how each step ended. A step that fails does not stop the others; the exit code is 1 then.
# Minutes: INSTALL_MINUTES, TESTS_MINUTES, KERNELS_MINUTES, THROUGHPUT_MINUTES, TUNE_MINUTES, and MINUTES of training, which
# a second call continues from $STATE (default runs/photo) while the machine is warm. The first three steps stay below nine.
# DRY=1, and any machine without CUDA: all at tiny sizes on the CPU, which proves this script and measures nothing.
# To publish: cp $OUT/kernels.json bench/results/gpu_kernels.json, the same for throughput, then python bench/report.py
set -uo pipefail
OUT=$(mkdir -p "${OUT:?where results go}" && cd "$OUT" && pwd)
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python}
[ $# -gt 0 ] || set -- tests kernels throughput train
for step; do
  case $step in tests | kernels | throughput | tune | train) ;; *) echo "unknown step: $step" >&2; exit 2 ;; esac
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
"$PYTHON" bench/record.py machine "$OUT/machine.json" $dry || exit 1
[ -z "$failed" ] || "$PYTHON" bench/record.py step "$OUT/machine.json" install 1 "$SECONDS"

run_step() {
  case $1 in
    tests)
      local what=(tests/test_gpu.py tests/test_triton.py tests/test_triton_[!c]*.py tests/test_codebook.py)
      what+=(tests/test_bench_gpu.py -k "not gpu_sh")
      [ -z "$dry" ] || what=(tests/test_triton.py -k "known_answers and 48")
      within "${TESTS_MINUTES:-2.5}" -m pytest "${what[@]}" -p no:cacheprovider --junitxml="$OUT/gpu_tests.xml" ;;
    kernels)
      within "${KERNELS_MINUTES:-3}" bench/gpu_kernels.py "$OUT/kernels.json" --minutes "${KERNELS_MINUTES:-3}" $dry ;;
    throughput)
      within "${THROUGHPUT_MINUTES:-1.75}" bench/throughput.py "$OUT/throughput.json" \
        --minutes "${THROUGHPUT_MINUTES:-1.75}" $dry ;;
    tune)
      within "${TUNE_MINUTES:-4}" bench/tune.py "$OUT/tuned.json" --minutes "${TUNE_MINUTES:-4}" $dry ;;
    train)
      local state=${STATE:-runs/photo}
      [ -z "$dry" ] || { echo "train: not in a dry run"; return 0; }
      "$PYTHON" -m noisebook.training.edm carry/photos256.npz -o "$state" --minutes "${MINUTES:-8}" \
        && cp "$state/model.safetensors" "$state/log.json" "$OUT/" ;;
  esac
}

for step; do
  echo "== $step"
  begin=$SECONDS
  run_step "$step" || { code=$?; failed=$step; echo "== $step FAILED: exit code $code" >&2; }
  "$PYTHON" bench/record.py step "$OUT/machine.json" "$step" "${code:-0}" $((SECONDS - begin))
  unset code
done
[ -z "$failed" ]
