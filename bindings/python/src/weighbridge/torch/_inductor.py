"""Keeps Inductor from writing other tensors into the slots of weights."""

from __future__ import annotations

import sys
from typing import Any

from torch.utils import _pytree as pytree


def never_reuse_results(operator: Any) -> None:
    """Keeps Inductor from using the memory of an operator's results for other tensors.

    It plans memory as if an operator had allocated its results, unless the operator has a lowering
    that says otherwise. Does nothing where Inductor has not been imported: it traces again.
    """
    if "torch._inductor.compile_fx" not in sys.modules:
        return
    try:
        from torch._inductor import lowering
        from torch._inductor.virtualized import V

        if operator in lowering.lowerings:
            return
        fall_back = lowering.fallback_handler(operator, add_to_fallback_set=False)
        register = lowering.register_lowering(operator, type_promotion_kind=None)
    except (ImportError, AttributeError, TypeError) as error:
        raise _unknown_version(error) from error

    def lower(*arguments: Any, **options: Any) -> Any:
        results = fall_back(*arguments, **options)
        try:
            V.graph.never_reuse_buffers.update(
                result.get_name() for result in pytree.tree_leaves(results)
            )
        except AttributeError as error:
            raise _unknown_version(error) from error
        return results

    register(lower)


def _unknown_version(error: Exception) -> RuntimeError:
    import torch

    return RuntimeError(
        f"Inductor of PyTorch {torch.__version__} cannot be kept from writing other tensors into "
        f"the device memory of offloaded weights ({error}): use another backend of torch.compile"
    )
