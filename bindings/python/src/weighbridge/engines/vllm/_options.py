"""What the user asked for: by vLLM's own options for offloading, or by those of weighbridge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from ..._enums import TransferMode
from ..._text import byte_count

NAME = "weighbridge"
"""The load format, and the key of the options in vLLM's ``additional_config``."""


@dataclass(frozen=True)
class Options:
    """The options of the plug-in: those of ``additional_config["weighbridge"]`` and vLLM's own."""

    load_format: str = "auto"
    """vLLM's format of the weights, which is used to load them."""
    offload_bytes: int | None = None
    """Limits the host memory of offloaded weights, of each rank; also ``--cpu-offload-gb``."""
    device_bytes: int | None = None
    """Limits the device memory of weights and slots, of each rank."""
    select: tuple[str, ...] = ()
    """Whole segments of the names of the weights that may leave; also ``--cpu-offload-params``."""
    exclude: tuple[str, ...] = ()
    """Whole segments of the names of those that stay."""
    transfer_mode: TransferMode = "auto"
    depth: int = 0
    """The layers that have their slots at a time; 0 lets the plan choose."""
    group_size: int = 0
    """Of the layers in each group of so many, the last ``num_in_group`` are offloaded: vLLM's
    options for prefetching."""
    num_in_group: int = 0
    overlap_steps: bool | None = None
    """Whether the end of an eager step copies the first layers of the next; None decides."""

    @classmethod
    def of(cls, vllm_config: Any) -> Options:
        """Returns the options of an engine. Raises ValueError for unknown or contradictory ones."""
        given = vllm_config.additional_config
        if not isinstance(given, Mapping):
            raise ValueError(
                f"additional_config is a {type(given).__name__}: pass a dictionary, to which "
                f"{NAME} adds what tells its compiled code from other code"
            )
        own = _own(given.get(NAME, {}))
        vllms = _of_vllm(vllm_config.offload_config)
        both = sorted(own.keys() & vllms.keys())
        budgets = [name for name in _BUDGETS if name in {**own, **vllms}]
        if both or len(budgets) > 1:
            raise ValueError(
                f"additional_config[{NAME!r}] has {_listed(own)}, and vLLM's options for "
                f"offloading say {_listed(vllms)}: give one budget, in one of these places"
            )
        if not budgets:
            raise ValueError(
                f"--load-format {NAME} needs a budget: --cpu-offload-gb, --offload-group-size, or "
                f"offload_bytes or device_bytes in --additional-config, such as "
                f'\'{{"{NAME}": {{"device_bytes": "12GiB"}}}}\''
            )
        return cls(**{**own, **vllms})

    def selects(self, name: str) -> bool:
        """Returns whether a weight may be offloaded."""
        dotted = f".{name}."
        included = not self.select or any(f".{text}." in dotted for text in self.select)
        return included and not any(f".{text}." in dotted for text in self.exclude)


_BUDGETS = ("offload_bytes", "device_bytes", "group_size")
_VLLM_ONLY = ("group_size", "num_in_group")
_TEXTS = ("select", "exclude")


def _own(given: Mapping[str, Any]) -> dict[str, Any]:
    known = [field.name for field in fields(Options) if field.name not in _VLLM_ONLY]
    unknown = sorted(name for name in given if name not in (*known, "compiled"))
    if unknown:
        raise ValueError(
            f"additional_config[{NAME!r}] has the unknown options {_listed(unknown)}: it has "
            f"{_listed(known)}"
        )
    found = {name: value for name, value in given.items() if name in known}
    for name in ("offload_bytes", "device_bytes"):
        if isinstance(found.get(name), str):
            found[name] = byte_count(found[name])
    for name in _TEXTS:
        texts = found.get(name, ())
        texts = (texts,) if isinstance(texts, str) else tuple(texts)
        globs = [text for text in texts if set(text) & set("*?[")]
        if globs:
            raise ValueError(
                f"{name} has {_listed(globs)}: write whole segments of a name, such as mlp.experts"
            )
        if texts:
            found[name] = texts
    return found


def _of_vllm(offload: Any) -> dict[str, Any]:
    """Returns what vLLM's options say, by its own rules of which of them count."""
    uva, prefetch = offload.uva, offload.prefetch
    backend = offload.offload_backend
    if backend == "auto":
        backend = "prefetch" if prefetch.offload_group_size > 0 else "uva"
    found: dict[str, Any] = {}
    if backend == "prefetch":
        found["group_size"] = prefetch.offload_group_size
        found["num_in_group"] = prefetch.offload_num_in_group
        found["depth"] = prefetch.offload_prefetch_step + 1
        found["select"] = tuple(sorted(prefetch.offload_params))
    elif uva.cpu_offload_gb > 0:
        found["offload_bytes"] = int(uva.cpu_offload_gb * 2**30)
        found["select"] = tuple(sorted(uva.cpu_offload_params))
    if not found.get("select"):
        found.pop("select", None)
    return found


def _listed(names: Sequence[str] | Mapping[str, Any]) -> str:
    return ", ".join(names) or "none"
