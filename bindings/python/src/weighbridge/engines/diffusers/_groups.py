"""Chooses the groups of a model that has lists of blocks inside of blocks, as a UNet does."""

from __future__ import annotations

import torch

from ...torch._groups import entries_of, layers_of

SHARE = 16
"""A block is divided if it is larger than this part of the model, and has lists of blocks."""


def groups_of(model: torch.nn.Module) -> list[str]:
    """Returns the names of the modules that are transferred as a whole."""
    limit = bytes_of(model) // SHARE
    modules = dict(model.named_modules())
    found = []
    queue = list(reversed(layers_of(model)))
    while queue:
        name = queue.pop()
        inner = _entries_inside(modules[name], name) if bytes_of(modules[name]) > limit else []
        if inner:
            queue += reversed(inner)
        else:
            found.append(name)
    return found


def bytes_of(module: torch.nn.Module) -> int:
    """Returns the bytes of a module's parameters, each once."""
    return sum({id(p): p.numel() * p.element_size() for p in module.parameters()}.values())


def _entries_inside(module: torch.nn.Module, name: str) -> list[str]:
    """Returns the entries of the outermost lists in a module."""
    if isinstance(module, (torch.nn.ModuleList, torch.nn.Sequential)):
        return entries_of(module, name)
    return [
        entry for key, child in module.named_children() for entry in _entries_inside(child, f"{name}.{key}")
    ]
