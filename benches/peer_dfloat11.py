"""DFloat11 0.5: its decoding kernel, and its modules whose weights are offloaded.

Its package compresses in Python, a value at a time: minutes for 1 GB. ``encode`` makes the same
bytes with PyTorch, and ``check_encode`` compares them with the package's for a small tensor.
``python benches/peer_dfloat11.py`` does so on the host, and decodes them as the kernel does.
"""

from __future__ import annotations

import contextlib
import io
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import wheels

BYTES_PER_THREAD, THREADS = 8, 512
# Bits that a thread and a block decode; values that `encode` takes at once.
OF_THREAD = 8 * BYTES_PER_THREAD
OF_BLOCK = OF_THREAD * THREADS
CHUNK = 1 << 24


@dataclass
class Encoded:
    """A compressed tensor of bf16, with the names that the package has for its parts."""

    luts: torch.Tensor
    encoded_exponent: torch.Tensor
    sign_mantissa: torch.Tensor
    output_positions: torch.Tensor
    gaps: torch.Tensor

    def nbytes(self) -> int:
        """Returns the bytes of all parts."""
        return sum(getattr(self, part.name).nbytes for part in fields(self))


def package() -> ModuleType:
    """The package's compression."""
    return wheels.load("dfloat11/dfloat11_utils.py")


def model_package() -> ModuleType:
    """The package itself, with its models; it needs CuPy and accelerate."""
    place = SimpleNamespace(
        resource_filename=lambda _, name: str(wheels.FOLDER / "dfloat11" / name)
    )
    # Of setuptools, which no longer has it: it names the file of the kernel.
    sys.modules.setdefault("pkg_resources", place)  # type: ignore[arg-type]
    package()
    import dfloat11.dfloat11

    return dfloat11.dfloat11


def code_of(values: torch.Tensor) -> tuple[Any, torch.Tensor]:
    """Returns the package's Huffman code for a tensor, and the tables that its kernel takes."""
    its = package()
    with contextlib.redirect_stdout(io.StringIO()):
        _, counts = its.get_codec(values)
        code, _, table = its.get_32bit_codec(counts)
        return code, its.get_luts(table)


