"""Native functions for streams, which cannot run Python functions; DLPack's structs."""

from __future__ import annotations

import ctypes

_c = ctypes.CDLL(None)
_c.malloc.restype, _c.malloc.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)

SLEEP = ctypes.cast(_c.usleep, ctypes.c_void_p).value
"""``usleep(microseconds)``."""


class Gate:
    """Blocks a stream until it is opened: libc's ``sem_wait``.

    While it is closed, nothing may be allocated, registered or copied from host memory to host
    memory: a CUDA driver would wait for the stream.
    """

    _wait = ctypes.cast(_c.sem_wait, ctypes.c_void_p).value

    def __init__(self, stream) -> None:
        self._semaphore = ctypes.c_void_p(_c.malloc(64))
        _c.sem_init(self._semaphore, 0, 0)
        stream.call(self._wait, self._semaphore.value)

    def open(self) -> None:
        _c.sem_post(self._semaphore)


class DLDevice(ctypes.Structure):
    _fields_ = [("type", ctypes.c_int32), ("id", ctypes.c_int32)]


class DLTensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device", DLDevice),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


_deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class Managed(ctypes.Structure):
    """DLManagedTensor."""

    _fields_ = [("tensor", DLTensor), ("context", ctypes.c_void_p), ("deleter", _deleter)]
    name = b"dltensor"


class ManagedVersioned(ctypes.Structure):
    """DLManagedTensorVersioned."""

    _fields_ = [
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", _deleter),
        ("flags", ctypes.c_uint64),
        ("tensor", DLTensor),
    ]
    name = b"dltensor_versioned"


_python = ctypes.PyDLL(None)
_python.PyCapsule_GetPointer.restype = ctypes.c_void_p
_python.PyCapsule_GetPointer.argtypes = (ctypes.py_object, ctypes.c_char_p)
_python.PyCapsule_SetName.argtypes = (ctypes.py_object, ctypes.c_char_p)
_python.PyCapsule_GetName.restype = ctypes.c_char_p
_python.PyCapsule_GetName.argtypes = (ctypes.py_object,)

USED = {b"dltensor": b"used_dltensor", b"dltensor_versioned": b"used_dltensor_versioned"}


def capsule_name(capsule) -> bytes:
    return _python.PyCapsule_GetName(capsule)


def look(capsule):
    """Returns the managed tensor in a capsule, which stays fresh."""
    name = capsule_name(capsule)
    kind = Managed if name == Managed.name else ManagedVersioned
    address = _python.PyCapsule_GetPointer(capsule, name)
    return ctypes.cast(address, ctypes.POINTER(kind)).contents


def take(capsule):
    """Returns the managed tensor of a capsule, and marks the capsule as used."""
    managed = look(capsule)
    _python.PyCapsule_SetName(capsule, USED[capsule_name(capsule)])
    return managed
