/* DLPack: export, import, and the destructor of Python capsules. */
#include <pthread.h>

#include "dlpack_structs.h"
#include "memory.h"
#include "weighbridge/python.h"

static wb_view *view_of_floats(wb_device *device, wb_accessor accessor)
{
    int64_t shape[] = {4, 5}, strides[] = {6, 1};
    wb_buffer *buffer = new_buffer(device, 200);
    wb_view *view = new_view(buffer, layout_of(WB_DTYPE_F32, 2, shape, strides, 16), accessor);
    wb_buffer_release(buffer);
    return view;
}

static void check_floats(const DLTensor *tensor, wb_view_info info)
{
    int cuda = on_cuda() && info.accessor == WB_ACCESSOR_DEVICE;
    CHECK(tensor->data == (cuda ? info.device_address : info.data));
    CHECK_SAME(tensor->device.device_type, cuda ? kDLCUDA : kDLCPU);
    CHECK_SAME(tensor->device.device_id, 0);
    CHECK(tensor->dtype.code == kDLFloat && tensor->dtype.bits == 32 && tensor->dtype.lanes == 1);
    CHECK_SAME(tensor->ndim, 2);
    CHECK(tensor->shape[0] == 4 && tensor->shape[1] == 5);
    CHECK(tensor->strides[0] == 6 && tensor->strides[1] == 1);
    CHECK_SAME(tensor->byte_offset, 0);
}

static void an_exported_tensor_describes_the_view_and_keeps_it(wb_device *device)
{
    for (wb_accessor access = WB_ACCESSOR_DEVICE; access <= WB_ACCESSOR_HOST; access++) {
        wb_view *view = view_of_floats(device, access);
        DLManagedTensor *tensor = NULL;
        DLManagedTensorVersioned *versioned = NULL;
        REQUIRE(view != NULL);
        REQUIRE_OK(wb_view_to_dlpack(view, &tensor, &error));
        REQUIRE_OK(wb_view_to_dlpack_versioned(view, &versioned, &error));
        check_floats(&tensor->dl_tensor, view_info(view));
        check_floats(&versioned->dl_tensor, view_info(view));
        CHECK_SAME(versioned->version.major, 1);
        CHECK_SAME(versioned->flags, 0);
        wb_view_release(view);
        CHECK_SAME(device_stats(device).views, 1);
        CHECK_SAME(tensor->dl_tensor.shape[1], 5);
        tensor->deleter(tensor);
        CHECK_OK(wb_device_drain(device, 10000, &error));
        CHECK_SAME(device_stats(device).buffers, 1);
        versioned->deleter(versioned);
        CHECK_OK(wb_device_drain(device, 10000, &error));
        CHECK_SAME(device_stats(device).buffers, 0);
    }
}

static void *delete_in_thread(void *tensor)
{
    ((DLManagedTensor *)tensor)->deleter((DLManagedTensor *)tensor);
    return NULL;
}

static void the_deleter_may_be_called_last_and_on_any_thread(wb_device *device)
{
    wb_view *view = view_of_floats(device, WB_ACCESSOR_DEVICE);
    DLManagedTensor *tensor = NULL;
    pthread_t thread;
    REQUIRE(view != NULL);
    REQUIRE_OK(wb_view_to_dlpack(view, &tensor, &error));
    wb_view_release(view);
    REQUIRE(pthread_create(&thread, NULL, delete_in_thread, tensor) == 0);
    pthread_join(thread, NULL);
    CHECK_OK(wb_device_drain(device, 10000, &error));
    CHECK_SAME(device_stats(device).buffers, 0);
}

static void read_only_memory_is_exported_with_its_flag(wb_device *device)
{
    char path[300];
    DLManagedTensorVersioned *tensor = NULL;
    DLManagedTensor *without_flag = NULL;
    const int64_t count = 10;
    REQUIRE(pattern_file(path, sizeof path, "dlpack", 100));
    wb_buffer *buffer = map_file(device, path, 0, 0, NULL);
    REQUIRE(buffer != NULL);
    wb_view *view = new_view(buffer, bytes_layout(&count), WB_ACCESSOR_HOST);
    REQUIRE(view != NULL);
    REQUIRE_OK(wb_view_to_dlpack_versioned(view, &tensor, &error));
    CHECK_SAME(view_info(view).read_only, 1);
    CHECK_SAME(tensor->flags & DLPACK_FLAG_BITMASK_READ_ONLY, 1);
    CHECK_ERROR(WB_ERR_DLPACK, wb_view_to_dlpack(view, &without_flag, &error),
                "read-only|wb_view_to_dlpack_versioned|wb_view_to_dlpack_for_reading|wb_view_copy_from");
    CHECK(without_flag == NULL);
    CHECK_SAME(device_stats(device).views, 1);
    tensor->deleter(tensor);
    wb_view_release(view);
    wb_buffer_release(buffer);
    unlink(path);
}

