"""What a user asks of a plug-in that offloads the layers of an engine's model."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Real
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


def given_options(given: Any, kind: type[LayerOptions], where: str) -> dict[str, Any]:
    """Returns checked options of a user. ``where`` names the place of them in messages.

    Raises ValueError for unknown names, and for what an option does not take.
    """
    if not isinstance(given, Mapping):
        raise ValueError(
            f'{where} is {given!r}: give a dictionary of options, such as {{"device_bytes": '
            '"12GiB"}'
        )
    known = [field.name for field in fields(kind) if field.name not in OF_ENGINES]
    unknown = sorted(str(name) for name in given if name not in known)
    if unknown:
        raise ValueError(
            f"{where} has the unknown options {listed(unknown)}: it has {listed(known)}"
        )
    found = {name: _checked(name, value, where) for name, value in given.items()}
    return {name: value for name, value in found.items() if value != ()}


def _checked(name: str, value: Any, where: str) -> Any:
    """Returns the value of an option; raises ValueError if the option does not take it."""
    said = f"{name} is {value!r} in {where}"
    if name in ("offload_bytes", "device_bytes", "expert_bytes"):
        if isinstance(value, str):
            try:
                return byte_count(value)
            except ValueError as error:
                raise ValueError(f"{said}: {error}") from None
        if not _is_count(value):
            raise ValueError(
                f"{said}: give a whole number of bytes, 0 or more, or a text such as '12GiB', or "
                "leave it out"
            )
    elif name in ("select", "exclude"):
        texts = (value,) if isinstance(value, str) else value
        listing = isinstance(texts, (list, tuple, set, frozenset))
        if not listing or not all(isinstance(text, str) and text for text in texts):
            raise ValueError(
                f"{said}: give whole segments of a name, such as mlp.experts, or a list of them, "
                "or leave it out"
            )
        globs = [text for text in texts if set(text) & set("*?[")]
        if globs:
            raise ValueError(
                f"{name} has {listed(globs)}: write whole segments of a name, such as mlp.experts"
            )
        return tuple(texts)
    elif name == "depth" and not _is_count(value):
        raise ValueError(f"{said}: give a number of layers, or 0 to let the plan choose")
    elif name == "overlap_steps" and not (value is None or isinstance(value, bool)):
        raise ValueError(f"{said}: give true or false, or leave it out")
    elif name in ("transfer_mode", "load_format", "experts") and not isinstance(value, str):
        raise ValueError(f"{said}: give a text, or leave it out")
    return value


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def check_budget(name: str, value: Any) -> None:
    """Raises TypeError or ValueError if a budget is not a number of bytes."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}: give a whole number of bytes, such as 8 << 30")
    if value < 0:
        raise ValueError(f"{name} is {value}: give a number of bytes, 0 or more")


def check_by_model(name: str, value: Any, models: Collection[str]) -> None:
    """Raises TypeError or ValueError if an option does not name models of a pipeline."""
    if value is not None and not isinstance(value, Mapping):
        raise TypeError(
            f"{name} is {value!r}: give a dictionary by the names of models, which are "
            f"{listed(list(models))}"
        )
    for model in value or ():
        if model not in models:
            raise ValueError(
                f"{name} names {model!r}, and the pipeline has no model {model!r}: it has "
                f"{listed(list(models))}"
            )


def check_runs(runs: Mapping[str, Any] | None) -> None:
    """Raises TypeError or ValueError if ``runs`` does not say how often models run."""
    for model, value in (runs or {}).items():
        said = f"runs is {value!r} for {model}"
        if not isinstance(value, Real) or isinstance(value, bool):
            raise TypeError(f"{said}: give how often it runs in a call, a number such as 30")
        if not 0 <= float(value) < math.inf:
            raise ValueError(f"{said}: give how often it runs in a call, 0 or more, and finite")


def listed(names: Sequence[str] | Mapping[str, Any]) -> str:
    """Returns names for a message."""
    return ", ".join(names) or "none"
