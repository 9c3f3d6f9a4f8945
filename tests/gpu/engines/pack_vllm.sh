#!/usr/bin/env bash
# Packs vLLM 0.26.0 for a machine with a GPU of compute capability 9.0, PyTorch 2.11 and no network.
#   tests/gpu/engines/pack_vllm.sh [FOLDER]     (build/vllm by default; FOLDER-moe receives the MoE kernels)
# Then, on that machine: tests/gpu/engines/vllm.sh
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=$(realpath -m "${1:-$here/../../../build/vllm}")
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out" "$out-moe" "$work/site"

platforms=(--platform any --platform manylinux2014_x86_64)
for glibc in 5 12 17 24 26 27 28 31 34 35 38 39; do platforms+=(--platform "manylinux_2_${glibc}_x86_64"); done
download() {
    "$python" -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
        --abi cp312 --abi abi3 --abi none "${platforms[@]}" "$@"
}
download -d "$work" vllm==0.26.0
# What vLLM imports and a machine with transformers lacks.
download -d "$out" annotated-types==0.8.0 apache-tvm-ffi==0.1.10 cachetools==8.0.2 cbor2==6.3.0 compressed-tensors==0.17.0 \
    fastapi==0.136.3 httpx2==2.16.2 llguidance==1.7.6 loguru==0.7.3 msgspec==0.22.0 openai-harmony==0.0.8 openai==3.57.0 \
    partial-json-parser==0.2.1.1.post7 pybase64==1.5.1 pydantic-core==2.50.5 pydantic==2.14.4 pyzmq==27.3.0 sniffio==1.3.1 \
    starlette==1.10.0 typing-inspection==0.4.5 xgrammar==0.2.7

"$python" - "$work" <<'PY'
import pathlib
import sys
import zipfile

work = pathlib.Path(sys.argv[1])
# Headers, other attention kernels, the Rust front end and the web pages are not used.
unused = ("_vllm_fa2_C", "vllm-rs", "_flashmla", "_qutlass", "_rust_tool", "/static/")
(wheel,) = work.glob("vllm-*.whl")
with zipfile.ZipFile(wheel) as archive:
    for name in archive.namelist():
        if name.endswith((".h", ".cuh", ".hpp")) or any(part in name for part in unused):
            continue
        if "/third_party/" not in name or name.endswith(".py"):
            archive.extract(name, work / "site")
PY
cd "$work/site"
for library in vllm/_C_stable_libtorch.abi3.so vllm/_moe_C_stable_libtorch.abi3.so vllm/vllm_flash_attn/_vllm_fa3_C.abi3.so; do
    "$python" "$here/prune_fatbin.py" "$library" 90
done
tar cf - vllm/_moe_C_stable_libtorch.abi3.so | xz -9 >"$out-moe/moe.tar.xz"
rm vllm/_moe_C_stable_libtorch.abi3.so
tar cf - . | xz -9 >"$out/vllm.tar.xz"
du -sh "$out" "$out-moe"