static void every_dtype_has_its_dlpack_type(wb_device *device)
{
    const struct { wb_dtype dtype; uint8_t code, bits; uint16_t lanes; } types[] = {
        {WB_DTYPE_BOOL, kDLBool, 8, 1}, {WB_DTYPE_I8, kDLInt, 8, 1},
        {WB_DTYPE_I16, kDLInt, 16, 1}, {WB_DTYPE_I32, kDLInt, 32, 1},
        {WB_DTYPE_I64, kDLInt, 64, 1}, {WB_DTYPE_U8, kDLUInt, 8, 1},
        {WB_DTYPE_U16, kDLUInt, 16, 1}, {WB_DTYPE_U32, kDLUInt, 32, 1},
        {WB_DTYPE_U64, kDLUInt, 64, 1}, {WB_DTYPE_F16, kDLFloat, 16, 1},
        {WB_DTYPE_BF16, kDLBfloat, 16, 1}, {WB_DTYPE_F32, kDLFloat, 32, 1},
        {WB_DTYPE_F64, kDLFloat, 64, 1}, {WB_DTYPE_C64, kDLComplex, 64, 1},
        {WB_DTYPE_F8_E4M3FN, 10, 8, 1}, {WB_DTYPE_F8_E5M2, 12, 8, 1},
        {WB_DTYPE_F8_E8M0, 14, 8, 1}, {WB_DTYPE_F4_E2M1X2, 17, 4, 2}};
    wb_buffer *buffer = NULL;
    int64_t shape[] = {2};
    REQUIRE_OK(wb_buffer_alloc(device, 16, NULL, &buffer, &error));
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
        wb_layout layout = layout_of(types[i].dtype, 1, shape, NULL, 0);
        wb_view *view = NULL;
        DLManagedTensor *tensor = NULL;
        REQUIRE_OK(wb_view_new(buffer, &layout, WB_ACCESSOR_HOST, &view, &error));
        REQUIRE_OK(wb_view_to_dlpack(view, &tensor, &error));
        CHECK_SAME(tensor->dl_tensor.dtype.code, types[i].code);
        CHECK_SAME(tensor->dl_tensor.dtype.bits, types[i].bits);
        CHECK_SAME(tensor->dl_tensor.dtype.lanes, types[i].lanes);
        tensor->deleter(tensor);
        wb_view_release(view);
    }
    wb_buffer_release(buffer);
}

/* A tensor as a framework exports it; its deleters only count their calls. */
struct tensor {
    DLManagedTensorVersioned versioned;
    DLManagedTensor plain;
    int64_t shape[2], strides[2];
    int32_t numbers[64];
    int deleted;
};

static void delete_versioned(DLManagedTensorVersioned *self)
{
    ((struct tensor *)self->manager_ctx)->deleted++;
}

static void delete_plain(DLManagedTensor *self)
{
    ((struct tensor *)self->manager_ctx)->deleted++;
}

static void init_tensor(struct tensor *tensor)
{
    DLTensor *inner = &tensor->plain.dl_tensor;
    memset(tensor, 0, sizeof *tensor);
    tensor->shape[0] = 3;
    tensor->shape[1] = 4;
    tensor->strides[0] = -16;
    tensor->strides[1] = 2;
    for (int i = 0; i < 64; i++) tensor->numbers[i] = i;
    inner->data = tensor->numbers;
    inner->device.device_type = kDLCPU;
    inner->ndim = 2;
    inner->dtype.code = kDLInt;
    inner->dtype.bits = 32;
    inner->dtype.lanes = 1;
    inner->shape = tensor->shape;
    inner->strides = tensor->strides;
    inner->byte_offset = 40 * 4;
    tensor->plain.manager_ctx = tensor->versioned.manager_ctx = tensor;
    tensor->plain.deleter = delete_plain;
    tensor->versioned.deleter = delete_versioned;
    tensor->versioned.dl_tensor = *inner;
    tensor->versioned.version.major = 1;
    tensor->versioned.version.minor = 3;
}

static wb_status import_tensor(wb_device *device, struct tensor *tensor, int versioned,
                               wb_view **view)
{
    return versioned ? wb_view_from_dlpack_versioned(device, &tensor->versioned, WB_ACCESSOR_HOST,
                                                     NULL, view, &error)
                     : wb_view_from_dlpack(device, &tensor->plain, WB_ACCESSOR_HOST, NULL, view,
                                           &error);
}

static void an_imported_tensor_is_viewed_in_place_and_deleted_once(wb_device *device)
{
    struct tensor tensor;
    wb_view *view = NULL;
    init_tensor(&tensor);
    REQUIRE_OK(wb_view_from_dlpack(device, &tensor.plain, WB_ACCESSOR_DEVICE, NULL, &view, &error));
    wb_view_info info = view_info(view);
    CHECK(info.data == tensor.numbers + 40);
    CHECK_SAME(info.dtype, WB_DTYPE_I32);
    CHECK(info.shape[0] == 3 && info.strides[0] == -16 && info.strides[1] == 2);
    CHECK_SAME(info.read_only, 0);
    CHECK_SAME(tensor.deleted, 0);
    wb_view_release(view);
    CHECK_SAME(tensor.deleted, 1);
}

