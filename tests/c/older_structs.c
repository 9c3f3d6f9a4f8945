/* Structs of older headers, which are shorter. Each ends at an inaccessible page, so that an access
 * past the end of the caller's struct crashes the test. */
#include "experts.h"
#include "model.h"

/* The objects of the calls below; created for each case. */
static struct offload all;
static wb_buffer *buffer;
static wb_view *view;
static wb_safetensors *file;
static char path[300];
static struct experts experts;
static wb_plan *fixed_plan;
static wb_offloader *fixed; /* in the arbiter */
static wb_arbiter *arbiter;
static const int64_t shape[] = {2, 2};

static int begin_arbiter(wb_device *device)
{
    wb_plan_options options = offload_options(WB_TRANSFER_MODE_PREFETCH);
    options.fixed_addresses = WB_TRISTATE_ON;
    return CHECK_OK(wb_plan_new(device, model.parameters, COUNT, &options, &fixed_plan, &error)) &&
           CHECK_OK(wb_offloader_new(fixed_plan, NULL, NULL, &fixed, &error)) &&
           CHECK_OK(wb_arbiter_new(device, 1 << 30, &arbiter, &error)) &&
           CHECK_OK(wb_arbiter_add(arbiter, fixed, NULL, &error));
}

static int begin_all(wb_device *device)
{
    static const char json[] =
        "{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}    ";
    unsigned char content[8 + sizeof json - 1 + 4] = {sizeof json - 1};
    wb_layout layout = layout_of(WB_DTYPE_F32, 2, shape, NULL, 0);
    memcpy(content + 8, json, sizeof json - 1);
    file_name(path, sizeof path, "older");
    return offload_begin(&all, device, WB_TRANSFER_MODE_PREFETCH) &&
           CHECK(write_file(path, content, sizeof content)) &&
           CHECK_OK(wb_buffer_alloc(device, 16, NULL, &buffer, &error)) &&
           CHECK_OK(wb_view_new(buffer, &layout, WB_ACCESSOR_HOST, &view, &error)) &&
           CHECK_OK(wb_safetensors_open(device, path, NULL, &file, &error)) &&
           experts_begin(&experts, device, 4, 1) && begin_arbiter(device);
}

static void end_all(void)
{
    wb_arbiter_release(arbiter);
    wb_offloader_release(fixed);
    wb_plan_release(fixed_plan);
    experts_end(&experts);
    wb_safetensors_release(file);
    wb_view_release(view);
    wb_buffer_release(buffer);
    offload_end(&all);
    unlink(path);
}

/* The last `bytes` bytes before an inaccessible page. */
static unsigned char *before_guard_page(uint64_t bytes)
{
    static unsigned char *both;
    if (both == NULL) {
        both = (unsigned char *)pages(2 * page_bytes());
        CHECK(both != NULL && mprotect(both + page_bytes(), page_bytes(), PROT_NONE) == 0);
    }
    return both + page_bytes() - bytes;
}

