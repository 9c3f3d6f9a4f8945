"""The parts of SGLang that its plug-in meets, with the interfaces of 0.5.17 and of 0.5.23.

``install`` puts them into ``sys.modules``, where SGLang is not installed.
"""

from __future__ import annotations

import functools
import pkgutil
import sys
import types
from dataclasses import dataclass
from enum import Enum
from types import SimpleNamespace

import torch

OLD, NEW = "0.5.17", "0.5.23"


class HookType(Enum):
    BEFORE = "before"
    AFTER = "after"
    AROUND = "around"
    REPLACE = "replace"


def _registry():
    """SGLang's registry of hooks, for those around functions."""

    class HookRegistry:
        hooks: dict[str, list] = {}  # noqa: RUF012 - of a class that lives for one test
        patched: set[str] = set()  # noqa: RUF012

        @classmethod
        def register(cls, target, hook, hook_type=HookType.AFTER, *, source=None):
            assert hook_type is HookType.AROUND
            cls.hooks.setdefault(target, []).append(hook)

        @classmethod
        def apply_hooks(cls):
            for target, hooks in cls.hooks.items():
                if target in cls.patched:
                    continue
                cls.patched.add(target)
                place, name = target.rsplit(".", 1)
                owner = pkgutil.resolve_name(place)
                original = getattr(owner, name)
                wrapped = original
                for hook in hooks:
                    wrapped = functools.wraps(wrapped)(functools.partial(_call, hook, wrapped))
                if isinstance(owner, type):
                    wrapped = _method(wrapped)
                setattr(owner, name, wrapped)
                for module in list(sys.modules.values()):  # other modules that imported it
                    for key, value in list(vars(module).items()):
                        if value is original:
                            setattr(module, key, wrapped)

    return HookRegistry


def _call(hook, original, *args, **kwargs):
    return hook(original, *args, **kwargs)


def _method(function):
    @functools.wraps(function)
    def method(*args, **kwargs):
        return function(*args, **kwargs)

    return method


class BaseOffloader:
    def wrap_modules(
        self, all_modules_generator, submodule_accessor=None, whitelist_param_names_creator=None
    ):
        return list(all_modules_generator)

    def post_init(self):
        pass

    @property
    def forbid_copy_engine_usage(self):
        return False


class NoopOffloader(BaseOffloader):
    pass


def configuration():
    """What SGLang's ``runtime_context`` gives for a server with default options on the host."""
    return {
        "exec": SimpleNamespace(
            offload=SimpleNamespace(
                cpu_offload_gb=0,
                offload_group_size=-1,
                offload_num_in_group=1,
                offload_prefetch_step=1,
                offload_mode="cpu",
            ),
            graph=SimpleNamespace(
                cuda_graph_config=SimpleNamespace(
                    prefill=SimpleNamespace(backend="disabled"),
                    decode=SimpleNamespace(backend="disabled"),
                ),
                enable_torch_compile=False,
            ),
            overlap=SimpleNamespace(enable_two_batch_overlap=False),
            moe=SimpleNamespace(enable_eplb=False, elastic_ep_backend=None),
            features=SimpleNamespace(enable_memory_saver=False),
        ),
        "disagg": SimpleNamespace(enable_pdmux=False),
        "model": SimpleNamespace(weight_cache_mode="off"),
        "device": SimpleNamespace(device="cpu"),
        "parallel": SimpleNamespace(pp_size=1, tp_size=1),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightUpdater:
    updated: list

    def update_weights_from_disk(self, model_path, load_format, **options):
        self.updated.append("disk")
        return True, "Succeeded to update model weights."

    def update_weights_from_distributed(self, *args):
        self.updated.append("distributed")
        return True, "Succeeded to update parameter online."

    def update_weights_from_tensor(self, named_tensors, load_format=None):
        self.updated.append("tensor")
        return True, "Success"

    def update_weights_from_ipc(self, recv_req):
        self.updated.append("ipc")
        return True, "IPC weight update completed successfully"


class Runner:
    """SGLang's ModelRunner, up to the loaded model."""

    def __init__(self, sglang, model_class, model_config, is_draft_worker=False):
        module = sglang.offloader
        create = getattr(module, sglang.create)
        arguments = (SimpleNamespace(), 0) if sglang.version == OLD else ()
        module.set_offloader(create(*arguments))
        load = sglang.runner.load_model_with_memory_saver
        self.model = load(
            model_class=model_class,
            model_config=model_config,
            device="cpu",
            gpu_id=0,
            is_draft_worker=is_draft_worker,
        ).model
        if not is_draft_worker:
            module.get_offloader().post_init()
        self.updater = sglang.updater.WeightUpdater(updated=[])


def load(*, model_class, model_config, device, gpu_id, is_draft_worker):
    model = model_class(model_config)
    model.load_weights()
    for _, module in model.named_modules():
        method = getattr(module, "quant_method", None)
        if method is not None:
            method.process_weights_after_loading(module)
    return SimpleNamespace(model=model.eval())


def install(monkeypatch, version):
    """Puts the fakes into ``sys.modules`` for one test; returns them."""
    made = {}

    def module(name, **members):
        found = types.ModuleType(name)
        vars(found).update(members)
        monkeypatch.setitem(sys.modules, name, found)
        parent, _, own = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], own, found)
        made[own] = found
        return found

    config = configuration()
    components = "sglang.srt.model_executor.model_runner_components"
    module("sglang", __version__=version, __path__=[])
    for package in ("srt", "srt.plugins", "srt.utils", "srt.model_executor"):
        module(f"sglang.{package}", __path__=[])
    module(components, __path__=[])
    context = module("sglang.srt.runtime_context")
    for name in config:
        setattr(context, f"get_{name}", functools.partial(config.get, name))
    registry = module(
        "sglang.srt.plugins.hook_registry", HookRegistry=_registry(), HookType=HookType
    ).HookRegistry
    holder = {"offloader": NoopOffloader()}
    create = "create_offloader_from_server_args" if version == OLD else "create_offloader"
    offloader = module(
        "sglang.srt.utils.offloader",
        BaseOffloader=BaseOffloader,
        NoopOffloader=NoopOffloader,
        get_offloader=lambda: holder["offloader"],
        set_offloader=functools.partial(holder.__setitem__, "offloader"),
        **{create: lambda *_: NoopOffloader()},
    )

    def load_model_with_memory_saver(**given):  # of one test, since hooks wrap it
        return load(**given)

    module(
        f"{components}.load_model_utils",
        load_model_with_memory_saver=load_model_with_memory_saver,
    )
    updater = module(f"{components}.weight_updater", WeightUpdater=_copy(WeightUpdater))
    runner = module(
        "sglang.srt.model_executor.model_runner",
        load_model_with_memory_saver=load_model_with_memory_saver,
    )
    return SimpleNamespace(
        version=version,
        config=config,
        registry=registry,
        offloader=offloader,
        create=create,
        runner=runner,
        updater=updater,
    )


