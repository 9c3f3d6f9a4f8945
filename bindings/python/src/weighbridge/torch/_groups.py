"""Chooses the modules whose weights form a group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch


def layers_of(model: torch.nn.Module) -> list[str]:
    """Returns the names of the model's layers: the entries of its longest list of modules, and of
    the outermost lists outside of it."""
    lists = []
    for name, module in model.named_modules():
        if isinstance(module, (torch.nn.ModuleList, torch.nn.Sequential)):
            lists.append(entries_of(module, name))
    longest = max(lists, key=len, default=[])
    layers = list(longest)
    for entries in lists:
        if not any(_inside(a, b) or _inside(b, a) for a in entries for b in layers):
            layers += entries
    return layers


def entries_of(module: torch.nn.Module, name: str) -> list[str]:
    """Returns the names of the entries of a list of modules that are called and have weights."""
    return [
        _join(name, key)
        for key, entry in module.named_children()
        if next(entry.parameters(), None) is not None and _is_called(entry)
    ]


def group_of_each(
    model: torch.nn.Module, groups: Literal["auto"] | Sequence[str], weights: Mapping[str, str]
) -> dict[str, str]:
    """Returns the group of every weight, of which the name of its module is given.

    That is the module of ``groups`` that contains the weight, else the largest module around the
    weight that contains none of them, else the smallest, which then encloses groups (see
    :func:`enclosing`). A module in several places has the first of its names.
    """
    places = dict(model.named_modules(remove_duplicate=False))
    known = dict(model.named_modules())
    first = {module: name for name, module in known.items()}
    named = []
    for name in layers_of(model) if isinstance(groups, str) else groups:
        if name not in places:
            raise ValueError(f"the model has no module {name!r}: groups are module names")
        if not _is_called(places[name]):
            kind = type(places[name]).__name__
            raise ValueError(
                f"the group {name!r} is a {kind}, which is never called: name its entries"
            )
        named.append(first[places[name]])
    chosen, holders = set(named), _ancestors(named)
    found = {}
    for weight, own in weights.items():
        around = [  # the model first
            module
            for module in (*sorted(_ancestors([own]), key=len), own)
            if _is_called(known[module])
        ]
        outside = [module for module in around if module not in holders]
        named_one = [module for module in around if module in chosen]
        found[weight] = [*named_one, *outside, around[-1]][0]
    return found


def enclosing(groups: Sequence[str]) -> set[str]:
    """Returns the groups that contain other groups: they run while others use the slots."""
    return _ancestors(groups) & set(groups)


def _is_called(module: torch.nn.Module) -> bool:
    """Returns whether the module has a ``forward``, which lists of modules and parameters lack."""
    return type(module).forward is not torch.nn.Module.forward


def _ancestors(names: Sequence[str]) -> set[str]:
    """Returns every module that contains one of these."""
    found = set()
    for name in names:
        while name:
            name = name.rpartition(".")[0]
            found.add(name)
    return found


def _inside(name: str, other: str) -> bool:
    return name == other or not other or name.startswith(f"{other}.")


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
