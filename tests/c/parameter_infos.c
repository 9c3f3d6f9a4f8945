/* The parameters of an offloader by index: one call for many, names, and owners of memory. */
#include "changes.h"

enum { TAIL = 2 }; /* structs behind the filled part of an array */

static void infos_init(wb_offloader_parameter_info *infos, int count)
{
    const wb_offloader_parameter_info empty = WB_OFFLOADER_PARAMETER_INFO_INIT;
    for (int i = 0; i < count; i++) {
        infos[i] = empty;
        infos[i].span_bytes = 77;
    }
}

static int is_unfilled(const wb_offloader_parameter_info *info)
{
    return info->name == NULL && info->span_bytes == 77;
}

static int same_info(const wb_offloader_parameter_info *a, const wb_offloader_parameter_info *b)
{
    return a->placement == b->placement && a->transfer_mode == b->transfer_mode &&
           a->owned == b->owned && a->name == b->name && a->group == b->group &&
           a->device_address == b->device_address && a->host_address == b->host_address &&
           a->span_bytes == b->span_bytes;
}

static void one_call_gets_the_infos_of_any_range(wb_device *device)
{
    struct offload o;
    wb_offloader_parameter_info infos[COUNT + TAIL];
    REQUIRE(offload_begin(&o, device, WB_TRANSFER_MODE_PREFETCH));
    CHECK_SAME(stats_of(&o).parameters, COUNT);
    for (int first = 0; first <= COUNT; first++) {
        for (int count = 0; first + count <= COUNT; count++) {
            infos_init(infos, COUNT + TAIL);
            CHECK_OK(wb_offloader_get_parameter_infos(o.offloader, (uint64_t)first,
                                                      (uint64_t)count, infos, &error));
            for (int i = 0; i < count; i++) {
                wb_offloader_parameter_info one = WB_OFFLOADER_PARAMETER_INFO_INIT;
                const uint64_t index = (uint64_t)(first + i);
                CHECK_OK(wb_offloader_get_parameter_info(o.offloader, index, &one, &error));
                CHECK(same_info(&infos[i], &one));
                CHECK_SAME(index_of(&o, infos[i].name), index);
            }
            CHECK(is_unfilled(&infos[count]) && is_unfilled(&infos[count + 1]));
        }
    }
    offload_end(&o);
}

static void a_range_past_the_last_parameter_fills_nothing(wb_device *device)
{
    static const uint64_t ranges[][2] = {
        {0, COUNT + 1}, {COUNT - 1, 2}, {COUNT, 1}, {UINT64_MAX, 1}, {UINT64_MAX, 2}};
    struct offload o;
    wb_offloader_parameter_info infos[COUNT + 1];
    wb_view *view = UNTOUCHED(wb_view);
    REQUIRE(offload_begin(&o, device, WB_TRANSFER_MODE_PREFETCH));
    infos_init(infos, COUNT + 1);
    for (size_t i = 0; i < sizeof ranges / sizeof ranges[0]; i++) {
        CHECK_ERROR(WB_ERR_OUT_OF_RANGE,
                    wb_offloader_get_parameter_infos(o.offloader, ranges[i][0], ranges[i][1],
                                                     infos, &error),
                    "there are 8");
    }
    CHECK_ERROR(WB_ERR_OUT_OF_RANGE,
                wb_offloader_get_parameter_infos(o.offloader, COUNT + 1, 0, NULL, &error),
                "parameter 9|there are 8");
    for (int i = 0; i <= COUNT; i++) CHECK(is_unfilled(&infos[i]));
    CHECK_OK(wb_offloader_get_parameter_infos(o.offloader, 0, 0, NULL, &error));
    CHECK_OK(wb_offloader_get_parameter_infos(o.offloader, COUNT, 0, NULL, &error));
    CHECK_ERROR(WB_ERR_OUT_OF_RANGE,
                wb_offloader_get_parameter_info(o.offloader, COUNT, &infos[0], &error), "8");
    CHECK_ERROR(WB_ERR_OUT_OF_RANGE, wb_offloader_get_view(o.offloader, COUNT, &view, &error),
                "8");
    CHECK_ERROR(WB_ERR_OUT_OF_RANGE,
                wb_offloader_get_host_view(o.offloader, UINT64_MAX, &view, &error), "8");
    CHECK(view == UNTOUCHED(wb_view) && is_unfilled(&infos[0]));
    offload_end(&o);
}

