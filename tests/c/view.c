/* Views: types, shapes, strides, ranges, lifetime; copies. */
#include "memory.h"

static void a_view_aliases_its_buffer_on_host_and_device(wb_device *device)
{
    wb_buffer *buffer = new_buffer(device, 400);
    int64_t shape[] = {10, 8};
    float element = 0;
    wb_view *view =
        new_view(buffer, layout_of(WB_DTYPE_F32, 2, shape, NULL, 80), WB_ACCESSOR_DEVICE);
    REQUIRE(view != NULL);
    wb_view_info info = describe_view(view);
    float *numbers = (float *)describe(buffer).data;
    CHECK(info.data == numbers + 20);
    CHECK(info.device_address == (char *)describe(buffer).device_address + 80);
    CHECK_SAME(info.elements, 80);
    CHECK_SAME(info.span_bytes, 320);
    CHECK_SAME(info.accessor, WB_ACCESSOR_DEVICE);
    CHECK(info.ndim == 2 && info.shape[0] == 10 && info.shape[1] == 8);
    CHECK(info.strides[0] == 8 && info.strides[1] == 1);
    numbers[20] = 42;
    CHECK(*(float *)info.data == 42);
    CHECK(read_device(device, &element, info.device_address, sizeof element) && element == 42);
    wb_view_release(view);
    wb_buffer_release(buffer);
}

static void the_device_writes_through_a_view(wb_device *device)
{
    wb_buffer *buffer = new_buffer(device, 64), *source = new_buffer(device, 64);
    int64_t shape[] = {64};
    wb_view *view = new_view(buffer, bytes_layout(shape), WB_ACCESSOR_DEVICE);
    REQUIRE(view != NULL);
    fill(describe(source).data, 64);
    CHECK_OK(wb_device_copy(device, describe_view(view).device_address,
                            describe(source).device_address, 64, NULL, &error));
    CHECK_OK(wb_device_stream_synchronize(device, NULL, &error));
    CHECK(holds_pattern(describe(buffer).data, 0, 64));
    wb_view_release(view);
    wb_buffer_release(buffer);
    wb_buffer_release(source);
}

static void every_type_has_its_size(wb_device *device)
{
    const struct { wb_dtype dtype; int bytes; } types[] = {
        {WB_DTYPE_BOOL, 1}, {WB_DTYPE_I8, 1}, {WB_DTYPE_I16, 2}, {WB_DTYPE_I32, 4},
        {WB_DTYPE_I64, 8}, {WB_DTYPE_U8, 1}, {WB_DTYPE_U16, 2}, {WB_DTYPE_U32, 4},
        {WB_DTYPE_U64, 8}, {WB_DTYPE_F16, 2}, {WB_DTYPE_BF16, 2}, {WB_DTYPE_F32, 4},
        {WB_DTYPE_F64, 8}, {WB_DTYPE_C64, 8}, {WB_DTYPE_F8_E4M3FN, 1}, {WB_DTYPE_F8_E5M2, 1},
        {WB_DTYPE_F8_E8M0, 1}, {WB_DTYPE_F4_E2M1X2, 1}};
    wb_buffer *buffer = new_buffer(device, 1000);
    int64_t shape[] = {7, 3};
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
        wb_view *view =
            new_view(buffer, layout_of(types[i].dtype, 2, shape, NULL, 0), WB_ACCESSOR_HOST);
        REQUIRE(view != NULL);
        CHECK_SAME(describe_view(view).dtype, types[i].dtype);
        CHECK_SAME(describe_view(view).span_bytes, 21 * types[i].bytes);
        wb_view_release(view);
    }
    wb_buffer_release(buffer);
}

