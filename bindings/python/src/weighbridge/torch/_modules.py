"""Modules whose forward runs in a window, by classes that are made for them.

A class, unlike a hook, also sees a forward that is called directly, comes after every hook, and is
what compilers guard: code that was compiled before the offload, or for an earlier one, is not used
again.
"""

from __future__ import annotations

import copy
import functools
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Callable

import torch
from torch._C._dynamo.eval_frame import get_eval_frame_callback
from torch.nn.utils.parametrize import is_parametrized

from ._compiled import is_exporting
from ._weights import is_held

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ._expert_window import ExpertWindow
    from ._weight import Weight
    from ._weights import Weights
    from ._window import Window

_WINDOW = "_weighbridge_window"
_ORIGINAL = "_weighbridge_original"
_WEIGHTS = "_weighbridge_weights"
_OF_EVERY_CLASS = ("__dict__", "__weakref__")


class OffloadedModules:
    """The modules of a model that run in windows."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._classes: dict[type, type] = {}
        self._changed: list[torch.nn.Module] = []

    def attach(self, module: torch.nn.Module, window: Window | ExpertWindow | None) -> None:
        """Makes a module's forward run in a window; the model itself may have none."""
        kind = type(module)
        if not hasattr(kind, _ORIGINAL):
            if kind not in self._classes:
                self._classes[kind] = _offloaded(module, self._weights)
            _set_class(module, self._classes[kind])
            self._changed.append(module)
        module.__dict__[_WINDOW] = window

    def detach(self) -> None:
        """Gives the modules their own classes again."""
        for module in self._changed:
            if any(type(module) is made for made in self._classes.values()):
                _set_class(module, getattr(type(module), _ORIGINAL))
            # Another class may have been made from it: without a window, it is as the original.
            module.__dict__.pop(_WINDOW, None)
        self._changed.clear()


def check_not_offloaded(model: torch.nn.Module, weights: Iterable[Weight]) -> None:
    """Raises RuntimeError if another handle offloads modules or weights of the model."""
    modules = (name for name, part in model.named_modules() if hasattr(type(part), _ORIGINAL))
    tensors = (weight.name for weight in weights if is_held(weight.tensor))
    for name in (*modules, *tensors):
        raise RuntimeError(
            f"asked to offload {name or 'the model'!r}, which is offloaded already: call remove() "
            "of its handle first"
        )


def weights_in_use(module: torch.nn.Module) -> Weights | None:
    """Returns the weights of the model that a module is part of, if that is offloaded."""
    return getattr(type(module), _WEIGHTS, None) if _WINDOW in module.__dict__ else None


