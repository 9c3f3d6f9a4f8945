"""What of SGLang is wrapped, by its own registry of hooks for plug-ins."""

from __future__ import annotations

from typing import Any, Callable

import sglang
from sglang.srt import runtime_context
from sglang.srt.plugins.hook_registry import HookRegistry, HookType
from sglang.srt.utils import offloader as sglang_offloader

from ._checks import check_supported
from ._offloader import WeighbridgeOffloader
from ._options import SWITCH, given, options_of
from ._versions import check_version

_RUNNER = "sglang.srt.model_executor.model_runner_components"
_LOAD = f"{_RUNNER}.load_model_utils.load_model_with_memory_saver"
_UPDATES = [
    f"{_RUNNER}.weight_updater.WeightUpdater.update_weights_from_{source}"
    for source in ("disk", "distributed", "tensor", "ipc")
]

_active: WeighbridgeOffloader | None = None
"""The offloader of this process's model. SGLang drops its own reference for a draft model."""


def install() -> None:
    """Wraps the function that makes SGLang's offloader."""
    # Renamed between the versions.
    names = ("create_offloader", "create_offloader_from_server_args")
    found = [name for name in names if hasattr(sglang_offloader, name)]
    if not found:
        check_version(sglang.__version__)
        raise RuntimeError(f"SGLang {sglang.__version__} has none of {', '.join(names)}")
    HookRegistry.register(f"{sglang_offloader.__name__}.{found[0]}", _create, HookType.AROUND)


def _create(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Makes the offloader, when a model runner starts; a draft's gets that of the target."""
    global _active
    own = given()
    if own is None:
        return original(*args, **kwargs)
    if _active is not None and _active.committed:
        return _active
    check_version(sglang.__version__)
    options = options_of(own, runtime_context.get_exec().offload)
    check_supported(runtime_context)
    # Now these modules are imported, as they are by every model runner.
    HookRegistry.register(_LOAD, _load, HookType.AROUND)
    for target in _UPDATES:
        HookRegistry.register(target, _refuse_update, HookType.AROUND)
    HookRegistry.apply_hooks()
    _active = WeighbridgeOffloader(options)
    return _active


def _load(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Tells the offloader which model is loaded, which its interface does not."""
    if _active is None or kwargs.get("is_draft_worker"):
        return original(*args, **kwargs)
    if _active.committed:
        raise RuntimeError(
            "asked to load a second model in a process where weighbridge offloads one: give each a "
            f"process of its own, or unset {SWITCH}"
        )
    _active.begin(kwargs["model_config"], kwargs["device"], kwargs["gpu_id"])
    loaded = original(*args, **kwargs)
    _active.model = loaded.model
    return loaded


def _refuse_update(original: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[bool, str]:
    """Refuses new weights, as SGLang refuses them: captured graphs would use the old ones."""
    if _active is None or not _active.committed:
        result: tuple[bool, str] = original(*args, **kwargs)
        return result
    return False, (
        "asked to update the weights of a model that weighbridge offloads: graphs that were "
        f"captured use the old ones. Start the server again, or without {SWITCH}"
    )
