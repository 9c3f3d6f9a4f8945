"""A model whose weights are offloaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from ..offloader import Offloader, OffloaderStats
from ..plan import Parameter, Plan
from . import _operators
from ._groups import group_of_each
from ._state import state_dict_hooks
from ._tensors import address_of, dtype_of, like, put, tensor_of, weight_of, weights_of

if TYPE_CHECKING:
    from typing_extensions import Literal

    from .._progress import Callback


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
        self.torch_device = device
        self._groups = groups
        self._buffers = buffers
        # The host's own stream: there, torch runs on the calling thread, which waits for it.
        self._own_stream = plan.device.stream() if device.type == "cpu" else None
        self._offloader = Offloader(plan, self._stream(), progress=progress)
        self._number = _operators.register(self)
        self._add_scales()
        named = weights_of(model, buffers)
        self._names = [name for name, _ in named]
        self._wanted_gradients = {name: weight.requires_grad for name, weight in named}
        self._hooks: list[Any] = []
        self._point()
        self._hook()

    # What is where

    def _module_of(self, name: str) -> tuple[torch.nn.Module, str]:
        path, _, own = name.rpartition(".")
        return self.model.get_submodule(path), own

    def _add_scales(self) -> None:
        """Give modules a place for scales, which the plan has and the model had not."""
        known = {name for name, _ in weights_of(self.model, True)}
        for planned in self.plan.parameters:
            if planned.name not in known:
                module, own = self._module_of(planned.name)
                nothing = torch.empty(0, device="meta")
                module.register_parameter(own, torch.nn.Parameter(nothing, requires_grad=False))

    def _offloaded(self) -> list[str]:
        return [n for n in self._names if self._offloader.info(n).carrier != "resident"]

    def _point(self) -> None:
        """Let every weight be over the memory where its bytes are."""
        shared: Any = {}
        for name in self._names:
            module, own = self._module_of(name)
            weight = weight_of(module, own)
            info = self._offloader.info(name)
            if info.nbytes == 0 or info.device_address is None:
                continue
            if address_of(weight) != info.device_address:
                weight = put(module, own, tensor_of(self._offloader.view(name)), shared)
            if info.carrier != "resident":
                weight.requires_grad_(False)

    def _stream(self) -> Any:
        if self._own_stream is not None:
            return self._own_stream
        return torch.cuda.current_stream(self.torch_device).cuda_stream

    # Steps

    def _hook(self) -> None:
        for number, group in enumerate(self.plan.groups):
            carried = [
                name
                for name in self._names
                if self._offloader.info(name).group == number
                and self._offloader.info(name).carrier in ("prefetch", "on-demand")
            ]
            if not carried:
                continue
            module = self.model.get_submodule(group.name)
            acquire, release = self._callbacks(number)
            self._hooks.append(module.register_forward_pre_hook(acquire, with_kwargs=True))
            self._hooks.append(module.register_forward_hook(release, always_call=True))
        for name in self._offloaded():
            module, own = self._module_of(name)
            self._hooks += state_dict_hooks(self, module, own, name)
        self.model.__dict__["_apply"] = self._apply

    def _callbacks(self, group: int) -> tuple[Callable[..., None], Callable[..., None]]:
        number = self._number

        def acquire(_module: torch.nn.Module, args: Any, kwargs: Any) -> None:
            if torch.compiler.is_compiling():
                _operators.acquire(_operators.tensors_in(args, kwargs), number, group)
            else:
                self.acquire_group(group)

        def release(_module: torch.nn.Module, _args: Any, result: Any) -> None:
            if torch.compiler.is_compiling():
                _operators.release(_operators.tensors_in(result), number, group)
            else:
                self.release_group(group)

        return acquire, release

    def acquire_group(self, group: int) -> None:
        """Make the current stream wait until a group is there."""
        self._offloader.acquire(group, self._stream())
        if self._own_stream is not None:
            self._own_stream.synchronize()

    def release_group(self, group: int) -> None:
        """Say that what is queued on the current stream is the last use of a group."""
        self._offloader.release_group(group, self._stream())

    def reset(self) -> None:
        """End a step that was abandoned between two layers."""
        self._offloader.reset(self._stream())

    def join(self) -> None:
        """Make the current stream wait for every copy: where a capture of a part of a step ends."""
        self._offloader.join(self._stream())

    def stats(self) -> OffloaderStats:
        """What is held and was carried."""
        return self._offloader.stats

    # Weights in and out

    def true_weight(self, name: str) -> torch.Tensor:
        """A parameter's bytes: over host memory if it is offloaded, the parameter itself if not."""
        if self._offloader.info(name).carrier == "resident":
            weight: torch.Tensor = weight_of(*self._module_of(name))
            return weight.detach()
        return tensor_of(self._offloader.host_view(name))

    def _write(self, name: str, tensor: torch.Tensor) -> None:
        """Make a tensor the parameter's bytes, where those are kept."""
        self._offloader.replace(
            name,
            address_of(tensor),
            dtype_of(tensor),
            tuple(tensor.shape),
            tuple(tensor.stride()),
            self._stream(),
        )

    def _apply(self, function: Any, recurse: bool = True) -> torch.nn.Module:
        """``Module._apply``, which ``to`` and ``half`` come down to, one weight at a time."""
        for name in self._offloaded():
            true = self.true_weight(name).to(self.torch_device)
            changed = function(true)
            if changed.device != self.torch_device:
                raise RuntimeError(
                    f"asked to move the model to {changed.device}; {name!r} is offloaded from "
                    f"{self.torch_device}: call remove() first"
                )
            if changed.dtype != true.dtype:
                self._write(name, changed)
        torch.nn.Module._apply(self.model, function, recurse)
        self._refresh()
        return self.model

    def _refresh(self) -> None:
        """Point and hook again after addresses have changed."""
        self._unhook()
        self._names = [name for name, _ in weights_of(self.model, self._buffers)]
        self._point()
        self._hook()

    def _unhook(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self.model.__dict__.pop("_apply", None)

    @contextmanager
    def repack(self) -> Iterator[Iterator[tuple[str, torch.nn.Module]]]:
        """For code that changes weights, such as quantization::

            with handle.repack() as modules:
                for name, module in modules:
                    quantize(module)

        Each module that is offloaded as one is on the device for its turn, and no other. What was
        changed, replaced, renamed, added or removed in it goes back to where the plan keeps it,
        judged by the memory that it lies in.
        """
        self._unhook()
        turns = self._turns()
        try:
            yield turns
        finally:
            turns.close()
            self._refresh()

    def _turns(self) -> Any:
        for number, group in enumerate(self.plan.groups):
            module = self.model.get_submodule(group.name)
            prefix = f"{group.name}." if group.name else ""
            inside = [n for n in self._names if self._offloader.info(n).group == number]
            carried = [n for n in inside if self._offloader.info(n).carrier != "resident"]
            if not carried:
                continue
            for name in carried:
                holder, own = self._module_of(name)
                true = self.true_weight(name)
                fresh = like(true, self.torch_device)
                fresh.copy_(true)
                put(holder, own, fresh)
            try:
                yield group.name, module
            finally:
                self._take_back(number, prefix, module, inside)

    def _take_back(
        self, number: int, prefix: str, module: torch.nn.Module, before: list[str]
    ) -> None:
        names = [name for name, _ in weights_of(self.model, self._buffers)]
        group_of = group_of_each(self.model, self._groups, names)
        now = {
            prefix + name: weight
            for name, weight in weights_of(module, self._buffers)
            if group_of.get(prefix + name) == self.plan.groups[number].name
        }
        for name in before:
            if name not in now:
                self._offloader.remove(name, self._stream())
        for name, parameter in now.items():
            if name not in before:
                self._offloader.add(self._as_added(name, number, parameter), self._stream())
            elif address_of(parameter) != self._offloader.info(name).device_address:
                self._write(name, parameter)
            info = self._offloader.info(name)
            if info.carrier != "resident" and info.device_address is not None:
                holder, own = self._module_of(name)
                put(holder, own, tensor_of(self._offloader.view(name)))
        self._names = [n for n in self._names if n not in before] + list(now)
        self._offloader.compact(self._stream())

    def _as_added(self, name: str, group: int, parameter: torch.Tensor) -> Parameter:
        return Parameter(
            name,
            self.plan.groups[group].name,
            dtype_of(parameter),
            tuple(parameter.shape),
            tuple(parameter.stride()),
            source=address_of(parameter),
            held=parameter,
        )

    def remove(self) -> None:
        """Give the model back, resident on the device and bit for bit; the handle is done."""
        self._unhook()
        moved: dict[int, torch.Tensor] = {}
        for name in self._names:
            module, own = self._module_of(name)
            info = self._offloader.info(name)
            if info.nbytes == 0:
                continue
            true = self.true_weight(name)
            place = info.host_address or info.device_address or 0
            if place not in moved:
                owned = info.carrier == "resident"
                moved[place] = true.clone() if owned and self._is_ours(name) else true
                if not owned:
                    moved[place] = like(true, self.torch_device)
                    moved[place].copy_(true)
            weight = weight_of(module, own)
            if moved[place].data_ptr() != address_of(weight):
                weight = put(module, own, moved[place])
            wanted = self._wanted_gradients.get(name, False) and weight.dtype.itemsize > 1
            weight.requires_grad_(wanted)
        _operators.forget(self._number)
        self._offloader.close()

    def _is_ours(self, name: str) -> bool:
        """Whether what is resident lies in memory of the offloader."""
        try:
            self._offloader.view(name).close()
        except Exception:
            return False
        return True
