"""A model whose weights are offloaded."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from .._progress import Callback
from ..experts import ExpertCache
from ..offloader import Offloader
from ..offloader_info import OffloaderStats, RebalanceProgress, ResizeProgress
from ..plan import Plan
from . import _operators
from ._expert_caches import close
from ._experts import FusedExperts
from ._modules import OffloadedModules, weights_in_use
from ._repack import reconcile, repacked_modules
from ._state import state_hooks
from ._steps import Verify
from ._weights import Weights


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
        experts: Sequence[FusedExperts] = (),
        offloader: Offloader | None = None,
    ) -> None:
        self.model = model
        self.plan = plan
        self._weights = Weights(
            model, plan, device, buffers, verify, overlap_steps, progress, experts, offloader
        )
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
    def expert_caches(self) -> list[ExpertCache]:
        """The caches of the model's experts, with their counters; empty if it has none."""
        return [pool.cache for pool in self._weights.expert_pools]

    def reset_experts(self) -> None:
        """Empties the caches of experts, between steps.

        For weights of experts that were changed in a way that PyTorch does not count, or that are
        read by graphs, which do not look for changes.
        """
        self._weights.reset_experts()

    @property
    def in_place(self) -> dict[str, str]:
        """The weights that are read in place although the plan copies them, and why, by name.

        A weight that something still uses after the forward of its layer, or that the forward
        changes, is found in the first step.
        """
        return dict(self._weights.in_place)

    def read(self, name: str) -> torch.Tensor:
        """Returns a copy of an offloaded weight in the host's memory, also of a compressed one."""
        weight = self._weights.named(name)
        if weight is None or not self._weights.is_offloaded(weight):
            raise KeyError(f"{name!r} is not the name of an offloaded weight")
        with self._weights.lock:
            given = weight.given(name)
            if given is not None:
                return given.detach().to("cpu", copy=True)
            return self._weights.read(weight)

    def acquire_group(self, group: int) -> None:
        """Makes the current stream wait until a group is on the device."""
        self._weights.acquire_group(group)

    def release_group(self, group: int) -> None:
        """Declares the work queued on the current stream the last use of a group."""
        self._weights.release_group(group)

    def reset(self) -> None:
        """Ends a step that was abandoned between two layers."""
        self.offloader.reset_all(self._weights.stream())

    def resize(
        self,
        *,
        device_bytes: int | None = None,
        offload_bytes: int | None = None,
        graphs_dropped: bool = False,
        wait: bool = True,
        timeout: float | None = None,
    ) -> ResizeProgress:
        """Changes the device memory of the weights, between steps; see :meth:`Offloader.resize`.

        Needs :func:`offload` with ``fixed_addresses``. Compiled code and graphs stay valid; code is
        compiled again if a layer has too few slots for the experts of a call, or enough again.
        """
        with self._weights.lock:
            return self.offloader.resize(
                device_bytes,
                self._weights.stream(),
                offload_bytes=offload_bytes,
                graphs_dropped=graphs_dropped,
                wait=wait,
                timeout=timeout,
            )

    def resize_advance(self) -> ResizeProgress:
        """Goes on, between steps, with a resize that does not wait; returns its progress."""
        with self._weights.lock:
            return self.offloader.resize_advance(self._weights.stream())

    def prefer(
        self,
        name: str,
        weight: float,
        *,
        rows: slice | range | None = None,
        nbytes: range | None = None,
    ) -> None:
        """Notes how often a step reads rows of a weight, or bytes of it; all of it without both.

        ``weight`` is the number of times, such as 0.1 for an expert that a tenth of the steps use:
        ``prefer("experts.w13", 0.1, rows=range(3, 4))``. Rows are along the first dimension; a
        range or slice of them has step 1. See :meth:`Offloader.prefer`.
        """
        if rows is not None and nbytes is not None:
            raise TypeError("give rows or nbytes, not both")
        with self._weights.lock:
            info = self.offloader.parameter_info(name)
            part = nbytes if nbytes is not None else range(info.span_bytes)
            unit = 1
            if rows is not None:
                count = info.shape[0] if info.shape else 1
                part = range(count)[rows] if isinstance(rows, slice) else rows
                if info.span_bytes % max(count, 1) or info.strides[:1] != (
                    math.prod(info.shape[1:]),
                ):
                    raise ValueError(f"the rows of {name!r} are not one after another: give nbytes")
                unit = info.span_bytes // max(count, 1)
            if part.step != 1:
                raise ValueError(f"asked to prefer every {part.step}th of {name!r}: give step 1")
            offset, size = part.start * unit, len(part) * unit
            self.offloader.prefer(name, weight, offset=offset, nbytes=size)

    def rebalance(self, max_bytes: int) -> RebalanceProgress:
        """Moves hot pieces to the device and cold ones off it; see :meth:`Offloader.rebalance`.

        For calls between steps; one call copies at most ``max_bytes``.
        """
        with self._weights.lock:
            return self.offloader.rebalance(max_bytes, self._weights.stream())

    def sleep(self) -> None:
        """Frees all device memory of the weights until :meth:`wake`."""
        with self._weights.lock:
            self.offloader.sleep(self._weights.stream())

    def wake(self) -> None:
        """Takes the device memory again that :meth:`sleep` freed."""
        with self._weights.lock:
            self.offloader.wake(self._weights.stream())

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
            close(list(self._weights.experts.values()), self._weights.device)
            self._weights.experts.clear()
            self.offloader.around_moves = None
            self.offloader.close()
        if device is not None:
            self.model.to(device)

    def _attach(self) -> None:
        """Makes the groups' modules run in windows, and registers hooks, after a change."""
        self._unhook()
        weights = self._weights
        for group, window in weights.windows.items():
            self._modules.attach(weights.modules[group], window)
        for experts in weights.experts.values():
            self._modules.attach(experts.module, experts)
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
