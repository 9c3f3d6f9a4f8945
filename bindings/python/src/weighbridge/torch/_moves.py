"""Weights that move: what a resize, a rebalance or an arbiter does to their homes, and to what was
changed in place."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from ..errors import Status, WeighbridgeError
from ..offloader import Move
from ..offloader_info import OffloaderParameterInfo
from ._changes import separate, separate_others
from ._checksums import checksum
from ._homes import homes_at, part_home, where_of
from ._tensors import copy_bytes, like, refuse, typed
from ._weight import Weight, Where

if TYPE_CHECKING:
    from ._weights import Weights

_MOST_WAITS = 100
_WAIT_SECONDS = 1e-4
Infos = dict[str, OffloaderParameterInfo]


class Moves:
    """Keeps homes, and the bytes in them, right while the offloader moves weights, which it does
    only within :meth:`around`.

    A weight at its own address may leave it for a copy of its bytes: that of an offloaded weight in
    host memory, one that ``keep_host_copy`` makes, or one that a resize which is not done has
    begun. PyTorch does not count all changes, such as those through ``weight.data``, by which
    adapters are merged. So what a copy lacks is found by checksums, which a device computes at the
    rate of its memory.
    """

    def __init__(self, weights: Weights, keeps_host_copies: bool) -> None:
        self._weights = weights
        self._keeps_host_copies = keeps_host_copies
        self._sums: dict[int, torch.Tensor] = {}
        """Checksums of what the copies have, by the addresses of the weights."""
        self._moving: list[Weight] = []
        """What a resize that is not done moves, tied weights, too."""
        self._is_around = False
        self._late: dict[Weight, torch.Tensor] = {}
        """What these weights are to have where they go, which their copies lack."""
        self._note(self._with_copies(weights.infos()))

    @contextmanager
    def around(self, what: Move) -> Iterator[None]:
        """Runs calls of the offloader that may move weights."""
        weights = self._weights
        with weights.lock:
            if self._is_around or weights.is_capturing() or weights.offloader.closed:
                yield  # in a capture to what raises
                return
            if not weights.placed:
                weights.follow_unfinished()
            weights.finish()  # queued work may use, or change, any weight
            separate(weights)
            separate_others(weights)
            self._prepare(what == "begin" or (what == "rebalance" and self._keeps_host_copies))
            self._is_around = True
            weights.placed = False
            try:
                yield
                if what == "rebalance" and not weights.runs:
                    self._finish_rebalance()
            finally:
                self._is_around = False
                self.follow()
                weights.placed = True

    # Before.

    def _prepare(self, begins: bool) -> None:
        """Gives copies what was changed in place."""
        moving = _by_address(self._moving)
        found = {**moving, **(self._with_copies(self._weights.infos()) if begins else {})}
        for address, weight in self._changed(found).items():
            home = weight.home
            assert home is not None
            if weight.stored is not None:
                copy_bytes(home, weight.stored)
            if address in moving:
                true = weight.stored
                if true is None:
                    true = like(home, home.device)
                    copy_bytes(home, true)
                self._late[weight] = true
                continue
            if weight.stored is None:
                self._weights.write(weight, home)
            self._note({address: weight})

    def write_back(self, some: list[Weight]) -> None:
        """Gives host memory what was changed in place of offloaded weights: a replacement of one
        of a unit copies all of it to the device again."""
        found = _by_address(weight for weight in some if weight.stored is not None)
        for weight in self._changed(found).values():
            if weight.home is not None and weight.stored is not None:
                copy_bytes(weight.home, weight.stored)

    def _with_copies(self, infos: Infos) -> dict[int, Weight]:
        """Returns the weights at their own addresses that have a copy in host memory."""
        kept = self._keeps_host_copies
        return _by_address(
            weight
            for weight in self._weights.all
            if weight.name in infos
            and (weight.stored is not None or (kept and infos[weight.name].resident_bytes > 0))
        )

    def _changed(self, found: dict[int, Weight]) -> dict[int, Weight]:
        """Returns those of which the copies lack something."""
        if not found:
            return {}
        now = [checksum(weight) for weight in found.values()]
        known = [self._sums.get(address, sum + 1) for address, sum in zip(found, now)]
        differ = (torch.stack(now) != torch.stack(known)).tolist()
        return {address: found[address] for address, differs in zip(found, differ) if differs}

    def _note(self, found: dict[int, Weight]) -> None:
        self._sums.update((address, checksum(weight)) for address, weight in found.items())

    # After.

    def _finish_rebalance(self) -> None:
        """Waits a moment for the copies of a rebalance, which are small: parameters in pieces are
        not."""
        offloader, stream = self._weights.offloader, self._weights.stream()
        for _ in range(_MOST_WAITS):
            if not any(info.moving for info in offloader.parameter_infos()):
                break
            offloader.rebalance(0, stream)
            time.sleep(_WAIT_SECONDS)

    def follow(self) -> None:
        """Takes notice of where the weights are."""
        weights = self._weights
        infos = weights.infos()
        before = self._moving
        moved = self._move_all(infos, before)
        self._moving = [w for w in weights.all if w.name in infos and infos[w.name].moving]
        for weight in weights.all:
            if weight.part_of in moved and weight.part_of.home is not None:
                weight.move(*part_home(weight, weight.part_of))
        for left in moved.values():
            for memory in left:
                refuse(memory, _LEFT)
        self._restore()
        # A moving weight has changed if it is no longer what it was when it began to.
        ended = _by_address([*moved, *before])
        begun = _by_address(weight for weight in self._moving if weight not in before)
        moving = _by_address(self._moving)
        copied = self._with_copies(infos)
        self._note({at: weight for at, weight in ended.items() if at not in moving})
        self._note({at: weight for at, weight in begun.items() if at not in copied})
        weights.finish()
        weights.follow_moves()

    def _move_all(self, infos: Infos, moving: list[Weight]) -> dict[Weight, list[torch.Tensor]]:
        """Gives weights that have moved another home. Returns them, with what they leave for
        good."""
        weights = self._weights
        stays = _read_in_host_memory(weights, infos)
        moved: dict[Weight, list[torch.Tensor]] = {}
        for weight in weights.all:
            info, was = infos.get(weight.name), weight.where
            if info is None or weight.part_of is not None:
                continue
            where = where_of(info, info.host_address in stays)
            if where is was:
                continue
            home, stored = weight.home, weight.stored
            if was is Where.HOST and weight in moving and info.at_address and home is not None:
                # Copied before now, and perhaps changed since.
                copy_bytes(home, typed(weight.tensor, weights.offloader.view(weight.name)))
            weight.move(*homes_at(where, weight.tensor, weight.name, weights.offloader))
            moved[weight] = []
            if home is None or stored is None:
                continue
            if was is Where.HOST:
                moved[weight] = [home, stored]
            elif was is Where.DEVICE:
                moved[weight] = [home]
        return moved

    def _restore(self) -> None:
        """Gives weights what was changed while they moved."""
        for weight, true in list(self._late.items()):
            if weight.where is Where.DEVICE and weight.home is not None:
                copy_bytes(true, weight.home)
            elif weight.where is Where.ASLEEP:
                try:
                    self._weights.write(weight, true)
                except WeighbridgeError as error:
                    if error.status != Status.BUSY:
                        raise
                    continue  # others are still moving
            del self._late[weight]


def _read_in_host_memory(weights: Weights, infos: Infos) -> set[int]:
    """Returns the host addresses of what is read in place there, wherever else it comes to:
    something uses that memory. Tied weights are read there, too, from now on."""
    held = [w for w in weights.all if w.where is Where.HOST and w.name in infos]
    addresses = {weight: infos[weight.name].host_address or 0 for weight in held}
    found = {at for weight, at in addresses.items() if weight.name in weights.in_place}
    why = "tied to a weight that is read in place"
    tied = [weight for weight, at in addresses.items() if at in found]
    for window in weights.windows.values() if tied else ():
        window.keep_at_home({use.weight: why for use in window.uses if use.weight in tied})
    return found


_LEFT = (
    "asked to use memory that a weight of an offloaded model has left by a resize, through a view "
    "of it, its .data or a state_dict() that was made before: take it from the weight again"
)


def _by_address(weights: Iterator[Weight] | list[Weight]) -> dict[int, Weight]:
    """Returns the weights that are at addresses of their own, tied ones once."""
    found: dict[int, Weight] = {}
    for weight in weights:
        if weight.where is Where.DEVICE and weight.part_of is None:
            found.setdefault(weight.home_address, weight)
    return found
