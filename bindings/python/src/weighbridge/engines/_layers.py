"""The layers of a model, offloaded while an engine builds and loads it, and carried from then on.

vLLM and SGLang give each new layer to an offloader, load the weights, and process them module by
module. What follows from that is the same for both.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any, Callable

import torch

from .._enums import AccessPattern
from .._text import in_words
from ..errors import Status, WeighbridgeError, make
from ..memory import Buffer
from ..plan import Parameter, Plan
from ..torch._between import Split, SplitLayers
from ..torch._devices import open_device, runs_on
from ..torch._expert_caches import close as close_caches
from ..torch._experts import FusedExperts
from ..torch._hooked import HookedLayers, RunningLayers
from ..torch._staged import Choice, Preceding, StagedLayer, StagedLayers
from ..torch._tensors import parameter_of
from ..torch._weights import Weights
from ._choice import LastOfGroup, Planned, Spread, pattern_of
from ._experts import CachedExperts
from ._options import LayerOptions

_PROCESS = "process_weights_after_loading"


class OffloadedLayers:
    """Offloads the layers of one model.

    ``layers`` is the number of layers that the model will have, ``other_bytes`` an estimate of the
    device memory of its weights outside of them, and ``switch`` what turns the plug-in on, for
    messages. ``experts`` are those that caches carry, if any.
    """

    def __init__(
        self,
        options: LayerOptions,
        device: torch.device,
        layers: int,
        other_bytes: int,
        switch: str,
        logger: logging.Logger,
        experts: CachedExperts | None = None,
    ) -> None:
        self._options = options
        self._where = device
        self._layers = layers
        self._other_bytes = other_bytes
        self._switch = switch
        self._logger = logger
        self._experts = experts
        self.device = open_device(runs_on(device))
        self._choice: Choice
        self._staged: StagedLayers | None = None
        self._watched: list[Any] = []
        self._weights: Weights | None = None
        self._hooked: RunningLayers | None = None

    def take(
        self,
        modules: Iterable[torch.nn.Module],
        prefix: str = "",
        of_groups: Callable[[torch.nn.Module], Collection[str]] | None = None,
        preceding: Callable[[torch.nn.Module], Preceding | None] = lambda layer: None,
    ) -> list[torch.nn.Module]:
        """Moves the chosen weights of each layer to host memory before the next layer is built.

        ``of_groups`` names those of a layer that may leave if groups of layers are offloaded, and
        ``preceding`` the part of a layer that runs before the call that splits it.
        """
        taken = []
        for module in modules:
            if self._staged is None:
                self._staged = self._new_staged(module, prefix, preceding(module))
            if of_groups is not None and isinstance(self._choice, LastOfGroup):
                self._choice.named[len(self._staged.layers)] = of_groups(module)
            self._staged.take(module, prefix, preceding(module))
            self._watch(module)
            taken.append(module)
        return taken

    def commit(
        self,
        model: torch.nn.Module,
        overlap_steps: bool,
        splits: Callable[[torch.nn.Module, str], Split | None] | None = None,
    ) -> RunningLayers:
        """Plans and commits the offload of the loaded model, and has its layers carried.

        With ``splits``, which says how a layer of a name is split, they are carried in the calls
        that split them, if all are; otherwise by hooks of the layers.
        """
        staged = self._staged
        if staged is None:
            raise self._nothing("no layer of it was given to the offloader")
        if self._where.type == "cuda":
            torch.cuda.empty_cache()  # slots are not of PyTorch's memory
        if self._experts is not None:
            self._experts.decide(model)
        plan = self._plan(model, staged)
        fused: Sequence[FusedExperts] = ()
        if self._experts is not None:
            offloaded = {p.name for p in plan.parameters if p.placement == "offloaded"}
            fused = self._experts.fused(offloaded)
        layers = [layer.module for layer in staged.layers]
        staged.clear()  # from here on the weights alone use their memory, which the plan keeps
        self._weights = Weights(model, plan, self._where, False, "off", overlap_steps, None, fused)
        self._log(plan)
        plan.close()
        if self._experts is not None:
            self._experts.attach(self._weights)
        self._hooked = self._carried(model, layers, splits)
        return self._hooked

    @property
    def committed(self) -> bool:
        """Whether a model's weights are offloaded."""
        return self._weights is not None

    @property
    def weights(self) -> Weights:
        """The weights of the committed model."""
        assert self._weights is not None
        return self._weights

    def begin_step(self) -> None:
        """Makes the next step read the weights as they are now."""
        if self._weights is not None:
            self._weights.begin_step()
            self._weights.reset_experts()

    def join(self) -> None:
        """Joins the copies to the stream at the end of a capture."""
        if self._hooked is not None and self._where.type == "cuda":
            self._hooked.join()

    def close(self) -> None:
        """Ends the offload; the model cannot run any more."""
        for method in self._watched:
            method.__dict__.pop(_PROCESS, None)
        self._watched.clear()
        if self._hooked is not None:
            self._hooked.close()
        if self._experts is not None:
            self._experts.detach()
        if self._weights is not None:
            stats = self._weights.offloader.stats
            self._logger.info(
                "weighbridge copied %s in %d copies outside of CUDA graphs",
                in_words(stats.moved_bytes),
                stats.copies,
            )
            close_caches(list(self._weights.experts.values()), self._where)
            self._weights.offloader.close()
        self._hooked = self._weights = self._staged = None

    def _new_staged(
        self, first: torch.nn.Module, prefix: str, preceding: Preceding | None
    ) -> StagedLayers:
        options = self._options
        if options.group_size:
            self._choice = LastOfGroup(options)
        elif options.offload_bytes is not None:
            self._choice = Spread(options, options.offload_bytes, self._layers)
        else:
            self._choice = Planned(options, self._estimate(first, prefix, preceding))
        return StagedLayers(self.device, self._choice, self._pattern_of)

    def _pattern_of(self, module: torch.nn.Module, own: str) -> AccessPattern:
        if self._experts is not None and self._experts.has(module, own):
            return "experts"
        return pattern_of(module, own)

    def _carried(
        self,
        model: torch.nn.Module,
        layers: list[torch.nn.Module],
        splits: Callable[[torch.nn.Module, str], Split | None] | None,
    ) -> RunningLayers:
        if splits is not None:
            names = {module: name for name, module in model.named_modules()}
            found = [splits(layer, names[layer]) for layer in layers]
            complete = [split for split in found if split is not None]
            if len(complete) == len(found):
                return SplitLayers(self.weights, complete)
        return HookedLayers(self.weights)

    def _estimate(
        self, first: torch.nn.Module, prefix: str, preceding: Preceding | None
    ) -> dict[int, set[str]]:
        """Returns the weights of each layer that a plan offloads under the budget of device memory,
        if all layers are as the first."""
        layer = StagedLayer(0, first, prefix, preceding)
        parameters, layer_of = [], {}
        for at in range(self._layers):
            for group in layer.groups():
                text = f"{at} {layer.groups().index(group)}"
                layer_of[text] = at
                parameters += [
                    _without_bytes(
                        f"{at} {prefix}.{name}".replace(" .", " "),
                        text,
                        inner._parameters[own],
                        self._pattern_of(inner, own),
                    )
                    for name, inner, own in _weights_in(first)
                    if layer.group_of(inner) is group
                ]
        self._check_space(self._other_bytes)
        limit = (self._options.device_bytes or 0) - self._other_bytes
        limit -= limit // 1000  # for norms, and what else is outside of the layers
        found: dict[int, set[str]] = {}
        with self._new_plan(parameters, layer_of, device_bytes=limit) as plan:
            for info in plan.parameters:
                number, _, name = info.name.partition(" ")
                if info.placement == "offloaded":
                    found.setdefault(int(number), set()).add(name)
        return found

    def _plan(self, model: torch.nn.Module, staged: StagedLayers) -> Plan:
        limit = self._options.device_bytes
        parameters = staged.parameters(model, all_weights=limit is not None)
        names = {module: name for name, module in model.named_modules()}
        layer_of = {
            names[group]: layer.index for layer in staged.layers for group in layer.groups()
        }
        if limit is None:
            if not parameters:
                raise self._nothing("no weight is selected that fits")
            # How much may leave was decided when it did: all of it is offloaded.
            return self._new_plan(parameters, layer_of, offload_bytes=staged.host_bytes)
        others = _device_bytes(model, [layer.module for layer in staged.layers])
        self._check_space(others)
        # What is on the device stays: to offload it instead of another weight that has left would
        # be a second copy.
        staying = [
            one if isinstance(one.held, Buffer) else replace(one, placement="resident")
            for one in parameters
        ]
        try:
            return self._new_plan(staying, layer_of, device_bytes=limit - others)
        except WeighbridgeError as error:
            if error.status != Status.BUDGET:
                raise
            return self._new_plan(parameters, layer_of, device_bytes=limit - others)

    def _new_plan(
        self,
        parameters: list[Parameter],
        layer_of: dict[str, int],
        *,
        offload_bytes: int | None = None,
        device_bytes: int | None = None,
    ) -> Plan:
        """Plans for layers that may have two groups each, which ``layer_of`` tells by name."""
        options = self._options
        groups = len({parameter.group for parameter in parameters})
        mode = options.transfer_mode

        def planned(depth: int) -> Plan:
            return Plan(
                self.device,
                parameters,
                offload_bytes=offload_bytes,
                device_bytes=device_bytes,
                transfer_mode="prefetch" if options.group_size and mode == "auto" else mode,
                depth=min(depth, groups),
                host_store="source",
                select=options.select if device_bytes is not None else (),
                exclude=options.exclude if device_bytes is not None else (),
                allow=() if device_bytes is None else ("everything-fits",),
                expert_bytes=0 if self._experts is None else self._experts.device_bytes,
            )

        plan = planned(options.depth)
        if not _has_two_groups_of_a_layer(plan, layer_of):
            return plan
        # Two groups are in their slots at a time: as many again are copied meanwhile.
        depth = 2 * options.depth if options.depth else max(plan.info.depth, 4)
        plan.close()
        while True:
            try:
                return planned(depth)
            except WeighbridgeError as error:
                if error.status != Status.BUDGET or options.depth or depth == 2:
                    raise
                depth -= 1

    def _check_space(self, others: int) -> None:
        """Raises WeighbridgeError if the weights outside of the layers exceed the budget."""
        limit = self._options.device_bytes or 0
        if others > limit:
            raise make(
                Status.BUDGET,
                f"device_bytes is {limit}, and the weights outside of the layers, which stay, have "
                f"{others} bytes: raise it",
            )

    def _nothing(self, why: str) -> WeighbridgeError:
        return make(
            Status.NOTHING_OFFLOADED,
            f"asked to offload weights of the model, and {why}: change the budget or the "
            f"selection, or leave out {self._switch}",
        )

    def _watch(self, module: torch.nn.Module) -> None:
        """Moves the weights of each module as soon as the engine has processed them."""
        for inner in module.modules():
            method = getattr(inner, "quant_method", None)
            if method is not None and hasattr(method, _PROCESS):
                self._wrap(method, lambda layer, *_: layer)
            if hasattr(type(inner), _PROCESS):  # attention, by a method of its own
                self._wrap(inner, lambda *_, inner=inner: inner)

    def _wrap(self, owner: Any, processed: Callable[..., torch.nn.Module]) -> None:
        """Wraps a method that processes a module, which ``processed`` finds in its arguments."""
        if any(owner is watched for watched in self._watched):
            return
        process = getattr(owner, _PROCESS)

        @functools.wraps(process)
        def process_and_move(*args: Any, **kwargs: Any) -> Any:
            result = process(*args, **kwargs)
            if self._weights is not None:
                self.begin_step()  # weights are loaded again
            elif self._staged is not None:
                self._staged.relocate(processed(*args, *kwargs.values()))
            return result

        owner.__dict__[_PROCESS] = process_and_move
        self._watched.append(owner)

    def _log(self, plan: Plan) -> None:
        stats, info = self.weights.offloader.stats, plan.info
        self._logger.info(
            "weighbridge offloads %s of the layers' weights: %s prefetched through slots of %s for "
            "%d layers, %s read in place; host memory %s, pinned %s",
            in_words(stats.offloaded_bytes),
            in_words(info.step_bytes),
            in_words(stats.slot_bytes),
            info.depth,
            in_words(info.view_bytes),
            in_words(stats.mapped_bytes),
            in_words(stats.pinned_bytes),
        )
        for warning in plan.warnings:
            self._logger.warning("weighbridge: %s", warning)
        held = [info for info in self.weights.offloader.parameter_infos() if info.host_address]
        copied = [info.host_store_reason for info in held if info.host_store != "source"]
        if copied:
            self._logger.info("weighbridge copied %d weights once more: %s", len(copied), copied[0])


