"""Compiles the CUDA kernels to PTX, or checks that what is committed is what they give.

    python tools/ptx.py [--check]

The compiler is NVRTC of the PyPI package that tests/requirements.txt pins: it needs no GPU, and its
version fixes the PTX version, which drivers from R525 on know.
"""

from __future__ import annotations

import argparse
import ctypes
import re
import sys
from importlib.metadata import files
from pathlib import Path

KERNELS = Path(__file__).resolve().parents[1] / "kernels"
PACKAGE = "nvidia-cuda-nvrtc-cu11"
# The second has instructions for 8-bit floats. The others use none: their PTX would be the same.
ARCHITECTURES = ("sm_75", "sm_90")
BASE_ONLY = ("codec.cu", "experts.cu")


def compiler() -> ctypes.CDLL:
    """NVRTC."""
    for file in files(PACKAGE) or ():
        if file.name.startswith("libnvrtc.so"):
            return ctypes.CDLL(str(file.locate()))
    raise FileNotFoundError(f"{PACKAGE} has no libnvrtc: install tests/requirements.txt")


def compile_to_ptx(source: Path, architecture: str) -> str:
    """The PTX of a source for an architecture."""
    nvrtc, program = compiler(), ctypes.c_void_p()
    options = [
        f"--gpu-architecture={architecture.replace('sm', 'compute')}",
        f"--include-path={KERNELS}",
        "--std=c++17",
        "--fmad=false",
    ]
    text = source.read_bytes()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), text, source.name.encode(), 0, None, None)
    array = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    status = nvrtc.nvrtcCompileProgram(program, len(options), array)
    size = ctypes.c_size_t()
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    if status != 0:
        raise RuntimeError(log.value.decode())
    nvrtc.nvrtcGetPTXSize(program, ctypes.byref(size))
    ptx = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetPTX(program, ptx)
    # Without the lines that mark inline assembly, since the library has this text.
    return re.sub(r"\t// (begin|end) inline asm\n", "", ptx.value.decode())


def main() -> int:
    """Writes or checks; 1 when a check finds a difference."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    for source in sorted(KERNELS.glob("*.cu")):
        for architecture in ARCHITECTURES[: 1 if source.name in BASE_ONLY else None]:
            path = source.with_suffix(f".{architecture}.ptx")
            ptx = compile_to_ptx(source, architecture)
            if not check:
                path.write_text(ptx)
            elif not path.exists() or path.read_text() != ptx:
                print(
                    f"{path} is not what {source.name} gives: run `make kernels`", file=sys.stderr
                )
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
