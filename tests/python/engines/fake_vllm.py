"""The parts of vLLM that the plug-in touches, with the interface of 0.26 or of 0.33."""

from __future__ import annotations

import functools
import sys
from abc import ABC, abstractmethod
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

from engines import fake_vllm_experts

OFFLOADER = "vllm.model_executor.offloader.base"
LOADER = "vllm.model_executor.model_loader"


class Logger:
    """Keeps what was logged."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lines: list[str] = []

    def info(self, text: str, *values: Any) -> None:
        self.lines.append(text % values)

    warning = info


def install(monkeypatch: Any, version: str) -> SimpleNamespace:
    """Puts fakes of vLLM's modules into ``sys.modules``, and removes the plug-in's own."""
    for name in [name for name in sys.modules if name.startswith("weighbridge.engines.vllm")]:
        monkeypatch.delitem(sys.modules, name)
    loggers: dict[str, Logger] = {}
    formats: dict[str, type] = {}
    offloader = _offloader(version)

    class BaseModelLoader(ABC):
        def __init__(self, load_config: Any) -> None:
            self.load_config = load_config

        @abstractmethod
        def download_model(self, model_config: Any) -> None: ...

        @abstractmethod
        def load_weights(self, model: torch.nn.Module, model_config: Any) -> None: ...

        def load_model(self, vllm_config: Any, model_config: Any, prefix: str = "") -> Any:
            model = model_config.build(offloader.get_offloader().wrap_modules)
            self.load_weights(model, model_config)
            for module in model.modules():
                method = getattr(module, "quant_method", None)
                if method is not None:
                    method.process_weights_after_loading(module)
            for module in model.modules():  # attention, after all others
                if hasattr(module, "process_weights_after_loading"):
                    module.process_weights_after_loading(model_config.dtype)
            return model.eval()

    if version >= "0.33":

        def get_external_weight_memory(self: Any, vllm_config: Any) -> int:
            return 0

        def create_model(self: Any, vllm_config: Any, model_config: Any, prefix: str = "") -> Any:
            return model_config.build(offloader.get_offloader().wrap_modules)

        BaseModelLoader.get_external_weight_memory = get_external_weight_memory
        BaseModelLoader.create_model = create_model

    class AutoLoader(BaseModelLoader):
        def download_model(self, model_config: Any) -> None:
            model_config.downloaded = self.load_config.load_format

        def load_weights(self, model: torch.nn.Module, model_config: Any) -> None:
            model_config.load(model)

        def get_all_weights(self, model_config: Any, model: torch.nn.Module) -> list[str]:
            return [name for name, _ in model.named_parameters()]

    def register_model_loader(load_format: str) -> Any:
        def wrapper(loader: type) -> type:
            assert load_format not in formats, "registered twice"
            assert issubclass(loader, BaseModelLoader)
            formats[load_format] = loader
            return loader

        return wrapper

    def get_model_loader(load_config: Any) -> Any:
        return formats[load_config.load_format](load_config)

    formats["auto"] = formats["dummy"] = AutoLoader
    envs = _module(monkeypatch, "vllm.envs", VLLM_USE_BREAKABLE_CUDAGRAPH=False)
    vllm = _module(monkeypatch, "vllm", __version__=version, envs=envs)
    _module(monkeypatch, "vllm.model_executor")
    _module(monkeypatch, "vllm.model_executor.offloader")
    _module(monkeypatch, OFFLOADER, **vars(offloader))
    _module(
        monkeypatch,
        "vllm.logger",
        init_logger=lambda name: loggers.setdefault(name, Logger(name)),
    )
    _module(
        monkeypatch,
        LOADER,
        register_model_loader=register_model_loader,
        get_model_loader=get_model_loader,
    )
    _module(monkeypatch, f"{LOADER}.base_loader", BaseModelLoader=BaseModelLoader)
    fake_vllm_experts.install(functools.partial(_module, monkeypatch))
    return SimpleNamespace(
        vllm=vllm,
        envs=envs,
        formats=formats,
        loggers=loggers,
        get_model_loader=get_model_loader,
        BaseModelLoader=BaseModelLoader,
        **vars(offloader),
    )


def _offloader(version: str) -> SimpleNamespace:
    """The offloader's base class and the global one, as that version has them."""

    class BaseOffloader(ABC):  # noqa: B024 - each version has its own method
        if version < "0.33":

            @abstractmethod
            def wrap_modules(self, modules_generator: Any) -> list[torch.nn.Module]: ...
        else:
            supports_tower_offload = False

            @abstractmethod
            def wrap_modules(
                self, modules_generator: Any, prefix: str = ""
            ) -> list[torch.nn.Module]: ...

        def post_init(self) -> None:
            return

        def sync_prev_onload(self) -> None:
            return

        def join_after_forward(self) -> None:
            return

        def _wait_for_layer(self, layer_idx: int) -> None:
            return

        def _start_prefetch(self, layer_idx: int) -> None:
            return

    class NoopOffloader(BaseOffloader):
        def wrap_modules(self, modules_generator: Any, prefix: str = "") -> list[torch.nn.Module]:
            return list(modules_generator)

    active: list[Any] = [NoopOffloader()]

    def get_offloader() -> Any:
        return active[0]

    def set_offloader(instance: Any) -> None:
        assert instance is not None or version >= "0.33"
        active[0] = NoopOffloader() if instance is None else instance

    return SimpleNamespace(
        BaseOffloader=BaseOffloader,
        NoopOffloader=NoopOffloader,
        get_offloader=get_offloader,
        set_offloader=set_offloader,
    )


def _module(monkeypatch: Any, name: str, **members: Any) -> ModuleType:
    module = ModuleType(name)
    module.__dict__.update(members)
    monkeypatch.setitem(sys.modules, name, module)
    return module


class VllmConfig(SimpleNamespace):
    """A configuration that may be referred to weakly, as vLLM's own."""


def config(model_config: Any, weighbridge: dict[str, Any] | None = None, **changes: Any) -> Any:
    """A VllmConfig, as far as the plug-in reads it."""
    found = VllmConfig(
        model_config=model_config,
        load_config=SimpleNamespace(load_format="weighbridge", device=None),
        additional_config={} if weighbridge is None else {"weighbridge": weighbridge},
        device_config=SimpleNamespace(device_type="cpu"),
        parallel_config=SimpleNamespace(
            use_ubatching=False,
            enable_eplb=False,
            enable_expert_parallel=False,
            tensor_parallel_size=1,
        ),
        compilation_config=SimpleNamespace(
            mode=0, splitting_ops=[], use_inductor_graph_partition=False
        ),
        offload_config=SimpleNamespace(
            offload_backend="auto",
            uva=SimpleNamespace(cpu_offload_gb=0.0, cpu_offload_params=set()),
            prefetch=SimpleNamespace(
                offload_group_size=0,
                offload_num_in_group=1,
                offload_prefetch_step=1,
                offload_params=set(),
            ),
        ),
        weight_transfer_config=None,
    )
    for path, value in changes.items():
        *outer, last = path.split("__")
        held = found
        for name in outer:
            held = getattr(held, name)
        setattr(held, last, value)
    return found
