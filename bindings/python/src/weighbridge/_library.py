"""Finds and loads the native library, and checks that its version fits this package.

The library is the first of these:

1. the file that ``WEIGHBRIDGE_LIBRARY`` names, unless Python ignores the environment (-E, -I);
2. ``libweighbridge.so`` beside this file, where pip installs it;
3. only where this file lies in ``bindings/python/src`` of a source checkout: the checkout's
   ``target/release/libweighbridge.so``, which ``make build`` makes.
"""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Any

from . import _abi, _prototypes

_VARIABLE = "WEIGHBRIDGE_LIBRARY"
_NAME = "libweighbridge.so"
_IN_CHECKOUT = os.path.join("bindings", "python", "src", "weighbridge")


def _find() -> str:
    # With -E or -I the environment is not trusted, least of all to name the code that is loaded.
    given = None if sys.flags.ignore_environment else os.environ.get(_VARIABLE)
    if given:
        if not os.path.isfile(given):
            raise ImportError(f"{_VARIABLE}={given!r} is not a file: name a {_NAME}")
        return os.path.abspath(given)
    package = os.path.dirname(os.path.abspath(__file__))
    candidates = [os.path.join(package, _NAME)]
    checkout = _checkout(package)
    if checkout is not None:
        candidates.append(os.path.join(checkout, "target", "release", _NAME))
    for candidate in candidates:
        if os.path.isfile(candidate):
            return candidate
    raise ImportError(
        f"there is no {' and no '.join(candidates)}: install the package with pip, which builds "
        f"the library, run make build in a checkout, or set {_VARIABLE} to a {_NAME}"
    )


def _checkout(package: str) -> str | None:
    """The root of the source checkout that the package lies in; None where it is installed."""
    root, _, below = package.rpartition(os.sep + _IN_CHECKOUT)
    return root if not below and os.path.isfile(os.path.join(root, "Cargo.toml")) else None


def _check_version(library: ctypes.CDLL, path: str) -> tuple[int, int, int]:
    try:
        function = library.wb_version
    except AttributeError:
        raise ImportError(f"{path} is not the weighbridge library: it has no wb_version") from None
    function.restype = ctypes.c_uint32
    number: int = function()
    found = (number >> 16, number >> 8 & 0xFF, number & 0xFF)
    need = _abi.VERSION
    # Before 1.0 a minor version may change the interface; after it, only add to it.
    fits = found[:2] == need[:2] if need[0] == 0 else found[0] == need[0] and found >= need
    if not fits:
        raise ImportError(
            f"{path} is weighbridge {_text(found)} and this package needs {need[0]}.{need[1]}: "
            f"reinstall the package, or set {_VARIABLE} to a library of that version"
        )
    return found


def _text(version: tuple[int, int, int]) -> str:
    return ".".join(str(part) for part in version)


def _load() -> tuple[Any, str, str]:
    path = _find()
    try:
        library = ctypes.CDLL(path)
    except OSError as error:
        raise ImportError(f"{path} cannot be loaded: {error}") from error
    version = _check_version(library, path)
    try:
        _prototypes.declare(library)
    except AttributeError as error:
        raise ImportError(f"{path} lacks a function that this package needs: {error}") from error
    failure = _abi.wb_error()
    status = library.wb_python_capsule_setup(
        ctypes.cast(ctypes.pythonapi.PyCapsule_IsValid, ctypes.c_void_p),
        ctypes.cast(ctypes.pythonapi.PyCapsule_GetPointer, ctypes.c_void_p),
        ctypes.byref(failure),
    )
    if status != 0:
        raise ImportError(f"{path}: {failure.message.decode(errors='replace')}")
    return library, path, _text(version)


lib, PATH, VERSION = _load()
