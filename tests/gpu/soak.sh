#!/usr/bin/env bash
# 100,000 steps of an offloader on the real driver, as many of compressed weights, every byte of every step
# compared, and everything at once on 16 threads. Needs a GPU, a built library (target/release or
# WEIGHBRIDGE_LIBRARY), a C and C++ compiler, CMake and ninja. No cargo, no network. At most
# thirteen minutes, of which the part `compressed` takes one and a half.
#   STEPS=100000 SECONDS=60 SEED=1 PARTS="calls steps compressed" tests/gpu/soak.sh
set -uo pipefail
# Bash counts its own seconds in a variable of this name.
seconds=$(printenv SECONDS || echo 60)
cd "$(dirname "$0")/../.."

library=$(realpath "${WEIGHBRIDGE_LIBRARY:-target/release/libweighbridge.so}")
build=${BUILD:-build}/gpu
seed=${SEED:-1}
export WEIGHBRIDGE_TEST_DEVICE=cuda:0

if ! nvidia-smi -L; then
    echo "gpu-soak: no GPU: nothing was run"
    exit 1
fi
[ -f "$library" ] || { echo "gpu-soak: $library is not there: run make build"; exit 1; }

cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo -DWEIGHBRIDGE_BUILD_TESTS=ON -DWEIGHBRIDGE_GPU=ON \
    -DWEIGHBRIDGE_LIBRARY="$library" >/dev/null || exit 1
timeout 120 cmake --build "$build" --target soak steps || exit 1

failed=0
# part SECONDS COMMAND...: a part that hangs in the driver is ended, and counts as failed.
part() {
    local limit=$1 status=0
    shift
    echo "== $*"
    timeout --kill-after=10 "$limit" "$@" || status=$?
    [ "$status" -eq 0 ] || { echo "gpu-soak: exit $status"; failed=1; }
}
steps=("$build/tests/soak/steps" --steps="${STEPS:-100000}" --seed="$seed")
for name in ${PARTS:-calls steps compressed}; do
    case $name in
        calls) part $((seconds + 30)) "$build/tests/soak/soak" --seconds="$seconds" --seed="$seed" ;;
        steps) part 420 "${steps[@]}" ;;
        compressed) part 240 "${steps[@]}" --compressed ;;
        *) echo "gpu-soak: no part is named $name"; failed=1 ;;
    esac
done
exit "$failed"
