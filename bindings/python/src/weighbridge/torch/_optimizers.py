"""Steps of optimizers, which may change weights in ways that PyTorch does not count: fused ones."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Set
from typing import Any, Protocol

from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook


class Follower(Protocol):
    """An object whose weights optimizers change."""

    def changed_by_optimizer(self, ids: Set[int]) -> None:
        """Takes notice of a step of an optimizer that has the tensors with these ids."""


_followers: weakref.WeakSet[Follower] = weakref.WeakSet()


def follow_optimizers(follower: Follower) -> None:
    """Tells an object, as long as it lives, of every step of an optimizer."""
    _register()
    _followers.add(follower)


@functools.cache
def _register() -> None:
    register_optimizer_step_post_hook(_stepped)


def _stepped(optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
    ids = {id(tensor) for group in optimizer.param_groups for tensor in group["params"]}
    for follower in list(_followers):
        follower.changed_by_optimizer(ids)
