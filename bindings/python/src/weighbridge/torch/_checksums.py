"""Checksums of weights, by which changes are found that PyTorch does not count."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from ._weight import Weight

_WIDTH = 1024
_ODD = 0x9E3779B97F4A7C15 - 2**64


def checksum(weight: Weight) -> torch.Tensor:
    """Returns a number that depends on each byte of a weight's home and on its place."""
    home = weight.home
    assert home is not None
    count = 1 + sum((n - 1) * stride for n, stride in zip(home.shape, home.stride()))
    flat = home.detach().as_strided((count,), (1,))
    flat = flat.view(torch.uint8)
    for wider in (torch.int32, torch.int16):
        if flat.numel() % wider.itemsize == 0 and weight.home_address % wider.itemsize == 0:
            flat = flat.view(wider)
            break
    whole = flat.numel() // _WIDTH * _WIDTH
    table, rest = flat[:whole].view(-1, _WIDTH), flat[whole:]
    sums = (table.sum(1, dtype=torch.int64), table.sum(0, dtype=torch.int64), rest.long())
    return torch.stack([_weighted(numbers) for numbers in sums]).sum()


def _weighted(numbers: torch.Tensor) -> torch.Tensor:
    places = torch.arange(1, numbers.numel() + 1, device=numbers.device)
    return (numbers * (places * _ODD)).sum()
