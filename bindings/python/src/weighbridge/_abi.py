"""The structs of the C interface in ctypes; :mod:`._prototypes` has the functions.

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
        (c_uint32, "address_state"),
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


class wb_offloader_resize_options(Sized):
    _fields_ = _fields(
        (c_int32, "budget_kind"),
        (c_uint64, "budget_bytes"),
        (c_uint32, "graphs_dropped reserved0"),
        (c_uint64 * 3, "reserved"),
    )


class wb_offloader_resize_progress(Sized):
    _fields_ = _fields(
        (c_uint32, "reserved0"),
        (c_uint64, "pending_units pending_bytes device_bytes host_bytes"),
    )


class wb_offloader_rebalance_progress(Sized):
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
