#!/usr/bin/env bash
# Everything worth doing on a machine with a GPU, offline: OUT=dir bash bench/gpu.sh [tests] [train]
#   tests  the kernels against the definition, on the GPU        -> $OUT/gpu_tests.xml
#   train  the embedded network; needs carry/photos256.npz (python bench/carry.py) -> $OUT/model.safetensors, $OUT/log.json
# Minutes of training: MINUTES (default 8). A second call continues from $STATE (default runs/photo) while the machine is warm.
set -euo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:?where results go}
steps=${*:-tests train}
pip install --quiet --no-deps --no-build-isolation -e . || export PYTHONPATH="$PWD/engine:$PWD/kernels:${PYTHONPATH:-}"
python - <<'PY' | tee "$OUT/machine.json"
import json, platform, torch
cuda = torch.cuda.is_available()
print(json.dumps({"device": torch.cuda.get_device_name() if cuda else "no CUDA device", "torch": torch.__version__,
                  "python": platform.python_version()}))
PY
for step in $steps; do
  case $step in
    tests) pytest tests/test_triton.py tests/test_codebook.py -p no:cacheprovider --junitxml="$OUT/gpu_tests.xml" || echo "tests FAILED" ;;
    train)
      state=${STATE:-runs/photo}
      python -m noisebook.training.edm carry/photos256.npz -o "$state" --minutes "${MINUTES:-8}"
      cp "$state/model.safetensors" "$state/log.json" "$OUT/" ;;
    *) echo "unknown step: $step" >&2; exit 2 ;;
  esac
done
