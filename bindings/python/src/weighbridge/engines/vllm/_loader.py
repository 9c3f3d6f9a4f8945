"""The load format ``weighbridge``: loads a model by another format, with its layers offloaded."""

from __future__ import annotations

import copy
import gc
import hashlib
import weakref
from typing import Any

import torch
import vllm
from vllm.logger import init_logger
from vllm.model_executor.model_loader import get_model_loader
from vllm.model_executor.model_loader.base_loader import BaseModelLoader
from vllm.model_executor.offloader.base import NoopOffloader, get_offloader, set_offloader

from ...torch._hooked import OPERATORS, HookedLayers
from ._attention import splits_by
from ._checks import VLLM_COMPILE, check_compilable, check_experts, check_supported
from ._experts import ExpertLayers
from ._offloader import WeighbridgeOffloader
from ._options import COMPILED, NAME, Options
from ._versions import check_version

logger = init_logger("vllm.weighbridge")

_INNER = "_weighbridge_load_format"
_COMPILED = 1
"""Increased when the operators in compiled code change."""


class WeighbridgeModelLoader(BaseModelLoader):
    """Puts the offloader in place, and lets the loader of another format load the model."""

    def load_model(self, vllm_config: Any, model_config: Any, prefix: str = "") -> torch.nn.Module:
        """Loads a model; the engine's own one with its layers offloaded."""
        check_version(vllm.__version__)
        options = Options.of(vllm_config)
        object.__setattr__(self.load_config, _INNER, options.load_format)
        if _is_second(vllm_config, model_config):
            return self._load_second(vllm_config, model_config, prefix)
        check_supported(vllm_config)
        if options.caches_experts:
            check_experts(vllm_config)
        _leave_other_engine()
        compiles = int(vllm_config.compilation_config.mode or 0) == VLLM_COMPILE
        offloader = WeighbridgeOffloader(
            options,
            _device_of(vllm_config),
            model_config.get_num_layers(vllm_config.parallel_config),
            _bytes_outside_layers(model_config, vllm_config.parallel_config),
            compiles,
            ExpertLayers(options.expert_bytes) if options.caches_experts else None,
        )
        offloader.engine = weakref.ref(vllm_config)
        if compiles:
            info = offloader.device.info
            check_compilable(info.views, info.views_reason)
        set_offloader(offloader)
        try:
            model = self._inner().load_model(vllm_config, model_config, prefix)
            hooked = offloader.commit(
                model,
                _overlaps(options, vllm_config),
                splits_by(vllm_config.compilation_config.splitting_ops) if compiles else None,
            )
            if compiles:
                in_place = offloader.weights.reads_in_place
                check_compilable(in_place, "its memory could not be pinned")
            if compiles and isinstance(hooked, HookedLayers):
                _split_at_layers(vllm_config.compilation_config)
                _enter_into_hash(vllm_config, hooked)
        except BaseException:
            set_offloader(NoopOffloader())
            offloader.close()
            raise
        return model

    def download_model(self, model_config: Any) -> None:
        """Downloads the weights as the other format does."""
        self._inner().download_model(model_config)

    def load_weights(self, model: torch.nn.Module, model_config: Any) -> None:
        """Loads weights into the model, which may be offloaded."""
        self._inner().load_weights(model, model_config)
        offloader = get_offloader()
        if isinstance(offloader, WeighbridgeOffloader):
            offloader.begin_step()

    def __getattr__(self, name: str) -> Any:
        """What only some loaders have, such as ``get_all_weights``, is the other format's."""
        if name.startswith("_") or name == "load_config":
            raise AttributeError(name)
        return getattr(self._inner(), name)

    def _inner(self) -> Any:
        config = copy.copy(self.load_config)
        config.load_format = getattr(self.load_config, _INNER, "auto")
        return get_model_loader(config)

    def _load_second(self, vllm_config: Any, model_config: Any, prefix: str) -> torch.nn.Module:
        """Loads another model of the engine, such as a speculative one, whose weights all stay."""
        logger.info("weighbridge leaves the weights of %s on the device", model_config.model)
        active = get_offloader()
        set_offloader(NoopOffloader())
        try:
            return self._inner().load_model(vllm_config, model_config, prefix)
        finally:
            set_offloader(active)


def _is_second(vllm_config: Any, model_config: Any) -> bool:
    """Returns whether a model is not the engine's own one, but one that speculates for it."""
    offloader = get_offloader()
    own = isinstance(offloader, WeighbridgeOffloader) and offloader.committed
    return (
        model_config is not vllm_config.model_config
        or getattr(model_config, "runner_type", "") == "draft"
        or (own and offloader.engine() is vllm_config)
    )


def _leave_other_engine() -> None:
    """Releases the offloader of another engine in this process, whose model keeps what it needs,
    and frees what an engine that has ended still holds."""
    if isinstance(get_offloader(), WeighbridgeOffloader):
        set_offloader(NoopOffloader())
        gc.collect()


def _device_of(vllm_config: Any) -> torch.device:
    device = torch.device(vllm_config.device_config.device_type)
    if device.type == "cuda":
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _bytes_outside_layers(model_config: Any, parallel_config: Any) -> int:
    """Estimates the device memory of embedding and head, which a model may share."""
    count = model_config.get_vocab_size() * model_config.get_hidden_size()
    tied = getattr(model_config.hf_text_config, "tie_word_embeddings", False)
    copies = 1 if tied else 2
    itemsize = model_config.dtype.itemsize
    return int(copies * count * itemsize) // int(parallel_config.tensor_parallel_size)


def _overlaps(options: Options, vllm_config: Any) -> bool:
    if options.overlap_steps is not None:
        return options.overlap_steps
    # Weights that a trainer sends are written in ways that PyTorch does not count.
    return getattr(vllm_config, "weight_transfer_config", None) is None


def _split_at_layers(compilation_config: Any) -> None:
    """Names the operators among those that split a traced model: they run between its pieces."""
    given = compilation_config.splitting_ops
    missing = [name for name in OPERATORS if name not in given]
    compilation_config.splitting_ops = [*given, *missing]


def _enter_into_hash(vllm_config: Any, hooked: HookedLayers) -> None:
    """Makes vLLM's hash of the configuration tell code with our operators from all other.

    It contains the numbers that the operators have in the code, and the layers that they stand for.
    """
    text = repr((_COMPILED, hooked.handle, hooked.groups))
    digest = hashlib.sha256(text.encode()).hexdigest()
    given = vllm_config.additional_config
    own = {**given.get(NAME, {}), COMPILED: digest}
    vllm_config.additional_config = {**given, NAME: own}
