"""Chooses the groups of a model that has lists of blocks inside of blocks, as a UNet does."""

from __future__ import annotations

import torch

from ...torch._groups import entries_of, layers_of
from ...torch._weight import inner_tensors

SHARE = 24
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
    """Returns the bytes of a module's parameters, each once; of a tensor subclass, such as one of
    torchao, the bytes of the tensors that it wraps."""
    inner = (one for pair in module.named_parameters() for _, one in inner_tensors(*pair))
    return sum({id(tensor): tensor.nbytes for tensor in inner}.values())


def _entries_inside(module: torch.nn.Module, name: str) -> list[str]:
    """Returns the entries of the outermost lists of blocks in a module.

    Blocks of a list have one class, and parts: the layers in a feed-forward network do not.
    """
    if isinstance(module, (torch.nn.ModuleList, torch.nn.Sequential)):
        names = entries_of(module, name)
        entries = [module.get_submodule(entry[len(name) + 1 :]) for entry in names]
        are_blocks = len(set(map(type, entries))) == 1 and next(entries[0].children(), None)
        return names if are_blocks else []
    found = []
    for key, child in module.named_children():
        found += _entries_inside(child, f"{name}.{key}")
    return found