/* A count that is too large does not make the call read past the first struct. */
static void a_wrong_count_reads_only_the_first_struct(wb_device *device)
{
    struct offload o;
    const uint64_t page = page_bytes();
    unsigned char *memory = (unsigned char *)pages(2 * page);
    REQUIRE(memory != NULL && mprotect(memory + page, page, PROT_NONE) == 0);
    wb_offloader_parameter_info *info =
        (wb_offloader_parameter_info *)(void *)(memory + page - sizeof *info);
    REQUIRE(offload_begin(&o, device, WB_TRANSFER_MODE_PREFETCH));
    infos_init(info, 1);
    for (uint64_t count = COUNT + 1; count <= UINT64_MAX / 2; count *= 1000) {
        CHECK_ERROR(WB_ERR_OUT_OF_RANGE,
                    wb_offloader_get_parameter_infos(o.offloader, 0, count, info, &error),
                    "there are 8");
    }
    CHECK(is_unfilled(info));
    offload_end(&o);
    munmap(memory, 2 * page);
}

static void an_info_has_the_type_and_the_shape(wb_device *device)
{
    struct offload o;
    REQUIRE(offload_begin(&o, device, WB_TRANSFER_MODE_PREFETCH));
    const wb_offloader_parameter_info before = info_of(&o, 3);
    wb_plan_parameter_info planned = WB_PLAN_PARAMETER_INFO_INIT;
    CHECK_OK(wb_plan_get_parameter_info(o.plan, 3, &planned, &error));
    CHECK_SAME(planned.dtype, WB_DTYPE_BF16);
    CHECK(strcmp(planned.dtype_name, "bfloat16") == 0);
    CHECK(planned.ndim == 2 && planned.shape[0] == SIDE && planned.shape[1] == SIDE);
    CHECK(planned.strides[0] == SIDE && planned.strides[1] == 1);
    CHECK(planned.block_elements == 0 && planned.block_bytes == 0);
    CHECK_SAME(before.dtype, WB_DTYPE_BF16);
    CHECK(strcmp(before.dtype_name, "bfloat16") == 0);
    CHECK(before.ndim == 2 && before.shape[0] == SIDE && before.strides[0] == SIDE);
    /* The same bytes as blocks of a type that the library does not know. */
    const int64_t shape[] = {BYTES / 40, 64};
    wb_layout blocks = layout_of(WB_DTYPE_OPAQUE, 2, shape, NULL, 0);
    blocks.dtype_name = "q5_x";
    blocks.block_elements = 64;
    blocks.block_bytes = 40;
    CHECK_OK(replace_from(&o, 3, fresh_bytes(3), &blocks));
    const wb_offloader_parameter_info after = info_of(&o, 3);
    CHECK_SAME(after.dtype, WB_DTYPE_OPAQUE);
    CHECK(strcmp(after.dtype_name, "q5_x") == 0);
    CHECK(after.ndim == 2 && after.shape[0] == BYTES / 40 && after.shape[1] == 64);
    CHECK(after.block_elements == 64 && after.block_bytes == 40);
    CHECK_SAME(after.span_bytes, BYTES);
    CHECK(device_holds(&o, model.groups[3], 3, fresh_bytes(3), BYTES));
    /* Numbers that an info has shown stay. */
    CHECK(before.shape[0] == SIDE && before.strides[1] == 1);
    offload_end(&o);
}