static void strides_may_have_gaps_and_be_negative_or_zero(wb_device *device)
{
    wb_buffer *buffer = new_buffer(device, 1000);
    int64_t shape[] = {3, 4}, gaps[] = {10, 2}, backwards[] = {-10, 1}, zero[] = {0, 1};
    wb_view *view = new_view(buffer, layout_of(WB_DTYPE_I32, 2, shape, gaps, 8), WB_ACCESSOR_HOST);
    REQUIRE(view != NULL);
    CHECK_SAME(describe_view(view).span_bytes, (2 * 10 + 3 * 2 + 1) * 4);
    CHECK(describe_view(view).strides[0] == 10 && describe_view(view).strides[1] == 2);
    wb_view_release(view);
    view = new_view(buffer, layout_of(WB_DTYPE_I32, 2, shape, backwards, 80), WB_ACCESSOR_HOST);
    REQUIRE(view != NULL);
    CHECK(describe_view(view).data == (char *)describe(buffer).data + 80);
    CHECK_SAME(describe_view(view).span_bytes, (2 * 10 + 3 + 1) * 4);
    wb_view_release(view);
    view = new_view(buffer, layout_of(WB_DTYPE_I32, 2, shape, zero, 0), WB_ACCESSOR_HOST);
    REQUIRE(view != NULL);
    CHECK_SAME(describe_view(view).span_bytes, 16);
    CHECK_SAME(describe_view(view).elements, 12);
    wb_view_release(view);
    wb_buffer_release(buffer);
}

static void a_view_may_end_at_the_last_byte_and_not_behind_it(wb_device *device)
{
    wb_buffer *buffer = new_buffer(device, 1000);
    int64_t shape[] = {250}, one[] = {251}, strides[] = {1}, backwards[] = {-1};
    wb_layout exact = layout_of(WB_DTYPE_F32, 1, shape, strides, 0);
    wb_layout longer = layout_of(WB_DTYPE_F32, 1, one, NULL, 0);
    wb_layout behind = layout_of(WB_DTYPE_F32, 1, shape, NULL, 1);
    wb_layout before = layout_of(WB_DTYPE_F32, 1, shape, backwards, 995);
    wb_layout last = layout_of(WB_DTYPE_F32, 1, shape, backwards, 996);
    wb_view *view = NULL;
    CHECK_ERROR(WB_ERR_OUT_OF_RANGE, wb_view_new(buffer, &longer, WB_ACCESSOR_HOST, &view, &error),
                "spans 1004 bytes|the memory has 1000");
    CHECK_ERROR(WB_ERR_OUT_OF_RANGE, wb_view_new(buffer, &behind, WB_ACCESSOR_HOST, &view, &error),
                "at byte 1 |1000");
    CHECK_ERROR(WB_ERR_OUT_OF_RANGE, wb_view_new(buffer, &before, WB_ACCESSOR_HOST, &view, &error),
                "at byte 995|996 of them before");
    CHECK(view == NULL);
    wb_view_release(new_view(buffer, exact, WB_ACCESSOR_HOST));
    wb_view_release(new_view(buffer, last, WB_ACCESSOR_HOST));
    wb_buffer_release(buffer);
}

static void scalars_and_empty_tensors_can_be_viewed(wb_device *device)
{
    wb_buffer *buffer = new_buffer(device, 8);
    int64_t none[] = {5, 0, 7};
    wb_view *scalar = new_view(buffer, layout_of(WB_DTYPE_F64, 0, NULL, NULL, 0), WB_ACCESSOR_HOST);
    wb_view *empty = new_view(buffer, layout_of(WB_DTYPE_F64, 3, none, NULL, 8), WB_ACCESSOR_HOST);
    REQUIRE(scalar != NULL && empty != NULL);
    CHECK_SAME(describe_view(scalar).elements, 1);
    CHECK_SAME(describe_view(scalar).span_bytes, 8);
    CHECK_SAME(describe_view(scalar).ndim, 0);
    CHECK_SAME(describe_view(empty).elements, 0);
    CHECK_SAME(describe_view(empty).span_bytes, 0);
    wb_view_release(scalar);
    wb_view_release(empty);
    wb_buffer_release(buffer);
}

