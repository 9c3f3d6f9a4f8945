"""What a user asks of a plug-in that offloads the layers of an engine's model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from .._enums import TransferMode
from .._text import byte_count


@dataclass(frozen=True)
class LayerOptions:
    """A budget, which weights it is for, and how they are transferred."""

    offload_bytes: int | None = None
    """Limits the host memory of offloaded weights, of each rank."""
    device_bytes: int | None = None
    """Limits the device memory of weights and slots, of each rank."""
    select: tuple[str, ...] = ()
    """Whole segments of the names of the weights that may leave."""
    exclude: tuple[str, ...] = ()
    """Whole segments of the names of those that stay."""
    transfer_mode: TransferMode = "auto"
    depth: int = 0
    """The layers that have their slots at a time; 0 lets the plan choose."""
    group_size: int = 0
    """Of the layers in each group of so many, the last ``num_in_group`` are offloaded."""
    num_in_group: int = 0
    overlap_steps: bool | None = None
    """Whether the end of an eager step copies the first layers of the next; None decides."""

    def selects(self, name: str) -> bool:
        """Returns whether a weight may be offloaded."""
        dotted = f".{name}."
        included = not self.select or any(f".{text}." in dotted for text in self.select)
        return included and not any(f".{text}." in dotted for text in self.exclude)


BUDGETS = ("offload_bytes", "device_bytes", "group_size")
OF_ENGINES = ("group_size", "num_in_group")
"""The options that only an engine's own options for prefetching give."""


def given_options(given: Mapping[str, Any], kind: type[LayerOptions], where: str) -> dict[str, Any]:
    """Returns checked options of a user. ``where`` names the place of them in messages.

    Raises ValueError for unknown names, for globs, and for a text that is not a number of bytes.
    """
    known = [field.name for field in fields(kind) if field.name not in OF_ENGINES]
    unknown = sorted(name for name in given if name not in known)
    if unknown:
        raise ValueError(
            f"{where} has the unknown options {listed(unknown)}: it has {listed(known)}"
        )
    found = dict(given)
    for name in ("offload_bytes", "device_bytes", "expert_bytes"):
        if isinstance(found.get(name), str):
            found[name] = byte_count(found[name])
    for name in ("select", "exclude"):
        texts = found.pop(name, ())
        texts = (texts,) if isinstance(texts, str) else tuple(texts)
        globs = [text for text in texts if set(text) & set("*?[")]
        if globs:
            raise ValueError(
                f"{name} has {listed(globs)}: write whole segments of a name, such as mlp.experts"
            )
        if texts:
            found[name] = texts
    return found


def listed(names: Sequence[str] | Mapping[str, Any]) -> str:
    """Returns names for a message."""
    return ", ".join(names) or "none"
