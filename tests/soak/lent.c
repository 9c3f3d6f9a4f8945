/* Memory that comes back by a deleter. */
#include "lent.h"

#include "content.h"

struct lent {
    DLManagedTensor tensor;
    DLManagedTensorVersioned versioned;
    int64_t shape[1];
    uint64_t key;
    unsigned char *memory;
};

static int64_t out;

int64_t lent_out(void)
{
    return __atomic_load_n(&out, __ATOMIC_ACQUIRE);
}

void *lent_memory(struct lent *lent)
{
    return lent->memory;
}

void lent_back(void *user)
{
    struct lent *lent = (struct lent *)user;
    __atomic_fetch_sub(&out, 1, __ATOMIC_ACQ_REL);
    CHECK(content_is(lent->memory, 0, (uint64_t)lent->shape[0], lent->key));
    free(lent->memory);
    free(lent);
}

void lent_twice(struct lent *lent)
{
    lent_back(lent);
    __atomic_fetch_sub(&out, 1, __ATOMIC_ACQ_REL);
}

static void tensor_back(DLManagedTensor *tensor)
{
    lent_back(tensor->manager_ctx);
}

static void versioned_back(DLManagedTensorVersioned *tensor)
{
    lent_back(tensor->manager_ctx);
}

static DLTensor described(struct lent *lent)
{
    DLTensor tensor;
    memset(&tensor, 0, sizeof tensor);
    tensor.data = lent->memory;
    tensor.device.device_type = kDLCPU;
    tensor.ndim = 1;
    tensor.dtype.code = kDLUInt;
    tensor.dtype.bits = 8;
    tensor.dtype.lanes = 1;
    tensor.shape = lent->shape;
    return tensor;
}

struct lent *lent_new(uint64_t bytes, uint64_t key)
{
    struct lent *lent = (struct lent *)calloc(1, sizeof *lent);
    unsigned char *memory = (unsigned char *)malloc(bytes);
    if (lent == NULL || memory == NULL) abort();
    content_fill(memory, bytes, key);
    lent->memory = memory;
    lent->key = key;
    lent->shape[0] = (int64_t)bytes;
    __atomic_fetch_add(&out, 1, __ATOMIC_ACQ_REL);
    return lent;
}

DLManagedTensor *lent_tensor(struct lent *lent)
{
    lent->tensor.dl_tensor = described(lent);
    lent->tensor.manager_ctx = lent;
    lent->tensor.deleter = tensor_back;
    return &lent->tensor;
}

DLManagedTensorVersioned *lent_versioned(struct lent *lent)
{
    lent->versioned.version.major = 1;
    lent->versioned.dl_tensor = described(lent);
    lent->versioned.manager_ctx = lent;
    lent->versioned.deleter = versioned_back;
    return &lent->versioned;
}
