"""``from_pretrained`` with the weights under a budget."""

from __future__ import annotations

import gc
import inspect
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, PreTrainedModel

from ...torch import offload
from ...torch._devices import open_device, runs_on
from ...torch._offload import OPTIONS, mode_of_files
from .._checks import check_plain
from ._begun import Early
from ._files import CheckpointFiles
from ._places import give_places

HUB = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
"""Options that say where a model is found."""
REFUSED = {
    "quantization_config": "quantize=QuantizeOptions(...) keeps weights in FP8",
    "load_in_8bit": "quantize=QuantizeOptions(...) keeps weights in FP8",
    "load_in_4bit": "quantize=QuantizeOptions(...) keeps weights in FP8",
    "max_memory": "device_bytes is the budget",
    "offload_folder": "offloaded weights are in host memory",
    "offload_buffers": "buffers=True offloads them",
    "tp_plan": "each process would load a part of every weight, which is not supported",
    "tp_size": "each process would load a part of every weight, which is not supported",
    "distributed_config": "each process would load a part of every weight, which is not supported",
    "device_mesh": "each process would load a part of every weight, which is not supported",
    "gguf_file": "its weights are converted while they are read: give the safetensors files",
    "state_dict": "weights are read from files: give the model to weighbridge.torch.offload",
}
"""Options of transformers that place or convert weights, and what to do instead."""
OF_TRAINERS = ("training_args", "optimizer", "scheduler", "rng_state", "scaler")
"""What the names of files begin with that a trainer keeps beside the weights."""
LOADER = "_load_pretrained_model"
LOADER_TAKES = ("model", "state_dict", "checkpoint_files", "load_config")


def from_pretrained(
    pretrained_model_name_or_path: str | os.PathLike[str],
    *model_args: Any,
    model_class: Any = None,
    device: str | torch.device | None = None,
    **options: Any,
) -> Any:
    """Loads a model as ``model_class.from_pretrained`` does, and offloads it.

    ``options`` are those of :func:`weighbridge.torch.offload`, such as ``device_bytes``,
    ``offload_bytes`` or ``quantize``, and those of transformers, such as ``dtype``, ``revision`` or
    ``output_loading_info``. ``model_class`` is a class of a model or an ``AutoModelFor...``; by
    default the class that the configuration names. ``device`` is where the model runs, by default
    the current CUDA device, or "cpu" without one.

    The weights are read from safetensors files, renamed, cast and fused as transformers does it,
    each once, to its place: host memory holds the offloaded weights, the device the others, and
    neither a second copy. The copies begin while transformers still prepares the model, so
    ``progress`` may be called by another thread. Missing and unexpected names are reported by
    transformers. The handle is ``weighbridge.torch.handle_of(model)``.

    Raises ValueError for options and checkpoints that place or quantize weights in another way.
    """
    if pretrained_model_name_or_path is None:
        raise TypeError(
            "pretrained_model_name_or_path is None: give a folder with safetensors files, or the "
            "name of a model of the hub"
        )
    with torch.inference_mode(False):  # tensors that are made in it cannot be tracked
        return _from_pretrained(
            pretrained_model_name_or_path, model_args, model_class, device, options
        )


def _from_pretrained(
    path: str | os.PathLike[str],
    model_args: Sequence[Any],
    model_class: Any,
    device: str | torch.device | None,
    options: dict[str, Any],
) -> Any:
    placing = {name: options.pop(name) for name in list(options) if name in OPTIONS}
    device = _device(device, options)
    _check_options(options)
    kind = _class_of(path, model_class, options)
    where = runs_on(device)
    opened = open_device(where)
    mode = mode_of_files(placing.get("host_store", "copy"))
    early = Early(where, {**OPTIONS, **placing})
    with _without_collection(), CheckpointFiles(opened, mode) as files, early:
        loaded = _load(kind, path, model_args, options, files, early)
        model, info = loaded if isinstance(loaded, tuple) else (loaded, None)
        check_plain(model, type(model).__name__)
        places = give_places(model, files)
        if early.begun is not None:
            places.take(early.begun)
        if places.begun is None:
            files.end_populate()  # the threads are wanted for the copies
        handle = offload(model, checkpoint=places, device=where, **placing)
        try:
            places.write(handle)
        except BaseException:
            handle.offloader.close()  # the model has no numbers
            raise
    return model if info is None else (model, info)


