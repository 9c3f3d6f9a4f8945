"""The C interface in ctypes: structs, constants and the prototype of every function.

Names are those of ``weighbridge.h``. ``tests/python/test_abi.py`` compares this file with the
header and with what a C compiler makes of it.
"""

from __future__ import annotations

import ctypes
from ctypes import (
    CFUNCTYPE,
    POINTER,
    c_char,
    c_char_p,
    c_double,
    c_int32,
    c_int64,
    c_size_t,
    c_uint32,
    c_uint64,
    c_void_p,
)
from typing import Any

VERSION = (0, 1, 0)
"""The version of the header that this file follows."""

WB_NUMA_DEVICE = -1
WB_NUMA_ANY = -2

WB_UNSET = (1 << 64) - 1

WB_TRISTATE_AUTO = 0
WB_TRISTATE_ON = 1
WB_TRISTATE_OFF = 2


class Names:
    """The words that Python uses for the constants of one C enum."""

    def __init__(self, what: str, **codes: int) -> None:
        self._what = what
        self._codes = codes
        self._words = {code: word for word, code in codes.items()}

    def code(self, word: str) -> int:
        """The C constant of a word; ValueError for a word that is none."""
        code = self._codes.get(word)
        if code is None:
            words = ", ".join(repr(word) for word in self._codes)
            raise ValueError(f"{self._what} is {word!r}; use one of {words}")
        return code

    def word(self, code: int) -> str:
        """The word of a C constant, or its number from a library newer than this file."""
        return self._words.get(code, str(code))


DEVICE_KIND = Names("kind", host=1, cuda=2)
HUGE_PAGES = Names("huge_pages", **{"try": 0}, off=1, require=2)
FILE_MODE = Names("file_mode", auto=0, map=1, read=2)
ORIGIN = Names("origin", allocated=1, registered=2, file_mapped=3, file_read=4)
PINNING = Names("pinning", none=0, registered=1, driver=2)
PHASE = Names("phase", fault=1, pin=2, read=3, quantize=4)
ACCESS = Names("access", device=0, host=1)
PARAMETER_ACCESS = Names("access", dense=0, sparse=1)
CARRIER = Names("carrier", auto=0, view=1, prefetch=3, resident=-1, **{"on-demand": 2})
ORDER = Names("order", spread=0, declared=1, largest=2)
ALLOW = Names("allow", nothing=1, unmatched=2, everything_fits=4)

wb_progress = CFUNCTYPE(c_int32, c_size_t, c_int32, c_uint64, c_uint64)


def choice(value: bool | None) -> int:
    """The ``wb_tristate`` of None, True or False."""
    return WB_TRISTATE_AUTO if value is None else WB_TRISTATE_ON if value else WB_TRISTATE_OFF


