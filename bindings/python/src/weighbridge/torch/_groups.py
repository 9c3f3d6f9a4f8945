"""Which modules are acquired as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from typing_extensions import Literal


def layers_of(model: torch.nn.Module) -> list[str]:
    """The names of the model's layers: the entries of its longest ``ModuleList``."""
    best: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, (torch.nn.ModuleList, torch.nn.Sequential)):
            prefix = f"{name}." if name else ""
            entries = [
                prefix + key
                for key, entry in module.named_children()
                if next(entry.parameters(), None) is not None
            ]
            if len(entries) > len(best):
                best = entries
    return best


def group_of_each(
    model: torch.nn.Module, groups: Literal["auto"] | Sequence[str]
) -> dict[str, str]:
    """The group of every parameter: the module named in ``groups`` that it is in, else its own."""
    names = layers_of(model) if isinstance(groups, str) else list(groups)
    known = dict(model.named_modules())
    for name in names:
        if name not in known:
            raise ValueError(f"there is no module {name!r} in the model: groups are module names")
    inner = {f"{name}." for name in names}
    found = {}
    for name, _ in model.named_parameters(remove_duplicate=False):
        starts = [name[: at + 1] for at, char in enumerate(name) if char == "."]
        outer = next((start for start in starts if start in inner), None)
        found[name] = outer[:-1] if outer else name.rpartition(".")[0]
    return found
