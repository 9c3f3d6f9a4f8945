/* Handles to memory with known content. */
#include "soak.h"

struct borrowed {
    DLManagedTensor tensor;
    DLManagedTensorVersioned versioned;
    int64_t shape[1];
    uint64_t key;
    unsigned char *memory;
};

static int64_t outstanding;

int64_t outstanding_deleters(void)
{
    return __atomic_load_n(&outstanding, __ATOMIC_ACQUIRE);
}

struct borrowed *borrowed_new(uint64_t bytes, uint64_t key)
{
    struct borrowed *borrowed = (struct borrowed *)calloc(1, sizeof *borrowed);
    if (borrowed == NULL) abort();
    borrowed->memory = content_new(bytes, key);
    borrowed->key = key;
    borrowed->shape[0] = (int64_t)bytes;
    __atomic_fetch_add(&outstanding, 1, __ATOMIC_ACQ_REL);
    return borrowed;
}

void *borrowed_memory(struct borrowed *borrowed)
{
    return borrowed->memory;
}

void borrowed_delete(void *user)
{
    struct borrowed *borrowed = (struct borrowed *)user;
    __atomic_fetch_sub(&outstanding, 1, __ATOMIC_ACQ_REL);
    CHECK(has_content(borrowed->memory, 0, (uint64_t)borrowed->shape[0], borrowed->key));
    free(borrowed->memory);
    free(borrowed);
}

void borrowed_delete_twice(struct borrowed *borrowed)
{
    borrowed_delete(borrowed);
    __atomic_fetch_sub(&outstanding, 1, __ATOMIC_ACQ_REL);
}

static void delete_tensor(DLManagedTensor *tensor)
{
    borrowed_delete(tensor->manager_ctx);
}

static void delete_versioned(DLManagedTensorVersioned *tensor)
{
    borrowed_delete(tensor->manager_ctx);
}

static void describe_tensor(struct borrowed *borrowed, DLTensor *tensor)
{
    tensor->data = borrowed->memory;
    tensor->device.device_type = kDLCPU;
    tensor->ndim = 1;
    tensor->dtype.code = kDLUInt;
    tensor->dtype.bits = 8;
    tensor->dtype.lanes = 1;
    tensor->shape = borrowed->shape;
}

DLManagedTensor *borrowed_tensor(struct borrowed *borrowed)
{
    describe_tensor(borrowed, &borrowed->tensor.dl_tensor);
    borrowed->tensor.manager_ctx = borrowed;
    borrowed->tensor.deleter = delete_tensor;
    return &borrowed->tensor;
}

DLManagedTensorVersioned *borrowed_versioned_tensor(struct borrowed *borrowed)
{
    describe_tensor(borrowed, &borrowed->versioned.dl_tensor);
    borrowed->versioned.version.major = 1;
    borrowed->versioned.manager_ctx = borrowed;
    borrowed->versioned.deleter = delete_versioned;
    return &borrowed->versioned;
}

const struct handle no_handle = {NO_HANDLE, {NULL}, NULL, NULL, 0, 0, 0};

struct handle handle_of_buffer(wb_buffer *buffer, uint64_t key, uint64_t offset)
{
    struct handle handle = {BUFFER, {buffer}, NULL, NULL, 0, key, offset};
    const wb_buffer_info info = buffer_info(buffer);
    handle.data = (const unsigned char *)info.data;
    handle.device_address = info.device_address;
    handle.bytes = info.asked_bytes;
    return handle;
}

struct handle handle_of_view(wb_view *view, uint64_t key, uint64_t offset)
{
    struct handle handle = {VIEW, {NULL}, NULL, NULL, 0, key, offset};
    const wb_view_info info = view_info(view);
    handle.as.view = view;
    handle.data = (const unsigned char *)info.data;
    handle.device_address = info.device_address;
    handle.bytes = info.span_bytes;
    return handle;
}

void handle_check(const struct handle *handle)
{
    if (handle->kind != NO_HANDLE && handle->data != NULL) {
        CHECK(has_content(handle->data, handle->offset, handle->bytes, handle->key));
    }
}

struct handle handle_retain(const struct handle *handle)
{
    switch (handle->kind) {
    case BUFFER: wb_buffer_retain(handle->as.buffer); break;
    case VIEW: wb_view_retain(handle->as.view); break;
    case SAFETENSORS: wb_safetensors_retain(handle->as.file); break;
    default: return no_handle;
    }
    count(RETAINED);
    return *handle;
}

void handle_release(struct handle *handle)
{
    handle_check(handle);
    switch (handle->kind) {
    case NO_HANDLE: return;
    case BUFFER: wb_buffer_release(handle->as.buffer); break;
    case VIEW: wb_view_release(handle->as.view); break;
    case SAFETENSORS: wb_safetensors_release(handle->as.file); break;
    case TENSOR: handle->as.tensor->deleter(handle->as.tensor); break;
    case VERSIONED_TENSOR: handle->as.versioned->deleter(handle->as.versioned); break;
    }
    handle->kind = NO_HANDLE;
    count(RELEASED);
}

void handle_release_after(struct handle *handle, void *stream)
{
    if (handle->kind != BUFFER && handle->kind != VIEW) {
        handle_release(handle);
        return;
    }
    handle_check(handle);
    CHECK_OK(handle->kind == BUFFER ? wb_buffer_release_after(handle->as.buffer, stream, &error)
                                    : wb_view_release_after(handle->as.view, stream, &error));
    handle->kind = NO_HANDLE;
    count(RELEASED_AFTER);
}