/* In an array of an older header the structs are shorter and so closer to each other. */
static void infos_of_an_older_header_are_filled_up_to_their_size(wb_device *device)
{
    struct offload o;
    const uint32_t whole = sizeof(wb_offloader_parameter_info);
    unsigned char older[(COUNT + 1) * sizeof(wb_offloader_parameter_info)];
    wb_offloader_parameter_info infos[COUNT];
    REQUIRE(offload_begin(&o, device, WB_TRANSFER_MODE_PREFETCH));
    infos_init(infos, COUNT);
    CHECK_OK(wb_offloader_get_parameter_infos(o.offloader, 0, COUNT, infos, &error));
    for (uint32_t size = 8; size < whole; size += 8) {
        memset(older, 0xab, sizeof older);
        for (int i = 0; i < COUNT; i++) memcpy(older + (size_t)i * size, &size, sizeof size);
        CHECK_OK(wb_offloader_get_parameter_infos(
            o.offloader, 0, COUNT, (wb_offloader_parameter_info *)(void *)older, &error));
        for (int i = 0; i < COUNT; i++) {
            const unsigned char *at = older + (size_t)i * size;
            CHECK(memcmp(at, &size, sizeof size) == 0);
            CHECK(memcmp(at + 4, (const unsigned char *)&infos[i] + 4, size - 4) == 0);
        }
        CHECK(older[COUNT * size] == 0xab);
    }
    offload_end(&o);
}

static void infos_of_different_or_unknown_sizes_are_refused(wb_device *device)
{
    struct offload o;
    wb_offloader_parameter_info infos[COUNT];
    REQUIRE(offload_begin(&o, device, WB_TRANSFER_MODE_PREFETCH));
    infos_init(infos, COUNT);
    infos[COUNT - 1].struct_size -= 8;
    CHECK_ERROR(WB_ERR_INVALID_ARGUMENT,
                wb_offloader_get_parameter_infos(o.offloader, 0, COUNT, infos, &error),
                "wb_offloader_parameter_info 7|struct_size");
    CHECK(is_unfilled(&infos[0]));
    infos_init(infos, COUNT);
    infos[0].struct_size += 8;
    CHECK_ERROR(WB_ERR_STRUCT_SIZE,
                wb_offloader_get_parameter_infos(o.offloader, 0, 1, infos, &error),
                "wb_offloader_parameter_info");
    infos[0].struct_size = 0;
    CHECK_ERROR(WB_ERR_STRUCT_SIZE,
                wb_offloader_get_parameter_infos(o.offloader, 0, COUNT, infos, &error),
                "wb_offloader_parameter_info");
    CHECK(is_unfilled(&infos[0]));
    offload_end(&o);
}

/* Every place where a parameter can be, and whose memory that is. */
static void an_info_tells_whether_the_memory_is_the_offloaders(wb_device *device)
{
    enum { IN_PLACE, IN_SLOT, ON_DEMAND, COPIED, BORROWED, WITHOUT_BYTES, KINDS };
    static const wb_transfer_mode modes[KINDS] = {
        WB_TRANSFER_MODE_ZERO_COPY, WB_TRANSFER_MODE_PREFETCH, WB_TRANSFER_MODE_ON_DEMAND,
        WB_TRANSFER_MODE_AUTO, WB_TRANSFER_MODE_AUTO, WB_TRANSFER_MODE_AUTO};
    struct offload o;
    void *borrowed = NULL;
    wb_offloader_parameter_info infos[KINDS];
    wb_view *view = NULL;
    model_init(&model);
    REQUIRE_OK(wb_device_alloc(device, BYTES, &borrowed, &error));
    for (int i = 0; i < KINDS; i++) {
        model.parameters[i].group = model.names[i];
        model.parameters[i].transfer_mode = modes[i];
        if (i >= COPIED) model.parameters[i].placement = WB_PLACEMENT_RESIDENT;
    }
    model.parameters[BORROWED].source = borrowed;
    model.parameters[WITHOUT_BYTES].source = NULL;
    REQUIRE(offload_begin_first(&o, device, KINDS, offload_options(WB_TRANSFER_MODE_AUTO)));
    infos_init(infos, KINDS);
    REQUIRE_OK(wb_offloader_get_parameter_infos(o.offloader, 0, KINDS, infos, &error));
    for (int i = 0; i < KINDS; i++) {
        const int offloaded = i < COPIED;
        CHECK_SAME(infos[i].placement, offloaded ? WB_PLACEMENT_OFFLOADED : WB_PLACEMENT_RESIDENT);
        CHECK_SAME(infos[i].transfer_mode, modes[i]);
        CHECK_SAME(infos[i].owned, i <= COPIED);
        CHECK_SAME(infos[i].span_bytes, BYTES);
        CHECK((infos[i].host_address != NULL) == offloaded);
        CHECK((infos[i].device_address != NULL) == (i != WITHOUT_BYTES));
        /* The offloader makes views of its own memory only. */
        const wb_status status = wb_offloader_get_view(o.offloader, (uint64_t)i, &view, &error);
        CHECK_SAME(status, i == BORROWED        ? WB_ERR_NOT_SUPPORTED
                           : i == WITHOUT_BYTES ? WB_ERR_NOT_FOUND
                                                : WB_OK);
        if (status != WB_OK) continue;
        CHECK(view_info(view).device_address == infos[i].device_address);
        wb_view_release(view);
    }
    CHECK(infos[BORROWED].device_address == borrowed);
    /* Bytes from the host are copied to memory of the offloader; those on the device stay there. */
    const wb_layout *layout = &model.layout;
    CHECK_OK(replace_from(&o, BORROWED, model.bytes[BORROWED], layout));
    CHECK_OK(replace_from(&o, WITHOUT_BYTES, borrowed, layout));
    CHECK_SAME(info_of(&o, BORROWED).owned, 1);
    CHECK_SAME(info_of(&o, WITHOUT_BYTES).owned, 0);
    CHECK(info_of(&o, WITHOUT_BYTES).device_address == borrowed);
    offload_end(&o);
    CHECK_OK(wb_device_free(device, borrowed, &error));
}