static wb_status get_error(void *to)
{
    return wb_device_open("nowhere", NULL, &all.device, (wb_error *)to) == WB_ERR_NO_DEVICE
               ? WB_OK : WB_ERR_INTERNAL;
}
static wb_status get_device(void *to)
{
    return wb_device_get_info(all.device, (wb_device_info *)to, &error);
}
static wb_status get_usage(void *to)
{
    return wb_device_get_stats(all.device, (wb_device_stats *)to, &error);
}
static wb_status get_buffer(void *to)
{
    return wb_buffer_get_info(buffer, (wb_buffer_info *)to, &error);
}
static wb_status get_pages(void *to)
{
    return wb_buffer_get_stats(buffer, (wb_buffer_stats *)to, &error);
}
static wb_status get_view(void *to)
{
    return wb_view_get_info(view, (wb_view_info *)to, &error);
}
static wb_status get_tensor(void *to)
{
    return wb_safetensors_get_tensor_info(file, 0, (wb_safetensors_tensor_info *)to, &error);
}
static wb_status get_plan(void *to)
{
    return wb_plan_get_info(all.plan, (wb_plan_info *)to, &error);
}
static wb_status get_planned(void *to)
{
    return wb_plan_get_parameter_info(all.plan, 1, (wb_plan_parameter_info *)to, &error);
}
static wb_status get_group(void *to)
{
    return wb_plan_get_group_info(all.plan, 1, (wb_plan_group_info *)to, &error);
}
static wb_status get_offloaded(void *to)
{
    return wb_offloader_get_parameter_info(all.offloader, 1, (wb_offloader_parameter_info *)to,
                                           &error);
}
static wb_status get_stats(void *to)
{
    return wb_offloader_get_stats(all.offloader, (wb_offloader_stats *)to, &error);
}
static wb_status get_reconciled(void *to)
{
    for (int i = 0; i < COUNT; i++) model.parameters[i].source = NULL;
    return wb_offloader_reconcile(all.offloader, model.parameters, COUNT, all.stream,
                                  (wb_offloader_reconcile_result *)to, &error);
}
static wb_status get_scales(void *to)
{
    wb_layout layout = layout_of(WB_DTYPE_F32, 2, shape, NULL, 0);
    return wb_quantizer_get_scales_info(&layout, NULL, (wb_quantizer_scales_info *)to, &error);
}
static wb_status get_quantized(void *to)
{
    static float numbers[4], scale;
    static unsigned char codes[4];
    wb_layout layout = layout_of(WB_DTYPE_F32, 2, shape, NULL, 0);
    wb_quantizer *quantizer = NULL;
    wb_status status = wb_quantizer_new(all.device, 0, &quantizer, &error);
    if (status == WB_OK) {
        status = wb_quantizer_quantize(quantizer, numbers, &layout, codes, &scale, NULL,
                                       (wb_quantizer_result *)to, &error);
    }
    wb_quantizer_release(quantizer);
    return status;
}

static wb_status get_progress(void *to)
{
    return wb_offloader_resize_advance(fixed, NULL, (wb_offloader_resize_progress *)to, &error);
}
static wb_status get_rebalanced(void *to)
{
    return wb_offloader_rebalance(fixed, 0, NULL, (wb_offloader_rebalance_progress *)to, &error);
}
static wb_status get_arbitrated(void *to)
{
    return wb_arbiter_advance(arbiter, (wb_arbiter_progress *)to, &error);
}
static wb_status get_member(void *to)
{
    return wb_arbiter_get_member_info(arbiter, fixed, (wb_arbiter_member_info *)to, &error);
}

static wb_status get_cache_size(void *to)
{
    wb_expert_cache_options options = WB_EXPERT_CACHE_OPTIONS_INIT;
    options.slots = 2;
    return experts_new(&experts, &options, (wb_expert_cache_size *)to);
}
static wb_status get_cache(void *to)
{
    return wb_expert_cache_get_info(experts.cache, (wb_expert_cache_info *)to, &error);
}
static wb_status get_slots(void *to)
{
    return wb_expert_cache_get_slots_info(experts.cache, 0, (wb_expert_slots_info *)to, &error);
}
static wb_status get_cache_stats(void *to)
{
    return wb_expert_cache_get_stats(experts.cache, (wb_expert_cache_stats *)to, &error);
}

/* `constant`: each call returns the same values. */
static void check_output_struct(const char *name, uint64_t bytes, wb_status (*get)(void *),
                                int constant)
{
    unsigned char *whole = (unsigned char *)malloc(bytes);
    uint32_t size = (uint32_t)bytes;
    int ok = CHECK(whole != NULL && bytes <= page_bytes());
    if (ok) {
        memset(whole, 0xab, bytes);
        memcpy(whole, &size, sizeof size);
        ok = CHECK_OK(get(whole));
    }
    for (size = 8; ok && size <= bytes; size += 8) {
        unsigned char *part = before_guard_page(size);
        memset(part, 0xab, size);
        memcpy(part, &size, sizeof size);
        if (!CHECK_OK(get(part)) || !CHECK(memcmp(part, &size, sizeof size) == 0) ||
            !CHECK(!constant || memcmp(part + 4, whole + 4, size - 4) == 0)) {
            fprintf(stderr, "  %s of %u bytes\n", name, size);
        }
    }
    free(whole);
}

