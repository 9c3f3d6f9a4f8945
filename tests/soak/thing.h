/* A reference to memory whose content is known, whatever holds it: what threads make, hand to each
 * other, check and let go. */
#ifndef THING_H
#define THING_H

#include "../c/dlpack_structs.h"
#include "soak.h"

enum kind { NOTHING, A_BUFFER, A_VIEW, A_FILE, A_TENSOR, A_VERSIONED_TENSOR };

struct thing {
    enum kind kind;
    union {
        wb_buffer *buffer;
        wb_view *view;
        wb_safetensors *file;
        DLManagedTensor *tensor;
        DLManagedTensorVersioned *versioned;
    } as;
    const unsigned char *data; /* where the host sees the first byte; NULL where it does not look */
    uint64_t device_address;   /* where the device does; 0 where it does not */
    uint64_t bytes;
    uint64_t key, offset;      /* the content: of this key, from this offset on */
};

/* The thing that a new buffer or view is; its content is that of `key` from `offset` on. */
struct thing thing_of_buffer(wb_buffer *buffer, uint64_t key, uint64_t offset);
struct thing thing_of_view(wb_view *view, uint64_t key, uint64_t offset);

/* Sees that the content is still there. */
void thing_check(const struct thing *thing);

/* Another reference to the same; NOTHING of a tensor, which has one owner. */
struct thing thing_again(const struct thing *thing);

/* Checks the content and drops the reference. */
void thing_release(struct thing *thing);

/* Checks the content and drops the reference behind what is queued on the stream. */
void thing_release_after(struct thing *thing, void *stream);

#endif
