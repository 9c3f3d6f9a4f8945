/* Structs of older headers: shorter at the end. Each lies before a page that nobody may touch, so that
 * a byte more read or written than the caller's header has ends the test. */
#include "model.h"

/* What the calls below are about; made once for a case. */
static struct offload all;
static wb_buffer *buffer;
static wb_view *view;
static wb_safetensors *file;
static char path[300];
static const int64_t shape[] = {2, 2};

static int begin_all(wb_device *device)
{
    static const char json[] =
        "{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}    ";
    unsigned char content[8 + sizeof json - 1 + 4] = {sizeof json - 1};
    wb_layout layout = layout_of(WB_DTYPE_F32, 2, shape, NULL, 0);
    memcpy(content + 8, json, sizeof json - 1);
    file_name(path, sizeof path, "older");
    return begin(&all, device, WB_TRANSFER_MODE_PREFETCH) && CHECK(write_file(path, content, sizeof content)) &&
           CHECK_OK(wb_buffer_alloc(device, 16, NULL, &buffer, &error)) &&
           CHECK_OK(wb_view_new(buffer, &layout, WB_ACCESSOR_HOST, &view, &error)) &&
           CHECK_OK(wb_safetensors_open(device, path, NULL, &file, &error));
}

static void end_all(void)
{
    wb_safetensors_release(file);
    wb_view_release(view);
    wb_buffer_release(buffer);
    end(&all);
    unlink(path);
}

/* The last `bytes` bytes before a page that is not there. */
static unsigned char *before_nothing(uint64_t bytes)
{
    static unsigned char *both;
    if (both == NULL) {
        both = (unsigned char *)pages(2 * page_bytes());
        CHECK(both != NULL && mprotect(both + page_bytes(), page_bytes(), PROT_NONE) == 0);
    }
    return both + page_bytes() - bytes;
}

static wb_status ask_error(void *to)
{
    return wb_device_open("nowhere", NULL, &all.device, (wb_error *)to) == WB_ERR_NO_DEVICE
               ? WB_OK : WB_ERR_INTERNAL;
}
static wb_status ask_device(void *to)
{
    return wb_device_get_info(all.device, (wb_device_info *)to, &error);
}
static wb_status ask_usage(void *to)
{
    return wb_device_get_stats(all.device, (wb_device_stats *)to, &error);
}
static wb_status ask_buffer(void *to)
{
    return wb_buffer_get_info(buffer, (wb_buffer_info *)to, &error);
}
static wb_status ask_pages(void *to)
{
    return wb_buffer_get_stats(buffer, (wb_buffer_stats *)to, &error);
}
static wb_status ask_view(void *to)
{
    return wb_view_get_info(view, (wb_view_info *)to, &error);
}
static wb_status ask_tensor(void *to)
{
    return wb_safetensors_get_tensor_info(file, 0, (wb_safetensors_tensor_info *)to, &error);
}
static wb_status ask_plan(void *to)
{
    return wb_plan_get_info(all.plan, (wb_plan_info *)to, &error);
}
static wb_status ask_planned(void *to)
{
    return wb_plan_get_parameter_info(all.plan, 1, (wb_plan_parameter_info *)to, &error);
}
static wb_status ask_group(void *to)
{
    return wb_plan_get_group_info(all.plan, 1, (wb_plan_group_info *)to, &error);
}
static wb_status ask_offloaded(void *to)
{
    return wb_offloader_get_parameter_info(all.offloader, model.names[1], (wb_offloader_parameter_info *)to, &error);
}
static wb_status ask_stats(void *to)
{
    return wb_offloader_get_stats(all.offloader, (wb_offloader_stats *)to, &error);
}
static wb_status ask_reconciled(void *to)
{
    for (int i = 0; i < COUNT; i++) model.parameters[i].source = 0;
    return wb_offloader_reconcile(all.offloader, model.parameters, COUNT, all.stream,
                                  (wb_offloader_reconcile_result *)to, &error);
}
static wb_status ask_scales(void *to)
{
    wb_layout layout = layout_of(WB_DTYPE_F32, 2, shape, NULL, 0);
    return wb_quantizer_get_scales_info(&layout, NULL, (wb_quantizer_scales_info *)to, &error);
}
static wb_status ask_quantized(void *to)
{
    static float numbers[4], scale;
    static unsigned char codes[4];
    wb_layout layout = layout_of(WB_DTYPE_F32, 2, shape, NULL, 0);
    wb_quantizer *quantizer = NULL;
    wb_status status = wb_quantizer_new(all.device, 0, &quantizer, &error);
    if (status == WB_OK) {
        status = wb_quantizer_quantize(quantizer, (uint64_t)(uintptr_t)numbers, &layout,
                                       (uint64_t)(uintptr_t)codes, (uint64_t)(uintptr_t)&scale,
                                       NULL, (wb_quantizer_result *)to, &error);
    }
    wb_quantizer_release(quantizer);
    return status;
}

/* `steady`: the answer is the same every time. */
static void check_output_struct(const char *name, uint64_t bytes, wb_status (*ask)(void *), int steady)
{
    unsigned char whole[1024];
    uint32_t size = (uint32_t)bytes;
    memset(whole, 0xab, sizeof whole);
    memcpy(whole, &size, sizeof size);
    if (!CHECK_OK(ask(whole))) return;
    for (size = 8; size <= bytes; size += 8) {
        unsigned char *part = before_nothing(size);
        memset(part, 0xab, size);
        memcpy(part, &size, sizeof size);
        if (!CHECK_OK(ask(part)) || !CHECK(memcmp(part, &size, sizeof size) == 0) ||
            !CHECK(!steady || memcmp(part + 4, whole + 4, size - 4) == 0)) {
            fprintf(stderr, "  %s of %u bytes\n", name, size);
        }
    }
}

