"""The forward of a group's module: while it runs, the group's weights are in their slots."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Callable

import torch

from ..errors import Status, WeighbridgeError
from ._compiled import CompiledWindow, is_recording
from ._tensors import bytes_of, copy_bytes, references_to, users_of
from ._weight import Weight, version_of

if TYPE_CHECKING:
    from ._weights import Weights

Forward = Callable[..., Any]


class Use:
    """A weight in the slot of a group."""

    __slots__ = (
        *("address", "handle", "references", "slot", "statistics_of", "storage", "traced"),
        *("users", "weight"),
    )

    def __init__(self, weight: Weight, slot: torch.Tensor, traced: torch.Tensor) -> None:
        self.weight = weight
        self.slot = slot
        self.traced = traced
        """The same memory for compiled code, by a storage of its own."""
        self.statistics_of = [h.module for h in weight.holders if h.is_buffer()]
        """The modules that have it as a buffer."""
        self.address = slot.data_ptr()
        self.handle = slot.untyped_storage()
        self.storage = self.handle._cdata
        self.users = self.references = 0
        """Of the slot's storage, and of its object in Python, outside of the forward."""

    def count(self) -> None:
        """Takes what uses the slot now for what uses it outside of the forward."""
        self.users, self.references = users_of(self.storage), sys.getrefcount(self.handle)

    def may_have_changed(self, version: int) -> bool:
        """Returns whether the slot may have other bytes than home; ``version`` is PyTorch's count.
        Running statistics, which are changed in training, are not counted."""
        return version != self.weight.version or any(m.training for m in self.statistics_of)

    def bytes_before(self) -> torch.Tensor:
        """Returns bytes of the weight that a forward with the weight at home does not change."""
        found = bytes_of(self.slot)
        return found.clone() if self.weight.home_address == self.address else found

    def is_kept(self) -> bool:
        """Returns whether something uses the slot that does not outside of the forward."""
        return users_of(self.storage) > self.users or sys.getrefcount(self.handle) > self.references


