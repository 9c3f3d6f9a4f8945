"""An expert tensor of which only some rows are on the device, for code that takes one at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


class NotRowsError(TypeError):
    """The code does something else with an expert tensor than take one expert."""


class ExpertRows:
    """Stands for an expert tensor ``[experts, ...]``: ``rows[expert]`` is that expert in its slot.

    Everything else that a tensor can do raises NotRowsError.
    """

    def __init__(self, pool: torch.Tensor, slots: Sequence[int]) -> None:
        self._pool = pool
        self._slots = slots

    def __getitem__(self, expert: Any) -> torch.Tensor:
        if isinstance(expert, torch.Tensor):
            if expert.ndim or expert.is_floating_point() or expert.dtype == torch.bool:
                raise NotRowsError(f"took experts by a tensor of {tuple(expert.shape)}")
            expert = int(expert)
        if not isinstance(expert, int):
            raise NotRowsError(f"took experts by {type(expert).__name__}")
        slot = self._slots[expert] if 0 <= expert < len(self._slots) else -1
        if slot < 0:
            raise NotRowsError(f"took expert {expert}, which no token uses")
        return self._pool[slot]

    @property
    def dtype(self) -> torch.dtype:
        """The element type."""
        return self._pool.dtype

    @property
    def device(self) -> torch.device:
        """Where the slots are."""
        return self._pool.device

    @property
    def shape(self) -> torch.Size:
        """The shape of the tensor that this stands for."""
        return torch.Size((len(self._slots), *self._pool.shape[1:]))

    def __getattr__(self, name: str) -> Any:
        raise NotRowsError(f"used {name!r} of the whole tensor")

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise NotRowsError(f"passed the whole tensor to {getattr(function, '__name__', function)}")
