"""Host copies of resident weights, by which they leave the device."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ._weight import Weight
    from ._weights import Weights

_WIDTH = 1024
_ODD = 0x9E3779B97F4A7C15 - 2**64


class HostCopies:
    """The copies that ``keep_host_copy`` makes.

    PyTorch does not count all changes, such as those through ``weight.data``, by which adapters are
    merged. So these are found by checksums, which a device computes at the rate of its memory.
    """

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._sums: dict[int, torch.Tensor] = {}
        """Checksums of what the copies have, by the addresses of the residents."""
        for weight in self._residents():
            self._sums[weight.home_address] = _checksum(weight)

    def update(self) -> None:
        """Writes residents that were changed in place, which reaches their copies, too."""
        residents = list(self._residents())
        if not residents:
            return
        sums = [_checksum(weight) for weight in residents]
        known = [self._sums.get(w.home_address, s + 1) for w, s in zip(residents, sums)]
        changed = (torch.stack(sums) != torch.stack(known)).tolist()
        for weight, total, is_changed in zip(residents, sums, changed):
            if is_changed and weight.home is not None:
                self._weights.write(weight, weight.home)
                self._sums[weight.home_address] = total

    def _residents(self) -> Iterator[Weight]:
        """Returns the weights of which some is on the device now, tied ones once."""
        infos, seen = self._weights.infos(), {0}
        for weight in self._weights.all:
            info = infos.get(weight.name)
            if weight.stored is not None or info is None or weight.home_address in seen:
                continue
            if weight.refused is not None:
                continue  # asleep, or not yet awake: nothing can have changed it
            if info.owned and info.resident_bytes > 0:
                seen.add(weight.home_address)
                yield weight


def _checksum(weight: Weight) -> torch.Tensor:
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
