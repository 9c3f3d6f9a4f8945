/* How the structs of the interface lie in memory, on every 64-bit Linux. A field is added at the
 * end only, and the size grows; nothing here ever changes otherwise. */
#include <stddef.h>

#include "weighbridge.h"

#ifdef __cplusplus
#define ASSERT(condition) static_assert(condition, #condition)
#else
#define ASSERT(condition) _Static_assert(condition, #condition)
#endif
#define SIZE(type, bytes) ASSERT(sizeof(type) == (bytes))
#define AT(type, field, offset) ASSERT(offsetof(type, field) == (offset))

SIZE(wb_status, 4);
SIZE(wb_dtype, 4);
SIZE(wb_choice, 4);
SIZE(wb_access, 4);
SIZE(wb_phase, 4);
SIZE(wb_origin, 4);
SIZE(wb_pinning, 4);
SIZE(wb_file_mode, 4);
SIZE(wb_huge_pages, 4);
SIZE(wb_device_kind, 4);

SIZE(wb_error, 512);
AT(wb_error, struct_size, 0);
AT(wb_error, status, 4);
AT(wb_error, driver_code, 8);
AT(wb_error, message, 12);

SIZE(wb_device_options, 64);
AT(wb_device_options, struct_size, 0);
AT(wb_device_options, pin, 4);
AT(wb_device_options, views, 8);
AT(wb_device_options, reserved0, 12);
AT(wb_device_options, context, 16);
AT(wb_device_options, capacity_bytes, 24);
AT(wb_device_options, reserved, 32);

SIZE(wb_device_info, 848);
AT(wb_device_info, struct_size, 0);
AT(wb_device_info, kind, 4);
AT(wb_device_info, ordinal, 8);
AT(wb_device_info, driver_version, 12);
AT(wb_device_info, compute_capability, 16);
AT(wb_device_info, unified_addressing, 20);
AT(wb_device_info, host_register, 24);
AT(wb_device_info, read_only_register, 28);
AT(wb_device_info, read_only_register_attribute, 32);
AT(wb_device_info, pageable_access, 36);
AT(wb_device_info, integrated, 40);
AT(wb_device_info, numa_node, 44);
AT(wb_device_info, pin, 48);
AT(wb_device_info, views, 52);
AT(wb_device_info, memlock_limit, 56);
AT(wb_device_info, total_bytes, 64);
AT(wb_device_info, free_bytes, 72);
AT(wb_device_info, name, 80);
AT(wb_device_info, pin_reason, 336);
AT(wb_device_info, views_reason, 592);

SIZE(wb_device_usage, 72);
AT(wb_device_usage, struct_size, 0);
AT(wb_device_usage, reserved0, 4);
AT(wb_device_usage, buffers, 8);
AT(wb_device_usage, views, 16);
AT(wb_device_usage, deferred, 24);
AT(wb_device_usage, asked_bytes, 32);
AT(wb_device_usage, mapped_bytes, 40);
AT(wb_device_usage, pinned_bytes, 48);
AT(wb_device_usage, device_bytes, 56);
AT(wb_device_usage, errors_logged, 64);

SIZE(wb_buffer_options, 88);
AT(wb_buffer_options, struct_size, 0);
AT(wb_buffer_options, huge_pages, 4);
AT(wb_buffer_options, threads, 8);
AT(wb_buffer_options, numa_node, 12);
AT(wb_buffer_options, pin, 16);
AT(wb_buffer_options, write_combined, 20);
AT(wb_buffer_options, portable, 24);
AT(wb_buffer_options, file_mode, 28);
AT(wb_buffer_options, chunk_bytes, 32);
AT(wb_buffer_options, progress, 40);
AT(wb_buffer_options, progress_user, 48);
AT(wb_buffer_options, reserved, 56);

SIZE(wb_buffer_info, 320);
AT(wb_buffer_info, struct_size, 0);
AT(wb_buffer_info, origin, 4);
AT(wb_buffer_info, pinning, 8);
AT(wb_buffer_info, read_only, 12);
AT(wb_buffer_info, data, 16);
AT(wb_buffer_info, device_address, 24);
AT(wb_buffer_info, asked_bytes, 32);
AT(wb_buffer_info, mapped_bytes, 40);
AT(wb_buffer_info, pinned_bytes, 48);
AT(wb_buffer_info, chunks, 56);
AT(wb_buffer_info, note, 64);

