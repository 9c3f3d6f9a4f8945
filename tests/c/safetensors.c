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
                "\"third\"|its 2");
    CHECK_SAME(index, 7);
    REQUIRE_OK(wb_safetensors_find_tensor(file, "first.weight", &index, &error));
    CHECK_SAME(index, 0);
    REQUIRE_OK(wb_safetensors_get_view(file, index, WB_ACCESSOR_DEVICE, 1, &view, &error));
    REQUIRE_OK(wb_safetensors_get_buffer(file, &buffer, &error));
    REQUIRE_OK(wb_view_get_buffer(view, &under, &error));
    CHECK(under == buffer);
    CHECK(describe_view(view).data == (char *)describe(buffer).data + 8 + strlen(two_tensors));
    CHECK_SAME(describe_view(view).read_only, 1);
    wb_buffer_release(buffer);
    wb_buffer_release(under);
    wb_safetensors_retain(file);
    wb_safetensors_release(file);
    CHECK_SAME(wb_safetensors_get_tensor_count(file), 2);
    wb_safetensors_release(file);
    CHECK(holds_pattern(describe_view(view).data, 0, 16)); /* outlives the file */
    CHECK(read_device(device, seen, describe_view(view).device_address, 16));
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
        CHECK_SAME(measure(device).buffers, header == 248 ? 1 : 2);
        CHECK_SAME((uintptr_t)describe_view(view).device_address % 16, 0);
        CHECK_SAME(describe_view(view).read_only, header == 248);
        CHECK(holds_pattern(describe_view(view).data, 0, 16));
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
    CHECK(info.dtype == 0 && info.shape == NULL && info.bytes == 3);
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
         "\"data_offsets\":[0,1]}}", 1, 0, WB_ERR_FORMAT, "malformed|\"a\"|65"},
    };
    char path[300];
    wb_device_stats before = measure(device);
    file_name(path, sizeof path, "hostile");
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
        wb_safetensors *file = NULL;
        REQUIRE(write_tensors(path, files[i].json, 0, files[i].bytes, files[i].announced));
        CHECK_ERROR(files[i].status, wb_safetensors_open(device, path, NULL, &file, &error),
                    files[i].words);
        CHECK(strstr(error.message, path) != NULL);
        CHECK(file == NULL);
        CHECK_USAGE(device, before);
    }
    REQUIRE(write_file(path, "1234567", 7));
    wb_safetensors *file = NULL;
    CHECK_ERROR(WB_ERR_FILE_TRUNCATED, wb_safetensors_open(device, path, NULL, &file, &error),
                "7 bytes");
    CHECK_USAGE(device, before);
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
           CASE(a_file_without_tensors_is_valid))
