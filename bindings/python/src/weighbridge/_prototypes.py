"""The prototypes of the functions of the C interface, in ctypes.

``tests/python/test_abi.py`` compares them with the headers.
"""

from __future__ import annotations

import ctypes
from ctypes import (
    POINTER,
    c_char_p,
    c_double,
    c_int32,
    c_uint32,
    c_uint64,
    c_void_p,
)
from typing import Any

from ._abi import (
    wb_arbiter_member_info,
    wb_arbiter_options,
    wb_arbiter_progress,
    wb_buffer_info,
    wb_buffer_options,
    wb_buffer_stats,
    wb_codec_info,
    wb_device_info,
    wb_device_options,
    wb_device_stats,
    wb_error,
    wb_expert_cache_info,
    wb_expert_cache_options,
    wb_expert_cache_size,
    wb_expert_cache_stats,
    wb_expert_route_options,
    wb_expert_slots_info,
    wb_expert_tensor,
    wb_layout,
    wb_offloader_group_stats,
    wb_offloader_parameter_info,
    wb_offloader_rebalance_progress,
    wb_offloader_reconcile_result,
    wb_offloader_resize_options,
    wb_offloader_resize_progress,
    wb_offloader_stats,
    wb_parameter,
    wb_plan_group_info,
    wb_plan_info,
    wb_plan_options,
    wb_plan_parameter_info,
    wb_quantize_options,
    wb_quantizer_result,
    wb_quantizer_scales_info,
    wb_safetensors_tensor_info,
    wb_view_info,
)

_HANDLE = _STREAM = _ADDRESS = c_void_p
_OUT = POINTER(c_void_p)
_ERROR = POINTER(wb_error)
_OPTIONS = POINTER(wb_buffer_options)
_LAYOUT = POINTER(wb_layout)
_PARAMETER = POINTER(wb_parameter)
_QUANTIZE = POINTER(wb_quantize_options)
_RESULT = POINTER(wb_quantizer_result)
_EXPERTS = POINTER(wb_expert_tensor)
_CACHE_OPTIONS = POINTER(wb_expert_cache_options)
_ROUTE_OPTIONS = POINTER(wb_expert_route_options)
_CODEC_INFO = POINTER(wb_codec_info)
_TEXT = c_char_p
_INDEX = POINTER(c_uint64)
# Addresses of native functions: the library calls them on its own threads, which may outlive the
# interpreter, so they must not be Python functions. Only progress, which is called on the calling
# thread, is one.
_NATIVE = c_void_p

Prototype = tuple[Any, tuple[Any, ...]]


def _call(*arguments: Any) -> Prototype:
    """Returns the prototype of a function that returns a status and ends with ``wb_error *``."""
    return c_int32, (*arguments, _ERROR)