static void shorter_output_structs_are_filled_up_to_their_size(wb_device *device)
{
    REQUIRE(begin_all(device));
#define OUTPUT(type, get, constant) check_output_struct(#type, sizeof(type), get, constant)
    OUTPUT(wb_device_info, get_device, 0);
    OUTPUT(wb_device_stats, get_usage, 1);
    OUTPUT(wb_buffer_info, get_buffer, 1);
    OUTPUT(wb_buffer_stats, get_pages, 1);
    OUTPUT(wb_view_info, get_view, 1);
    OUTPUT(wb_safetensors_tensor_info, get_tensor, 1);
    OUTPUT(wb_plan_info, get_plan, 1);
    OUTPUT(wb_plan_parameter_info, get_planned, 1);
    OUTPUT(wb_plan_group_info, get_group, 1);
    OUTPUT(wb_offloader_parameter_info, get_offloaded, 1);
    OUTPUT(wb_offloader_stats, get_stats, 1);
    OUTPUT(wb_offloader_reconcile_result, get_reconciled, 1);
    OUTPUT(wb_quantizer_scales_info, get_scales, 1);
    OUTPUT(wb_quantizer_result, get_quantized, 1);
    OUTPUT(wb_offloader_resize_progress, get_progress, 1);
    OUTPUT(wb_offloader_rebalance_progress, get_rebalanced, 1);
    OUTPUT(wb_arbiter_progress, get_arbitrated, 1);
    OUTPUT(wb_arbiter_member_info, get_member, 1);
    OUTPUT(wb_expert_cache_size, get_cache_size, 1);
    OUTPUT(wb_expert_cache_info, get_cache, 1);
    OUTPUT(wb_expert_slots_info, get_slots, 1);
    OUTPUT(wb_expert_cache_stats, get_cache_stats, 1);
    end_all();
}

/* The message is truncated to the struct and NUL-terminated. */
static void a_shorter_error_struct_gets_a_truncated_message(wb_device *device)
{
    const uint32_t head = offsetof(wb_error, message);
    all.device = device;
    for (uint32_t size = 4; size <= sizeof(wb_error); size += 4) {
        unsigned char *part = before_guard_page(size);
        memset(part, 0xab, size);
        memcpy(part, &size, sizeof size);
        CHECK(get_error(part) == WB_OK);
        if (size > head) CHECK(memchr(part + head, 0, size - head) != NULL);
        if (size > 40) CHECK(strncmp((char *)part + head, "there is no device", 18) == 0);
    }
}

static wb_status pass_device(const void *input)
{
    wb_device *opened = NULL;
    const char *name = on_cuda() ? test_device() : "host";
    wb_status status = wb_device_open(name, (const wb_device_options *)input, &opened, &error);
    wb_device_release(opened);
    return status;
}
static wb_status pass_buffer(const void *input)
{
    wb_buffer *made = NULL;
    wb_status status =
        wb_buffer_alloc(all.device, 100, (const wb_buffer_options *)input, &made, &error);
    wb_buffer_release(made);
    return status;
}
static wb_status pass_layout(const void *input)
{
    wb_view *made = NULL;
    wb_status status =
        wb_view_new(buffer, (const wb_layout *)input, WB_ACCESSOR_HOST, &made, &error);
    wb_view_release(made);
    return status;
}
static wb_status pass_parameter(const void *input)
{
    const wb_plan_options options = budget_options(WB_BUDGET_OFFLOAD_BYTES, 1 << 20);
    wb_plan *made = NULL;
    wb_status status =
        wb_plan_new(all.device, (const wb_parameter *)input, 1, &options, &made, &error);
    wb_plan_release(made);
    return status;
}
static wb_status pass_plan(const void *input)
{
    wb_plan *made = NULL;
    wb_status status = wb_plan_new(all.device, model.parameters, COUNT,
                                   (const wb_plan_options *)input, &made, &error);
    wb_plan_release(made);
    return status;
}
static wb_status pass_quantize(const void *input)
{
    wb_layout layout = layout_of(WB_DTYPE_F32, 2, shape, NULL, 0);
    wb_quantizer_scales_info info = WB_QUANTIZER_SCALES_INFO_INIT;
    return wb_quantizer_get_scales_info(&layout, (const wb_quantize_options *)input, &info, &error);
}

static wb_status pass_resize(const void *input)
{
    wb_offloader_resize_progress progress = WB_OFFLOADER_RESIZE_PROGRESS_INIT;
    if (wb_arbiter_remove(arbiter, fixed, &error) != WB_OK) return error.status;
    wb_status status =
        wb_offloader_resize(fixed, (const wb_offloader_resize_options *)input, NULL, &progress, &error);
    if (status == WB_OK) status = wb_offloader_resize_wait(fixed, NULL, 10000, &progress, &error);
    return status == WB_OK ? wb_arbiter_add(arbiter, fixed, NULL, &error) : status;
}
static wb_status pass_member(const void *input)
{
    if (wb_arbiter_remove(arbiter, fixed, &error) != WB_OK) return error.status;
    return wb_arbiter_add(arbiter, fixed, (const wb_arbiter_options *)input, &error);
}

