"""Weights of a model that is asleep: what uses one that has no memory then raises."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import Status, WeighbridgeError
from ._tensors import refusing, view_within
from ._weight import Weight

if TYPE_CHECKING:
    from ._weights import Weights


class Sleep:
    """Whether a model is asleep, and its weights without memory.

    Offloaded weights are in host memory as ever; those that the plan keeps on the device have none
    behind their addresses.
    """

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._asleep = False

    def follow(self) -> None:
        """Takes notice of what a resize has done."""
        weights = self._weights
        if weights.offloader.closed:
            return  # the handle was removed
        try:
            weights.offloader.begin_step(weights.stream())
        except WeighbridgeError as error:
            if error.status != Status.BUSY:
                raise
            self._asleep = True
            self.place()
        else:
            self.end()

    def place(self) -> None:
        """Takes the memory of weights that have got places while the model is asleep."""
        if self._asleep:
            for weight in self._weights.all:
                whole = weight.part_of or weight
                if whole.home is not None and whole.stored is None:
                    self._hide(whole)
                    if weight is not whole:
                        self._hide_part(weight, whole)

    def end(self) -> None:
        """Gives the weights their memory again, after the model was woken."""
        if self._asleep:
            self._asleep = False
            for weight in self._weights.all:
                weight.wake()

    def _hide(self, weight: Weight) -> None:
        if weight.awake is None:
            view = self._weights.offloader.view(weight.name)
            weight.sleep(refusing(weight.tensor, view, _why(weight)))

    def _hide_part(self, weight: Weight, whole: Weight) -> None:
        if weight.awake is None and weight.home is not None and whole.home is not None:
            weight.sleep(view_within(weight.tensor, weight.offset_in_whole, whole.home))


def _why(weight: Weight) -> str:
    return (
        f"asked to use {weight.name!r} of an offloaded model that is asleep, where it has no "
        "memory: call wake() or resize() of its handle first"
    )
