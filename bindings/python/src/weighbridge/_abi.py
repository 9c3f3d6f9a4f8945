"""The C interface in ctypes: structs and the prototype of every function.

Names are those of the headers. ``tests/python/test_abi.py`` compares this file with them and with
what a C compiler makes of them. A new struct holds its size and zeros, as C's ``WB_*_INIT`` does,
so defaults stand in the library alone.
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
"""The version of the headers that this file follows."""

wb_progress = CFUNCTYPE(c_int32, c_size_t, c_int32, c_uint64, c_uint64)
_I64S = POINTER(c_int64)
_TEXTS = POINTER(c_char_p)


class Sized(ctypes.Structure):
    """A struct that begins with its own size."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(struct_size=ctypes.sizeof(self), **fields)


def _fields(*rows: tuple[Any, str]) -> list[tuple[str, Any]]:
    """Returns the fields of a struct: rows of a type and the names of consecutive fields of it."""
    names = [(name, kind) for kind, row in rows for name in row.split()]
    return [("struct_size", c_uint32), *names]


class wb_error(Sized):
    _fields_ = _fields((c_int32, "status code code_domain"), (c_char * 500, "message"))


class wb_device_options(Sized):
    _fields_ = _fields(
        (c_int32, "pin views"),
        (c_uint32, "reserved0"),
        (c_void_p, "context"),
        (c_uint64, "capacity_bytes"),
        (c_uint64 * 4, "reserved"),
    )


class wb_device_info(Sized):
    _fields_ = _fields(
        (c_int32, "kind ordinal driver_version compute_capability unified_addressing"),
        (c_int32, "host_register read_only_register read_only_register_attribute"),
        (c_int32, "pageable_access integrated numa_node pin views"),
        (c_uint64, "memlock_limit total_bytes free_bytes"),
        (c_char * 256, "name pin_reason views_reason"),
        (c_uint64, "address_granularity"),
        (c_char * 256, "address_reason"),
    )


class wb_device_stats(Sized):
    _fields_ = _fields(
        (c_uint32, "reserved0"),
        (c_uint64, "buffers views deferred asked_bytes mapped_bytes pinned_bytes device_bytes"),
        (c_uint64, "errors_logged"),
    )


class wb_buffer_options(Sized):
    _fields_ = _fields(
        (c_int32, "huge_pages"),
        (c_uint32, "threads"),
        (c_int32, "numa_policy"),
        (c_uint32, "numa_node"),
        (c_int32, "pin write_combined portable file_mode"),
        (c_uint32, "reserved0"),
        (c_uint64, "chunk_bytes"),
        (wb_progress, "progress"),
        (c_void_p, "progress_user"),
        (c_uint64 * 4, "reserved"),
    )


class wb_buffer_info(Sized):
    _fields_ = _fields(
        (c_int32, "origin pinning read_only"),
        (c_void_p, "data device_address"),
        (c_uint64, "asked_bytes mapped_bytes pinned_bytes chunks"),
        (c_char * 256, "fallback_reason"),
    )


class wb_buffer_stats(Sized):
    _fields_ = _fields(
        (c_uint32, "reserved0"),
        (c_uint64, "resident_bytes huge_bytes anonymous_bytes locked_bytes"),
    )


class wb_layout(Sized):
    _fields_ = _fields(
        (c_int32, "dtype ndim"),
        (c_uint32, "reserved0"),
        (_I64S, "shape strides"),
        (c_uint64, "offset_bytes"),
        (c_char_p, "dtype_name"),
        (c_uint32, "block_elements block_bytes"),
    )


class wb_view_info(Sized):
    _fields_ = _fields(
        (c_int32, "dtype ndim accessor read_only"),
        (c_uint32, "reserved0"),
        (c_void_p, "data device_address"),
        (_I64S, "shape strides"),
        (c_uint64, "elements span_bytes"),
    )


class wb_safetensors_tensor_info(Sized):
    _fields_ = _fields(
        (c_int32, "dtype ndim"),
        (c_uint32, "reserved0"),
        (c_char_p, "name"),
        (_I64S, "shape"),
        (c_uint64, "offset_bytes bytes"),
        (c_char_p, "dtype_name"),
        (c_uint32, "block_elements block_bytes"),
        (c_uint64, "encoded_bytes"),
    )


class wb_parameter(Sized):
    _fields_ = _fields(
        (c_int32, "access_pattern"),
        (c_char_p, "name group"),
        (POINTER(wb_layout), "layout"),
        (c_void_p, "source"),
        (c_uint64, "storage_id"),
        (c_int32, "transfer_mode placement"),
        (c_void_p, "buffer"),
        (c_uint64, "encoded_bytes"),
        (c_uint64 * 1, "reserved"),
    )


