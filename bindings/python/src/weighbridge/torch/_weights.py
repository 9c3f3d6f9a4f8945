"""The weights of a model, and the offloader that holds their memory."""

from __future__ import annotations

from typing import Any

import torch

from .._progress import Callback
from ..offloader import Offloader, OffloaderParameterInfo
from ..plan import Parameter, Plan
from ._tensors import address_of, dtype_of, put, tensor_of, weight_of, weights_of


class Weights:
    """The weights of a model that an offloader holds."""

    def __init__(
        self,
        model: torch.nn.Module,
        plan: Plan,
        device: torch.device,
        buffers: bool,
        progress: Callback | None,
    ) -> None:
        self.model = model
        self.device = device
        self._buffers = buffers
        # On the host, PyTorch runs on the calling thread, which waits for a stream of its own.
        self._host_stream = plan.device.stream() if device.type == "cpu" else None
        self.offloader = Offloader(plan, self.stream(), progress=progress)
        self._register_scales(plan)

    def _register_scales(self, plan: Plan) -> None:
        """Registers the scales of the plan as parameters of the model, which has none."""
        known = {name for name, _ in weights_of(self.model, True)}
        for planned in plan.parameters:
            if planned.name not in known:
                module, own = self.module_of(planned.name)
                empty = torch.empty(0, device="meta")
                module.register_parameter(own, torch.nn.Parameter(empty, requires_grad=False))

    def stream(self) -> Any:
        """Returns the stream on which PyTorch runs the model now."""
        if self._host_stream is not None:
            return self._host_stream
        return torch.cuda.current_stream(self.device).cuda_stream

    def acquire_group(self, group: int) -> None:
        """Makes the current stream wait until a group is on the device."""
        self.offloader.acquire_group(group, self.stream())
        if self._host_stream is not None:
            self._host_stream.synchronize()

    def release_group(self, group: int) -> None:
        """Declares the work queued on the current stream the last use of a group."""
        self.offloader.release_group(group, self.stream())

    def module_of(self, name: str) -> tuple[torch.nn.Module, str]:
        """Returns the module that holds a weight, and the weight's name there."""
        path, _, own = name.rpartition(".")
        return self.model.get_submodule(path), own

    def named(self, module: torch.nn.Module | None = None) -> list[tuple[str, torch.Tensor]]:
        """Returns the weights of the model, or of a module of it, by all their names."""
        return weights_of(self.model if module is None else module, self._buffers)

    def infos(self) -> dict[str, OffloaderParameterInfo]:
        """Returns where each weight of the model is, in the order of the model."""
        known = {info.name: info for info in self.offloader.parameter_infos()}
        return {name: known[name] for name, _ in self.named()}

    def point(self) -> None:
        """Makes every weight use the memory that the offloader holds for it."""
        shared: Any = {}
        for name, info in self.infos().items():
            if info.span_bytes == 0 or info.device_address is None:
                continue
            module, own = self.module_of(name)
            weight = weight_of(module, own)
            if address_of(weight) != info.device_address:
                weight = put(module, own, tensor_of(self.offloader.view(name)), shared)
            if info.placement == "offloaded":
                weight.requires_grad_(False)

    def point_at_device(self, name: str) -> None:
        """Makes an offloaded weight use its device memory."""
        put(*self.module_of(name), tensor_of(self.offloader.view(name)))

    def stored(self, name: str) -> torch.Tensor:
        """Returns a weight in its backing store: host memory, or the weight itself if resident."""
        if self.offloader.parameter_info(name).placement == "resident":
            weight: torch.Tensor = weight_of(*self.module_of(name))
            return weight.detach()
        return tensor_of(self.offloader.host_view(name))

    def replace(self, name: str, tensor: torch.Tensor) -> None:
        """Replaces a weight's bytes in the offloader by those of a tensor."""
        self.offloader.replace(
            name,
            address_of(tensor),
            dtype_of(tensor),
            tuple(tensor.shape),
            tuple(tensor.stride()),
            self.stream(),
        )

    def add(self, name: str, group: str, tensor: torch.Tensor) -> None:
        """Adds a weight to a group of the offloader."""
        self.offloader.add(parameter_of(name, group, tensor), self.stream())


def parameter_of(name: str, group: str, tensor: torch.Tensor, **more: Any) -> Parameter:
    """Returns a tensor as a parameter of a plan."""
    return Parameter(
        name,
        group,
        dtype_of(tensor),
        tuple(tensor.shape),
        tuple(tensor.stride()),
        source=address_of(tensor),
        held=tensor,
        **more,
    )
