#!/usr/bin/env bash
# Runs the real vLLM with offloaded weights and compares its tokens with those of vLLM alone.
#   tests/gpu/engines/vllm.sh [SECONDS] [CASE...]     equality of tokens and log-probabilities
#   tests/gpu/engines/vllm.sh load [ROUNDS]           64 requests at a time, again and again
#   tests/gpu/engines/vllm.sh bench                   benches/engines.py
# Needs a GPU of compute capability 9.0, PyTorch 2.11, a built library, and build/vllm of pack_vllm.sh;
# with build/vllm-moe the mixtures of experts run as well.
set -euo pipefail
root=$(cd "$(dirname "$0")/../../.." && pwd)
export VLLM_SITE=${VLLM_SITE:-/tmp/vllm-site}
site=$VLLM_SITE
python=${PYTHON:-python3}
if [ ! -e "$site/ready" ]; then
    mkdir -p "$site"
    "$python" -m pip install -q --no-index --no-deps --no-compile --target "$site" "$root"/build/vllm/*.whl
    tar xJf "$root/build/vllm/vllm.tar.xz" -C "$site"
    [ ! -e "$root/build/vllm-moe/moe.tar.xz" ] || tar xJf "$root/build/vllm-moe/moe.tar.xz" -C "$site"
    # The package's metadata, by which vLLM finds the plug-in.
    info=$site/weighbridge-0.1.0.dist-info
    mkdir -p "$info"
    printf 'Metadata-Version: 2.1\nName: weighbridge\nVersion: 0.1.0\n' >"$info/METADATA"
    printf '[vllm.general_plugins]\nweighbridge = weighbridge.engines.vllm:register\n' >"$info/entry_points.txt"
    touch "$site/ready"
fi
export PYTHONPATH=$site:$root/bindings/python/src
export WEIGHBRIDGE_LIBRARY=${WEIGHBRIDGE_LIBRARY:-$root/target/release/libweighbridge.so}
# Without a network; in one process, whose offloader can be asked.
export HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 VLLM_ENABLE_V1_MULTIPROCESSING=0 VLLM_USE_FLASHINFER_SAMPLER=0
export VLLM_CACHE_ROOT=${VLLM_CACHE_ROOT:-/tmp/vllm-cache} VLLM_LOGGING_LEVEL=${VLLM_LOGGING_LEVEL:-INFO}
# Of two GPUs: no multicast between them; functions are sent to the workers.
export NCCL_NVLS_ENABLE=0 VLLM_ALLREDUCE_USE_SYMM_MEM=0 VLLM_ALLOW_INSECURE_SERIALIZATION=1
if [ "${1:-}" = bench ]; then
    shift
    exec "$python" "$root/benches/engines.py" "$@"
fi
if [ "${1:-}" = load ]; then
    shift
    exec "$python" "$root/tests/gpu/engines/vllm_load.py" "$@"
fi
exec "$python" "$root/tests/gpu/engines/vllm_cases.py" "$@"