SIZE(wb_buffer_usage, 40);
AT(wb_buffer_usage, struct_size, 0);
AT(wb_buffer_usage, reserved0, 4);
AT(wb_buffer_usage, resident_bytes, 8);
AT(wb_buffer_usage, huge_bytes, 16);
AT(wb_buffer_usage, anonymous_bytes, 24);
AT(wb_buffer_usage, locked_bytes, 32);

SIZE(wb_layout, 40);
AT(wb_layout, struct_size, 0);
AT(wb_layout, dtype, 4);
AT(wb_layout, ndim, 8);
AT(wb_layout, reserved0, 12);
AT(wb_layout, shape, 16);
AT(wb_layout, strides, 24);
AT(wb_layout, offset_bytes, 32);

SIZE(wb_view_info, 72);
AT(wb_view_info, struct_size, 0);
AT(wb_view_info, dtype, 4);
AT(wb_view_info, ndim, 8);
AT(wb_view_info, access, 12);
AT(wb_view_info, read_only, 16);
AT(wb_view_info, reserved0, 20);
AT(wb_view_info, data, 24);
AT(wb_view_info, device_address, 32);
AT(wb_view_info, shape, 40);
AT(wb_view_info, strides, 48);
AT(wb_view_info, elements, 56);
AT(wb_view_info, span_bytes, 64);

SIZE(wb_tensor_info, 48);
AT(wb_tensor_info, struct_size, 0);
AT(wb_tensor_info, dtype, 4);
AT(wb_tensor_info, ndim, 8);
AT(wb_tensor_info, reserved0, 12);
AT(wb_tensor_info, name, 16);
AT(wb_tensor_info, shape, 24);
AT(wb_tensor_info, offset_bytes, 32);
AT(wb_tensor_info, bytes, 40);

SIZE(wb_parameter, 72);
AT(wb_parameter, struct_size, 0);
AT(wb_parameter, access, 4);
AT(wb_parameter, name, 8);
AT(wb_parameter, group, 16);
AT(wb_parameter, layout, 24);
AT(wb_parameter, source, 32);
AT(wb_parameter, storage, 40);
AT(wb_parameter, carrier, 48);
AT(wb_parameter, reserved0, 52);
AT(wb_parameter, reserved, 56);

SIZE(wb_plan_options, 136);
AT(wb_plan_options, struct_size, 0);
AT(wb_plan_options, depth, 4);
AT(wb_plan_options, offload_bytes, 8);
AT(wb_plan_options, device_bytes, 16);
AT(wb_plan_options, slot_bytes, 24);
AT(wb_plan_options, select, 32);
AT(wb_plan_options, exclude, 40);
AT(wb_plan_options, select_count, 48);
AT(wb_plan_options, exclude_count, 52);
AT(wb_plan_options, carrier, 56);
AT(wb_plan_options, order, 60);
AT(wb_plan_options, allow, 64);
AT(wb_plan_options, reserved0, 68);
AT(wb_plan_options, quantize, 72);
AT(wb_plan_options, quantize_select, 80);
AT(wb_plan_options, quantize_count, 88);
AT(wb_plan_options, reserved1, 92);
AT(wb_plan_options, link_bytes_per_second, 96);
AT(wb_plan_options, reserved, 104);

SIZE(wb_plan_info, 112);
AT(wb_plan_info, struct_size, 0);
AT(wb_plan_info, depth, 4);
AT(wb_plan_info, parameters, 8);
AT(wb_plan_info, groups, 16);
AT(wb_plan_info, warnings, 24);
AT(wb_plan_info, payload_bytes, 32);
AT(wb_plan_info, offloaded_bytes, 40);
AT(wb_plan_info, arena_bytes, 48);
AT(wb_plan_info, resident_bytes, 56);
AT(wb_plan_info, slot_bytes, 64);
AT(wb_plan_info, ring_bytes, 72);
AT(wb_plan_info, step_bytes, 80);
AT(wb_plan_info, view_bytes, 88);
AT(wb_plan_info, step_seconds, 96);
AT(wb_plan_info, wrap_stalls, 104);
AT(wb_plan_info, reserved0, 108);