@contextmanager
def _without_collection() -> Iterator[None]:
    """Keeps the garbage collector from reading through a model that is being made, again and again:
    nothing of it is garbage."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class _WithoutInit(TorchFunctionMode):
    """Keeps this thread from computing the ranges of random numbers for tensors on the meta device,
    which take half of the time in which modules are made."""

    def __torch_function__(
        self, function: Any, kinds: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        options = options or {}
        if function is torch.nn.init.kaiming_uniform_:
            tensor = arguments[0] if arguments else options["tensor"]
            if tensor.is_meta:
                return tensor
        return function(*arguments, **options)


def _load(
    kind: type[PreTrainedModel],
    path: str | os.PathLike[str],
    model_args: Sequence[Any],
    options: dict[str, Any],
    files: CheckpointFiles,
    early: Early,
) -> Any:
    """Loads a model whose parameters are still in their files."""
    load = getattr(kind, LOADER, None)
    if load is None or not set(LOADER_TAKES) <= set(inspect.signature(load).parameters):
        raise RuntimeError(
            f"transformers {transformers.__version__} loads models in another way than the "
            "versions that this was made for, 5.17 to 5.24: install one of these"
        )

    def from_files(
        model: Any,
        state_dict: Any,
        checkpoint_files: Any,
        load_config: Any,
        *more: Any,
        **named: Any,
    ) -> Any:
        if state_dict is None and checkpoint_files is not None:
            state_dict, checkpoint_files = files.read(checkpoint_files), None
            early.begin(model, files, state_dict)
        return load(model, state_dict, checkpoint_files, load_config, *more, **named)

    # transformers has no place for a reader of files. A class like the model's has one, and the
    # model gets its own class at the end.
    def init_context(*given: Any, **named: Any) -> list[Any]:
        contexts: list[Any] = kind.get_init_context(*given, **named)
        return [*contexts, _WithoutInit()]

    members = {
        LOADER: staticmethod(from_files),
        "get_init_context": staticmethod(init_context),
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        "__doc__": kind.__doc__,
    }
    with_reader: Any = type(kind.__name__, (kind,), members)
    try:
        loaded = with_reader.from_pretrained(path, *model_args, use_safetensors=True, **options)
    except OSError as error:
        other = _other_files(path, options)
        if other:
            raise ValueError(
                f"{os.fspath(path)} has its weights in {other}, and weights are read from "
                "safetensors files: load it with transformers, and save it with "
                "model.save_pretrained(path)"
            ) from error
        raise
    model = loaded[0] if isinstance(loaded, tuple) else loaded
    model.__class__ = kind
    return loaded


def _device(device: str | torch.device | None, options: dict[str, Any]) -> Any:
    """Returns the device, which ``device_map`` may name, too."""
    given = options.pop("device_map", None)
    if given is None:
        return device
    one = given
    if isinstance(given, dict) and set(given) == {""}:
        one = given[""]
    if isinstance(one, int) and not isinstance(one, bool):
        one = f"cuda:{one}"
    named = isinstance(one, torch.device)
    named = named or (isinstance(one, str) and one.partition(":")[0] in ("cpu", "cuda"))
    if not named or device is not None:
        raise ValueError(
            f"device_map is {given!r}: accelerate would place the weights, which device_bytes or "
            "offload_bytes do here; leave it out, and give device= if the model is to run on "
            "another device than the current one"
        )
    return one


def _check_options(options: dict[str, Any]) -> None:
    """Raises ValueError for options that would place or convert weights in another way."""
    for name, instead in REFUSED.items():
        if options.get(name) not in (None, False):
            raise ValueError(f"{name} is given, which weighbridge does not follow: {instead}")
    if options.pop("use_safetensors", True) is False:
        raise ValueError("use_safetensors is False: weights are read from safetensors files only")


def _class_of(path: Any, model_class: Any, options: dict[str, Any]) -> type[PreTrainedModel]:
    """Returns the class of a checkpoint's model. Raises ValueError for a quantized checkpoint."""
    config = options.get("config")
    remote = options.get("trust_remote_code")
    if not isinstance(config, transformers.PreTrainedConfig):
        where = {name: options[name] for name in HUB if name in options}
        try:
            config = _config_of(path if config is None else config, model_class, remote, where)
        except (OSError, ValueError) as error:
            if (Path(path) / "adapter_config.json").is_file():
                raise ValueError(
                    f"{os.fspath(path)} has an adapter without its model: load the model that it "
                    "was made for, and then model.load_adapter(path)"
                ) from None
            folder = Path(path, options.get("subfolder") or "")
            is_missing = folder.is_dir() and not (folder / "config.json").is_file()
            if not is_missing and re.search("model.type", str(error)):
                raise ValueError(
                    f"the configuration of {os.fspath(path)} has no model_type that transformers "
                    f"{transformers.__version__} knows: give the model's class as model_class="
                ) from error
            raise
    quantized = getattr(config, "quantization_config", None)
    if quantized is not None:
        method = quantized.get("quant_method") if isinstance(quantized, dict) else quantized
        raise ValueError(
            f"{os.fspath(path)} is a checkpoint that was quantized by {method}, whose weights its "
            "own code unpacks: load it with transformers and give the model to "
            "weighbridge.torch.offload, or load a checkpoint that is not quantized"
        )
    if model_class is None:
        names = getattr(config, "architectures", None) or []
        model_class = getattr(transformers, names[0], None) if names else None
        if model_class is None:
            raise ValueError(
                f"the configuration of {os.fspath(path)} names the classes {names}, of which "
                f"transformers {transformers.__version__} has none: give model_class="
            )
    if not isinstance(model_class, type):
        raise TypeError(f"model_class is {model_class!r}: it is a class of transformers")
    if issubclass(model_class, PreTrainedModel):
        return model_class
    if not hasattr(model_class, "from_config"):
        raise TypeError(f"model_class is {model_class.__name__}: it is a class of transformers")
    with torch.device("meta"):
        return type(model_class.from_config(config, trust_remote_code=remote))


def _config_of(path: Any, model_class: Any, remote: Any, where: dict[str, Any]) -> Any:
    """Returns the configuration of a checkpoint; one that Auto classes do not know is of the class
    that the model's class names."""
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=remote, **where)
    except ValueError:
        is_class = isinstance(model_class, type) and issubclass(model_class, PreTrainedModel)
        if not is_class or model_class.config_class is None:
            raise
        return model_class.config_class.from_pretrained(path, **where)


def _other_files(path: Any, options: dict[str, Any]) -> str:
    """Returns the name of a file of weights in another format, in a local folder."""
    folder = Path(path, options.get("subfolder") or "")
    if not folder.is_dir():
        return ""
    endings = (".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack")
    found = sorted(file.name for file in folder.iterdir() if file.suffix in endings)
    return next((name for name in found if not name.startswith(OF_TRAINERS)), "")
