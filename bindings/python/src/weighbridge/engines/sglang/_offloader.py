"""The offloader that SGLang calls while it builds and loads a model."""

from __future__ import annotations

import functools
import logging
from collections.abc import Generator
from typing import Any, Callable

import torch
from sglang.srt import runtime_context
from sglang.srt.utils.offloader import BaseOffloader

from ...torch._hooked import RunningLayers
from .._layers import OffloadedLayers
from .._options import LayerOptions
from ._options import SWITCH

logger = logging.getLogger("sglang.weighbridge")


class WeighbridgeOffloader(BaseOffloader):
    """Offloads the layers of one model."""

    def __init__(self, options: LayerOptions) -> None:
        self._options = options
        self._layers: OffloadedLayers | None = None
        self.model: torch.nn.Module | None = None
        """The loaded model."""

    @property
    def committed(self) -> bool:
        """Whether a model's weights are offloaded."""
        return self._layers is not None and self._layers.committed

    def begin(self, model_config: Any, device: str, gpu_id: int) -> None:
        """Takes the layers of the next model."""
        parallel = runtime_context.get_parallel()
        layers = -(-int(model_config.num_hidden_layers) // parallel.pp_size)
        copies = 1 if getattr(model_config.hf_text_config, "tie_word_embeddings", False) else 2
        count = copies * model_config.vocab_size * model_config.hidden_size
        others = count * model_config.dtype.itemsize // parallel.tp_size
        where = torch.device(device) if device == "cpu" else torch.device(device, gpu_id)
        self._layers = OffloadedLayers(self._options, where, layers, others, SWITCH, logger)

    # SGLang's interface.

    def wrap_modules(
        self,
        all_modules_generator: Generator[torch.nn.Module, None, None],
        submodule_accessor: Callable[[torch.nn.Module], torch.nn.Module] | None = None,
        whitelist_param_names_creator: Callable[[torch.nn.Module], list[str]] | None = None,
    ) -> list[torch.nn.Module]:
        """Moves the chosen weights of each layer to host memory before the next layer is built.

        Of a model that names weights for the options for prefetching, those are offloaded by them.
        """
        if self.committed:  # the layers of a draft, which stay
            return list(all_modules_generator)
        if self._layers is None:
            raise RuntimeError(
                "weighbridge did not see SGLang begin to load the model: this version loads it "
                f"elsewhere. Unset {SWITCH}"
            )
        if submodule_accessor is None or whitelist_param_names_creator is None:
            return self._layers.take(all_modules_generator)

        def named(layer: torch.nn.Module) -> set[str]:
            inner = submodule_accessor(layer)
            paths = (name for name, module in layer.named_modules() if module is inner)
            path = next(paths, None)
            if path is None:
                raise RuntimeError(
                    f"SGLang names a {type(inner).__name__} whose weights are to be offloaded, "
                    f"which is not a part of its layer, a {type(layer).__name__}: give "
                    "offload_bytes or device_bytes instead of --offload-group-size"
                )
            own = whitelist_param_names_creator(inner)
            return {f"{path}.{name}".strip(".") for name in own}

        return self._layers.take(all_modules_generator, of_groups=named)

    def post_init(self) -> None:
        """Commits the offload: the weights are loaded and processed."""
        if self._layers is None or self.model is None:
            raise RuntimeError(
                "weighbridge did not see SGLang load the model: this version loads it elsewhere. "
                f"Unset {SWITCH}"
            )
        overlap = self._options.overlap_steps
        hooked = self._layers.commit(self.model, overlap is None or overlap)
        _begin_steps(self.model, hooked)

    @property
    def forbid_copy_engine_usage(self) -> bool:
        """Whether kernels are to copy what they need: the copy engine is busy with weights."""
        return self.committed


def _begin_steps(model: torch.nn.Module, hooked: RunningLayers) -> None:
    """Makes each forward of the model a step: SGLang calls ``forward``, which has no hooks."""
    forward = model.forward

    @functools.wraps(forward)
    def step(*args: Any, **kwargs: Any) -> Any:
        hooked._begin(model, args)
        try:
            return forward(*args, **kwargs)
        finally:
            hooked._end(model, args, None)

    model.forward = step