def _copy(kind):
    """Returns a class of its own for one test, whose methods hooks may wrap."""
    return type(kind.__name__, (kind,), dict.fromkeys((), None))


class FusedLinear(torch.nn.Module):
    """A linear layer whose weights are loaded into its parameters, and processed afterwards."""

    class Method:
        def __init__(self, replaces):
            self.replaces = replaces

        def process_weights_after_loading(self, layer):
            if self.replaces:  # as for kernels that take the transposed weight
                turned = layer.weight.data.t().contiguous().t()
                layer.weight = torch.nn.Parameter(turned, requires_grad=False)

    def __init__(self, inputs, outputs, replaces):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(outputs, inputs), requires_grad=False)
        self.quant_method = self.Method(replaces)

    def forward(self, x):
        return torch.nn.functional.linear(x, self.weight)


class Layer(torch.nn.Module):
    def __init__(self, width, replaces):
        super().__init__()
        self.norm = torch.nn.LayerNorm(width)
        self.attn = FusedLinear(width, width, replaces)
        self.mlp = torch.nn.Module()
        self.mlp.up = FusedLinear(width, 2 * width, replaces)
        self.mlp.down = FusedLinear(2 * width, width, replaces)
        self.fails = False

    def forward(self, positions, x):
        if self.fails:
            raise RuntimeError("on purpose")
        x = x + self.attn(self.norm(x))
        return x + self.mlp.down(torch.relu(self.mlp.up(x)))


class Model(torch.nn.Module):
    """A model of SGLang: layers by ``make_layers``, ``forward`` called by its name."""

    whitelist = None
    replaces = False

    def __init__(self, config):
        super().__init__()
        from sglang.srt.utils.offloader import get_offloader

        self.embed = torch.nn.Embedding(config.vocab_size, config.hidden_size)
        layers = (Layer(config.hidden_size, self.replaces) for _ in range(config.num_hidden_layers))
        named = {}
        if self.whitelist is not None:
            named["submodule_accessor"] = lambda layer: layer.mlp
            named["whitelist_param_names_creator"] = lambda _: list(self.whitelist)
        self.layers = torch.nn.ModuleList(get_offloader().wrap_modules(layers, **named))
        self.head = torch.nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def load_weights(self):
        random = torch.Generator().manual_seed(7)
        for _, parameter in self.named_parameters():
            parameter.data.copy_(torch.randn(parameter.shape, generator=random) / 16)

    def forward(self, input_ids, positions, forward_batch=None):
        x = self.embed(input_ids)
        for layer in self.layers:
            x = layer(positions, x)
        return self.head(x)


def model_config(layers=6, width=128):
    return SimpleNamespace(
        num_hidden_layers=layers,
        hidden_size=width,
        vocab_size=64,
        dtype=torch.float32,
        hf_text_config=SimpleNamespace(tie_word_embeddings=False),
    )