class wb_quantize_options(Sized):
    _fields_ = _fields(
        (c_int32, "format scale_dtype use_given_scales"),
        (c_uint64, "block_rows block_cols"),
        (c_int32, "reject_nonfinite"),
        (c_uint32, "reserved0"),
        (c_uint64, "scale_bytes"),
        (wb_progress, "progress"),
        (c_void_p, "progress_user"),
        (c_uint64 * 4, "reserved"),
    )


class wb_plan_options(Sized):
    _fields_ = _fields(
        (c_uint32, "depth"),
        (c_int32, "budget_kind transfer_mode"),
        (c_uint64, "budget_bytes slot_bytes"),
        (_TEXTS, "select exclude"),
        (c_uint32, "select_count exclude_count"),
        (c_int32, "order"),
        (c_uint32, "allow"),
        (POINTER(wb_quantize_options), "quantize"),
        (_TEXTS, "quantize_select"),
        (c_uint32, "quantize_select_count"),
        (c_int32, "host_store"),
        (c_double, "link_bytes_per_second compute_bytes_per_second"),
        (POINTER(c_double), "group_seconds"),
        (c_uint64, "group_seconds_count rows"),
        (c_int32, "fixed_addresses"),
        (c_uint32, "keep_host_copy"),
        (c_int32, "compress"),
        (c_uint32, "compress_select_count"),
        (_TEXTS, "compress_select"),
        (c_uint64, "expert_bytes"),
        (c_int32, "encode_on_device"),
        (c_uint32, "verify_compressed"),
        (c_uint64 * 1, "reserved"),
    )


class wb_plan_info(Sized):
    _fields_ = _fields(
        (c_uint32, "depth"),
        (c_uint64, "parameters groups warnings payload_bytes offloaded_bytes arena_bytes"),
        (c_uint64, "resident_bytes slot_bytes ring_bytes step_bytes view_bytes"),
        (c_double, "step_seconds link_seconds kernel_seconds"),
        (c_int32, "wrap_stalls"),
        (c_uint32, "reserved0"),
        (c_uint64, "decoded_bytes encoded_bytes"),
        (c_double, "decode_seconds"),
        (c_uint64, "expert_bytes device_encoded_bytes device_decoded_bytes"),
        (c_double, "expert_hit_rate"),
    )


class wb_plan_parameter_info(Sized):
    _fields_ = _fields(
        (c_int32, "placement transfer_mode dtype"),
        (c_char_p, "name reason"),
        (c_uint64, "group span_bytes tied_to"),
        (c_char_p, "dtype_name"),
        (_I64S, "shape strides"),
        (c_int32, "ndim"),
        (c_uint32, "block_elements block_bytes reserved0"),
        (c_uint64, "encoded_bytes resident_bytes device_encoded_bytes"),
    )


class wb_plan_group_info(Sized):
    _fields_ = _fields(
        (c_int32, "turn"),
        (c_char_p, "name"),
        (c_uint64, "offloaded_bytes resident_bytes"),
    )


class wb_offloader_parameter_info(Sized):
    _fields_ = _fields(
        (c_int32, "placement transfer_mode owned"),
        (c_char_p, "name"),
        (c_uint64, "group"),
        (c_void_p, "device_address host_address"),
        (c_uint64, "span_bytes"),
        (c_char_p, "dtype_name"),
        (_I64S, "shape strides"),
        (c_int32, "dtype ndim"),
        (c_uint32, "block_elements block_bytes"),
        (c_char_p, "host_store_reason"),
        (c_int32, "host_store"),
        (c_uint32, "reserved0"),
        (c_uint64, "encoded_bytes resident_bytes device_encoded_bytes"),
        (c_char_p, "device_encoded_reason"),
    )


class wb_offloader_stats(Sized):
    _fields_ = _fields(
        (c_uint32, "reserved0"),
        (c_uint64, "parameters offloaded_bytes asked_bytes mapped_bytes pinned_bytes"),
        (c_uint64, "resident_bytes slot_bytes view_bytes unfilled_bytes staging_bytes"),
        (c_uint64, "peak_mapped_bytes peak_slot_bytes moved_bytes copies acquires late_copies"),
        (c_double, "waited_seconds"),
        (c_uint64, "generation decoded_bytes encoded_bytes"),
        (c_uint64, "moved_encoded_bytes moved_decoded_bytes expert_bytes"),
        (c_uint64, "device_parameter_bytes device_encoded_bytes device_decoded_bytes"),
        (c_uint64, "encoded_by_device_bytes encoded_by_host_bytes"),
    )


class wb_resize_options(Sized):
    _fields_ = _fields(
        (c_uint32, "graphs_dropped"),
        (c_uint64, "device_bytes offload_bytes"),
        (c_uint64 * 3, "reserved"),
    )


