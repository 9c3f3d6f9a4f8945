/* safetensors files: listed, found, viewed and copied tensors; malformed headers. */
#include "memory.h"

static const char *const two_tensors =
    "{\"second\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[16,19]},"
    "\"__metadata__\":{\"made\":\"by hand\"},"
    "\"first.weight\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[0,16]}}";

/* Writes a file: the header, padded with spaces to `header_bytes` if shorter, and `bytes` bytes of
 * the pattern. `announced` is the header length that the file states; 0: the true one. */
static int write_tensors(const char *path, const char *json, uint64_t header_bytes, uint64_t bytes,
                         uint64_t announced)
{
    uint64_t length = strlen(json) > header_bytes ? strlen(json) : header_bytes;
    unsigned char *file = (unsigned char *)malloc(8 + length + bytes);
    if (file == NULL) return 0;
    for (int i = 0; i < 8; i++) {
        file[i] = (unsigned char)((announced > 0 ? announced : length) >> (8 * i));
    }
    memset(file + 8, ' ', length);
    memcpy(file + 8, json, strlen(json));
    fill(file + 8 + length, bytes);
    int done = write_file(path, file, 8 + length + bytes);
    free(file);
    return done;
}

static wb_safetensors *open_two(wb_device *device, char *path, size_t capacity,
                                uint64_t header_bytes)
{
    wb_safetensors *file = NULL;
    file_name(path, capacity, "tensors");
    CHECK(write_tensors(path, two_tensors, header_bytes, 19, 0));
    CHECK_OK(wb_safetensors_open(device, path, NULL, &file, &error));
    return file;
}

static void tensors_are_listed_in_the_order_of_their_data(wb_device *device)
{
    char path[300];
    wb_safetensors_tensor_info info = WB_SAFETENSORS_TENSOR_INFO_INIT;
    wb_safetensors *file = open_two(device, path, sizeof path, 0);
    REQUIRE(file != NULL);
    CHECK_SAME(wb_safetensors_get_tensor_count(file), 2);
    CHECK(strstr(wb_safetensors_get_header(file), "by hand") != NULL);
    CHECK_OK(wb_safetensors_get_tensor_info(file, 0, &info, &error));
    CHECK(strcmp(info.name, "first.weight") == 0);
    CHECK_SAME(info.dtype, WB_DTYPE_F32);
    CHECK(info.ndim == 2 && info.shape[0] == 2 && info.shape[1] == 2);
    CHECK_SAME(info.bytes, 16);
    CHECK_SAME(info.offset_bytes, 8 + strlen(two_tensors));
    CHECK_OK(wb_safetensors_get_tensor_info(file, 1, &info, &error));
    CHECK(strcmp(info.name, "second") == 0 && info.dtype == WB_DTYPE_U8 && info.bytes == 3);
    CHECK_ERROR(WB_ERR_OUT_OF_RANGE, wb_safetensors_get_tensor_info(file, 2, &info, &error),
                "asked for tensor 2 of 2");
    wb_safetensors_release(file);
    unlink(path);
}

static void a_tensor_is_found_by_its_name_and_viewed_in_the_file(wb_device *device)
{
    char path[300];
    unsigned char seen[16];
    uint64_t index = 7;
    wb_view *view = NULL;
    wb_buffer *buffer = NULL, *under = NULL;
    wb_safetensors *file = open_two(device, path, sizeof path, 0);
    REQUIRE(file != NULL);
    CHECK_ERROR(WB_ERR_NOT_FOUND, wb_safetensors_find_tensor(file, "third", &index, &error),
                "\"third\"|among 2");
    CHECK_SAME(index, 7);
    REQUIRE_OK(wb_safetensors_find_tensor(file, "first.weight", &index, &error));
    CHECK_SAME(index, 0);
    REQUIRE_OK(wb_safetensors_get_view(file, index, WB_ACCESSOR_DEVICE, 1, &view, &error));
    REQUIRE_OK(wb_safetensors_get_buffer(file, &buffer, &error));
    REQUIRE_OK(wb_view_get_buffer(view, &under, &error));
    CHECK(under == buffer);
    CHECK(view_info(view).data == (char *)buffer_info(buffer).data + 8 + strlen(two_tensors));
    CHECK_SAME(view_info(view).read_only, 1);
    wb_buffer_release(buffer);
    wb_buffer_release(under);
    wb_safetensors_retain(file);
    wb_safetensors_release(file);
    CHECK_SAME(wb_safetensors_get_tensor_count(file), 2);
    wb_safetensors_release(file);
    CHECK(holds_pattern(view_info(view).data, 0, 16)); /* outlives the file */
    CHECK(read_device(device, seen, view_info(view).device_address, 16));
    CHECK(holds_pattern(seen, 0, 16));
    wb_view_release(view);
    unlink(path);
}