static void an_imported_read_only_flag_is_kept(wb_device *device)
{
    struct tensor tensor;
    wb_view *view = NULL;
    init_tensor(&tensor);
    tensor.versioned.flags = DLPACK_FLAG_BITMASK_READ_ONLY;
    REQUIRE_OK(import_tensor(device, &tensor, 1, &view));
    CHECK_SAME(view_info(view).read_only, 1);
    wb_view_release(view);
    CHECK_SAME(tensor.deleted, 1);
}

static void an_empty_tensor_is_imported(wb_device *device)
{
    struct tensor tensor;
    wb_view *view = NULL;
    init_tensor(&tensor);
    tensor.shape[1] = 0;
    tensor.plain.dl_tensor.data = NULL;
    tensor.plain.dl_tensor.strides = NULL;
    tensor.plain.dl_tensor.byte_offset = 0;
    tensor.versioned.dl_tensor = tensor.plain.dl_tensor;
    tensor.versioned.flags = DLPACK_FLAG_BITMASK_READ_ONLY;
    for (int versioned = 0; versioned < 2; versioned++) {
        REQUIRE_OK(import_tensor(device, &tensor, versioned, &view));
        CHECK_SAME(view_info(view).elements, 0);
        CHECK_SAME(view_info(view).shape[0], 3); /* a copy of the shape */
        CHECK_SAME(view_info(view).read_only, versioned);
        wb_view_release(view);
        CHECK_SAME(tensor.deleted, versioned + 1);
    }
}

static void check_refused(wb_device *device, struct tensor *tensor, int versioned, wb_status status,
                          const char *words)
{
    wb_view *view = NULL;
    CHECK_ERROR(status, import_tensor(device, tensor, versioned, &view), words);
    CHECK(view == NULL);
    CHECK_SAME(tensor->deleted, 0);
    init_tensor(tensor);
}

static void a_refused_tensor_stays_with_the_caller(wb_device *device)
{
    struct tensor tensor;
    wb_buffer *buffer = NULL;
    init_tensor(&tensor);
    tensor.plain.dl_tensor.device.device_type = kDLCUDA;
    check_refused(device, &tensor, 0, WB_ERR_DLPACK, "device 2:0|kDLCPU");
    tensor.plain.dl_tensor.dtype.bits = 128;
    check_refused(device, &tensor, 0, WB_ERR_DLPACK, "128 bits");
    tensor.versioned.version.major = 2;
    check_refused(device, &tensor, 1, WB_ERR_DLPACK, "DLPack 2.3|1.x");
    tensor.shape[0] = -3;
    check_refused(device, &tensor, 0, WB_ERR_INVALID_ARGUMENT, "negative");
    tensor.plain.dl_tensor.data = NULL;
    check_refused(device, &tensor, 0, WB_ERR_INVALID_ARGUMENT, "NULL");
    REQUIRE_OK(wb_buffer_register(device, tensor.numbers, sizeof tensor.numbers, NULL, NULL, NULL,
                                  &buffer, &error));
    check_refused(device, &tensor, 0, WB_ERR_ALREADY_REGISTERED, "overlaps");
    wb_buffer_release(buffer);
}

/* Replaces CPython's capsule: a name and a pointer. */
struct capsule {
    const char *name;
    void *pointer;
};

static int is_valid(void *capsule, const char *name)
{
    return strcmp(((struct capsule *)capsule)->name, name) == 0;
}

static void *get_pointer(void *capsule, const char *name)
{
    return is_valid(capsule, name) ? ((struct capsule *)capsule)->pointer : NULL;
}

static void a_capsule_deletes_an_unconsumed_tensor(wb_device *device)
{
    const char *names[] = {"dltensor", "used_dltensor", "dltensor_versioned",
                           "used_dltensor_versioned"};
    CHECK_NULL(wb_python_capsule_setup(is_valid, NULL, &error), "NULL");
    REQUIRE_OK(wb_python_capsule_setup(is_valid, get_pointer, &error));
    (void)device;
    for (int i = 0; i < 4; i++) {
        struct tensor tensor;
        struct capsule capsule;
        init_tensor(&tensor);
        capsule.name = names[i];
        capsule.pointer = i < 2 ? (void *)&tensor.plain : (void *)&tensor.versioned;
        wb_python_capsule_destroy(&capsule);
        CHECK_SAME(tensor.deleted, i % 2 == 0);
    }
}

CHECK_MAIN(CASE(an_exported_tensor_describes_the_view_and_keeps_it),
           CASE(the_deleter_may_be_called_last_and_on_any_thread),
           CASE(read_only_memory_is_exported_with_its_flag), CASE(every_dtype_has_its_dlpack_type),
           CASE(an_imported_tensor_is_viewed_in_place_and_deleted_once),
           CASE(an_imported_read_only_flag_is_kept), CASE(an_empty_tensor_is_imported),
           CASE(a_refused_tensor_stays_with_the_caller),
           CASE(a_capsule_deletes_an_unconsumed_tensor))
