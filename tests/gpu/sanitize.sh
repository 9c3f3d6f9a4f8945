#!/usr/bin/env bash
# The CUDA kernels, and programs that queue copies and kernels, under compute-sanitizer: memcheck (bounds
# and alignment), racecheck (shared memory) and initcheck (uninitialized memory). Each tool must first
# report a deliberate defect. Needs what run.py needs, and compute-sanitizer of the CUDA
# toolkit. SECONDS_LEFT bounds the whole of it (450), TOOLS chooses (memcheck racecheck initcheck).
set -uo pipefail
cd "$(dirname "$0")/../.."

library=$(realpath "${WEIGHBRIDGE_LIBRARY:-target/release/libweighbridge.so}")
build=${BUILD:-build}/gpu
python=${PYTHON:-python3}
end=$((SECONDS + ${SECONDS_LEFT:-450}))
export WEIGHBRIDGE_LIBRARY=$library PYTHONPATH=$PWD/bindings/python/src PYTHONUNBUFFERED=1
export WEIGHBRIDGE_TEST_DEVICE=cuda:0

PATH=$PATH:${CUDA_HOME:-/usr/local/cuda}/bin
command -v compute-sanitizer || { echo "gpu-sanitize: no compute-sanitizer: nothing was run"; exit 1; }
[ -f "$library" ] || { echo "gpu-sanitize: $library is not there: run make build"; exit 1; }

# Not streams: the tools let one stream run at a time, and there one waits for another. The experts' kernel
# is where threads share memory, and where a block waits for another.
programs=(experts experts_offloaded compressed residents windows quantizer offloader view)
{
    cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo -DWEIGHBRIDGE_BUILD_TESTS=ON -DWEIGHBRIDGE_GPU=ON \
        -DWEIGHBRIDGE_LIBRARY="$library" &&
        cmake --build "$build" --target "${programs[@]/#/test_c_}"
} || { echo "gpu-sanitize: the programs could not be built"; exit 1; }

# sanitized SECONDS COMMAND...: under $tool; its exit status. Calls of the driver that fail are not
# reported: the suites and the library make some on purpose, and look at the answer. Backtraces of the host
# would keep Python's frames, and so tensors, which offload() then warns of.
sanitized() {
    local limit=$1
    shift
    ((limit <= end - SECONDS)) || limit=$((end - SECONDS))
    ((limit > 0)) || { echo "gpu-sanitize: no time left for: $*"; return 124; }
    timeout --kill-after=10 "$limit" compute-sanitizer --tool "$tool" --target-processes all \
        --report-api-errors no --show-backtrace device --error-exitcode 97 "$@"
}

failed=0
# check SECONDS NAME COMMAND...
check() {
    local limit=$1 name=$2 status=0
    shift 2
    echo "== $tool: $name"
    sanitized "$limit" "$@" || status=$?
    cases=$((cases + 1))
    if [ "$status" -ne 0 ]; then
        echo "FAIL $tool: $name: exit $status"
        failures=$((failures + 1)) failed=1
    fi
}

pytest=("$python" -m pytest -q -p no:cacheprovider)
for tool in ${TOOLS:-memcheck racecheck initcheck}; do
    begin=$SECONDS cases=0 failures=0 on=true
    echo "== $tool: a defect on purpose"
    status=0
    sanitized 60 "$python" tests/gpu/defects.py "$tool" || status=$?
    if [ "$status" -ne 97 ]; then
        echo "FAIL $tool: it does not report a defect: exit $status"
        on=false failed=1
    fi
    # Every kernel of kernels/quantize.cu: all types, formats and blocks.
    # Racecheck takes the longest, and finds least: these kernels share no memory.
    check 240 quantize "${pytest[@]}" tests/python/test_quantizer.py \
        -k "numpy or strides or given or nonfinite"
    for program in "${programs[@]}"; do
        check 40 "$program" "$build/tests/c/test_c_$program"
    done
    # Programs with PyTorch run under memcheck only: the other tools report PyTorch's own kernels.
    if [ "$tool" = memcheck ]; then
        check 90 torch "${pytest[@]}" \
            "tests/gpu/test_offload.py::test_replays_in_turn_with_eager_steps_are_bit_identical[prefetch-2-3]" \
            "tests/gpu/test_offload.py::test_replays_in_turn_with_eager_steps_are_bit_identical[zero-copy-2-3]" \
            tests/gpu/test_views.py::test_cupy_reads_a_view \
            tests/gpu/test_experts.py::test_a_graph_of_a_step_takes_the_slots_of_one_that_was_not_captured \
            "tests/gpu/test_experts.py::test_slots_and_counters_are_those_of_the_host_device[3-40-120-1-True]"
    fi
    echo "reliability: {\"checker\": \"compute-sanitizer $tool\", \"cases\": $cases," \
        "\"failures\": $failures, \"reports_defects\": $on, \"seconds\": $((SECONDS - begin))}"
done
exit "$failed"