static void an_aligned_tensor_is_viewed_and_an_unaligned_one_copied(wb_device *device)
{
    for (uint64_t header = 248; header <= 252; header += 4) { /* data at 256, then at 260 */
        char path[300];
        wb_view *view = NULL;
        int32_t copied = 7;
        wb_safetensors *file = open_two(device, path, sizeof path, header);
        REQUIRE(file != NULL);
        if (header == 248) {
            CHECK_OK(wb_safetensors_get_view(file, 0, WB_ACCESSOR_DEVICE, 16, &view, &error));
            wb_view_release(view);
        } else {
            CHECK_ERROR(WB_ERR_UNALIGNED,
                        wb_safetensors_get_view(file, 0, WB_ACCESSOR_DEVICE, 16, &view, &error),
                        "\"first.weight\"|byte 260|16|wb_safetensors_load_view");
        }
        view = NULL;
        REQUIRE_OK(wb_safetensors_load_view(file, 0, WB_ACCESSOR_DEVICE, 16, NULL, &view, &copied,
                                            &error));
        CHECK_SAME(copied, header != 248);
        CHECK_SAME(device_stats(device).buffers, header == 248 ? 1 : 2);
        CHECK_SAME((uintptr_t)view_info(view).device_address % 16, 0);
        CHECK_SAME(view_info(view).read_only, header == 248);
        CHECK(holds_pattern(view_info(view).data, 0, 16));
        wb_view_release(view);
        wb_safetensors_release(file);
        unlink(path);
    }
}

static void an_unsupported_dtype_is_listed_and_not_viewed(wb_device *device)
{
    const char *json = "{\"q\":{\"dtype\":\"F6_E2M3\",\"shape\":[4],\"data_offsets\":[0,3]}}";
    char path[300];
    wb_safetensors *file = NULL;
    wb_view *view = NULL;
    wb_safetensors_tensor_info info = WB_SAFETENSORS_TENSOR_INFO_INIT;
    file_name(path, sizeof path, "type");
    REQUIRE(write_tensors(path, json, 0, 3, 0));
    REQUIRE_OK(wb_safetensors_open(device, path, NULL, &file, &error));
    CHECK_OK(wb_safetensors_get_tensor_info(file, 0, &info, &error));
    CHECK(info.dtype == WB_DTYPE_OPAQUE && strcmp(info.dtype_name, "F6_E2M3") == 0);
    CHECK(info.ndim == 1 && info.shape[0] == 4 && info.bytes == 3);
    CHECK(info.block_elements == 4 && info.block_bytes == 3);
    CHECK_ERROR(WB_ERR_NOT_SUPPORTED,
                wb_safetensors_get_view(file, 0, WB_ACCESSOR_HOST, 1, &view, &error), "F6_E2M3");
    wb_safetensors_release(file);
    unlink(path);
}

