"""Where vLLM splits a model that it compiles: at the attention of each layer.

It calls attention by an operator that it does not trace, which finds the layer's module by its name
and calls a method of it. Weights that change places in that method do so between two pieces.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Callable

import torch

from ...torch._between import Call, Split
from ...torch._staged import Preceding

_METHODS = {
    "Attention": ("vllm::unified_attention_with_output", "impl", "forward"),
    "MLAAttention": ("vllm::unified_mla_attention_with_output", "", "forward_impl"),
}
"""By class, the operator, and the member with the method that it calls, and that method."""
_BEHIND = "RowParallelLinear"
"""The class of the linear layer that follows attention."""


def preceding(layer: torch.nn.Module) -> Preceding | None:
    """Returns what runs in a layer before its attention: the module around it, but its output."""
    for module in layer.modules():
        if module is not layer and any(_is_attention(child) for child in module.children()):
            behind = {
                inner
                for child in module.children()
                if _is_a(child, _BEHIND)
                for inner in child.modules()
            }
            return Preceding(module, frozenset(module.modules()) - behind)
    return None


def splits_by(operators: Sequence[str]) -> Callable[[torch.nn.Module, str], Split | None]:
    """Returns what tells how a layer of a name is split where a model is split at some operators.

    It returns None for one without attention that is known, or that is not split there.
    """

    def split_of(layer: torch.nn.Module, name: str) -> Split | None:
        part = preceding(layer)
        found = [module for module in layer.modules() if _is_attention(module)]
        called = {_method_of(module)[0] for module in found}
        if part is None or not called <= {one.removesuffix(".default") for one in operators}:
            return None
        path = next(path for path, module in layer.named_modules() if module is part.named)
        return Split(f"{name}.{path}", name, [_call_of(module) for module in found])

    return split_of


def _is_attention(module: torch.nn.Module) -> bool:
    return any(_is_a(module, name) for name in _METHODS)


def _is_a(module: torch.nn.Module, name: str) -> bool:
    return any(kind.__name__ == name for kind in type(module).__mro__)


def _method_of(module: torch.nn.Module) -> tuple[str, str, str]:
    return next(found for name, found in _METHODS.items() if _is_a(module, name))


def _call_of(module: torch.nn.Module) -> Call:
    _, member, method = _method_of(module)
    return Call(getattr(module, member) if member else module, method)
