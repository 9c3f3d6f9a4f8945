"""A model whose weights are offloaded."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from ..device import Device
from ..offloader import Offloader, OffloaderStats
from ..plan import Parameter, Plan
from ..safetensors import Safetensors
from . import _operators
from ._groups import group_of_each
from ._tensors import address_of, dtype_of, like, put, tensor_of

if TYPE_CHECKING:
    from typing_extensions import Literal


def offload(
    model: torch.nn.Module,
    *,
    offload_bytes: int | None = None,
    device_bytes: int | None = None,
    select: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    carrier: Literal["auto", "view", "on-demand", "prefetch"] = "auto",
    order: Literal["spread", "declared", "largest"] = "spread",
    groups: Literal["auto"] | Sequence[str] = "auto",
    slot_bytes: int | None = None,
    depth: int = 0,
    allow: Sequence[str] = (),
    checkpoint: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
    device: str | torch.device | None = None,
    pin: bool | None = None,
    link_bytes_per_second: float = 0.0,
) -> OffloadHandle:
    """Move weights of a model to host memory under a budget, and carry them from there.

    Budgets, selectors, carriers and orders are those of :class:`weighbridge.Plan`. ``groups`` are
    names of modules that are carried as one, by default the entries of the longest ``ModuleList``;
    a parameter outside of them goes with its own module. Embeddings are taken as sparse.
    ``checkpoint`` is a safetensors file, or several, that weights are taken from, for a model on
    the meta device for instance: they go from the file into host memory, or to the device if they
    stay. ``device`` is where the model runs, by default where it is. Buffers are left alone.
    """
    where = torch.device(device) if device is not None else _device_of(model)
    opened = Device("host" if where.type == "cpu" else f"cuda:{where.index or 0}", pin=pin)
    paths = [checkpoint] if isinstance(checkpoint, (str, os.PathLike)) else checkpoint
    files = [Safetensors(opened, path, pin=False) for path in paths]
    parameters = _parameters(model, groups, files)
    plan = Plan(
        opened,
        parameters,
        offload_bytes=offload_bytes,
        device_bytes=device_bytes,
        slot_bytes=slot_bytes,
        depth=depth,
        select=select,
        exclude=exclude,
        carrier=carrier,
        order=order,
        allow=allow,
        link_bytes_per_second=link_bytes_per_second,
    )
    handle = OffloadHandle(model, plan, where, groups)
    for file in files:
        file.close()
    return handle


def _device_of(model: torch.nn.Module) -> torch.device:
    for parameter in model.parameters():
        if not parameter.is_meta and parameter.device.type != "cpu":
            return parameter.device
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def _parameters(
    model: torch.nn.Module,
    groups: Literal["auto"] | Sequence[str],
    files: Sequence[Safetensors],
) -> list[Parameter]:
    group_of = group_of_each(model, groups)
    sparse = {
        f"{name}.weight" if name else "weight"
        for name, module in model.named_modules()
        if isinstance(module, (torch.nn.Embedding, torch.nn.EmbeddingBag))
    }
    named = list(model.named_parameters(remove_duplicate=False))
    # By the parameter, not by its name: a file has what is tied once, by one of the names.
    in_file = {
        id(parameter): file.parameter(name)
        for name, parameter in named
        for file in files
        if name in file
    }
    found = []
    for name, parameter in named:
        access: Any = "sparse" if name in sparse else "dense"
        given = in_file.get(id(parameter)) or Parameter(
            name,
            "",
            dtype_of(parameter),
            tuple(parameter.shape),
            tuple(parameter.stride()),
            source=address_of(parameter),
            storage=id(parameter),
            held=parameter,
        )
        found.append(replace(given, name=name, group=group_of[name], access=access))
    return found


class OffloadHandle:
    """A model whose weights are offloaded; made by :func:`offload`."""

    def __init__(
        self,
        model: torch.nn.Module,
        plan: Plan,
        device: torch.device,
        groups: Literal["auto"] | Sequence[str] = "auto",
    ) -> None:
        self.model = model
        self.plan = plan
        self.torch_device = device
        self._groups = groups
        # The host's own stream: there, torch runs on the calling thread, which waits for it.
        self._own_stream = plan.device.stream() if device.type == "cpu" else None
        self._offloader = Offloader(plan, self._stream())
        self._number = _operators.register(self)
        named = list(model.named_parameters(remove_duplicate=False))
        self._names = [name for name, _ in named]
        self._wanted_gradients = {name: p.requires_grad for name, p in named}
        self._hooks: list[Any] = []
        self._point()
        self._hook()

    # What is where

    def _module_of(self, name: str) -> tuple[torch.nn.Module, str]:
        path, _, own = name.rpartition(".")
        return self.model.get_submodule(path), own

    def _offloaded(self) -> list[str]:
        return [n for n in self._names if self._offloader.info(n).carrier != "resident"]

    def _point(self) -> None:
        """Let every parameter be over the memory where its bytes are."""
        for name in self._names:
            module, own = self._module_of(name)
            parameter: Any = module._parameters[own]
            info = self._offloader.info(name)
            if info.nbytes == 0 or info.device_address is None:
                continue
            if address_of(parameter) != info.device_address:
                put(module, own, tensor_of(self._offloader.view(name)))
                parameter = module._parameters[own]
            if info.carrier != "resident":
                parameter.requires_grad_(False)

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
            self._hooks += _state_dict_hooks(self, module, own, name)
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
            module, own = self._module_of(name)
            parameter: Any = module._parameters[own]
            return parameter.detach()
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
        self._names = [name for name, _ in self.model.named_parameters(remove_duplicate=False)]
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
        mine = {name for name, group in group_of_each(self.model, self._groups).items()}
        now = {
            prefix + name: parameter
            for name, parameter in module.named_parameters(remove_duplicate=False)
            if prefix + name in mine
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
            if moved[place].data_ptr() != address_of(module._parameters[own]):  # type: ignore[arg-type]
                put(module, own, moved[place])
            wanted = self._wanted_gradients.get(name, False)
            module._parameters[own].requires_grad_(wanted)  # type: ignore[union-attr]
        _operators.forget(self._number)
        self._offloader.close()

    def _is_ours(self, name: str) -> bool:
        """Whether what is resident lies in memory of the offloader."""
        try:
            self._offloader.view(name).close()
        except Exception:
            return False
        return True


def _state_dict_hooks(
    handle: OffloadHandle, module: torch.nn.Module, own: str, name: str
) -> list[Any]:
    """Saving gives the true weight, and a load writes it where it is kept."""

    def save(_module: torch.nn.Module, state: dict[str, Any], prefix: str, _meta: Any) -> None:
        if prefix + own in state:
            state[prefix + own] = handle.true_weight(name)

    def before_load(_module: torch.nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
        given = state.get(prefix + own)
        if given is None:
            return
        if handle.torch_device.type == "cuda":
            torch.cuda.synchronize(handle.torch_device)
        handle._offloader.reset(handle._stream())
        put(module, own, handle.true_weight(name))

    def after_load(_module: torch.nn.Module, _keys: Any) -> None:
        parameter: Any = module._parameters[own]
        if address_of(parameter) == handle._offloader.info(name).host_address:
            handle._write(name, parameter)
            put(module, own, tensor_of(handle._offloader.view(name)))

    return [
        module.register_state_dict_post_hook(save),
        module.register_load_state_dict_pre_hook(before_load),
        module.register_load_state_dict_post_hook(after_load),
    ]