static void malformed_headers_are_refused_without_a_leak(wb_device *device)
{
    const struct { const char *json; uint64_t bytes, announced; wb_status status;
                   const char *words; } files[] = {
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},"
         "\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[2,6]}}", 6, 0, WB_ERR_FORMAT, ""},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
         "\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, 0, WB_ERR_FORMAT,
         "\"a\" appears twice"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[9],\"data_offsets\":[0,9]}}", 4, 0,
         WB_ERR_FILE_TRUNCATED, "truncated"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}", 5, 0, WB_ERR_FORMAT,
         "1 bytes belong to no tensor"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[0,4]}}", 4, 0, WB_ERR_FORMAT,
         ""},
        {"{\"a\":{\"dtype\":\"F64\",\"shape\":[9223372036854775807,4],\"data_offsets\":[0,0]}}", 0,
         0, WB_ERR_FORMAT, ""},
        {"{}", 0, UINT64_MAX, WB_ERR_FORMAT, "18446744073709551615"},
        {"{}", 0, 100000001, WB_ERR_FORMAT, "100000000"},
        {"{}", 0, 3, WB_ERR_FILE_TRUNCATED, "announces 3"},
        {"not json", 0, 0, WB_ERR_FORMAT, "malformed"},
        {"[]", 0, 0, WB_ERR_FORMAT, "malformed"},
        {"", 0, 0, WB_ERR_FORMAT, "malformed"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[0,4611686018427387904,4611686018427387904],"
         "\"data_offsets\":[0,0]}}", 0, 0, WB_ERR_FORMAT, "malformed|\"a\""},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,"
         "1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1],"
         "\"data_offsets\":[0,1]}}", 1, 0, WB_ERR_FORMAT, "malformed|\"a\"|64 dimensions"},
    };
    char path[300];
    wb_device_stats before = device_stats(device);
    file_name(path, sizeof path, "hostile");
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
        wb_safetensors *file = NULL;
        REQUIRE(write_tensors(path, files[i].json, 0, files[i].bytes, files[i].announced));
        CHECK_ERROR(files[i].status, wb_safetensors_open(device, path, NULL, &file, &error),
                    files[i].words);
        CHECK(strstr(error.message, path) != NULL);
        CHECK(file == NULL);
        CHECK_STATS(device, before);
    }
    REQUIRE(write_file(path, "1234567", 7));
    wb_safetensors *file = NULL;
    CHECK_ERROR(WB_ERR_FILE_TRUNCATED, wb_safetensors_open(device, path, NULL, &file, &error),
                "7 bytes");
    CHECK_STATS(device, before);
    unlink(path);
}

static void truncation_of_an_open_file_is_an_error_and_no_signal(wb_device *device)
{
    char path[300];
    wb_view *view = NULL;
    int32_t copied = 7;
    wb_safetensors *file = open_two(device, path, sizeof path, 0);
    REQUIRE(file != NULL);
    REQUIRE(truncate(path, 100) == 0);
    CHECK_ERROR(WB_ERR_FILE_TRUNCATED,
                wb_safetensors_get_view(file, 0, WB_ACCESSOR_HOST, 1, &view, &error),
                "truncated|100 bytes");
    CHECK_ERROR(WB_ERR_FILE_TRUNCATED,
                wb_safetensors_load_view(file, 0, WB_ACCESSOR_HOST, 4096, NULL, &view, &copied,
                                         &error),
                "truncated");
    CHECK(view == NULL && copied == 7);
    wb_safetensors_release(file);
    unlink(path);
}