static void a_name_stays_valid_until_its_parameter_is_removed(wb_device *device)
{
    enum { ADDED = 40 }; /* more than COUNT, so that tables grow */
    struct offload o;
    const char *names[COUNT], *const removed = model.names[2];
    wb_offloader_parameter_info infos[COUNT];
    REQUIRE(offload_begin(&o, device, WB_TRANSFER_MODE_PREFETCH));
    infos_init(infos, COUNT);
    CHECK_OK(wb_offloader_get_parameter_infos(o.offloader, 0, COUNT, infos, &error));
    for (int i = 0; i < COUNT; i++) {
        names[i] = infos[i].name;
        CHECK(names[i] != model.names[i] && strcmp(names[i], model.names[i]) == 0);
    }
    CHECK_OK(replace(&o, 0, 64));
    CHECK_OK(wb_offloader_remove(o.offloader, removed, o.stream, &error));
    for (int i = 0; i < ADDED; i++) {
        char name[16];
        snprintf(name, sizeof name, "added.%d", i);
        CHECK_OK(add_bytes(&o, name, "layers.1", 16, model.bytes[0], WB_PLACEMENT_AUTO));
    }
    CHECK_OK(wb_offloader_compact(o.offloader, o.stream, &error));
    CHECK_SAME(stats_of(&o).parameters, COUNT - 1 + ADDED);
    for (int i = 0; i < COUNT; i++) {
        if (i == 2) continue;
        CHECK(strcmp(names[i], model.names[i]) == 0);
        CHECK(info_of(&o, i).name == names[i]);
    }
    uint64_t index = 77;
    CHECK_ERROR(WB_ERR_NOT_FOUND,
                wb_offloader_find_parameter(o.offloader, removed, &index, &error), removed);
    CHECK_SAME(index, 77);
    offload_end(&o);
}

CHECK_MAIN(CASE(one_call_gets_the_infos_of_any_range),
           CASE(a_range_past_the_last_parameter_fills_nothing),
           CASE(a_wrong_count_reads_only_the_first_struct),
           CASE(an_info_has_the_type_and_the_shape),
           CASE(infos_of_an_older_header_are_filled_up_to_their_size),
           CASE(infos_of_different_or_unknown_sizes_are_refused),
           CASE(an_info_tells_whether_the_memory_is_the_offloaders),
           CASE(a_name_stays_valid_until_its_parameter_is_removed))