static void a_view_keeps_its_buffer(wb_device *device)
{
    wb_buffer *buffer = new_buffer(device, 100), *again = NULL;
    int64_t shape[] = {100};
    wb_view *view = new_view(buffer, bytes_layout(shape), WB_ACCESSOR_HOST);
    REQUIRE(view != NULL);
    wb_view_retain(view);
    wb_buffer_release(buffer);
    wb_view_release(view);
    CHECK_SAME(measure(device).buffers, 1);
    CHECK_SAME(measure(device).views, 1);
    memset(describe_view(view).data, 5, 100);
    CHECK_OK(wb_view_get_buffer(view, &again, &error));
    CHECK(again == buffer);
    wb_view_release(view);
    CHECK_SAME(measure(device).views, 0);
    CHECK_SAME(*(char *)describe(again).data, 5);
    wb_buffer_release(again);
    CHECK_SAME(measure(device).buffers, 0);
}

static void a_copy_is_independent_and_keeps_strides_and_gaps(wb_device *device)
{
    int32_t numbers[100];
    int64_t shape[] = {3, 4}, strides[] = {-20, 2};
    wb_layout layout = layout_of(WB_DTYPE_I32, 2, shape, strides, 60 * 4);
    wb_view *view = NULL;
    for (int i = 0; i < 100; i++) numbers[i] = i;
    REQUIRE_OK(
        wb_view_copy_from(device, numbers, &layout, WB_ACCESSOR_DEVICE, NULL, &view, &error));
    memset(numbers, 0, sizeof numbers);
    wb_view_info info = describe_view(view);
    CHECK(info.strides[0] == -20 && info.strides[1] == 2);
    for (int row = 0; row < 3; row++) {
        for (int column = 0; column < 4; column++) {
            int32_t element = ((int32_t *)info.data)[row * -20 + column * 2];
            CHECK_SAME(element, 60 - 20 * row + 2 * column);
        }
    }
    CHECK_SAME(measure(device).asked_bytes, (2 * 20 + 3 * 2 + 1) * 4);
    CHECK_SAME(info.read_only, 0);
    wb_view_release(view);
}

static void a_large_copy_is_complete(wb_device *device)
{
    const uint64_t bytes = (80 << 20) + 3;
    int64_t shape[] = {(int64_t)bytes};
    wb_layout layout = bytes_layout(shape);
    wb_view *view = NULL;
    void *memory = malloc(bytes);
    REQUIRE(memory != NULL);
    fill(memory, bytes);
    REQUIRE_OK(wb_view_copy_from(device, memory, &layout, WB_ACCESSOR_HOST, NULL, &view, &error));
    free(memory);
    CHECK(holds_pattern(describe_view(view).data, 0, bytes));
    wb_view_release(view);
}

static void a_copy_of_nothing_needs_no_memory(wb_device *device)
{
    int64_t shape[] = {0};
    wb_layout layout = bytes_layout(shape);
    wb_view *view = NULL;
    REQUIRE_OK(wb_view_copy_from(device, NULL, &layout, WB_ACCESSOR_DEVICE, NULL, &view, &error));
    CHECK(describe_view(view).data == NULL);
    wb_view_release(view);
}

/* On a device that reads only pinned memory. */
static void unmapped_memory_has_no_device_view(wb_device *device)
{
    wb_buffer_options options = WB_BUFFER_OPTIONS_INIT;
    wb_buffer *buffer = NULL;
    options.pin = WB_TRISTATE_OFF;
    if (describe_device(device).pageable_access) NOT_RUN("the device reads pageable memory");
    REQUIRE_OK(wb_buffer_alloc(device, 10, &options, &buffer, &error));
    check_only_host_views(buffer, "pageable|WB_ACCESSOR_HOST");
    wb_buffer_release(buffer);
}

CHECK_MAIN(CASE(a_view_aliases_its_buffer_on_host_and_device),
           CASE(the_device_writes_through_a_view), CASE(every_type_has_its_size),
           CASE(strides_may_have_gaps_and_be_negative_or_zero),
           CASE(a_view_may_end_at_the_last_byte_and_not_behind_it),
           CASE(scalars_and_empty_tensors_can_be_viewed), CASE(a_view_keeps_its_buffer),
           CASE(a_copy_is_independent_and_keeps_strides_and_gaps), CASE(a_large_copy_is_complete),
           CASE(a_copy_of_nothing_needs_no_memory),
           CASE_ON(CUDA_ONLY, unmapped_memory_has_no_device_view))
