/* Sequences of calls with devices, buffers, files and views. */
#ifndef MEMORY_SCENARIOS_H
#define MEMORY_SCENARIOS_H

#include "dlpack_structs.h"
#include "fault.h"

/* The caller releases the device. */
static void opens(struct world *world)
{
    wb_device_info info = WB_DEVICE_INFO_INIT;
    STEP(wb_device_open(test_device(), NULL, &world->device, &error));
    STEP(wb_device_get_info(world->device, &info, &error));
out:
    return;
}

/* For the end of an abandoned scenario: this call must not fail. */
static void release_stream(wb_device *device, void *stream)
{
    if (stream != NULL) CHECK_OK(wb_device_stream_release(device, stream, &error));
}

static void allocates(struct world *world)
{
    const wb_buffer_options usual = WB_BUFFER_OPTIONS_INIT;
    wb_buffer_options each[5] = {usual, usual, usual, usual, usual};
    wb_buffer *buffer = NULL;
    each[1].pin = WB_TRISTATE_OFF;
    each[2].write_combined = WB_TRISTATE_ON;
    each[3].chunk_bytes = page_bytes();
    each[4].huge_pages = WB_HUGE_PAGES_TRY;
    for (int i = 0; i < 5; i++) {
        wb_buffer_stats usage = WB_BUFFER_STATS_INIT;
        uint64_t bytes = i == 3 ? 3 * page_bytes() : 5000;
        if (each[i].write_combined == WB_TRISTATE_ON && !on_cuda()) continue;
        STEP(wb_buffer_alloc(world->device, bytes, &each[i], &buffer, &error));
        read_reason(world, buffer);
        fill(buffer_info(buffer).data, bytes);
        STEP(wb_buffer_get_stats(buffer, &usage, &error));
        CHECK(usage.resident_bytes >= bytes);
        CHECK(holds_pattern(buffer_info(buffer).data, 0, bytes));
        wb_buffer_release(buffer);
        buffer = NULL;
    }
out:
    wb_buffer_release(buffer);
}

static int called_back;

static void count_call(void *user)
{
    (void)user;
    called_back++;
}

static void registers(struct world *world)
{
    wb_buffer *buffer = NULL;
    uint64_t bytes = 3 * page_bytes();
    void *memory = pages(bytes);
    REQUIRE(memory != NULL);
    fill(memory, bytes);
    called_back = 0;
    STEP(wb_buffer_register(world->device, memory, bytes, NULL, count_call, NULL, &buffer, &error));
    read_reason(world, buffer);
    CHECK_SAME(called_back, 0);
    CHECK(holds_pattern(memory, 0, bytes));
out:
    wb_buffer_release(buffer);
    CHECK_SAME(called_back, buffer != NULL);
    munmap(memory, bytes);
}

static void maps_a_file(struct world *world)
{
    const wb_file_mode modes[] = {WB_FILE_MODE_AUTO, WB_FILE_MODE_MAP, WB_FILE_MODE_READ};
    uint64_t bytes = 3 * page_bytes() + 100;
    wb_buffer *buffer = NULL;
    REQUIRE(write_pattern(world->path, bytes));
    for (int i = 0; i < 3; i++) {
        wb_buffer_options options = WB_BUFFER_OPTIONS_INIT;
        options.file_mode = modes[i];
        STEP(wb_buffer_map_file(world->device, world->path, 0, 0, &options, &buffer, &error));
        read_reason(world, buffer);
        CHECK(holds_pattern(buffer_info(buffer).data, 0, bytes));
        wb_buffer_release(buffer);
        buffer = NULL;
    }
out:
    wb_buffer_release(buffer);
}

static void opens_a_model_file(struct world *world)
{
    static const char json[] = "{\"w\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[0,16]}}";
    unsigned char content[8 + sizeof json - 1 + 16] = {sizeof json - 1};
    memcpy(content + 8, json, sizeof json - 1);
    fill(content + 8 + sizeof json - 1, 16);
    REQUIRE(write_file(world->path, content, sizeof content));
    wb_safetensors *file = NULL;
    wb_view *view = NULL;
    int32_t copied = 0;
    wb_buffer *whole = NULL;
    STEP(wb_safetensors_open(world->device, world->path, NULL, &file, &error));
    STEP(wb_safetensors_get_buffer(file, &whole, &error));
    read_reason(world, whole);
    STEP(wb_safetensors_load_view(file, 0, WB_ACCESSOR_HOST, 64, NULL, &view, &copied, &error));
    CHECK(holds_pattern(view_info(view).data, 0, 16));
out:
    wb_buffer_release(whole);
    wb_view_release(view);
    wb_safetensors_release(file);
}