class Sized(ctypes.Structure):
    """A struct that begins with its own size."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(struct_size=ctypes.sizeof(self), **fields)


class wb_error(Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("status", c_int32),
        ("driver_code", c_int32),
        ("message", c_char * 500),
    ]


class wb_device_options(Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("pin", c_int32),
        ("views", c_int32),
        ("reserved0", c_uint32),
        ("context", c_void_p),
        ("capacity_bytes", c_uint64),
        ("reserved", c_uint64 * 4),
    ]


class wb_device_info(Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("kind", c_int32),
        ("ordinal", c_int32),
        ("driver_version", c_int32),
        ("compute_capability", c_int32),
        ("unified_addressing", c_int32),
        ("host_register", c_int32),
        ("read_only_register", c_int32),
        ("read_only_register_attribute", c_int32),
        ("pageable_access", c_int32),
        ("integrated", c_int32),
        ("numa_node", c_int32),
        ("pin", c_int32),
        ("views", c_int32),
        ("memlock_limit", c_uint64),
        ("total_bytes", c_uint64),
        ("free_bytes", c_uint64),
        ("name", c_char * 256),
        ("pin_reason", c_char * 256),
        ("views_reason", c_char * 256),
    ]


class wb_device_stats(Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("reserved0", c_uint32),
        ("buffers", c_uint64),
        ("views", c_uint64),
        ("deferred", c_uint64),
        ("asked_bytes", c_uint64),
        ("mapped_bytes", c_uint64),
        ("pinned_bytes", c_uint64),
        ("device_bytes", c_uint64),
        ("errors_logged", c_uint64),
    ]


class wb_buffer_options(Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("huge_pages", c_int32),
        ("threads", c_uint32),
        ("numa_node", c_int32),
        ("pin", c_int32),
        ("write_combined", c_int32),
        ("portable", c_int32),
        ("file_mode", c_int32),
        ("chunk_bytes", c_uint64),
        ("progress", wb_progress),
        ("progress_user", c_void_p),
        ("reserved", c_uint64 * 4),
    ]


class wb_buffer_info(Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("origin", c_int32),
        ("pinning", c_int32),
        ("read_only", c_int32),
        ("data", c_void_p),
        ("device_address", c_uint64),
        ("asked_bytes", c_uint64),
        ("mapped_bytes", c_uint64),
        ("pinned_bytes", c_uint64),
        ("chunks", c_uint64),
        ("note", c_char * 256),
    ]


class wb_buffer_stats(Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("reserved0", c_uint32),
        ("resident_bytes", c_uint64),
        ("huge_bytes", c_uint64),
        ("anonymous_bytes", c_uint64),
        ("locked_bytes", c_uint64),
    ]


class wb_layout(Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("dtype", c_int32),
        ("ndim", c_int32),
        ("reserved0", c_uint32),
        ("shape", POINTER(c_int64)),
        ("strides", POINTER(c_int64)),
        ("offset_bytes", c_uint64),
    ]


class wb_view_info(Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("dtype", c_int32),
        ("ndim", c_int32),
        ("access", c_int32),
        ("read_only", c_int32),
        ("reserved0", c_uint32),
        ("data", c_void_p),
        ("device_address", c_uint64),
        ("shape", POINTER(c_int64)),
        ("strides", POINTER(c_int64)),
        ("elements", c_uint64),
        ("span_bytes", c_uint64),
    ]


class wb_safetensors_tensor_info(Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("dtype", c_int32),
        ("ndim", c_int32),
        ("reserved0", c_uint32),
        ("name", c_char_p),
        ("shape", POINTER(c_int64)),
        ("offset_bytes", c_uint64),
        ("bytes", c_uint64),
    ]


class wb_parameter(Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("access", c_int32),
        ("name", c_char_p),
        ("group", c_char_p),
        ("layout", POINTER(wb_layout)),
        ("source", c_uint64),
        ("storage", c_uint64),
        ("carrier", c_int32),
        ("reserved0", c_uint32),
        ("reserved", c_uint64 * 2),
    ]


class wb_quantize_options(Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("format", c_int32),
        ("scale_type", c_int32),
        ("given_scales", c_int32),
        ("block_rows", c_uint64),
        ("block_cols", c_uint64),
        ("refuse_nonfinite", c_int32),
        ("reserved0", c_uint32),
        ("scale_bytes", c_uint64),
        ("progress", wb_progress),
        ("progress_user", c_void_p),
        ("reserved", c_uint64 * 4),
    ]


class wb_plan_options(Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("depth", c_uint32),
        ("offload_bytes", c_uint64),
        ("device_bytes", c_uint64),
        ("slot_bytes", c_uint64),
        ("select", POINTER(c_char_p)),
        ("exclude", POINTER(c_char_p)),
        ("select_count", c_uint32),
        ("exclude_count", c_uint32),
        ("carrier", c_int32),
        ("order", c_int32),
        ("allow", c_uint32),
        ("reserved0", c_uint32),
        ("quantize", POINTER(wb_quantize_options)),
        ("quantize_select", POINTER(c_char_p)),
        ("quantize_count", c_uint32),
        ("reserved1", c_uint32),
        ("link_bytes_per_second", c_double),
        ("reserved", c_uint64 * 4),
    ]


class wb_plan_info(Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("depth", c_uint32),
        ("parameters", c_uint64),
        ("groups", c_uint64),
        ("warnings", c_uint64),
        ("payload_bytes", c_uint64),
        ("offloaded_bytes", c_uint64),
        ("arena_bytes", c_uint64),
        ("resident_bytes", c_uint64),
        ("slot_bytes", c_uint64),
        ("ring_bytes", c_uint64),
        ("step_bytes", c_uint64),
        ("view_bytes", c_uint64),
        ("step_seconds", c_double),
        ("wrap_stalls", c_int32),
        ("reserved0", c_uint32),
    ]


class wb_plan_parameter_info(Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("carrier", c_int32),
        ("name", c_char_p),
        ("reason", c_char_p),
        ("group", c_uint64),
        ("span_bytes", c_uint64),
        ("tied_to", c_uint64),
    ]


class wb_plan_group_info(Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("turn", c_int32),
        ("name", c_char_p),
        ("offloaded_bytes", c_uint64),
        ("resident_bytes", c_uint64),
    ]


class wb_offloader_parameter_info(Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("carrier", c_int32),
        ("group", c_uint64),
        ("device_address", c_uint64),
        ("host_address", c_void_p),
        ("span_bytes", c_uint64),
    ]


class wb_offloader_stats(Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("reserved0", c_uint32),
        ("offloaded_bytes", c_uint64),
        ("asked_bytes", c_uint64),
        ("mapped_bytes", c_uint64),
        ("pinned_bytes", c_uint64),
        ("resident_bytes", c_uint64),
        ("slot_bytes", c_uint64),
        ("view_bytes", c_uint64),
        ("staging_bytes", c_uint64),
        ("peak_mapped_bytes", c_uint64),
        ("peak_slot_bytes", c_uint64),
        ("moved_bytes", c_uint64),
        ("copies", c_uint64),
        ("acquires", c_uint64),
        ("late", c_uint64),
        ("waited_seconds", c_double),
        ("generation", c_uint64),
    ]


class wb_quantizer_scales_info(Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("reserved0", c_uint32),
        ("matrices", c_uint64),
        ("rows", c_uint64),
        ("cols", c_uint64),
        ("bytes", c_uint64),
    ]


class wb_quantizer_result(Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("passes", c_uint32),
        ("nonfinite", c_uint64),
        ("staging_bytes", c_uint64),
    ]


class wb_offloader_reconcile_result(Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("reserved0", c_uint32),
        ("replaced", c_uint64),
        ("added", c_uint64),
        ("removed", c_uint64),
        ("kept", c_uint64),
    ]


STRUCTS: tuple[type[Sized], ...] = (
    wb_error,
    wb_device_options,
    wb_device_info,
    wb_device_stats,
    wb_buffer_options,
    wb_buffer_info,
    wb_buffer_stats,
    wb_layout,
    wb_view_info,
    wb_safetensors_tensor_info,
    wb_parameter,
    wb_plan_options,
    wb_plan_info,
    wb_plan_parameter_info,
    wb_plan_group_info,
    wb_offloader_parameter_info,
    wb_offloader_stats,
    wb_offloader_reconcile_result,
    wb_quantize_options,
    wb_quantizer_scales_info,
    wb_quantizer_result,
)

_HANDLE = c_void_p
_OUT = POINTER(c_void_p)
_ERROR = POINTER(wb_error)
_OPTIONS = POINTER(wb_buffer_options)
_LAYOUT = POINTER(wb_layout)
_PARAMETER = POINTER(wb_parameter)
_PLAN_OPTIONS = POINTER(wb_plan_options)
_TEXT = c_char_p
# Addresses of native functions: no Python function may be called on the library's threads, which
# can outlive the interpreter. Only progress, called on the caller's own thread, is one.
_NATIVE = c_void_p

# Name: (result, arguments).
PROTOTYPES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "wb_version": (c_uint32, ()),
    "wb_status_name": (_TEXT, (c_int32,)),
    "wb_log_set_callback": (c_int32, (_NATIVE, c_void_p)),
    "wb_device_get_cuda_count": (c_int32, (POINTER(c_int32), _ERROR)),
    "wb_device_open": (c_int32, (_TEXT, POINTER(wb_device_options), _OUT, _ERROR)),
    "wb_device_retain": (None, (_HANDLE,)),
    "wb_device_release": (None, (_HANDLE,)),
    "wb_device_get_info": (c_int32, (_HANDLE, POINTER(wb_device_info), _ERROR)),
    "wb_device_get_stats": (c_int32, (_HANDLE, POINTER(wb_device_stats), _ERROR)),
    "wb_device_measure_link": (c_int32, (_HANDLE, POINTER(c_double), _ERROR)),
    "wb_device_drain": (c_int32, (_HANDLE, c_uint64, _ERROR)),
    "wb_device_alloc": (c_int32, (_HANDLE, c_uint64, POINTER(c_uint64), _ERROR)),
    "wb_device_free": (c_int32, (_HANDLE, c_uint64, _ERROR)),
    "wb_device_copy": (c_int32, (_HANDLE, c_uint64, c_uint64, c_uint64, c_void_p, _ERROR)),
    "wb_device_stream_new": (c_int32, (_HANDLE, _OUT, _ERROR)),
    "wb_device_stream_release": (c_int32, (_HANDLE, c_void_p, _ERROR)),
    "wb_device_stream_synchronize": (c_int32, (_HANDLE, c_void_p, _ERROR)),
    "wb_device_stream_call": (c_int32, (_HANDLE, c_void_p, _NATIVE, c_void_p, _ERROR)),
    "wb_buffer_alloc": (c_int32, (_HANDLE, c_uint64, _OPTIONS, _OUT, _ERROR)),
    "wb_buffer_register": (
        c_int32,
        (_HANDLE, c_void_p, c_uint64, _OPTIONS, _NATIVE, c_void_p, _OUT, _ERROR),
    ),
    "wb_buffer_map_file": (c_int32, (_HANDLE, _TEXT, c_uint64, c_uint64, _OPTIONS, _OUT, _ERROR)),
    "wb_buffer_retain": (None, (_HANDLE,)),
    "wb_buffer_release": (None, (_HANDLE,)),
    "wb_buffer_release_after": (c_int32, (_HANDLE, c_void_p, _ERROR)),
    "wb_buffer_get_info": (c_int32, (_HANDLE, POINTER(wb_buffer_info), _ERROR)),
    "wb_buffer_get_stats": (c_int32, (_HANDLE, POINTER(wb_buffer_stats), _ERROR)),
    "wb_view_new": (c_int32, (_HANDLE, _LAYOUT, c_int32, _OUT, _ERROR)),
    "wb_view_copy_from": (c_int32, (_HANDLE, c_void_p, _LAYOUT, c_int32, _OPTIONS, _OUT, _ERROR)),
    "wb_view_retain": (None, (_HANDLE,)),
    "wb_view_release": (None, (_HANDLE,)),
    "wb_view_release_after": (c_int32, (_HANDLE, c_void_p, _ERROR)),
    "wb_view_get_info": (c_int32, (_HANDLE, POINTER(wb_view_info), _ERROR)),
    "wb_view_get_buffer": (c_int32, (_HANDLE, _OUT, _ERROR)),
    "wb_view_to_dlpack": (c_int32, (_HANDLE, _OUT, _ERROR)),
    "wb_view_to_dlpack_versioned": (c_int32, (_HANDLE, _OUT, _ERROR)),
    "wb_view_from_dlpack": (c_int32, (_HANDLE, c_void_p, c_int32, _OPTIONS, _OUT, _ERROR)),
    "wb_view_from_dlpack_versioned": (
        c_int32,
        (_HANDLE, c_void_p, c_int32, _OPTIONS, _OUT, _ERROR),
    ),
    "wb_python_capsule_setup": (c_int32, (_NATIVE, _NATIVE, _ERROR)),
    "wb_python_capsule_destroy": (None, (c_void_p,)),
    "wb_safetensors_open": (c_int32, (_HANDLE, _TEXT, _OPTIONS, _OUT, _ERROR)),
    "wb_safetensors_retain": (None, (_HANDLE,)),
    "wb_safetensors_release": (None, (_HANDLE,)),
    "wb_safetensors_get_tensor_count": (c_uint64, (_HANDLE,)),
    "wb_safetensors_get_header": (_TEXT, (_HANDLE,)),
    "wb_safetensors_get_tensor_info": (c_int32, (_HANDLE, c_uint64, POINTER(wb_safetensors_tensor_info), _ERROR)),
    "wb_safetensors_find_tensor": (c_int32, (_HANDLE, _TEXT, POINTER(c_uint64), _ERROR)),
    "wb_safetensors_get_view": (c_int32, (_HANDLE, c_uint64, c_int32, c_uint64, _OUT, _ERROR)),
    "wb_safetensors_load_view": (
        c_int32,
        (_HANDLE, c_uint64, c_int32, c_uint64, _OPTIONS, _OUT, POINTER(c_int32), _ERROR),
    ),
    "wb_safetensors_get_buffer": (c_int32, (_HANDLE, _OUT, _ERROR)),
    "wb_plan_new": (c_int32, (_HANDLE, _PARAMETER, c_uint64, _PLAN_OPTIONS, _OUT, _ERROR)),
    "wb_plan_retain": (None, (_HANDLE,)),
    "wb_plan_release": (None, (_HANDLE,)),
    "wb_plan_get_info": (c_int32, (_HANDLE, POINTER(wb_plan_info), _ERROR)),
    "wb_plan_find_parameter": (c_int32, (_HANDLE, _TEXT, POINTER(c_uint64), _ERROR)),
    "wb_plan_get_parameter_info": (c_int32, (_HANDLE, c_uint64, POINTER(wb_plan_parameter_info), _ERROR)),
    "wb_plan_get_group_info": (c_int32, (_HANDLE, c_uint64, POINTER(wb_plan_group_info), _ERROR)),
    "wb_plan_get_warning": (c_int32, (_HANDLE, c_uint64, POINTER(_TEXT), _ERROR)),
    "wb_plan_to_json": (c_int32, (_HANDLE, POINTER(_TEXT), _ERROR)),
    "wb_offloader_new": (c_int32, (_HANDLE, c_void_p, _OPTIONS, _OUT, _ERROR)),
    "wb_offloader_retain": (None, (_HANDLE,)),
    "wb_offloader_release": (None, (_HANDLE,)),
    "wb_offloader_find_group": (c_int32, (_HANDLE, _TEXT, POINTER(c_uint64), _ERROR)),
    "wb_offloader_acquire_group": (c_int32, (_HANDLE, c_uint64, c_void_p, _ERROR)),
    "wb_offloader_release_group": (c_int32, (_HANDLE, c_uint64, c_void_p, _ERROR)),
    "wb_offloader_join": (c_int32, (_HANDLE, c_void_p, _ERROR)),
    "wb_offloader_reset": (c_int32, (_HANDLE, c_void_p, _ERROR)),
    "wb_offloader_get_parameter_info": (c_int32, (_HANDLE, _TEXT, POINTER(wb_offloader_parameter_info), _ERROR)),
    "wb_offloader_get_view": (c_int32, (_HANDLE, _TEXT, _OUT, _ERROR)),
    "wb_offloader_get_host_view": (c_int32, (_HANDLE, _TEXT, _OUT, _ERROR)),
    "wb_offloader_replace": (c_int32, (_HANDLE, _TEXT, c_uint64, _LAYOUT, c_void_p, _ERROR)),
    "wb_offloader_add": (c_int32, (_HANDLE, _PARAMETER, c_void_p, _ERROR)),
    "wb_offloader_remove": (c_int32, (_HANDLE, _TEXT, c_void_p, _ERROR)),
    "wb_offloader_reconcile": (
        c_int32,
        (_HANDLE, _PARAMETER, c_uint64, c_void_p, POINTER(wb_offloader_reconcile_result), _ERROR),
    ),
    "wb_offloader_compact": (c_int32, (_HANDLE, c_void_p, _ERROR)),
    "wb_offloader_get_stats": (c_int32, (_HANDLE, POINTER(wb_offloader_stats), _ERROR)),
    "wb_quantizer_new": (c_int32, (_HANDLE, c_uint64, _OUT, _ERROR)),
    "wb_quantizer_retain": (None, (_HANDLE,)),
    "wb_quantizer_release": (None, (c_void_p,)),
    "wb_quantizer_get_scales_info": (
        c_int32,
        (POINTER(wb_layout), POINTER(wb_quantize_options), POINTER(wb_quantizer_scales_info), _ERROR),
    ),
    "wb_quantizer_quantize": (
        c_int32,
        (
            _HANDLE,
            c_uint64,
            POINTER(wb_layout),
            c_uint64,
            c_uint64,
            POINTER(wb_quantize_options),
            POINTER(wb_quantizer_result),
            _ERROR,
        ),
    ),
    "wb_quantizer_dequantize": (
        c_int32,
        (
            _HANDLE,
            c_uint64,
            c_uint64,
            c_uint64,
            POINTER(wb_layout),
            POINTER(wb_quantize_options),
            POINTER(wb_quantizer_result),
            _ERROR,
        ),
    ),
}


def declare(library: ctypes.CDLL) -> None:
    """Give every function its prototype; AttributeError for one that the library lacks."""
    for name, (result, arguments) in PROTOTYPES.items():
        function = getattr(library, name)
        function.restype = result
        function.argtypes = arguments
