"""Clears the CUDA code of a shared library for all but one architecture: it then compresses well.

    python prune_fatbin.py LIBRARY SM

Of each fat binary the cubins for that architecture stay, else the newest PTX that it can compile.
All other code is overwritten with zeros, so that no offset changes.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path

MAGIC = 0xBA55ED50
CONTAINER = struct.Struct("<IHHQ")  # magic, version, bytes of this header, bytes of the entries
ENTRY = struct.Struct("<HHIQ")  # kind, version, bytes of this header, bytes of the code
ARCHITECTURE = 28  # offset of the architecture in an entry's header
PTX, CUBIN = 1, 2


def entries(image: bytearray, begin: int, end: int) -> list[tuple[int, int, int, int]]:
    """Kind, architecture, offset and bytes of each piece of code between two offsets."""
    found = []
    while begin + 64 <= end:
        kind, _, header, size = ENTRY.unpack_from(image, begin)
        if kind not in (PTX, CUBIN) or not 64 <= header <= 4096:
            break
        (architecture,) = struct.unpack_from("<I", image, begin + ARCHITECTURE)
        found.append((kind, architecture, begin + header, size))
        begin += header + size
    return found


def prune(image: bytearray, architecture: int) -> int:
    """Clears code in place. Returns the bytes that stay."""
    kept, position = 0, 0
    while (position := image.find(MAGIC.to_bytes(4, "little"), position)) >= 0:
        _, version, header, size = CONTAINER.unpack_from(image, position)
        if version != 1 or header != CONTAINER.size or position + header + size > len(image):
            position += 4
            continue
        found = entries(image, position + header, position + header + size)
        stay = [entry for entry in found if entry[:2] == (CUBIN, architecture)]
        if not stay:
            stay = sorted(entry for entry in found if entry[0] == PTX and entry[1] <= architecture)[
                -1:
            ]
        for entry in found:
            if entry in stay:
                kept += entry[3]
            else:
                image[entry[2] : entry[2] + entry[3]] = bytes(entry[3])
        position += header + size
    return kept


if __name__ == "__main__":
    path = Path(sys.argv[1])
    contents = bytearray(path.read_bytes())
    print(f"{path.name}: {prune(contents, int(sys.argv[2])) / 1e6:.1f} MB of device code stay")
    path.write_bytes(contents)