def _offloaded(module: torch.nn.Module, weights: Weights) -> type:
    """Returns a class like the module's whose forward runs in a window."""
    kind: Any = type(module)

    @functools.wraps(kind.forward)
    def forward(self: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        window = self.__dict__.get(_WINDOW)
        run = functools.partial(kind.forward, self)
        if torch.compiler.is_compiling():
            first = weights.watches if self is weights.model else window and window.watches
            if first and not is_exporting():
                return eagerly(self, args, kwargs)
            return (
                run(*args, **kwargs) if window is None else window.compiled.run(run, args, kwargs)
            )
        if _WINDOW not in self.__dict__:
            return run(*args, **kwargs)
        if get_eval_frame_callback() not in (None, False):
            # The compiler left out this call, but would compile those within, and the windows'.
            return eagerly(self, args, kwargs)
        if window is not None and self is not weights.model:
            return window.run(run, args, kwargs)
        with weights.lock, weights.step() if self is weights.model else nullcontext():
            return run(*args, **kwargs) if window is None else window.run(run, args, kwargs)

    def _apply(self: Any, function: Callable[..., Any], recurse: bool = True) -> torch.nn.Module:
        if _WINDOW in self.__dict__:
            weights.check_moved(function)
        changed: torch.nn.Module = kind._apply(self, function, recurse)
        if _WINDOW in self.__dict__:
            weights.follow_within(self)
        return changed

    def __deepcopy__(self: torch.nn.Module, memo: dict[int, Any]) -> torch.nn.Module:
        if weights.closed is not None:
            raise RuntimeError(
                f"asked to copy {kind.__name__}, a part of a model with {weights.closed_words}: "
                "load its state_dict() into another, or call the handle's remove() first"
            )
        with weights.lock:
            if type(self).__dict__.get(_ORIGINAL) is not kind:
                raise RuntimeError(
                    f"asked to copy {kind.__name__}, whose class was changed while it was "
                    "offloaded: call the handle's remove() first"
                )
            own: Any = type(self)
            window = self.__dict__.pop(_WINDOW)
            _set_class(self, getattr(own, _ORIGINAL))
            try:
                return copy.deepcopy(self, memo)
            finally:
                _set_class(self, own)
                self.__dict__[_WINDOW] = window

    def __reduce_ex__(self: torch.nn.Module, protocol: Any) -> Any:
        if _WINDOW not in self.__dict__:
            return kind.__reduce_ex__(self, protocol)
        raise RuntimeError(
            f"asked to pickle or to copy {kind.__name__}, a part of an offloaded model: save "
            "its state_dict(), or call the handle's remove() first; copy.deepcopy copies it"
        )

    def share_memory(self: torch.nn.Module) -> torch.nn.Module:
        if _WINDOW not in self.__dict__:
            shared: torch.nn.Module = kind.share_memory(self)
            return shared
        raise RuntimeError(
            f"asked to share {kind.__name__} with other processes, whose weights are offloaded: "
            "call the handle's remove() first"
        )

    @torch.compiler.disable
    def eagerly(self: torch.nn.Module, args: Any, kwargs: Any) -> Any:
        """Runs a forward of which nothing is compiled, such as the first, which is watched."""
        return forward(self, *args, **kwargs)

    members = {
        _ORIGINAL: kind,
        _WEIGHTS: weights,
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        "__doc__": kind.__doc__,
        "__deepcopy__": __deepcopy__,
        "__reduce_ex__": __reduce_ex__,
        "_apply": _apply,
        "forward": forward,
        "share_memory": share_memory,
    }
    if not is_parametrized(module):
        return _subclass(kind, members)
    # Each parametrized module has a class of its own, whose properties are removed from the
    # module's class with the parametrization, and then the class itself.
    own = {key: value for key, value in vars(kind).items() if key not in _OF_EVERY_CLASS}
    return type(kind.__name__, kind.__bases__, {**own, **members})


def _set_class(module: torch.nn.Module, kind: type) -> None:
    """Changes a module's class, also of a module that refuses to set attributes."""
    object.__setattr__(module, "__class__", kind)


def _subclass(kind: type, members: dict[str, Any]) -> type:
    """Returns a subclass without a call of ``__init_subclass__``: some register subclasses."""
    meta = _metaclass(type(kind))
    if not hasattr(kind.__init_subclass__, "__func__"):  # object's, which does nothing
        made: type = meta(kind.__name__, (kind,), members)
        return made
    made = meta(kind.__name__, (torch.nn.Module,), members)
    made.__bases__ = (kind,)
    return made


@functools.cache
def _metaclass(meta: Any) -> Any:
    """Returns a metaclass of classes that equal those that they were made from.

    Programs choose what to do with a module by its class: ``type(module) == torch.nn.Linear``.
    """

    def __eq__(cls: Any, other: object) -> bool:
        return _original(cls) is (_original(other) if isinstance(other, type) else other)

    def __hash__(cls: Any) -> int:
        return hash(_original(cls))

    def __instancecheck__(cls: Any, instance: object) -> bool:
        return isinstance(instance, _original(cls))

    def __subclasscheck__(cls: Any, other: type) -> bool:
        return issubclass(other, _original(cls))

    members = {
        "__eq__": __eq__,
        "__hash__": __hash__,
        "__instancecheck__": __instancecheck__,
        "__subclasscheck__": __subclasscheck__,
    }
    return type(meta.__name__, (meta,), members)


def _original(kind: Any) -> Any:
    """Returns the class that a class was made from; a class that was not, or a subclass of one
    that was, itself."""
    return vars(kind).get(_ORIGINAL, kind)