SIZE(wb_planned_info, 48);
AT(wb_planned_info, struct_size, 0);
AT(wb_planned_info, carrier, 4);
AT(wb_planned_info, name, 8);
AT(wb_planned_info, reason, 16);
AT(wb_planned_info, group, 24);
AT(wb_planned_info, span_bytes, 32);
AT(wb_planned_info, tied_to, 40);

SIZE(wb_plan_group_info, 32);
AT(wb_plan_group_info, struct_size, 0);
AT(wb_plan_group_info, turn, 4);
AT(wb_plan_group_info, name, 8);
AT(wb_plan_group_info, offloaded_bytes, 16);
AT(wb_plan_group_info, resident_bytes, 24);

SIZE(wb_offloaded_info, 40);
AT(wb_offloaded_info, struct_size, 0);
AT(wb_offloaded_info, carrier, 4);
AT(wb_offloaded_info, group, 8);
AT(wb_offloaded_info, device_address, 16);
AT(wb_offloaded_info, host_address, 24);
AT(wb_offloaded_info, span_bytes, 32);

SIZE(wb_offloader_stats, 136);
AT(wb_offloader_stats, struct_size, 0);
AT(wb_offloader_stats, reserved0, 4);
AT(wb_offloader_stats, offloaded_bytes, 8);
AT(wb_offloader_stats, asked_bytes, 16);
AT(wb_offloader_stats, mapped_bytes, 24);
AT(wb_offloader_stats, pinned_bytes, 32);
AT(wb_offloader_stats, resident_bytes, 40);
AT(wb_offloader_stats, slot_bytes, 48);
AT(wb_offloader_stats, view_bytes, 56);
AT(wb_offloader_stats, staging_bytes, 64);
AT(wb_offloader_stats, peak_mapped_bytes, 72);
AT(wb_offloader_stats, peak_slot_bytes, 80);
AT(wb_offloader_stats, moved_bytes, 88);
AT(wb_offloader_stats, copies, 96);
AT(wb_offloader_stats, acquires, 104);
AT(wb_offloader_stats, late, 112);
AT(wb_offloader_stats, waited_seconds, 120);
AT(wb_offloader_stats, generation, 128);

SIZE(wb_quantize_options, 96);
AT(wb_quantize_options, struct_size, 0);
AT(wb_quantize_options, format, 4);
AT(wb_quantize_options, scale_type, 8);
AT(wb_quantize_options, given_scales, 12);
AT(wb_quantize_options, block_rows, 16);
AT(wb_quantize_options, block_cols, 24);
AT(wb_quantize_options, refuse_nonfinite, 32);
AT(wb_quantize_options, reserved0, 36);
AT(wb_quantize_options, scale_bytes, 40);
AT(wb_quantize_options, progress, 48);
AT(wb_quantize_options, progress_user, 56);
AT(wb_quantize_options, reserved, 64);

SIZE(wb_scales_info, 40);
AT(wb_scales_info, struct_size, 0);
AT(wb_scales_info, reserved0, 4);
AT(wb_scales_info, matrices, 8);
AT(wb_scales_info, rows, 16);
AT(wb_scales_info, cols, 24);
AT(wb_scales_info, bytes, 32);

SIZE(wb_quantized, 24);
AT(wb_quantized, struct_size, 0);
AT(wb_quantized, passes, 4);
AT(wb_quantized, nonfinite, 8);
AT(wb_quantized, staging_bytes, 16);

SIZE(wb_reconciled, 40);
AT(wb_reconciled, struct_size, 0);
AT(wb_reconciled, reserved0, 4);
AT(wb_reconciled, replaced, 8);
AT(wb_reconciled, added, 16);
AT(wb_reconciled, removed, 24);
AT(wb_reconciled, kept, 32);