static void shorter_outputs_are_filled_as_far_as_they_go(wb_device *device)
{
    REQUIRE(begin_all(device));
#define OUTPUT(type, ask, steady) check_output_struct(#type, sizeof(type), ask, steady)
    OUTPUT(wb_device_info, ask_device, 0);
    OUTPUT(wb_device_stats, ask_usage, 1);
    OUTPUT(wb_buffer_info, ask_buffer, 1);
    OUTPUT(wb_buffer_stats, ask_pages, 1);
    OUTPUT(wb_view_info, ask_view, 1);
    OUTPUT(wb_safetensors_tensor_info, ask_tensor, 1);
    OUTPUT(wb_plan_info, ask_plan, 1);
    OUTPUT(wb_plan_parameter_info, ask_planned, 1);
    OUTPUT(wb_plan_group_info, ask_group, 1);
    OUTPUT(wb_offloader_parameter_info, ask_offloaded, 1);
    OUTPUT(wb_offloader_stats, ask_stats, 1);
    OUTPUT(wb_offloader_reconcile_result, ask_reconciled, 1);
    OUTPUT(wb_quantizer_scales_info, ask_scales, 1);
    OUTPUT(wb_quantizer_result, ask_quantized, 1);
    end_all();
}

/* Its message is cut off where it ends, and ends in NUL there. */
static void a_shorter_error_gets_as_much_of_the_message(wb_device *device)
{
    all.device = device;
    for (uint32_t size = 4; size <= sizeof(wb_error); size += 4) {
        unsigned char *part = before_nothing(size);
        memset(part, 0xab, size);
        memcpy(part, &size, sizeof size);
        CHECK(ask_error(part) == WB_OK);
        if (size > 12) CHECK(memchr(part + 12, 0, size - 12) != NULL);
        if (size > 40) CHECK(strncmp((char *)part + 12, "there is no device", 18) == 0);
    }
}

static wb_status give_device(const void *given)
{
    wb_device *opened = NULL;
    const char *name = on_cuda() ? test_device() : "host";
    wb_status status = wb_device_open(name, (const wb_device_options *)given, &opened, &error);
    wb_device_release(opened);
    return status;
}
static wb_status give_buffer(const void *given)
{
    wb_buffer *made = NULL;
    wb_status status =
        wb_buffer_alloc(all.device, 100, (const wb_buffer_options *)given, &made, &error);
    wb_buffer_release(made);
    return status;
}
static wb_status give_layout(const void *given)
{
    wb_view *made = NULL;
    wb_status status =
        wb_view_new(buffer, (const wb_layout *)given, WB_ACCESSOR_HOST, &made, &error);
    wb_view_release(made);
    return status;
}
static wb_status give_parameter(const void *given)
{
    wb_plan_options options = WB_PLAN_OPTIONS_INIT;
    wb_plan *made = NULL;
    options.offload_bytes = 1 << 20;
    wb_status status =
        wb_plan_new(all.device, (const wb_parameter *)given, 1, &options, &made, &error);
    wb_plan_release(made);
    return status;
}
static wb_status give_plan(const void *given)
{
    wb_plan *made = NULL;
    wb_status status = wb_plan_new(all.device, model.parameters, COUNT,
                                   (const wb_plan_options *)given, &made, &error);
    wb_plan_release(made);
    return status;
}
static wb_status give_quantize(const void *given)
{
    wb_layout layout = layout_of(WB_DTYPE_F32, 2, shape, NULL, 0);
    wb_quantizer_scales_info info = WB_QUANTIZER_SCALES_INFO_INIT;
    return wb_quantizer_get_scales_info(&layout, (const wb_quantize_options *)given, &info, &error);
}

static void check_input_struct(const char *name, const void *whole, uint64_t bytes, uint32_t least,
                               wb_status (*give)(const void *))
{
    for (uint32_t size = least; size <= bytes; size += 8) {
        unsigned char *part = before_nothing(size);
        memcpy(part, whole, size);
        memcpy(part, &size, sizeof size);
        if (!CHECK_OK(give(part))) fprintf(stderr, "  %s of %u bytes\n", name, size);
    }
}

static void shorter_inputs_mean_the_defaults_for_the_rest(wb_device *device)
{
    wb_device_options device_options = WB_DEVICE_OPTIONS_INIT;
    wb_buffer_options buffer_options = WB_BUFFER_OPTIONS_INIT;
    wb_plan_options plan_options = WB_PLAN_OPTIONS_INIT;
    wb_quantize_options quantize_options = WB_QUANTIZE_OPTIONS_INIT;
    wb_layout layout = layout_of(WB_DTYPE_F32, 2, shape, NULL, 0);
    REQUIRE(begin_all(device));
    plan_options.offload_bytes = 1 << 20;
    /* As far as what has no default. */
#define INPUT(value, least, give) check_input_struct(#value, &value, sizeof value, least, give)
    INPUT(device_options, 8, give_device);
    INPUT(buffer_options, 8, give_buffer);
    INPUT(plan_options, offsetof(wb_plan_options, device_bytes), give_plan);
    INPUT(quantize_options, 8, give_quantize);
    INPUT(layout, offsetof(wb_layout, strides), give_layout);
    INPUT(model.parameters[0], offsetof(wb_parameter, source), give_parameter);
    end_all();
}

CHECK_MAIN(CASE(shorter_outputs_are_filled_as_far_as_they_go),
           CASE(a_shorter_error_gets_as_much_of_the_message),
           CASE(shorter_inputs_mean_the_defaults_for_the_rest))