class Window:
    """The forward of a group's module.

    Outside of it the weights are at home, where every use of them is right. Within, they are in
    slots, which are overwritten afterwards. So nothing may keep a slot: neither a result nor a
    tensor that was stored. The first run watches for that, with the weights at home: a weight that
    something keeps, or that the forward changes, is never put into the slot. Later runs check it
    again, and raise.
    """

    def __init__(self, weights: Weights, group: int) -> None:
        self.group = group
        self.uses: list[Use] = []
        self.watched = weights.verify == "off"
        self.compiled = CompiledWindow(weights.modules[group], weights.number, group, weights.order)
        self._weights = weights

    def set(self, uses: list[Use]) -> None:
        """Takes the group's weights that have a slot, after a change."""
        known = {use.weight for use in self.uses}
        if not all(use.weight in known for use in uses):
            self.watched = self._weights.verify == "off"
        self.uses = uses
        self.compiled.set(uses)
        for use in uses:
            use.count()

    @property
    def watches(self) -> bool:
        """Whether the next run watches what keeps or changes the weights."""
        return len(self.uses) > 0 and not self.watched and self._weights.reads_in_place

    def run(self, forward: Forward, args: Any, kwargs: Any) -> Any:
        """Calls the module's forward with the weights in the slot."""
        weights = self._weights
        if not weights.turns.take():
            return self._run_beside(forward, args, kwargs)
        try:
            if weights.paused or self._runs_at_home(args, kwargs):
                return forward(*args, **kwargs)
            with weights.turns.windows:
                return self._run_open(forward, args, kwargs)
        finally:
            weights.lock.release()

    def _run_open(self, forward: Forward, args: Any, kwargs: Any) -> Any:
        weights = self._weights
        weights.follow(weights.offloaded(self.group))
        try:
            weights.acquire_group(self.group)
        except WeighbridgeError as error:
            if error.status != Status.BUSY or not weights.reads_in_place:
                raise
            # The layer runs inside of others, which use all of the slots.
            return forward(*args, **kwargs)
        watch = self.watches and not weights.is_capturing()
        run = self._watch if watch else self._run
        return run(forward, args, kwargs)

    def _run_beside(self, forward: Forward, args: Any, kwargs: Any) -> Any:
        """Calls the forward, with the weights at home, for a forward that waits for it."""
        if self.uses and not self._weights.reads_in_place:
            raise RuntimeError(
                "an offloaded model's forward waits for a layer that it calls on another thread, "
                "whose weights the device cannot read in place: call remove() first"
            )
        with self._weights.turns.beside():
            return forward(*args, **kwargs)

    def _run(self, forward: Forward, args: Any, kwargs: Any) -> Any:
        uses, entered = self.uses, []
        changed: list[tuple[Weight, torch.Tensor]] = []
        try:
            try:
                for use in uses:
                    weight = use.weight
                    if weight.in_slot == 0:
                        weight.tensor.data = use.slot
                    weight.in_slot += 1
                    entered.append(use)
                result = forward(*args, **kwargs)
            finally:
                self._leave(entered, changed)
        finally:
            try:
                if entered:
                    self._leave(entered, changed)  # an interrupt has ended that
            finally:
                self._weights.release_group(self.group)
            for weight, now in changed:
                self._weights.replace_closed(weight, now)
        if self._weights.verify != "off":
            self._check_kept(uses)
        return result

    def _leave(self, entered: list[Use], changed: list[tuple[Weight, torch.Tensor]]) -> None:
        """Takes the weights home, with what the forward changed in them. If it is interrupted,
        another call goes on: signals are handled after calls, so none comes between the last two
        statements of the loop."""
        while entered:
            use = entered[-1]
            weight = use.weight
            tensor, home = weight.tensor, weight.home
            if weight.in_slot == 1 and home is not None and tensor.data_ptr() == use.address:
                version = version_of(tensor)  # which other memory does not change
                if use.may_have_changed(version):
                    if weight.closed:
                        changed.append((weight, use.slot.clone()))
                    elif weight.home_address != use.address:
                        copy_bytes(use.slot, home)
                    weight.version = version
                tensor.data = home
            weight.in_slot -= 1
            entered.pop()

    def _check_kept(self, entered: list[Use]) -> None:
        """Raises RuntimeError if something still uses a slot."""
        kept = [use.weight for use in entered if use.weight.in_slot == 0 and use.is_kept()]
        self.refuse_kept(kept, "The result was discarded")

    def refuse_kept(self, kept: list[Weight], consequence: str) -> None:
        """Raises RuntimeError if any weight is kept after the forward."""
        if kept:
            names = ", ".join(repr(weight.name) for weight in kept)
            self.keep_at_home(dict.fromkeys(kept, "kept after the forward of its layer"))
            raise RuntimeError(
                f"{names}: something still uses the offloaded weight after the forward of its "
                "layer, such as a view of it that was returned or stored, and its device memory is "
                f"overwritten by other weights. {consequence}. From now on the weight is read in "
                "place: call the model again, or exclude the weight"
            )

    def _watch(self, forward: Forward, args: Any, kwargs: Any) -> Any:
        """Calls the forward with the weights at home, and notes which must stay there."""
        try:
            homes = [use.weight.tensor.untyped_storage() for use in self.uses]
            before = [references_to(home) for home in homes]
            had = [use.bytes_before() for use in self.uses]
            result = forward(*args, **kwargs)
            after = [references_to(home) for home in homes]
            reasons = {}
            for use, was, now, old in zip(self.uses, before, after, had):
                weight = use.weight
                if not weight.is_at_home():
                    continue  # given other memory: followed at the next run
                if now > was:
                    reasons[weight] = "kept after the forward of its layer"
                elif not torch.equal(bytes_of(weight.tensor), old):
                    reasons[weight] = "changed by the forward of its layer"
        finally:
            self._weights.release_group(self.group)
        self.watched = self._weights.verify == "first-step"
        self.keep_at_home(reasons)
        return result

    def keep_at_home(self, reasons: dict[Weight, str]) -> None:
        """Never puts these weights into the slot again."""
        reasons = {weight: why for weight, why in reasons.items() if not weight.closed}
        if reasons:
            self._weights.in_place.update({weight.name: why for weight, why in reasons.items()})
            self.set([use for use in self.uses if use.weight not in reasons])

    def _runs_at_home(self, args: Any, kwargs: Any) -> bool:
        """Returns whether no weight is to be put into the slot in this run."""
        if not self.uses or is_recording():
            if any(use.weight.closed for use in self.uses):
                raise RuntimeError(
                    "asked to record the operations of a layer of an offloaded model with "
                    f"{self._weights.closed_words}: call remove() first"
                )
            return True  # what records the operations would record the slots
        if self.compiled.needs_gradient(args, kwargs):
            # The backward pass reads the weights again, when their slots are overwritten.
            self._weights.check_gradients()
            return True
        return False
