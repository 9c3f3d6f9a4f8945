"""Tensors whose numbers are in files until they are written to their place.

transformers renames, casts, stacks and splits the tensors of a checkpoint while it loads them. It
does so with these, which have the type and shape of the result and remember how to compute it. So
no result is in memory before the place is known that it is computed into.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_map

PIECE = 32 << 20
"""Bytes of a file that are cast, or copied to a device, at once."""
THREADS = 8
_CPU = torch.device("cpu")


class Deferred(torch.Tensor):
    """A tensor that is computed from files when it is written."""

    function: Callable[..., Any] | None
    """What computes it from ``arguments``; None for a tensor of a file."""
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    part: int | None
    """Its index in the result, if that is a sequence."""
    read: Callable[[], torch.Tensor] | None
    """What makes the tensor over the mapped file, or decodes it, of one that is in a file."""
    compressed: bool
    """Whether it is compressed in the file."""
    name_in_file: str
    """Its name in the file."""
    used: bool
    """Whether others are computed from its numbers, which may not change then."""

    @staticmethod
    def __new__(
        cls: type[Deferred],
        shape_of: torch.Tensor,
        function: Callable[..., Any] | None = None,
        arguments: tuple[Any, ...] = (),
        options: dict[str, Any] | None = None,
        part: int | None = None,
    ) -> Deferred:
        return cls.make(
            shape_of.shape, shape_of.dtype, shape_of.stride(), function, arguments, options, part
        )

    @classmethod
    def make(
        cls,
        shape: Sequence[int],
        dtype: torch.dtype,
        strides: Sequence[int] | None,
        function: Callable[..., Any] | None = None,
        arguments: tuple[Any, ...] = (),
        options: dict[str, Any] | None = None,
        part: int | None = None,
    ) -> Deferred:
        """Returns a tensor of a shape and type; without strides it is contiguous."""
        made = torch.Tensor._make_wrapper_subclass(
            cls, shape, strides=strides, dtype=dtype, device=_CPU
        )
        made.function, made.arguments, made.options = function, arguments, options or {}
        made.part, made.name_in_file, made.read, made.compressed = part, "", None, False
        made.used = False
        return made

    def __repr__(self) -> Any:
        return f"<Deferred {self.dtype} {tuple(self.shape)} {self.name_in_file or self.function}>"

    __torch_function__: Any = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(
        cls, function: Any, kinds: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        options = options or {}
        if function in _SAME_MEMORY:  # of nearly all tensors
            return Deferred(arguments[0], function, arguments, options)
        if function._schema.is_mutable:
            return _change(function, arguments, options)
        try:
            shapes = function(*_on_meta(arguments), **_on_meta(options))
        except (NotImplementedError, RuntimeError):
            shapes = None  # the result depends on the numbers
        if isinstance(shapes, torch.Tensor):
            _note_use(function, arguments, options)
            return Deferred(shapes, function, arguments, options)
        if isinstance(shapes, (list, tuple)) and all(isinstance(s, torch.Tensor) for s in shapes):
            _note_use(function, arguments, options)
            made = (Deferred(s, function, arguments, options, n) for n, s in enumerate(shapes))
            return type(shapes)(made)
        return function(*_computed(arguments), **_computed(options))

    def file_tensor(self) -> Deferred | None:
        """Returns the tensor of a file that this is, as it is there; None if it is not."""
        found = self
        while found.function in _SAME and found.dtype == found.arguments[0].dtype:
            found = found.arguments[0]
        return found if found.function is None and found.stride() == self.stride() else None

    def computed(self) -> torch.Tensor:
        """Returns a tensor with the numbers: over the file where that is possible."""
        if self.read is not None:
            return self.read()
        assert self.function is not None
        if self.function in _SAME and self.dtype == self.arguments[0].dtype:
            value: torch.Tensor = self.arguments[0].computed()
            return value if value.stride() == self.stride() else value.contiguous()
        found = self.function(*_computed(self.arguments), **_computed(self.options))
        value = found if self.part is None else found[self.part]
        return value

    def is_view(self) -> bool:
        """Returns whether the numbers are in a file unchanged, though not as a whole tensor."""
        if self.function is None:
            return not self.compressed
        first = self.arguments[0] if self.arguments else None
        if not isinstance(first, Deferred) or self.dtype != first.dtype:
            return False
        returns = self.function._schema.returns
        is_alias = all(one.alias_info is not None for one in returns)
        is_same = self.function in _SAME and self.stride() == first.stride()
        return (is_alias or is_same) and first.is_view()


def _owner(tensor: Deferred) -> Deferred:
    """Returns the tensor that has the memory which a tensor is a view of."""
    while tensor.function is not None and _is_view_function(tensor.function):
        tensor = tensor.arguments[0]
    return tensor


def _is_view_function(function: Any) -> bool:
    schema = getattr(function, "_schema", None)
    return schema is not None and all(one.alias_info is not None for one in schema.returns)


def _note_use(function: Any, arguments: Any, options: Any) -> None:
    if not _is_view_function(function):
        for one in tree_flatten((arguments, options))[0]:
            if isinstance(one, Deferred):
                _owner(one).used = True


def _change(function: Any, arguments: Any, options: Any) -> Any:
    """Changes a tensor in place that was computed, such as a normalized weight that transformers
    initializes and drops."""
    changed: Any = arguments[0] if arguments else None
    owner = _owner(changed) if isinstance(changed, Deferred) else None
    if owner is None or owner.function is None or owner.used:
        raise NotImplementedError(
            f"transformers changes a tensor of the checkpoint in place ({function}) while it "
            "loads it, which is not supported for weights that are still in their file"
        )
    if owner.arguments:
        value = owner.computed().clone()
        owner.function, owner.arguments = (lambda: value), ()
        owner.options, owner.part = {}, None
    function(changed.computed(), *_computed(arguments[1:]), **_computed(options))
    return changed


_SAME_MEMORY = (torch.ops.aten.detach.default, torch.ops.aten.alias.default)
_SAME = (
    *_SAME_MEMORY,
    torch.ops.aten._to_copy.default,
    torch.ops.aten.clone.default,
)
"""What gives the same numbers, of the same or another type."""
_JOIN = {torch.ops.aten.stack.default: True, torch.ops.aten.cat.default: False}
"""What joins tensors, and whether in a new dimension."""

Copies = Iterator[tuple[torch.Tensor, torch.Tensor]]


def deferred(
    shape: Sequence[int],
    dtype: torch.dtype,
    name: str,
    read: Callable[[], torch.Tensor],
    compressed: bool = False,
) -> Deferred:
    """Returns a tensor in a file, which ``read`` makes or decodes."""
    made = Deferred.make(shape, dtype, None)
    made.name_in_file, made.read, made.compressed = name, read, compressed
    return made


class Writer:
    """Writes tensors to their places, several pieces at a time, in a ``with`` statement."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(THREADS)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: Any) -> None:
        self._threads.shutdown()

    @torch.no_grad()
    def write(self, tensor: Deferred, target: torch.Tensor) -> None:
        """Writes the numbers of a tensor to one of the same shape and type on any device."""
        pieces = (piece for pair in _copies(tensor, target) for piece in _pieces(*pair))
        if target.is_cpu:
            for _ in self._threads.map(_copy, pieces):
                pass
        else:
            for pair in pieces:
                _copy(pair)