# Name: (result, arguments).
PROTOTYPES: dict[str, Prototype] = {
    "wb_version": (c_uint32, ()),
    "wb_status_name": (_TEXT, (c_int32,)),
    "wb_log_set_callback": (c_int32, (_NATIVE, c_void_p)),
    "wb_device_get_cuda_count": _call(POINTER(c_int32)),
    "wb_device_open": _call(_TEXT, POINTER(wb_device_options), _OUT),
    "wb_device_get_info": _call(_HANDLE, POINTER(wb_device_info)),
    "wb_device_get_stats": _call(_HANDLE, POINTER(wb_device_stats)),
    "wb_device_measure_link": _call(_HANDLE, POINTER(c_double)),
    "wb_device_drain": _call(_HANDLE, c_uint64),
    "wb_device_alloc": _call(_HANDLE, c_uint64, _OUT),
    "wb_device_free": _call(_HANDLE, _ADDRESS),
    "wb_device_copy": _call(_HANDLE, _ADDRESS, _ADDRESS, c_uint64, _STREAM),
    "wb_device_stream_new": _call(_HANDLE, _OUT),
    "wb_device_stream_release": _call(_HANDLE, _STREAM),
    "wb_device_stream_synchronize": _call(_HANDLE, _STREAM),
    "wb_device_stream_call": _call(_HANDLE, _STREAM, _NATIVE, c_void_p),
    "wb_buffer_alloc": _call(_HANDLE, c_uint64, _OPTIONS, _OUT),
    "wb_buffer_register": _call(_HANDLE, _ADDRESS, c_uint64, _OPTIONS, _NATIVE, c_void_p, _OUT),
    "wb_buffer_map_file": _call(_HANDLE, _TEXT, c_uint64, c_uint64, _OPTIONS, _OUT),
    "wb_buffer_release_after": _call(_HANDLE, _STREAM),
    "wb_buffer_get_info": _call(_HANDLE, POINTER(wb_buffer_info)),
    "wb_buffer_get_stats": _call(_HANDLE, POINTER(wb_buffer_stats)),
    "wb_view_new": _call(_HANDLE, _LAYOUT, c_int32, _OUT),
    "wb_view_copy_from": _call(_HANDLE, _ADDRESS, _LAYOUT, c_int32, _OPTIONS, _OUT),
    "wb_view_release_after": _call(_HANDLE, _STREAM),
    "wb_view_get_info": _call(_HANDLE, POINTER(wb_view_info)),
    "wb_view_get_buffer": _call(_HANDLE, _OUT),
    "wb_view_to_dlpack": _call(_HANDLE, _OUT),
    "wb_view_to_dlpack_for_reading": _call(_HANDLE, _OUT),
    "wb_view_to_dlpack_versioned": _call(_HANDLE, _OUT),
    "wb_view_from_dlpack": _call(_HANDLE, c_void_p, c_int32, _OPTIONS, _OUT),
    "wb_view_from_dlpack_versioned": _call(_HANDLE, c_void_p, c_int32, _OPTIONS, _OUT),
    "wb_python_capsule_setup": _call(_NATIVE, _NATIVE),
    "wb_python_capsule_destroy": (None, (c_void_p,)),
    "wb_python_owner_release": (None, (c_void_p,)),
    "wb_python_owners_take": (c_void_p, (c_void_p,)),
    "wb_safetensors_open": _call(_HANDLE, _TEXT, _OPTIONS, _OUT),
    "wb_safetensors_get_tensor_count": (c_uint64, (_HANDLE,)),
    "wb_safetensors_get_header": (_TEXT, (_HANDLE,)),
    "wb_safetensors_get_tensor_info": _call(_HANDLE, c_uint64, POINTER(wb_safetensors_tensor_info)),
    "wb_safetensors_find_tensor": _call(_HANDLE, _TEXT, _INDEX),
    "wb_safetensors_get_names": _call(_HANDLE, c_uint64, c_uint64, POINTER(c_char_p)),
    "wb_safetensors_get_parameters": _call(_HANDLE, c_int32, c_uint64, c_uint64, _PARAMETER),
    "wb_safetensors_get_view": _call(_HANDLE, c_uint64, c_int32, c_uint64, _OUT),
    "wb_safetensors_load_view": _call(
        _HANDLE, c_uint64, c_int32, c_uint64, _OPTIONS, _OUT, POINTER(c_int32)
    ),
    "wb_safetensors_get_buffer": _call(_HANDLE, _OUT),
    "wb_plan_new": _call(_HANDLE, _PARAMETER, c_uint64, POINTER(wb_plan_options), _OUT),
    "wb_plan_get_info": _call(_HANDLE, POINTER(wb_plan_info)),
    "wb_plan_find_parameter": _call(_HANDLE, _TEXT, _INDEX),
    "wb_plan_get_parameter_info": _call(_HANDLE, c_uint64, POINTER(wb_plan_parameter_info)),
    "wb_plan_get_group_info": _call(_HANDLE, c_uint64, POINTER(wb_plan_group_info)),
    "wb_plan_get_warning": _call(_HANDLE, c_uint64, POINTER(_TEXT)),
    "wb_plan_to_json": _call(_HANDLE, POINTER(_TEXT)),
    "wb_offloader_new": _call(_HANDLE, _STREAM, _OPTIONS, _OUT),
    "wb_offloader_find_group": _call(_HANDLE, _TEXT, _INDEX),
    "wb_offloader_acquire_group": _call(_HANDLE, c_uint64, _STREAM),
    "wb_offloader_acquire_group_within": _call(_HANDLE, c_uint64, _STREAM, c_uint64),
    "wb_offloader_expect": _call(_HANDLE, POINTER(c_uint64), c_uint64),
    "wb_offloader_release_group": _call(_HANDLE, c_uint64, _STREAM),
    "wb_offloader_begin_step": _call(_HANDLE, _STREAM),
    "wb_offloader_join": _call(_HANDLE, _STREAM),
    "wb_offloader_reset": _call(_HANDLE, _STREAM),
    "wb_offloader_reset_all": _call(_HANDLE, _STREAM),
    "wb_offloader_resize": _call(
        _HANDLE,
        POINTER(wb_offloader_resize_options),
        _STREAM,
        POINTER(wb_offloader_resize_progress),
    ),
    "wb_offloader_resize_advance": _call(_HANDLE, _STREAM, POINTER(wb_offloader_resize_progress)),
    "wb_offloader_resize_wait": _call(
        _HANDLE, _STREAM, c_uint64, POINTER(wb_offloader_resize_progress)
    ),
    "wb_offloader_prefer": _call(_HANDLE, c_uint64, c_uint64, c_uint64, c_double),
    "wb_offloader_rebalance": _call(
        _HANDLE, c_uint64, _STREAM, POINTER(wb_offloader_rebalance_progress)
    ),
    "wb_arbiter_new": _call(_HANDLE, c_uint64, _OUT),
    "wb_arbiter_add": _call(_HANDLE, _HANDLE, POINTER(wb_arbiter_options)),
    "wb_arbiter_remove": _call(_HANDLE, _HANDLE),
    "wb_arbiter_use": _call(_HANDLE, _HANDLE, POINTER(wb_arbiter_progress)),
    "wb_arbiter_resize": _call(_HANDLE, c_uint64, POINTER(wb_arbiter_progress)),
    "wb_arbiter_advance": _call(_HANDLE, POINTER(wb_arbiter_progress)),
    "wb_arbiter_wait": _call(_HANDLE, c_uint64, POINTER(wb_arbiter_progress)),
    "wb_arbiter_get_member_info": _call(_HANDLE, _HANDLE, POINTER(wb_arbiter_member_info)),
    "wb_offloader_find_parameter": _call(_HANDLE, _TEXT, _INDEX),
    "wb_offloader_get_parameter_info": _call(
        _HANDLE, c_uint64, POINTER(wb_offloader_parameter_info)
    ),
    "wb_offloader_get_parameter_infos": _call(
        _HANDLE, c_uint64, c_uint64, POINTER(wb_offloader_parameter_info)
    ),
    "wb_offloader_get_view": _call(_HANDLE, c_uint64, _OUT),
    "wb_offloader_get_host_view": _call(_HANDLE, c_uint64, _OUT),
    "wb_offloader_read_parameter": _call(_HANDLE, c_uint64, c_void_p, c_uint64),
    "wb_offloader_get_zero_copy_view": _call(_HANDLE, c_uint64, _OUT),
    "wb_offloader_replace": _call(_HANDLE, _TEXT, _ADDRESS, _LAYOUT, _STREAM),
    "wb_offloader_add": _call(_HANDLE, _PARAMETER, _STREAM),
    "wb_offloader_remove": _call(_HANDLE, _TEXT, _STREAM),
    "wb_offloader_reconcile": _call(
        _HANDLE, _PARAMETER, c_uint64, _STREAM, POINTER(wb_offloader_reconcile_result)
    ),
    "wb_offloader_compact": _call(_HANDLE, _STREAM),
    "wb_offloader_get_generation": _call(_HANDLE, POINTER(c_uint64)),
    "wb_offloader_get_stats": _call(_HANDLE, POINTER(wb_offloader_stats)),
    "wb_offloader_get_group_stats": _call(_HANDLE, c_uint64, POINTER(wb_offloader_group_stats)),
    "wb_quantizer_new": _call(_HANDLE, c_uint64, _OUT),
    "wb_quantizer_get_scales_info": _call(_LAYOUT, _QUANTIZE, POINTER(wb_quantizer_scales_info)),
    "wb_quantizer_quantize": _call(
        _HANDLE, _ADDRESS, _LAYOUT, _ADDRESS, _ADDRESS, _QUANTIZE, _RESULT
    ),
    "wb_quantizer_dequantize": _call(
        _HANDLE, _ADDRESS, _ADDRESS, _ADDRESS, _LAYOUT, _QUANTIZE, _RESULT
    ),
    "wb_codec_get_max_bytes": _call(c_int32, c_uint64, POINTER(c_uint64)),
    "wb_codec_get_info": _call(_ADDRESS, c_uint64, _CODEC_INFO),
    "wb_codec_measure": _call(c_int32, _ADDRESS, c_uint64, c_uint64, _CODEC_INFO),
    "wb_codec_encode": _call(
        c_int32, _ADDRESS, c_uint64, _ADDRESS, c_uint64, c_uint32, _CODEC_INFO
    ),
    "wb_codec_decode": _call(
        _ADDRESS, c_uint64, c_uint64, _ADDRESS, c_uint64, c_int32, c_uint32, _CODEC_INFO
    ),
    "wb_codec_queue_encode": _call(
        _HANDLE, c_int32, _ADDRESS, c_uint64, _ADDRESS, c_uint64, _STREAM
    ),
    "wb_codec_queue_decode": _call(
        _HANDLE, c_int32, _ADDRESS, c_uint64, c_uint64, c_uint64, _ADDRESS, c_uint64, _STREAM
    ),
    "wb_codec_queue_verify": _call(
        _HANDLE, _ADDRESS, c_uint64, c_uint64, c_uint64, _ADDRESS, c_uint64, _ADDRESS, _STREAM
    ),
    "wb_expert_cache_new": _call(_HANDLE, _EXPERTS, c_uint64, _CACHE_OPTIONS, _OUT),
    "wb_expert_cache_new_for_offloader": _call(_HANDLE, _EXPERTS, c_uint64, _CACHE_OPTIONS, _OUT),
    "wb_expert_cache_measure": _call(
        _HANDLE, _EXPERTS, c_uint64, _CACHE_OPTIONS, POINTER(wb_expert_cache_size)
    ),
    "wb_expert_cache_route": _call(
        _HANDLE, c_uint64, _ADDRESS, c_uint64, c_int32, _ADDRESS, _ROUTE_OPTIONS, _STREAM
    ),
    "wb_expert_cache_prefetch": _call(_HANDLE, c_uint64, _ADDRESS, c_uint64, c_int32, _STREAM),
    "wb_expert_cache_get_passes": _call(_HANDLE, c_uint64, c_uint64, _INDEX),
    "wb_expert_cache_reset": _call(_HANDLE, _STREAM),
    "wb_expert_cache_resize": _call(_HANDLE, c_uint64, _STREAM),
    "wb_expert_cache_get_info": _call(_HANDLE, POINTER(wb_expert_cache_info)),
    "wb_expert_cache_get_slots_info": _call(_HANDLE, c_uint64, POINTER(wb_expert_slots_info)),
    "wb_expert_cache_get_view": _call(_HANDLE, c_uint64, _OUT),
    "wb_expert_cache_get_stats": _call(_HANDLE, POINTER(wb_expert_cache_stats)),
    "wb_expert_cache_get_layer_stats": _call(_HANDLE, c_uint64, POINTER(wb_expert_cache_stats)),
}
for _noun in (
    "device",
    "buffer",
    "view",
    "safetensors",
    "plan",
    "offloader",
    "arbiter",
    "quantizer",
    "expert_cache",
):
    PROTOTYPES[f"wb_{_noun}_retain"] = PROTOTYPES[f"wb_{_noun}_release"] = (None, (_HANDLE,))


def declare(library: ctypes.CDLL) -> None:
    """Gives every function its prototype; raises AttributeError if the library lacks one."""
    for name, (result, arguments) in PROTOTYPES.items():
        function = getattr(library, name)
        function.restype = result
        function.argtypes = arguments
