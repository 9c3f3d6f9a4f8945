"""A model whose weights are offloaded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from .._progress import Callback
from ..offloader import Offloader, OffloaderStats
from ..plan import Plan
from . import _operators
from ._modules import OffloadedModules, weights_in_use
from ._repack import reconcile, repacked_modules
from ._state import state_hooks
from ._weights import Verify, Weights


class OffloadHandle:
    """A model whose weights are offloaded; made by :func:`offload`."""

    def __init__(
        self,
        model: torch.nn.Module,
        plan: Plan,
        device: torch.device,
        buffers: bool = False,
        verify: Verify = "first-step",
        overlap_steps: bool = False,
        progress: Callback | None = None,
    ) -> None:
        self.model = model
        self.plan = plan
        self._weights = Weights(model, plan, device, buffers, verify, overlap_steps, progress)
        self._weights.handle = self
        self.missing_keys: list[str] = []
        """The names of the model that no file of its checkpoint has."""
        self.unexpected_keys: list[str] = []
        """The names in the files that the model does not have."""
        self._modules = OffloadedModules(self._weights)
        self._hooks: list[Any] = []
        self._attach()

    @property
    def offloader(self) -> Offloader:
        """The offloader that holds the weights."""
        return self._weights.offloader

    @property
    def stats(self) -> OffloaderStats:
        """The offloader's counters."""
        return self.offloader.stats

    @property
    def in_place(self) -> dict[str, str]:
        """The weights that are read in place although the plan copies them, and why, by name.

        A weight that something still uses after the forward of its layer, or that the forward
        changes, is found in the first step.
        """
        return dict(self._weights.in_place)

    def acquire_group(self, group: int) -> None:
        """Makes the current stream wait until a group is on the device."""
        self._weights.acquire_group(group)

    def release_group(self, group: int) -> None:
        """Declares the work queued on the current stream the last use of a group."""
        self._weights.release_group(group)

    def reset(self) -> None:
        """Ends a step that was abandoned between two layers."""
        self.offloader.reset_all(self._weights.stream())

    def join(self) -> None:
        """Makes the current stream wait for every copy: the end of a capture of part of a step."""
        self.offloader.join(self._weights.stream())

    @contextmanager
    def repack(self) -> Iterator[Iterator[tuple[str, torch.nn.Module]]]:
        """For code that changes weights, such as quantization::

            with handle.repack() as modules:
                for name, module in modules:
                    quantize(module)

        One module at a time, in the order of the groups, has its weights on the device; the other
        weights are read in place if the whole model is called meanwhile. Weights that were changed,
        replaced, renamed, added or removed in it are offloaded as the plan says.
        """
        weights = self._weights
        with weights.lock:
            weights.paused = True
            modules: Any = repacked_modules(weights)
            try:
                yield modules
            finally:
                try:
                    modules.close()
                finally:
                    weights.paused = False
                    self._attach()

    def reconcile(self) -> None:
        """Takes the weights that were added to the groups' modules, replaced or removed.

        Replaced ones are found at the next step, too; those of an adapter, for example, stay on the
        device beyond the budget until this is called. If the budget has no space for them, an error
        is raised, and they stay there.
        """
        with self._weights.lock:
            try:
                reconcile(self._weights)
            finally:
                self._attach()
                self._weights.begin_step()  # copies in slots may be out of date

    def remove(self, device: str | torch.device | None = None) -> None:
        """Makes all weights resident, bit for bit, and closes the offloader.

        They are then on the device that the model runs on, or on ``device``, such as "cpu", where
        the model is moved. If the memory does not suffice, nothing changes.
        """
        with self._weights.lock:
            self._weights.detach(self._weights.device if device is None else torch.device(device))
            self._unhook()
            self._modules.detach()
            _operators.unregister(self._weights.number)
            self.offloader.close()
        if device is not None:
            self.model.to(device)

    def _attach(self) -> None:
        """Makes the groups' modules run in windows, and registers hooks, after a change."""
        self._unhook()
        weights = self._weights
        for group, window in weights.windows.items():
            self._modules.attach(weights.modules[group], window)
        if self.model not in [weights.modules[group] for group in weights.windows]:
            self._modules.attach(self.model, None)
        self._hooks = state_hooks(weights)

    def _unhook(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()


def handle_of(model: torch.nn.Module) -> OffloadHandle:
    """Returns the handle of an offloaded model; raises ValueError if it is not offloaded."""
    weights = weights_in_use(model)
    handle: OffloadHandle | None = None if weights is None else weights.handle
    if handle is None or handle.model is not model:
        raise ValueError(f"asked for the handle of {type(model).__name__}, which is not offloaded")
    return handle