def _copy(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    source, target = pair
    target.copy_(source)


def _copies(tensor: Deferred, target: torch.Tensor) -> Copies:
    """Returns what to copy where, so that joined tensors have no memory of their own."""
    function, arguments = tensor.function, tensor.arguments
    if function in _JOIN:
        parts: Sequence[Deferred] = arguments[0]
        along = arguments[1] if len(arguments) > 1 else tensor.options.get("dim", 0)
        along %= tensor.dim()
        if all(isinstance(part, Deferred) and part.dtype == tensor.dtype for part in parts):
            start = 0
            for part in parts:
                if _JOIN[function]:
                    yield from _copies(part, target.select(along, start))
                    start += 1
                elif part.dim() == tensor.dim():  # else it is empty
                    size = part.shape[along]
                    yield from _copies(part, target.narrow(along, start, size))
                    start += size
            return
    if function in _SAME and (tensor.dtype in (arguments[0].dtype, target.dtype)):
        yield from _copies(arguments[0], target)  # the copy casts
        return
    yield tensor.computed(), target


def _pieces(source: torch.Tensor, target: torch.Tensor) -> Copies:
    """Returns a copy as copies of bounded size."""
    if source.dim() == 0 or source.nbytes <= PIECE:
        yield source, target
        return
    rows = source.shape[0]
    count = max(1, rows * PIECE // source.nbytes)
    if rows == 1:
        yield from _pieces(source[0], target[0])
        return
    for start in range(0, rows, count):
        yield source[start : start + count], target[start : start + count]


def _on_meta(value: Any) -> Any:
    def moved(one: Any) -> Any:
        if isinstance(one, torch.Tensor):
            return torch.empty_strided(one.shape, one.stride(), dtype=one.dtype, device="meta")
        return torch.device("meta") if isinstance(one, torch.device) else one

    return tree_map(moved, value)


def _computed(value: Any) -> Any:
    return tree_map(lambda one: one.computed() if isinstance(one, Deferred) else one, value)


def names_in(tensor: Deferred) -> list[str]:
    """Returns the names of the tensors of files that a tensor is computed from."""
    if tensor.function is None:
        return [tensor.name_in_file]
    inner, _ = tree_flatten((tensor.arguments, tensor.options))
    return [name for one in inner if isinstance(one, Deferred) for name in names_in(one)]