static void tensors_are_parameters_that_hold_their_file(wb_device *device)
{
    char path[300];
    wb_safetensors *file = NULL;
    wb_plan *plan = NULL;
    wb_offloader *offloader = NULL;
    wb_parameter parameters[3];
    const wb_parameter empty = WB_PARAMETER_INIT;
    wb_buffer_options source = WB_BUFFER_OPTIONS_INIT;
    wb_plan_options options = WB_PLAN_OPTIONS_INIT;
    const wb_device_stats before = device_stats(device);
    source.file_mode = WB_FILE_MODE_SOURCE;
    file_name(path, sizeof path, "tensors");
    REQUIRE(write_tensors(path, two_tensors, 0, 19, 0));
    REQUIRE_OK(wb_safetensors_open(device, path, &source, &file, &error));
    CHECK_SAME(device_stats(device).pinned_bytes, before.pinned_bytes);
    const char *names[2] = {NULL, NULL};
    CHECK_ERROR(WB_ERR_OUT_OF_RANGE, wb_safetensors_get_names(file, 1, 2, names, &error),
                "2 tensors from tensor 1 on|the file has 2");
    CHECK(names[0] == NULL);
    REQUIRE_OK(wb_safetensors_get_names(file, 1, 1, &names[1], &error));
    CHECK(names[0] == NULL && strcmp(names[1], "second") == 0);
    CHECK_OK(wb_safetensors_get_names(file, 2, 0, NULL, &error));
    for (int i = 0; i < 3; i++) parameters[i] = empty;
    CHECK_ERROR(WB_ERR_OUT_OF_RANGE,
                wb_safetensors_get_parameters(file, WB_GROUPING_LAYER, 0, 3, parameters, &error),
                "3 tensors|the file has 2");
    CHECK_ERROR(WB_ERR_INVALID_ARGUMENT,
                wb_safetensors_get_parameters(file, 2, 0, 2, parameters, &error), "grouping");
    CHECK(parameters[0].name == NULL);
    REQUIRE_OK(wb_safetensors_get_parameters(file, WB_GROUPING_LAYER, 0, 2, parameters, &error));
    CHECK(strcmp(parameters[0].name, "first.weight") == 0);
    CHECK(strcmp(parameters[0].group, "first") == 0 && strcmp(parameters[1].group, "") == 0);
    CHECK(parameters[0].layout->dtype == WB_DTYPE_F32 && parameters[0].layout->ndim == 2);
    CHECK(parameters[0].layout->shape[1] == 2);
    CHECK(holds_pattern(parameters[0].source, 0, 16) && holds_pattern(parameters[1].source, 16, 3));
    CHECK(parameters[2].name == NULL);
    options.budget_kind = WB_BUDGET_OFFLOAD_BYTES;
    options.budget_bytes = 1 << 20;
    options.transfer_mode = WB_TRANSFER_MODE_ON_DEMAND;
    parameters[1].source = &parameters;
    CHECK_ERROR(WB_ERR_OUT_OF_RANGE,
                wb_plan_new(device, parameters, 2, &options, &plan, &error), "second|its buffer");
    REQUIRE_OK(wb_safetensors_get_parameters(file, WB_GROUPING_LAYER, 1, 1, &parameters[1], &error));
    REQUIRE_OK(wb_plan_new(device, parameters, 2, &options, &plan, &error));
    wb_safetensors_release(file);
    unlink(path);
    CHECK_SAME(device_stats(device).buffers, before.buffers + 1);
    REQUIRE_OK(wb_offloader_new(plan, NULL, NULL, &offloader, &error));
    wb_plan_release(plan);
    /* The arena alone: an offloader does not need the file. */
    CHECK_SAME(device_stats(device).buffers, before.buffers + 1);
    for (uint64_t i = 0; i < 2; i++) {
        wb_offloader_parameter_info info = WB_OFFLOADER_PARAMETER_INFO_INIT;
        CHECK_OK(wb_offloader_get_parameter_info(offloader, i, &info, &error));
        CHECK(holds_pattern(info.host_address, 16 * i, info.span_bytes));
    }
    wb_offloader_release(offloader);
    CHECK_STATS(device, before);
}

static void a_file_without_tensors_is_valid(wb_device *device)
{
    char path[300];
    wb_safetensors *file = NULL;
    file_name(path, sizeof path, "none");
    REQUIRE(write_tensors(path, "{}", 0, 0, 0));
    REQUIRE_OK(wb_safetensors_open(device, path, NULL, &file, &error));
    CHECK_SAME(wb_safetensors_get_tensor_count(file), 0);
    wb_safetensors_release(file);
    unlink(path);
}

CHECK_MAIN(CASE(tensors_are_listed_in_the_order_of_their_data),
           CASE(a_tensor_is_found_by_its_name_and_viewed_in_the_file),
           CASE(an_aligned_tensor_is_viewed_and_an_unaligned_one_copied),
           CASE(an_unsupported_dtype_is_listed_and_not_viewed),
           CASE(malformed_headers_are_refused_without_a_leak),
           CASE(truncation_of_an_open_file_is_an_error_and_no_signal),
           CASE(tensors_are_parameters_that_hold_their_file),
           CASE(a_file_without_tensors_is_valid))