static void views(struct world *world)
{
    const int64_t shape[] = {4, 5};
    const wb_layout layout = layout_of(WB_DTYPE_F32, 2, shape, NULL, 16);
    wb_buffer *buffer = NULL;
    wb_view *view = NULL, *copy = NULL;
    void *stream = NULL;
    STEP(wb_device_stream_new(world->device, &stream, &error));
    STEP(wb_buffer_alloc(world->device, 200, NULL, &buffer, &error));
    fill(buffer_info(buffer).data, 200);
    STEP(wb_view_new(buffer, &layout, WB_ACCESSOR_DEVICE, &view, &error));
    STEP(wb_view_copy_from(world->device, buffer_info(buffer).data, &layout, WB_ACCESSOR_DEVICE, NULL,
                           &copy, &error));
    CHECK(holds_pattern(view_info(copy).data, 16, 80));
    wb_buffer_release(buffer);
    buffer = NULL;
    STEP(wb_view_release_after(view, stream, &error));
    view = NULL;
    STEP(wb_view_release_after(copy, stream, &error));
    copy = NULL;
    STEP(wb_device_stream_synchronize(world->device, stream, &error));
    STEP(wb_device_stream_release(world->device, stream, &error));
    stream = NULL;
out:
    wb_view_release(view);
    wb_view_release(copy);
    wb_buffer_release(buffer);
    release_stream(world->device, stream);
}

/* The library waits for a device that reads pageable memory before it frees such memory. */
static void reads_pageable(struct world *world)
{
    const int64_t shape[] = {120};
    const uint64_t bytes = 2 * page_bytes();
    const wb_layout layout = layout_of(WB_DTYPE_U8, 1, shape, NULL, 0);
    DLManagedTensor *tensor = NULL;
    wb_buffer *buffer = NULL;
    wb_view *view = NULL;
    int registered = 0;
    void *memory = pages(bytes);
    REQUIRE(memory != NULL && write_pattern(world->path, bytes));
    called_back = 0;
    STEP(wb_buffer_register(world->device, memory, bytes, NULL, count_call, NULL, &buffer, &error));
    registered = 1;
    wb_buffer_release(buffer);
    buffer = NULL;
    STEP(wb_buffer_map_file(world->device, world->path, 0, 0, NULL, &buffer, &error));
    read_reason(world, buffer);
    CHECK(holds_pattern(buffer_info(buffer).data, 0, bytes));
    wb_buffer_release(buffer);
    buffer = NULL;
    STEP(wb_buffer_alloc(world->device, 120, NULL, &buffer, &error));
    STEP(wb_view_new(buffer, &layout, WB_ACCESSOR_DEVICE, &view, &error));
    STEP(wb_view_to_dlpack(view, &tensor, &error));
    tensor->deleter(tensor);
out:
    wb_view_release(view);
    wb_buffer_release(buffer);
    CHECK_SAME(called_back, registered);
    munmap(memory, bytes);
}

static void delete_import(DLManagedTensor *tensor)
{
    (*(int *)tensor->manager_ctx)++;
}

static void crosses_dlpack(struct world *world)
{
    int64_t shape[] = {30};
    int deleted = 0;
    float numbers[30];
    const wb_layout layout = layout_of(WB_DTYPE_F32, 1, shape, NULL, 0);
    DLManagedTensor *tensor = NULL;
    DLManagedTensor in = {{numbers, {kDLCPU, 0}, 1, {kDLFloat, 32, 1}, shape, NULL, 0},
                          &deleted, delete_import};
    wb_buffer *buffer = NULL, *wrapped = NULL;
    wb_view *view = NULL, *imported = NULL;
    STEP(wb_buffer_alloc(world->device, 120, NULL, &buffer, &error));
    STEP(wb_view_new(buffer, &layout, WB_ACCESSOR_DEVICE, &view, &error));
    STEP(wb_view_to_dlpack(view, &tensor, &error));
    wb_view_release(view);
    wb_buffer_release(buffer);
    view = NULL;
    buffer = NULL;
    tensor->deleter(tensor);
    tensor = NULL;
    STEP(wb_view_from_dlpack(world->device, &in, WB_ACCESSOR_HOST, NULL, &imported, &error));
    CHECK_SAME(deleted, 0);
    STEP(wb_view_get_buffer(imported, &wrapped, &error));
    read_reason(world, wrapped);
out:
    wb_view_release(view);
    wb_buffer_release(buffer);
    if (tensor != NULL) tensor->deleter(tensor);
    wb_buffer_release(wrapped);
    wb_view_release(imported);
    CHECK_SAME(deleted, imported != NULL);
}

static void computes_in_order(struct world *world)
{
    void *stream = NULL;
    wb_buffer *from = NULL, *to = NULL;
    void *address = NULL;
    STEP(wb_device_stream_new(world->device, &stream, &error));
    STEP(wb_buffer_alloc(world->device, 300, NULL, &from, &error));
    STEP(wb_buffer_alloc(world->device, 300, NULL, &to, &error));
    STEP(wb_device_alloc(world->device, 300, &address, &error));
    fill(buffer_info(from).data, 300);
    STEP(wb_device_copy(world->device, address, buffer_info(from).data, 300, stream, &error));
    STEP(wb_device_copy(world->device, buffer_info(to).data, address, 300, stream, &error));
    STEP(wb_device_stream_synchronize(world->device, stream, &error));
    CHECK(holds_pattern(buffer_info(to).data, 0, 300));
    STEP(wb_buffer_release_after(from, stream, &error));
    from = NULL;
    wb_buffer_release(to);
    to = NULL;
    STEP(wb_device_free(world->device, address, &error));
    address = NULL;
    STEP(wb_device_stream_release(world->device, stream, &error));
    stream = NULL;
out:
    wb_buffer_release(from);
    wb_buffer_release(to);
    if (address != NULL) CHECK_OK(wb_device_free(world->device, address, &error));
    release_stream(world->device, stream);
}

#endif