static wb_status pass_cache(const void *input)
{
    wb_expert_cache_size size = WB_EXPERT_CACHE_SIZE_INIT;
    return experts_new(&experts, (const wb_expert_cache_options *)input, &size);
}
static wb_status pass_route(const void *input)
{
    static const int64_t ids[] = {1};
    experts.calls = 0;
    const int call = give_ids(&experts, 0, ids, 1, NULL);
    return wb_expert_cache_route(experts.cache, 0, device_ids(&experts, call), 1, WB_DTYPE_I64,
                                 device_slots(&experts, call),
                                 (const wb_expert_route_options *)input, NULL, &error);
}
static wb_status pass_tensor(const void *input)
{
    wb_expert_cache_options options = WB_EXPERT_CACHE_OPTIONS_INIT;
    wb_expert_cache_size size = WB_EXPERT_CACHE_SIZE_INIT;
    options.slots = 1;
    return wb_expert_cache_measure(all.device, (const wb_expert_tensor *)input, 1, &options, &size,
                                   &error);
}

static void check_input_struct(const char *name, const void *whole, uint64_t bytes,
                               uint32_t required, wb_status (*pass)(const void *))
{
    for (uint32_t size = required; size <= bytes; size += 8) {
        unsigned char *part = before_guard_page(size);
        memcpy(part, whole, size);
        memcpy(part, &size, sizeof size);
        if (!CHECK_OK(pass(part))) fprintf(stderr, "  %s of %u bytes\n", name, size);
    }
}

static void missing_input_fields_have_their_defaults(wb_device *device)
{
    wb_device_options device_options = WB_DEVICE_OPTIONS_INIT;
    wb_buffer_options buffer_options = WB_BUFFER_OPTIONS_INIT;
    wb_plan_options plan_options = budget_options(WB_BUDGET_OFFLOAD_BYTES, 1 << 20);
    wb_quantize_options quantize_options = WB_QUANTIZE_OPTIONS_INIT;
    wb_offloader_resize_options resize_options = WB_OFFLOADER_RESIZE_OPTIONS_INIT;
    resize_options.budget_kind = WB_BUDGET_DEVICE_BYTES;
    wb_arbiter_options member_options = WB_ARBITER_OPTIONS_INIT;
    wb_expert_cache_options cache_options = WB_EXPERT_CACHE_OPTIONS_INIT;
    wb_expert_route_options route_options = WB_EXPERT_ROUTE_OPTIONS_INIT;
    wb_expert_tensor tensor = WB_EXPERT_TENSOR_INIT;
    wb_layout layout = layout_of(WB_DTYPE_F32, 2, shape, NULL, 0);
    REQUIRE(begin_all(device));
    cache_options.slots = 2;
    tensor.name = "w13";
    tensor.layout = &layout;
    tensor.buffer = buffer;
    /* Fields without a default must be included. */
#define INPUT(value, required, pass) \
    check_input_struct(#value, &value, sizeof value, required, pass)
    INPUT(device_options, 8, pass_device);
    INPUT(buffer_options, 8, pass_buffer);
    INPUT(plan_options, offsetof(wb_plan_options, slot_bytes), pass_plan);
    INPUT(quantize_options, 8, pass_quantize);
    resize_options.budget_bytes = 1 << 28;
    INPUT(resize_options, offsetof(wb_offloader_resize_options, graphs_dropped), pass_resize);
    INPUT(member_options, 8, pass_member);
    INPUT(cache_options, offsetof(wb_expert_cache_options, device_bytes), pass_cache);
    INPUT(route_options, 8, pass_route);
    INPUT(tensor, offsetof(wb_expert_tensor, reserved), pass_tensor);
    INPUT(layout, offsetof(wb_layout, strides), pass_layout);
    INPUT(model.parameters[0], offsetof(wb_parameter, source), pass_parameter);
    end_all();
}

CHECK_MAIN(CASE(shorter_output_structs_are_filled_up_to_their_size),
           CASE(a_shorter_error_struct_gets_a_truncated_message),
           CASE(missing_input_fields_have_their_defaults))
