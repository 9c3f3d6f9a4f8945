/* References to memory whose content is known. */
#include "thing.h"

#include "content.h"
#include "counts.h"

struct thing thing_of_buffer(wb_buffer *buffer, uint64_t key, uint64_t offset)
{
    struct thing thing = {A_BUFFER, {buffer}, NULL, 0, 0, key, offset};
    const wb_buffer_info info = describe(buffer);
    thing.data = (const unsigned char *)info.data;
    thing.device_address = info.device_address;
    thing.bytes = info.asked_bytes;
    return thing;
}

struct thing thing_of_view(wb_view *view, uint64_t key, uint64_t offset)
{
    struct thing thing = {A_VIEW, {NULL}, NULL, 0, 0, key, offset};
    const wb_view_info info = describe_view(view);
    thing.as.view = view;
    thing.data = (const unsigned char *)info.data;
    thing.device_address = info.device_address;
    thing.bytes = info.span_bytes;
    return thing;
}

void thing_check(const struct thing *thing)
{
    if (thing->kind != NOTHING && thing->data != NULL) {
        CHECK(content_is(thing->data, thing->offset, thing->bytes, thing->key));
    }
}

struct thing thing_again(const struct thing *thing)
{
    struct thing again = *thing;
    switch (thing->kind) {
    case A_BUFFER: wb_buffer_retain(thing->as.buffer); break;
    case A_VIEW: wb_view_retain(thing->as.view); break;
    case A_FILE: wb_safetensors_retain(thing->as.file); break;
    default: again.kind = NOTHING;
    }
    if (again.kind != NOTHING) count(RETAINED);
    return again;
}

void thing_release(struct thing *thing)
{
    thing_check(thing);
    switch (thing->kind) {
    case NOTHING: return;
    case A_BUFFER: wb_buffer_release(thing->as.buffer); break;
    case A_VIEW: wb_view_release(thing->as.view); break;
    case A_FILE: wb_safetensors_release(thing->as.file); break;
    case A_TENSOR: thing->as.tensor->deleter(thing->as.tensor); break;
    case A_VERSIONED_TENSOR: thing->as.versioned->deleter(thing->as.versioned); break;
    }
    thing->kind = NOTHING;
    count(RELEASED);
}

void thing_release_after(struct thing *thing, void *stream)
{
    thing_check(thing);
    if (thing->kind == A_BUFFER) {
        CHECK_OK(wb_buffer_release_after(thing->as.buffer, stream, &error));
    } else if (thing->kind == A_VIEW) {
        CHECK_OK(wb_view_release_after(thing->as.view, stream, &error));
    } else {
        thing_release(thing);
        return;
    }
    thing->kind = NOTHING;
    count(RELEASED_AFTER);
}