def _has_two_groups_of_a_layer(plan: Plan, layer_of: dict[str, int]) -> bool:
    """Returns whether both groups of some layer are prefetched."""
    groups = {info.group for info in plan.parameters if info.transfer_mode == "prefetch"}
    layers = [layer_of[plan.groups[group].name] for group in groups]
    return len(set(layers)) < len(layers)


def _device_bytes(model: torch.nn.Module, layers: list[torch.nn.Module]) -> int:
    """Returns the bytes of the model's parameters outside of its layers."""
    inside = {id(tensor) for layer in layers for tensor in layer.parameters()}
    outside = [t.untyped_storage() for t in model.parameters() if id(t) not in inside]
    return sum({storage.data_ptr(): storage.nbytes() for storage in outside}.values())


def _weights_in(module: torch.nn.Module) -> list[tuple[str, torch.nn.Module, str]]:
    return [
        (f"{name}.{own}".strip("."), inner, own)
        for name, inner in module.named_modules()
        for own, tensor in inner._parameters.items()
        if tensor is not None and tensor.numel()
    ]


def _without_bytes(name: str, group: str, tensor: Any, pattern: AccessPattern) -> Parameter:
    if tensor.is_meta:
        tensor = torch.empty_like(tensor, dtype=torch.uint8)
    else:
        tensor = torch.empty_like(tensor, device="meta")
    return parameter_of(name, group, tensor, access_pattern=pattern)
