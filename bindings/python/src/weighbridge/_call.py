"""Calls functions of the library and raises the errors that they report."""

from __future__ import annotations

import threading
from ctypes import byref
from typing import Any, TypeVar

from ._abi import Sized, wb_error
from ._c_names import in_python
from ._enums import CODE_DOMAIN
from .errors import make

_Struct = TypeVar("_Struct", bound=Sized)


def check(status: int, error: wb_error) -> None:
    """Raises the error of a call that failed."""
    if status != 0:
        domain = None if error.code_domain == 0 else CODE_DOMAIN.word(error.code_domain)
        message = in_python(error.message.decode(errors="replace"))
        raise make(status, message, error.code, domain)


def call(function: Any, *arguments: Any) -> None:
    """Calls a function that ends with ``wb_error *``; raises what it reports."""
    error = wb_error()
    check(function(*arguments, byref(error)), error)


def interruptible(function: Any, *arguments: Any) -> None:
    """As :func:`call`, for a function that waits; Ctrl-C ends the wait, and the call goes on.

    Only the main thread receives Ctrl-C, and not in a native call, so another thread makes it.
    """
    if threading.current_thread() is not threading.main_thread():
        call(function, *arguments)
        return
    error, found = wb_error(), [0]

    def wait() -> None:
        found[0] = function(*arguments, byref(error))

    waiting = threading.Thread(target=wait, name="weighbridge-wait", daemon=True)
    try:
        waiting.start()
    except RuntimeError:  # no more threads, the interpreter exits, or it is a subinterpreter
        wait()
    else:
        waiting.join()
    check(found[0], error)


def filled(struct: type[_Struct], function: Any, *arguments: Any) -> _Struct:
    """Calls a function that fills a struct, and returns the struct."""
    found = struct()
    call(function, *arguments, byref(found))
    return found
