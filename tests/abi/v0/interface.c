/* What a program that was compiled with weighbridge 0.1.0 relies on, checked against today's
 * header. Written by tools/abi.py from weighbridge.h beside it; `make abi-freeze` at a release.
 *
 * A function is declared again as it was: a prototype that differs does not compile. A field is
 * where it was, of the type that it had; a struct is at least as large. Reserved fields may have a
 * meaning by now: only their room is looked at. */
#include <stddef.h>

#include <weighbridge.h> /* today's: in quotes it would be the frozen one, which lies beside this */

#define TYPE(type, was) \
    _Static_assert(__builtin_types_compatible_p(type, was), #type " is no longer " #was)
#define SIZE(type, bytes) _Static_assert(sizeof(type) >= (bytes), #type " has shrunk")
#define FIELD(type, field, offset, was)                                                \
    _Static_assert(offsetof(type, field) == (offset), #type "." #field " has moved");  \
    _Static_assert(__builtin_types_compatible_p(__typeof__(((type *)0)->field), was),  \
                   #type "." #field " is no longer " #was)
#define VALUE(name, was) _Static_assert((name) == (was), #name " is no longer " #was)

TYPE(wb_status, int32_t);
TYPE(wb_log_callback, void (*)(void *user, wb_status status, int32_t code, const char *message));
TYPE(wb_choice, int32_t);
TYPE(wb_device_kind, int32_t);
TYPE(wb_host_function, void (*)(void *user));
TYPE(wb_huge_pages, int32_t);
TYPE(wb_file_mode, int32_t);
TYPE(wb_phase, int32_t);
TYPE(wb_progress, int32_t (*)(void *user, wb_phase phase, uint64_t done, uint64_t total));
TYPE(wb_deleter, void (*)(void *owner));
TYPE(wb_origin, int32_t);
TYPE(wb_pinning, int32_t);
TYPE(wb_dtype, int32_t);
TYPE(wb_access, int32_t);
TYPE(wb_capsule_is_valid, int (*)(void *capsule, const char *name));
TYPE(wb_capsule_get_pointer, void *(*)(void *capsule, const char *name));
TYPE(wb_parameter_access, int32_t);
TYPE(wb_carrier, int32_t);
TYPE(wb_order, int32_t);

SIZE(wb_error, 512);
FIELD(wb_error, struct_size, 0, uint32_t);
FIELD(wb_error, status, 4, wb_status);
FIELD(wb_error, driver_code, 8, int32_t);
FIELD(wb_error, message, 12, char[500]);

SIZE(wb_device_options, 64);
FIELD(wb_device_options, struct_size, 0, uint32_t);
FIELD(wb_device_options, pin, 4, wb_choice);
FIELD(wb_device_options, views, 8, wb_choice);
FIELD(wb_device_options, context, 16, void *);
FIELD(wb_device_options, capacity_bytes, 24, uint64_t);

SIZE(wb_device_info, 848);
FIELD(wb_device_info, struct_size, 0, uint32_t);
FIELD(wb_device_info, kind, 4, wb_device_kind);
FIELD(wb_device_info, ordinal, 8, int32_t);
FIELD(wb_device_info, driver_version, 12, int32_t);
FIELD(wb_device_info, compute_capability, 16, int32_t);
FIELD(wb_device_info, unified_addressing, 20, int32_t);
FIELD(wb_device_info, host_register, 24, int32_t);
FIELD(wb_device_info, read_only_register, 28, int32_t);
FIELD(wb_device_info, read_only_register_attribute, 32, int32_t);
FIELD(wb_device_info, pageable_access, 36, int32_t);
FIELD(wb_device_info, integrated, 40, int32_t);
FIELD(wb_device_info, numa_node, 44, int32_t);
FIELD(wb_device_info, pin, 48, int32_t);
FIELD(wb_device_info, views, 52, int32_t);
FIELD(wb_device_info, memlock_limit, 56, uint64_t);
FIELD(wb_device_info, total_bytes, 64, uint64_t);
FIELD(wb_device_info, free_bytes, 72, uint64_t);
FIELD(wb_device_info, name, 80, char[256]);
FIELD(wb_device_info, pin_reason, 336, char[256]);
FIELD(wb_device_info, views_reason, 592, char[256]);

SIZE(wb_device_usage, 72);
FIELD(wb_device_usage, struct_size, 0, uint32_t);
FIELD(wb_device_usage, buffers, 8, uint64_t);
FIELD(wb_device_usage, views, 16, uint64_t);
FIELD(wb_device_usage, deferred, 24, uint64_t);
FIELD(wb_device_usage, asked_bytes, 32, uint64_t);
FIELD(wb_device_usage, mapped_bytes, 40, uint64_t);
FIELD(wb_device_usage, pinned_bytes, 48, uint64_t);
FIELD(wb_device_usage, device_bytes, 56, uint64_t);
FIELD(wb_device_usage, errors_logged, 64, uint64_t);

SIZE(wb_buffer_options, 88);
FIELD(wb_buffer_options, struct_size, 0, uint32_t);
FIELD(wb_buffer_options, huge_pages, 4, wb_huge_pages);
FIELD(wb_buffer_options, threads, 8, uint32_t);
FIELD(wb_buffer_options, numa_node, 12, int32_t);
FIELD(wb_buffer_options, pin, 16, wb_choice);
FIELD(wb_buffer_options, write_combined, 20, wb_choice);
FIELD(wb_buffer_options, portable, 24, wb_choice);
FIELD(wb_buffer_options, file_mode, 28, wb_file_mode);
FIELD(wb_buffer_options, chunk_bytes, 32, uint64_t);
FIELD(wb_buffer_options, progress, 40, wb_progress);
FIELD(wb_buffer_options, progress_user, 48, void *);

SIZE(wb_buffer_info, 320);
FIELD(wb_buffer_info, struct_size, 0, uint32_t);
FIELD(wb_buffer_info, origin, 4, wb_origin);
FIELD(wb_buffer_info, pinning, 8, wb_pinning);
FIELD(wb_buffer_info, read_only, 12, int32_t);
FIELD(wb_buffer_info, data, 16, void *);
FIELD(wb_buffer_info, device_address, 24, uint64_t);
FIELD(wb_buffer_info, asked_bytes, 32, uint64_t);
FIELD(wb_buffer_info, mapped_bytes, 40, uint64_t);
FIELD(wb_buffer_info, pinned_bytes, 48, uint64_t);
FIELD(wb_buffer_info, chunks, 56, uint64_t);
FIELD(wb_buffer_info, note, 64, char[256]);

SIZE(wb_buffer_usage, 40);
FIELD(wb_buffer_usage, struct_size, 0, uint32_t);
FIELD(wb_buffer_usage, resident_bytes, 8, uint64_t);
FIELD(wb_buffer_usage, huge_bytes, 16, uint64_t);
FIELD(wb_buffer_usage, anonymous_bytes, 24, uint64_t);
FIELD(wb_buffer_usage, locked_bytes, 32, uint64_t);

SIZE(wb_layout, 40);
FIELD(wb_layout, struct_size, 0, uint32_t);
FIELD(wb_layout, dtype, 4, wb_dtype);
FIELD(wb_layout, ndim, 8, int32_t);
FIELD(wb_layout, shape, 16, const int64_t *);
FIELD(wb_layout, strides, 24, const int64_t *);
FIELD(wb_layout, offset_bytes, 32, uint64_t);

SIZE(wb_view_info, 72);
FIELD(wb_view_info, struct_size, 0, uint32_t);
FIELD(wb_view_info, dtype, 4, wb_dtype);
FIELD(wb_view_info, ndim, 8, int32_t);
FIELD(wb_view_info, access, 12, wb_access);
FIELD(wb_view_info, read_only, 16, int32_t);
FIELD(wb_view_info, data, 24, void *);
FIELD(wb_view_info, device_address, 32, uint64_t);
FIELD(wb_view_info, shape, 40, const int64_t *);
FIELD(wb_view_info, strides, 48, const int64_t *);
FIELD(wb_view_info, elements, 56, uint64_t);
FIELD(wb_view_info, span_bytes, 64, uint64_t);

SIZE(wb_tensor_info, 48);
FIELD(wb_tensor_info, struct_size, 0, uint32_t);
FIELD(wb_tensor_info, dtype, 4, wb_dtype);
FIELD(wb_tensor_info, ndim, 8, int32_t);
FIELD(wb_tensor_info, name, 16, const char *);
FIELD(wb_tensor_info, shape, 24, const int64_t *);
FIELD(wb_tensor_info, offset_bytes, 32, uint64_t);
FIELD(wb_tensor_info, bytes, 40, uint64_t);

SIZE(wb_parameter, 72);
FIELD(wb_parameter, struct_size, 0, uint32_t);
FIELD(wb_parameter, access, 4, wb_parameter_access);
FIELD(wb_parameter, name, 8, const char *);
FIELD(wb_parameter, group, 16, const char *);
FIELD(wb_parameter, layout, 24, const wb_layout *);
FIELD(wb_parameter, source, 32, uint64_t);
FIELD(wb_parameter, storage, 40, uint64_t);
FIELD(wb_parameter, carrier, 48, wb_carrier);

SIZE(wb_quantize_options, 96);
FIELD(wb_quantize_options, struct_size, 0, uint32_t);
FIELD(wb_quantize_options, format, 4, wb_dtype);
FIELD(wb_quantize_options, scale_type, 8, wb_dtype);
FIELD(wb_quantize_options, given_scales, 12, int32_t);
FIELD(wb_quantize_options, block_rows, 16, uint64_t);
FIELD(wb_quantize_options, block_cols, 24, uint64_t);
FIELD(wb_quantize_options, refuse_nonfinite, 32, int32_t);
FIELD(wb_quantize_options, scale_bytes, 40, uint64_t);
FIELD(wb_quantize_options, progress, 48, wb_progress);
FIELD(wb_quantize_options, progress_user, 56, void *);

SIZE(wb_plan_options, 136);
FIELD(wb_plan_options, struct_size, 0, uint32_t);
FIELD(wb_plan_options, depth, 4, uint32_t);
FIELD(wb_plan_options, offload_bytes, 8, uint64_t);
FIELD(wb_plan_options, device_bytes, 16, uint64_t);
FIELD(wb_plan_options, slot_bytes, 24, uint64_t);
FIELD(wb_plan_options, select, 32, const char *const *);
FIELD(wb_plan_options, exclude, 40, const char *const *);
FIELD(wb_plan_options, select_count, 48, uint32_t);
FIELD(wb_plan_options, exclude_count, 52, uint32_t);
FIELD(wb_plan_options, carrier, 56, wb_carrier);
FIELD(wb_plan_options, order, 60, wb_order);
FIELD(wb_plan_options, allow, 64, uint32_t);
FIELD(wb_plan_options, quantize, 72, const wb_quantize_options *);
FIELD(wb_plan_options, quantize_select, 80, const char *const *);
FIELD(wb_plan_options, quantize_count, 88, uint32_t);
FIELD(wb_plan_options, link_bytes_per_second, 96, double);

SIZE(wb_plan_info, 112);
FIELD(wb_plan_info, struct_size, 0, uint32_t);
FIELD(wb_plan_info, depth, 4, uint32_t);
FIELD(wb_plan_info, parameters, 8, uint64_t);
FIELD(wb_plan_info, groups, 16, uint64_t);
FIELD(wb_plan_info, warnings, 24, uint64_t);
FIELD(wb_plan_info, payload_bytes, 32, uint64_t);
FIELD(wb_plan_info, offloaded_bytes, 40, uint64_t);
FIELD(wb_plan_info, arena_bytes, 48, uint64_t);
FIELD(wb_plan_info, resident_bytes, 56, uint64_t);
FIELD(wb_plan_info, slot_bytes, 64, uint64_t);
FIELD(wb_plan_info, ring_bytes, 72, uint64_t);
FIELD(wb_plan_info, step_bytes, 80, uint64_t);
FIELD(wb_plan_info, view_bytes, 88, uint64_t);
FIELD(wb_plan_info, step_seconds, 96, double);
FIELD(wb_plan_info, wrap_stalls, 104, int32_t);

SIZE(wb_planned_info, 48);
FIELD(wb_planned_info, struct_size, 0, uint32_t);
FIELD(wb_planned_info, carrier, 4, wb_carrier);
FIELD(wb_planned_info, name, 8, const char *);
FIELD(wb_planned_info, reason, 16, const char *);
FIELD(wb_planned_info, group, 24, uint64_t);
FIELD(wb_planned_info, span_bytes, 32, uint64_t);
FIELD(wb_planned_info, tied_to, 40, uint64_t);

SIZE(wb_plan_group_info, 32);
FIELD(wb_plan_group_info, struct_size, 0, uint32_t);
FIELD(wb_plan_group_info, turn, 4, int32_t);
FIELD(wb_plan_group_info, name, 8, const char *);
FIELD(wb_plan_group_info, offloaded_bytes, 16, uint64_t);
FIELD(wb_plan_group_info, resident_bytes, 24, uint64_t);

SIZE(wb_offloaded_info, 40);
FIELD(wb_offloaded_info, struct_size, 0, uint32_t);
FIELD(wb_offloaded_info, carrier, 4, wb_carrier);
FIELD(wb_offloaded_info, group, 8, uint64_t);
FIELD(wb_offloaded_info, device_address, 16, uint64_t);
FIELD(wb_offloaded_info, host_address, 24, void *);
FIELD(wb_offloaded_info, span_bytes, 32, uint64_t);

SIZE(wb_reconciled, 40);
FIELD(wb_reconciled, struct_size, 0, uint32_t);
FIELD(wb_reconciled, replaced, 8, uint64_t);
FIELD(wb_reconciled, added, 16, uint64_t);
FIELD(wb_reconciled, removed, 24, uint64_t);
FIELD(wb_reconciled, kept, 32, uint64_t);

SIZE(wb_offloader_stats, 136);
FIELD(wb_offloader_stats, struct_size, 0, uint32_t);
FIELD(wb_offloader_stats, offloaded_bytes, 8, uint64_t);
FIELD(wb_offloader_stats, asked_bytes, 16, uint64_t);
FIELD(wb_offloader_stats, mapped_bytes, 24, uint64_t);
FIELD(wb_offloader_stats, pinned_bytes, 32, uint64_t);
FIELD(wb_offloader_stats, resident_bytes, 40, uint64_t);
FIELD(wb_offloader_stats, slot_bytes, 48, uint64_t);
FIELD(wb_offloader_stats, view_bytes, 56, uint64_t);
FIELD(wb_offloader_stats, staging_bytes, 64, uint64_t);
FIELD(wb_offloader_stats, peak_mapped_bytes, 72, uint64_t);
FIELD(wb_offloader_stats, peak_slot_bytes, 80, uint64_t);
FIELD(wb_offloader_stats, moved_bytes, 88, uint64_t);
FIELD(wb_offloader_stats, copies, 96, uint64_t);
FIELD(wb_offloader_stats, acquires, 104, uint64_t);
FIELD(wb_offloader_stats, late, 112, uint64_t);
FIELD(wb_offloader_stats, waited_seconds, 120, double);
FIELD(wb_offloader_stats, generation, 128, uint64_t);

SIZE(wb_scales_info, 40);
FIELD(wb_scales_info, struct_size, 0, uint32_t);
FIELD(wb_scales_info, matrices, 8, uint64_t);
FIELD(wb_scales_info, rows, 16, uint64_t);
FIELD(wb_scales_info, cols, 24, uint64_t);
FIELD(wb_scales_info, bytes, 32, uint64_t);

SIZE(wb_quantized, 24);
FIELD(wb_quantized, struct_size, 0, uint32_t);
FIELD(wb_quantized, passes, 4, uint32_t);
FIELD(wb_quantized, nonfinite, 8, uint64_t);
FIELD(wb_quantized, staging_bytes, 16, uint64_t);

VALUE(WB_NUMA_DEVICE, -1);
VALUE(WB_NUMA_ANY, -2);
VALUE(WB_UNSET, UINT64_MAX);
VALUE(WB_ALLOW_NOTHING, 1);
VALUE(WB_ALLOW_UNMATCHED, 2);
VALUE(WB_ALLOW_EVERYTHING_FITS, 4);
VALUE(WB_OK, 0);
VALUE(WB_ERR_INTERNAL, 1);
VALUE(WB_ERR_NULL, 2);
VALUE(WB_ERR_HANDLE, 3);
VALUE(WB_ERR_STRUCT_SIZE, 4);
VALUE(WB_ERR_RESERVED, 5);
VALUE(WB_ERR_ENUM, 6);
VALUE(WB_ERR_INVALID_ARGUMENT, 7);
VALUE(WB_ERR_OVERFLOW, 8);
VALUE(WB_ERR_OUT_OF_RANGE, 9);
VALUE(WB_ERR_ZERO_BYTES, 10);
VALUE(WB_ERR_NOT_MAPPED, 11);
VALUE(WB_ERR_UNALIGNED, 12);
VALUE(WB_ERR_ALREADY_REGISTERED, 13);
VALUE(WB_ERR_UNMAPPED_RANGE, 14);
VALUE(WB_ERR_WOULD_COPY, 15);
VALUE(WB_ERR_NO_DEVICE, 16);
VALUE(WB_ERR_NO_DRIVER, 17);
VALUE(WB_ERR_DRIVER_TOO_OLD, 18);
VALUE(WB_ERR_DRIVER, 19);
VALUE(WB_ERR_NOT_SUPPORTED, 20);
VALUE(WB_ERR_MEMLOCK, 21);
VALUE(WB_ERR_CGROUP, 22);
VALUE(WB_ERR_OUT_OF_MEMORY, 23);
VALUE(WB_ERR_DEVICE_MEMORY, 24);
VALUE(WB_ERR_HUGE_PAGES, 25);
VALUE(WB_ERR_FILE_MISSING, 26);
VALUE(WB_ERR_FILE_ACCESS, 27);
VALUE(WB_ERR_FILE_EMPTY, 28);
VALUE(WB_ERR_FILE_TRUNCATED, 29);
VALUE(WB_ERR_FILE_IO, 30);
VALUE(WB_ERR_FORMAT, 31);
VALUE(WB_ERR_NOT_FOUND, 32);
VALUE(WB_ERR_CANCELLED, 33);
VALUE(WB_ERR_TIMEOUT, 34);
VALUE(WB_ERR_CAPTURING, 35);
VALUE(WB_ERR_FORKED, 36);
VALUE(WB_ERR_DLPACK, 37);
VALUE(WB_ERR_NOTHING_OFFLOADED, 38);
VALUE(WB_ERR_SELECTOR, 39);
VALUE(WB_ERR_EVERYTHING_FITS, 40);
VALUE(WB_ERR_BUDGET, 41);
VALUE(WB_ERR_SLOTS_BUDGET, 42);
VALUE(WB_ERR_BUSY, 43);
VALUE(WB_ERR_STAGING, 44);
VALUE(WB_ERR_NOT_FINITE, 45);
VALUE(WB_DTYPE_BOOL, 1);
VALUE(WB_DTYPE_I8, 2);
VALUE(WB_DTYPE_I16, 3);
VALUE(WB_DTYPE_I32, 4);
VALUE(WB_DTYPE_I64, 5);
VALUE(WB_DTYPE_U8, 6);
VALUE(WB_DTYPE_U16, 7);
VALUE(WB_DTYPE_U32, 8);
VALUE(WB_DTYPE_U64, 9);
VALUE(WB_DTYPE_F16, 10);
VALUE(WB_DTYPE_BF16, 11);
VALUE(WB_DTYPE_F32, 12);
VALUE(WB_DTYPE_F64, 13);
VALUE(WB_DTYPE_C64, 14);
VALUE(WB_DTYPE_F8_E4M3FN, 15);
VALUE(WB_DTYPE_F8_E5M2, 16);
VALUE(WB_DTYPE_F8_E8M0, 17);
VALUE(WB_DTYPE_F4_E2M1X2, 18);
VALUE(WB_AUTO, 0);
VALUE(WB_ON, 1);
VALUE(WB_OFF, 2);
VALUE(WB_DEVICE_HOST, 1);
VALUE(WB_DEVICE_CUDA, 2);
VALUE(WB_HUGE_PAGES_TRY, 0);
VALUE(WB_HUGE_PAGES_OFF, 1);
VALUE(WB_HUGE_PAGES_REQUIRE, 2);
VALUE(WB_FILE_AUTO, 0);
VALUE(WB_FILE_MAP, 1);
VALUE(WB_FILE_READ, 2);
VALUE(WB_ORIGIN_ALLOCATED, 1);
VALUE(WB_ORIGIN_REGISTERED, 2);
VALUE(WB_ORIGIN_FILE_MAPPED, 3);
VALUE(WB_ORIGIN_FILE_READ, 4);
VALUE(WB_PINNING_NONE, 0);
VALUE(WB_PINNING_REGISTERED, 1);
VALUE(WB_PINNING_DRIVER, 2);
VALUE(WB_PHASE_FAULT, 1);
VALUE(WB_PHASE_PIN, 2);
VALUE(WB_PHASE_READ, 3);
VALUE(WB_PHASE_QUANTIZE, 4);
VALUE(WB_ACCESS_DEVICE, 0);
VALUE(WB_ACCESS_HOST, 1);
VALUE(WB_PARAMETER_DENSE, 0);
VALUE(WB_PARAMETER_SPARSE, 1);
VALUE(WB_CARRIER_AUTO, 0);
VALUE(WB_CARRIER_VIEW, 1);
VALUE(WB_CARRIER_ON_DEMAND, 2);
VALUE(WB_CARRIER_PREFETCH, 3);
VALUE(WB_CARRIER_NONE, -1);
VALUE(WB_ORDER_SPREAD, 0);
VALUE(WB_ORDER_DECLARED, 1);
VALUE(WB_ORDER_LARGEST, 2);

#ifndef WB_ERROR_INIT
#error WB_ERROR_INIT is gone
#endif
#ifndef WB_DEVICE_OPTIONS_INIT
#error WB_DEVICE_OPTIONS_INIT is gone
#endif
#ifndef WB_DEVICE_INFO_INIT
#error WB_DEVICE_INFO_INIT is gone
#endif
#ifndef WB_DEVICE_USAGE_INIT
#error WB_DEVICE_USAGE_INIT is gone
#endif
#ifndef WB_BUFFER_OPTIONS_INIT
#error WB_BUFFER_OPTIONS_INIT is gone
#endif
#ifndef WB_BUFFER_INFO_INIT
#error WB_BUFFER_INFO_INIT is gone
#endif
#ifndef WB_BUFFER_USAGE_INIT
#error WB_BUFFER_USAGE_INIT is gone
#endif
#ifndef WB_LAYOUT_INIT
#error WB_LAYOUT_INIT is gone
#endif
#ifndef WB_VIEW_INFO_INIT
#error WB_VIEW_INFO_INIT is gone
#endif
#ifndef WB_TENSOR_INFO_INIT
#error WB_TENSOR_INFO_INIT is gone
#endif
#ifndef WB_PARAMETER_INIT
#error WB_PARAMETER_INIT is gone
#endif
#ifndef WB_PLAN_OPTIONS_INIT
#error WB_PLAN_OPTIONS_INIT is gone
#endif
#ifndef WB_PLAN_INFO_INIT
#error WB_PLAN_INFO_INIT is gone
#endif
#ifndef WB_PLANNED_INFO_INIT
#error WB_PLANNED_INFO_INIT is gone
#endif
#ifndef WB_PLAN_GROUP_INFO_INIT
#error WB_PLAN_GROUP_INFO_INIT is gone
#endif
#ifndef WB_OFFLOADED_INFO_INIT
#error WB_OFFLOADED_INFO_INIT is gone
#endif
#ifndef WB_OFFLOADER_STATS_INIT
#error WB_OFFLOADER_STATS_INIT is gone
#endif
#ifndef WB_QUANTIZE_OPTIONS_INIT
#error WB_QUANTIZE_OPTIONS_INIT is gone
#endif
#ifndef WB_SCALES_INFO_INIT
#error WB_SCALES_INFO_INIT is gone
#endif
#ifndef WB_QUANTIZED_INIT
#error WB_QUANTIZED_INIT is gone
#endif
#ifndef WB_RECONCILED_INIT
#error WB_RECONCILED_INIT is gone
#endif

uint32_t wb_version(void);
const char *wb_status_name(wb_status status);
wb_status wb_log_set(wb_log_callback callback, void *user);
wb_status wb_cuda_device_count(int32_t *count, wb_error *error);
wb_status wb_device_open(const char *name, const wb_device_options *options, wb_device **device, wb_error *error);
void wb_device_retain(const wb_device *device);
void wb_device_release(wb_device *device);
wb_status wb_device_describe(const wb_device *device, wb_device_info *info, wb_error *error);
wb_status wb_device_measure_link(const wb_device *device, double *bytes_per_second, wb_error *error);
wb_status wb_device_measure(const wb_device *device, wb_device_usage *usage, wb_error *error);
wb_status wb_device_drain(const wb_device *device, uint64_t timeout_ms, wb_error *error);
wb_status wb_device_alloc(const wb_device *device, uint64_t bytes, uint64_t *address, wb_error *error);
wb_status wb_device_free(const wb_device *device, uint64_t address, wb_error *error);
wb_status wb_device_copy(const wb_device *device, uint64_t to, uint64_t from, uint64_t bytes, void *stream, wb_error *error);
wb_status wb_device_stream_new(const wb_device *device, void **stream, wb_error *error);
wb_status wb_device_stream_release(const wb_device *device, void *stream, wb_error *error);
wb_status wb_device_stream_synchronize(const wb_device *device, void *stream, wb_error *error);
wb_status wb_device_stream_call(const wb_device *device, void *stream, wb_host_function function, void *user, wb_error *error);
wb_status wb_buffer_alloc(const wb_device *device, uint64_t bytes, const wb_buffer_options *options, wb_buffer **buffer, wb_error *error);
wb_status wb_buffer_register(const wb_device *device, void *data, uint64_t bytes, const wb_buffer_options *options, wb_deleter deleter, void *owner, wb_buffer **buffer, wb_error *error);
wb_status wb_buffer_map(const wb_device *device, const char *path, uint64_t offset, uint64_t bytes, const wb_buffer_options *options, wb_buffer **buffer, wb_error *error);
void wb_buffer_retain(const wb_buffer *buffer);
void wb_buffer_release(wb_buffer *buffer);
wb_status wb_buffer_release_after(wb_buffer *buffer, void *stream, wb_error *error);
wb_status wb_buffer_describe(const wb_buffer *buffer, wb_buffer_info *info, wb_error *error);
wb_status wb_buffer_measure(const wb_buffer *buffer, wb_buffer_usage *usage, wb_error *error);
wb_status wb_view_new(const wb_buffer *buffer, const wb_layout *layout, wb_access access, wb_view **view, wb_error *error);
wb_status wb_view_copy_from(const wb_device *device, const void *data, const wb_layout *layout, wb_access access, const wb_buffer_options *options, wb_view **view, wb_error *error);
void wb_view_retain(const wb_view *view);
void wb_view_release(wb_view *view);
wb_status wb_view_release_after(wb_view *view, void *stream, wb_error *error);
wb_status wb_view_describe(const wb_view *view, wb_view_info *info, wb_error *error);
wb_status wb_view_buffer(const wb_view *view, wb_buffer **buffer, wb_error *error);
wb_status wb_view_to_dlpack(const wb_view *view, struct DLManagedTensor **tensor, wb_error *error);
wb_status wb_view_to_dlpack_versioned(const wb_view *view, struct DLManagedTensorVersioned **tensor, wb_error *error);
wb_status wb_view_from_dlpack(const wb_device *device, struct DLManagedTensor *tensor, wb_access access, const wb_buffer_options *options, wb_view **view, wb_error *error);
wb_status wb_view_from_dlpack_versioned(const wb_device *device, struct DLManagedTensorVersioned *tensor, wb_access access, const wb_buffer_options *options, wb_view **view, wb_error *error);
wb_status wb_python_capsule_setup(wb_capsule_is_valid is_valid, wb_capsule_get_pointer get_pointer, wb_error *error);
void wb_python_capsule_destroy(void *capsule);
wb_status wb_safetensors_open(const wb_device *device, const char *path, const wb_buffer_options *options, wb_safetensors **file, wb_error *error);
void wb_safetensors_retain(const wb_safetensors *file);
void wb_safetensors_release(wb_safetensors *file);
uint64_t wb_safetensors_count(const wb_safetensors *file);
const char *wb_safetensors_header(const wb_safetensors *file);
wb_status wb_safetensors_describe(const wb_safetensors *file, uint64_t index, wb_tensor_info *info, wb_error *error);
wb_status wb_safetensors_find(const wb_safetensors *file, const char *name, uint64_t *index, wb_error *error);
wb_status wb_safetensors_view(const wb_safetensors *file, uint64_t index, wb_access access, uint64_t alignment, wb_view **view, wb_error *error);
wb_status wb_safetensors_load(const wb_safetensors *file, uint64_t index, wb_access access, uint64_t alignment, const wb_buffer_options *options, wb_view **view, int32_t *copied, wb_error *error);
wb_status wb_safetensors_buffer(const wb_safetensors *file, wb_buffer **buffer, wb_error *error);
wb_status wb_plan_new(const wb_device *device, const wb_parameter *parameters, uint64_t count, const wb_plan_options *options, wb_plan **plan, wb_error *error);
void wb_plan_retain(const wb_plan *plan);
void wb_plan_release(wb_plan *plan);
wb_status wb_plan_describe(const wb_plan *plan, wb_plan_info *info, wb_error *error);
wb_status wb_plan_find(const wb_plan *plan, const char *name, uint64_t *index, wb_error *error);
wb_status wb_plan_parameter(const wb_plan *plan, uint64_t index, wb_planned_info *info, wb_error *error);
wb_status wb_plan_group(const wb_plan *plan, uint64_t index, wb_plan_group_info *info, wb_error *error);
wb_status wb_plan_warning(const wb_plan *plan, uint64_t index, const char **warning, wb_error *error);
wb_status wb_plan_json(const wb_plan *plan, const char **json, wb_error *error);
wb_status wb_offloader_new(const wb_plan *plan, void *stream, const wb_buffer_options *options, wb_offloader **offloader, wb_error *error);
void wb_offloader_retain(const wb_offloader *offloader);
void wb_offloader_release(wb_offloader *offloader);
wb_status wb_offloader_group(const wb_offloader *offloader, const char *name, uint64_t *group, wb_error *error);
wb_status wb_offloader_acquire_group(const wb_offloader *offloader, uint64_t group, void *stream, wb_error *error);
wb_status wb_offloader_release_group(const wb_offloader *offloader, uint64_t group, void *stream, wb_error *error);
wb_status wb_offloader_join(const wb_offloader *offloader, void *stream, wb_error *error);
wb_status wb_offloader_reset(const wb_offloader *offloader, void *stream, wb_error *error);
wb_status wb_offloader_parameter(const wb_offloader *offloader, const char *name, wb_offloaded_info *info, wb_error *error);
wb_status wb_offloader_view(const wb_offloader *offloader, const char *name, wb_view **view, wb_error *error);
wb_status wb_offloader_host_view(const wb_offloader *offloader, const char *name, wb_view **view, wb_error *error);
wb_status wb_offloader_replace(const wb_offloader *offloader, const char *name, uint64_t source, const wb_layout *layout, void *stream, wb_error *error);
wb_status wb_offloader_add(const wb_offloader *offloader, const wb_parameter *parameter, void *stream, wb_error *error);
wb_status wb_offloader_remove(const wb_offloader *offloader, const char *name, void *stream, wb_error *error);
wb_status wb_offloader_reconcile(const wb_offloader *offloader, const wb_parameter *parameters, uint64_t count, void *stream, wb_reconciled *reconciled, wb_error *error);
wb_status wb_offloader_compact(const wb_offloader *offloader, void *stream, wb_error *error);
wb_status wb_offloader_measure(const wb_offloader *offloader, wb_offloader_stats *stats, wb_error *error);
wb_status wb_quantizer_new(const wb_device *device, uint64_t staging_bytes, wb_quantizer **quantizer, wb_error *error);
void wb_quantizer_retain(const wb_quantizer *quantizer);
void wb_quantizer_release(wb_quantizer *quantizer);
wb_status wb_quantize_scales(const wb_layout *layout, const wb_quantize_options *options, wb_scales_info *info, wb_error *error);
wb_status wb_quantizer_quantize(const wb_quantizer *quantizer, uint64_t source, const wb_layout *layout, uint64_t target, uint64_t scales, const wb_quantize_options *options, wb_quantized *done, wb_error *error);
wb_status wb_quantizer_dequantize(const wb_quantizer *quantizer, uint64_t source, uint64_t scales, uint64_t target, const wb_layout *layout, const wb_quantize_options *options, wb_quantized *done, wb_error *error);
