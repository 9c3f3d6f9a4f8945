"""A model whose weights are offloaded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch

from .._progress import Callback
from ..offloader import Offloader, OffloaderStats
from ..plan import Plan
from . import _operators
from ._repack import repacked_modules
from ._state import state_dict_hooks
from ._tensors import address_of, like, put, weight_of
from ._weights import Weights


class OffloadHandle:
    """A model whose weights are offloaded; made by :func:`offload`."""

    def __init__(
        self,
        model: torch.nn.Module,
        plan: Plan,
        device: torch.device,
        groups: Literal["auto"] | Sequence[str] = "auto",
        buffers: bool = False,
        progress: Callback | None = None,
    ) -> None:
        self.model = model
        self.plan = plan
        self._groups = groups
        self._weights = Weights(model, plan, device, buffers, progress)
        self._number = _operators.register(self._weights)
        self._required_grad = {name: weight.requires_grad for name, weight in self._weights.named()}
        self._hooks: list[Any] = []
        self._refresh()

    @property
    def offloader(self) -> Offloader:
        """The offloader that holds the weights."""
        return self._weights.offloader

    @property
    def stats(self) -> OffloaderStats:
        """The offloader's counters."""
        return self.offloader.stats

    def acquire_group(self, group: int) -> None:
        """Makes the current stream wait until a group is on the device."""
        self._weights.acquire_group(group)

    def release_group(self, group: int) -> None:
        """Declares the work queued on the current stream the last use of a group."""
        self._weights.release_group(group)

    def reset(self) -> None:
        """Ends a step that was abandoned between two layers."""
        self.offloader.reset(self._weights.stream())

    def join(self) -> None:
        """Makes the current stream wait for every copy: the end of a capture of part of a step."""
        self.offloader.join(self._weights.stream())

    @contextmanager
    def repack(self) -> Iterator[Iterator[tuple[str, torch.nn.Module]]]:
        """For code that changes weights, such as quantization::

            with handle.repack() as modules:
                for name, module in modules:
                    quantize(module)

        One module at a time, in the order of the groups, has its weights on the device. Weights
        that were changed, replaced, renamed, added or removed in it are offloaded as the plan says.
        A weight has changed if it uses other memory than the offloader's.
        """
        self._unhook()
        modules: Any = repacked_modules(self._weights, self._groups)
        try:
            yield modules
        finally:
            modules.close()
            self._refresh()

    def remove(self) -> None:
        """Makes all weights resident on the device, bit for bit, and closes the offloader."""
        self._unhook()
        moved: dict[int, torch.Tensor] = {}
        for name, info in self._weights.infos().items():
            if info.span_bytes == 0:
                continue
            address = info.host_address or info.device_address or 0
            if address not in moved:  # tied weights have one address
                stored = self._weights.stored(name)
                if info.placement == "offloaded":
                    moved[address] = like(stored, self._weights.device)
                    moved[address].copy_(stored)
                else:
                    moved[address] = stored.clone() if info.owned else stored
            module, own = self._weights.module_of(name)
            weight = weight_of(module, own)
            if moved[address].data_ptr() != address_of(weight):
                weight = put(module, own, moved[address])
            wanted = self._required_grad.get(name, False) and weight.dtype.itemsize > 1
            weight.requires_grad_(wanted)
        _operators.unregister(self._number)
        self.offloader.close()

    def _refresh(self) -> None:
        """Points the weights at the offloader's memory, and registers hooks, after a change."""
        self._unhook()
        self._weights.point()
        infos = self._weights.infos()
        copied = {
            info.group for info in infos.values() if info.transfer_mode in ("on-demand", "prefetch")
        }
        for number in sorted(copied):
            self._hook_group(number)
        for name, info in infos.items():
            if info.placement == "offloaded":
                self._hooks += state_dict_hooks(self._weights, name)
        self.model.__dict__["_apply"] = self._apply

    def _unhook(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self.model.__dict__.pop("_apply", None)

    def _hook_group(self, group: int) -> None:
        """Acquires a group before its module's forward, and releases it afterwards."""
        weights, number = self._weights, self._number

        def acquire(_module: torch.nn.Module, args: Any, kwargs: Any) -> None:
            if torch.compiler.is_compiling():
                _operators.acquire(_operators.tensors_in(args, kwargs), number, group)
            else:
                weights.acquire_group(group)

        def release(_module: torch.nn.Module, _args: Any, result: Any) -> None:
            if torch.compiler.is_compiling():
                _operators.release(_operators.tensors_in(result), number, group)
            else:
                weights.release_group(group)

        module = self.model.get_submodule(self.plan.groups[group].name)
        self._hooks.append(module.register_forward_pre_hook(acquire, with_kwargs=True))
        self._hooks.append(module.register_forward_hook(release, always_call=True))

    def _apply(self, function: Any, recurse: bool = True) -> torch.nn.Module:
        """``Module._apply``, which ``to`` and ``half`` call; converts one weight at a time."""
        device = self._weights.device
        for name, info in self._weights.infos().items():
            if info.placement == "resident":
                continue
            stored = self._weights.stored(name).to(device)
            changed = function(stored)
            if changed.device != device:
                raise RuntimeError(
                    f"asked to move the model to {changed.device}; {name!r} is offloaded from "
                    f"{device}: call remove() first"
                )
            if changed.dtype != stored.dtype:
                self._weights.replace(name, changed)
        torch.nn.Module._apply(self.model, function, recurse)
        self._refresh()
        return self.model