def encode(values: torch.Tensor, chunk: int = CHUNK) -> Encoded:
    """Compresses a tensor of bf16 on its device to the bytes that the package makes."""
    device, numbers = values.device, values.flatten().view(torch.int16)
    code, luts = code_of(numbers)
    table = {key: entry for key, entry in code.get_code_table().items() if isinstance(key, int)}
    lengths, words = torch.zeros(2, 256, dtype=torch.int64)
    for key, (length, word) in table.items():
        lengths[key], words[key] = length, word
    lengths, words = lengths.to(device), words.to(device)
    total = 0
    for part in numbers.split(chunk):
        total += int(lengths[exponents(part)].sum())
    stream = torch.zeros(total // 32 + 3, dtype=torch.int64, device=device)
    gaps = torch.zeros(total // OF_THREAD + 2, dtype=torch.int64, device=device)
    positions = torch.zeros(total // OF_BLOCK + 2, dtype=torch.int64, device=device)
    begin, last = 0, -1
    for turn, part in enumerate(numbers.split(chunk)):
        each = exponents(part)
        length = lengths[each]
        until = begin + length.cumsum(0)
        first = until - length
        # The first bit of a code is the highest one of its word.
        shifted = words[each] << (64 - first % 32 - length)
        stream.index_add_(0, first // 32, shifted >> 32 & 0xFFFFFFFF)
        stream.index_add_(0, first // 32 + 1, shifted & 0xFFFFFFFF)
        for starts, bits in ((gaps, OF_THREAD), (positions, OF_BLOCK)):
            # The first code that begins in each piece. All have one: codes have 32 bits at most.
            earlier = torch.cat([torch.full_like(first[:1], last), first[:-1]])
            at = torch.nonzero(first // bits != earlier // bits).flatten()
            found = first[at] % bits if starts is gaps else at + turn * chunk
            starts[first[at] // bits] = found
        begin, last = int(until[-1]), int(first[-1])
    count = numbers.numel()
    used_gaps, used_positions = last // OF_THREAD + 1, last // OF_BLOCK + 1
    used = total // 8
    if total % 8 != 0:
        used += 1
        # The rest of the last byte is the beginning of the code for the end.
        end_length, end = code.get_code_table()[code._eof]
        tail = end << 64 >> end_length >> total % 32
        stream[total // 32] |= tail >> 32
        # It counts as a code if it begins a piece.
        if total // OF_THREAD > last // OF_THREAD:
            gaps[total // OF_THREAD] = total % OF_THREAD
            used_gaps += 1
        if total // OF_BLOCK > last // OF_BLOCK:
            positions[total // OF_BLOCK] = count
            used_positions += 1
    blocks = -(-used // (THREADS * BYTES_PER_THREAD))
    gaps = torch.nn.functional.pad(gaps[:used_gaps], (0, THREADS * blocks - used_gaps))
    positions[used_positions] = count
    encoded = torch.stack([stream >> shift & 255 for shift in (24, 16, 8, 0)], 1).flatten()[:used]
    bits = torch.stack([gaps >> shift & 1 for shift in (4, 3, 2, 1, 0)], 1).reshape(-1, 8)
    weights = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], device=device)
    return Encoded(
        luts=luts.to(device),
        encoded_exponent=encoded.to(torch.uint8),
        sign_mantissa=(numbers >> 8 & 0x80 | numbers & 0x7F).to(torch.uint8),
        output_positions=positions[: used_positions + 1].to(torch.int32),
        gaps=(bits * weights).sum(1).to(torch.uint8),
    )


def exponents(numbers: torch.Tensor) -> torch.Tensor:
    """Returns the exponents of bf16 numbers."""
    return (numbers >> 7 & 0xFF).to(torch.int64)


def check_encode(values: torch.Tensor, chunk: int = CHUNK) -> None:
    """Raises if ``encode`` does not make the bytes that the package makes."""
    its, flat = package(), values.flatten()
    code, luts = code_of(flat.cpu().view(torch.int16))
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        encoded, other, positions, gaps, _ = its.encode_weights(
            [flat.cpu()], code, BYTES_PER_THREAD, THREADS
        )
    made = encode(flat, chunk)
    expected = Encoded(luts, encoded, other, positions.view(torch.int32), gaps)
    for part in fields(Encoded):
        if not torch.equal(getattr(made, part.name).cpu(), getattr(expected, part.name)):
            raise RuntimeError(f"{part.name} is not what DFloat11 0.5 makes")


class Kernel:
    """The package's kernel, and what it decodes."""

    def __init__(self, encoded: Encoded) -> None:
        import cupy

        self.encoded = encoded
        path = str(wheels.FOLDER / "dfloat11" / "decode.ptx")
        self.function = cupy.RawModule(path=path).get_function("decode")
        count = encoded.sign_mantissa.numel()
        self.target = torch.empty(count, dtype=torch.bfloat16, device="cuda")
        positions = encoded.output_positions.cpu()
        most = int((positions[1:] - positions[:-1]).max())
        self.shared = THREADS * 4 + 4 + most * 2
        self.blocks = positions.numel() - 1
        self.stream = cupy.cuda.ExternalStream(torch.cuda.current_stream().cuda_stream)

    def decode(self) -> None:
        """Queues decompressing, as the package does."""
        it = self.encoded
        pointers = [
            part.data_ptr()
            for part in (
                it.luts,
                it.encoded_exponent,
                it.sign_mantissa,
                it.output_positions,
                it.gaps,
                self.target,
            )
        ]
        counts = [it.luts.shape[0], it.encoded_exponent.numel(), self.target.numel()]
        with self.stream:
            self.function((self.blocks,), (THREADS,), (*pointers, *counts), shared_mem=self.shared)


def offload(
    model: torch.nn.Module, layers: list[str], folder: Path, device: str = "cuda:0"
) -> list[Any]:
    """Compresses the linear weights of layers; the package offloads them from a file in a folder.

    Returns hooks to remove, which raise if a layer uses other weights than it had.
    """
    from safetensors.torch import save_file

    its, parts = model_package(), linear_parts(model.get_submodule(layers[0]))
    state, weights = {}, []
    for layer in layers:
        module = model.get_submodule(layer)
        own = [module.get_submodule(part).weight.detach() for part in parts]
        weights.append(own)
        encoded = encode(torch.cat([weight.flatten() for weight in own]))
        for part in fields(Encoded):
            tensor = getattr(encoded, part.name).cpu()
            is_position = part.name == "output_positions"
            state[f"{layer}.{part.name}"] = tensor.view(torch.uint8) if is_position else tensor
        sizes = torch.tensor([weight.numel() for weight in own])
        state[f"{layer}.split_positions"] = torch.cumsum(sizes, 0)[:-1]
    save_file(state, folder / "model.safetensors")
    pattern = "|".join(layer.replace(".", r"\.") for layer in layers)
    with contextlib.redirect_stderr(io.StringIO()):
        its.DFloat11Model.from_single_file(
            str(folder / "model.safetensors"),
            pattern_dict={pattern: parts},
            bfloat16_model=model,
            device=device,
            cpu_offload=True,
        )
    return [
        model.get_submodule(layer).register_forward_hook(comparing(parts, own))
        for layer, own in zip(layers, weights)
    ]


def comparing(parts: list[str], weights: list[torch.Tensor]) -> Any:
    """Returns a hook that compares the weights of a module's parts."""

    def compare(module: torch.nn.Module, *_: Any) -> None:
        for part, weight in zip(parts, weights):
            if not torch.equal(module.get_submodule(part).weight, weight):
                raise RuntimeError(f"{part} is not what it was before DFloat11 compressed it")

    return compare


def linear_parts(module: torch.nn.Module) -> list[str]:
    """Returns the names of the linear modules of one."""
    return [name for name, part in module.named_modules() if isinstance(part, torch.nn.Linear)]


def decode_on_host(encoded: Encoded) -> torch.Tensor:
    """Decodes what ``encode`` made, block by block and bit by bit, as the kernel does."""
    luts, data = encoded.luts.tolist(), encoded.encoded_exponent.tolist()
    positions, lengths = encoded.output_positions.tolist(), luts[-1]
    whole = int.from_bytes(bytes(data), "big")
    bits = 8 * len(data)
    packed = "".join(f"{byte:08b}" for byte in encoded.gaps.tolist())
    found: list[int] = []
    for block, first in enumerate(positions[:-1]):
        if first != len(found):
            raise RuntimeError(f"block {block} begins at value {first}, not at {len(found)}")
        for thread in range(block * THREADS, (block + 1) * THREADS):
            at = thread * OF_THREAD + int(packed[5 * thread : 5 * thread + 5], 2)
            while at < (thread + 1) * OF_THREAD and len(found) < positions[-1] and at < bits:
                table = 0
                for level in range(4):
                    byte = whole << 40 >> bits + 40 - at - 8 * level - 8 & 255
                    value = luts[table][byte]
                    if value < 240:
                        break
                    table = 256 - value
                found.append(value)
                at += lengths[value]
    exponent = torch.tensor(found, dtype=torch.int32)
    rest = encoded.sign_mantissa.to(torch.int32)
    numbers = (rest & 0x80) << 8 | exponent << 7 | rest & 0x7F
    return numbers.to(torch.int16).view(torch.bfloat16)


def main() -> int:
    """Checks the encoder on the host."""
    torch.manual_seed(1)
    for count in (100, 1000, 4096, 12345, 30001, 30002, 60003):
        values = torch.randn(count, dtype=torch.bfloat16) * 0.02
        for chunk in (CHUNK, 4096, 1000, 17):
            check_encode(values, chunk)
        if not torch.equal(decode_on_host(encode(values)), values):
            raise RuntimeError(f"{count} values are not restored")
    print("the bytes are those of DFloat11 0.5, and restore the values")
    return 0


if __name__ == "__main__":
    sys.exit(main())
