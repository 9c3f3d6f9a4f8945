#!/usr/bin/env bash
# Fetches what `make gpu-bench SUBJECT=lossless` compares with, for a machine with a GPU and no network:
# DFloat11's kernel and code, and nvCOMP's library and its Python module. They are the work of others, under
# licences of their own, and stay out of the repository.
#   benches/pack_peers.sh [FOLDER]      (build/wheels by default, 27 MB; PYTHON_VERSION=3.12)
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=$(realpath -m "${1:-$here/../build/wheels}")
python=${PYTHON:-python3}
version=${PYTHON_VERSION:-3.12}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$python" -m pip download -q --no-deps --only-binary=:all: --python-version "$version" --platform any \
    --platform manylinux_2_27_x86_64 --platform manylinux_2_28_x86_64 -d "$work" \
    dfloat11==0.5.0 dahuffman==0.4.2 nvidia-nvcomp-cu13==6.0.0.12 nvidia-libnvcomp-cu13==6.0.0.12

rm -rf "$out"
mkdir -p "$out"
"$python" - "$work" "$out" "cpython-${version/./}-" <<'PY'
import pathlib
import sys
import zipfile

work, out, tag = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3]
# The library for the host, a tool, headers, and modules of other Pythons are not used.
unused = ("libnvcomp_cpu", "/bin/", "/include/", "/cmake/")
for wheel in work.glob("*.whl"):
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if any(part in name for part in unused) or ("nvcomp_impl." in name and tag not in name):
                continue
            archive.extract(name, out)
PY
du -sh "$out"