class wb_resize_progress(Sized):
    _fields_ = _fields(
        (c_uint32, "reserved0"),
        (c_uint64, "pending_units pending_bytes device_bytes host_bytes"),
    )


class wb_rebalance_progress(Sized):
    _fields_ = _fields(
        (c_uint32, "reserved0"),
        (c_uint64, "moved_bytes pending_bytes device_bytes host_bytes"),
    )


class wb_arbiter_options(Sized):
    _fields_ = _fields(
        (c_int32, "priority"),
        (c_uint64, "min_bytes"),
        (c_void_p, "stream"),
        (c_uint64 * 4, "reserved"),
    )


class wb_arbiter_progress(Sized):
    _fields_ = _fields(
        (c_uint32, "ready"), (c_uint64, "pending_offloaders device_bytes host_bytes")
    )


class wb_arbiter_member_info(Sized):
    _fields_ = _fields(
        (c_int32, "priority"),
        (c_uint64, "min_bytes slot_bytes whole_bytes target_bytes device_bytes"),
        (c_uint32, "asleep reserved0"),
    )


class wb_offloader_group_stats(Sized):
    _fields_ = _fields(
        (c_uint32, "reserved0"),
        (c_uint64, "acquires moved_bytes copies late_copies waits"),
        (c_double, "waited_seconds"),
        (c_uint64, "moved_encoded_bytes moved_decoded_bytes"),
    )


class wb_offloader_reconcile_result(Sized):
    _fields_ = _fields((c_uint32, "reserved0"), (c_uint64, "replaced added removed kept"))


class wb_quantizer_scales_info(Sized):
    _fields_ = _fields((c_uint32, "reserved0"), (c_uint64, "matrices rows cols bytes"))


class wb_quantizer_result(Sized):
    _fields_ = _fields((c_uint32, "passes"), (c_uint64, "nonfinite staging_bytes"))


class wb_codec_info(Sized):
    _fields_ = _fields(
        (c_int32, "dtype"),
        (c_uint64, "decoded_bytes encoded_bytes tiles raw_tiles constant_tiles"),
    )


class wb_expert_tensor(Sized):
    _fields_ = _fields(
        (c_uint32, "reserved0"),
        (c_uint64, "layer"),
        (c_char_p, "name"),
        (POINTER(wb_layout), "layout"),
        (c_void_p, "buffer"),
        (c_char_p, "parameter"),
        (c_uint64 * 1, "reserved"),
    )


class wb_expert_cache_options(Sized):
    _fields_ = _fields(
        (c_uint32, "lanes"),
        (c_uint64, "slots device_bytes"),
        (c_void_p, "memory"),
        (c_uint64, "memory_bytes"),
        (c_uint64 * 4, "reserved"),
    )


class wb_expert_cache_size(Sized):
    _fields_ = _fields((c_uint32, "reserved0"), (c_uint64, "slots slot_bytes state_bytes"))


class wb_expert_route_options(Sized):
    _fields_ = _fields((c_uint32, "lane pass passes"))


class wb_expert_cache_info(Sized):
    _fields_ = _fields(
        (c_uint32, "lanes"),
        (c_uint64, "layers tensors experts expert_bytes slots capacity slot_bytes state_bytes"),
        (c_uint64, "most_slots"),
        (c_double, "predicted_hit_rate"),
    )


class wb_expert_slots_info(Sized):
    _fields_ = _fields(
        (c_int32, "dtype"),
        (c_char_p, "name dtype_name"),
        (_I64S, "shape"),
        (c_int32, "ndim"),
        (c_uint32, "block_elements block_bytes reserved0"),
        (c_void_p, "device_address"),
        (c_uint64, "expert_bytes"),
    )


class wb_expert_cache_stats(Sized):
    _fields_ = _fields(
        (c_uint32, "reserved0"),
        (c_uint64, "calls hits misses evictions prefetched refused ignored gathered_bytes"),
    )


STRUCTS: tuple[type[Sized], ...] = tuple(Sized.__subclasses__())

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
        _HANDLE, POINTER(wb_resize_options), _STREAM, POINTER(wb_resize_progress)
    ),
    "wb_offloader_resize_progress": _call(_HANDLE, _STREAM, POINTER(wb_resize_progress)),
    "wb_offloader_resize_wait": _call(_HANDLE, _STREAM, c_uint64, POINTER(wb_resize_progress)),
    "wb_offloader_prefer": _call(_HANDLE, c_uint64, c_uint64, c_uint64, c_double),
    "wb_offloader_rebalance": _call(_HANDLE, c_uint64, _STREAM, POINTER(wb_rebalance_progress)),
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
