/*
 * The expert cache for the host: the steps of experts.cu, with the same results, for one thread.
 * WB_KERNEL is the suffix of the names.
 */
#include <string.h>

#include "experts.h"

#define WB_JOIN2(name, suffix) name##suffix
#define WB_JOIN(name, suffix) WB_JOIN2(name, suffix)
#define KERNEL(name) WB_JOIN(wb_##name, WB_KERNEL)

/* Addresses of the driver double have a bit that host pointers lack. */
#ifndef WB_HOST_ADDRESS
#define WB_HOST_ADDRESS(address) (address)
#endif
#define AT(type, address) ((type *)(uintptr_t)WB_HOST_ADDRESS(address))

#define NOT_ELIGIBLE UINT64_MAX

static int64_t id_at(const wb_experts_call *c, uint64_t index)
{
    return c->wide ? AT(const int64_t, c->ids)[index] : AT(const int32_t, c->ids)[index];
}

static void write_slot(const wb_experts_call *c, uint64_t index, int32_t slot)
{
    if (c->wide) AT(int64_t, c->slots)[index] = slot;
    else AT(int32_t, c->slots)[index] = slot;
}

/* The stamp by which a slot is chosen; NOT_ELIGIBLE if this call needs it or a lane holds it. */
static uint64_t key_of(const wb_experts *e, const wb_experts_call *c, uint64_t clock, uint32_t slot)
{
    const uint64_t used = AT(const uint64_t, e->used)[slot];
    if (used == clock) return NOT_ELIGIBLE;
    for (uint32_t lane = 0; lane < e->lane_count; lane++) {
        const uint64_t held = AT(const uint64_t, e->held)[(uint64_t)lane * e->capacity + slot];
        if ((c->hint || lane != c->lane) && held == AT(const uint64_t, e->lanes)[lane]) {
            return NOT_ELIGIBLE;
        }
    }
    return used;
}

/* The number of slots whose key is at most `limit`. */
static uint32_t at_most(const wb_experts *e, const wb_experts_call *c, uint64_t clock,
                        uint64_t limit)
{
    const uint32_t slots = AT(const wb_experts_head, e->head)->slots;
    uint32_t count = 0;
    for (uint32_t slot = 0; slot < slots; slot++) count += key_of(e, c, clock, slot) <= limit;
    return count;
}

static void use(const wb_experts *e, const wb_experts_call *c, uint64_t clock, uint32_t slot)
{
    AT(uint64_t, e->used)[slot] = clock;
    if (!c->hint) AT(uint64_t, e->held)[(uint64_t)c->lane * e->capacity + slot] = clock;
}

/* Gives each absent expert a slot, as long as there are any. Returns how many got one. */
static uint32_t admit_absent(const wb_experts *e, const wb_experts_call *c, uint64_t clock,
                             const uint16_t *absent, uint32_t count)
{
    const uint32_t slots = AT(const wb_experts_head, e->head)->slots;
    const uint32_t eligible = at_most(e, c, clock, NOT_ELIGIBLE - 1);
    const uint32_t admitted = count < eligible ? count : eligible;
    uint64_t low = 0, high = clock;
    if (admitted == 0) return 0;
    while (low < high) {
        const uint64_t middle = low + (high - low) / 2;
        if (at_most(e, c, clock, middle) >= admitted) high = middle;
        else low = middle + 1;
    }
    uint32_t ties = admitted - (low == 0 ? 0 : at_most(e, c, clock, low - 1));
    for (uint32_t slot = 0, next = 0; slot < slots && next < admitted; slot++) {
        const uint64_t key = key_of(e, c, clock, slot);
        if (key > low || (key == low && ties == 0)) continue;
        if (key == low) ties--;
        const uint32_t expert = absent[next];
        const int32_t whole = (int32_t)(c->base + expert);
        const int32_t before = AT(int32_t, e->expert_in)[slot];
        if (before >= 0) {
            AT(int32_t, e->slot_of)[before] = -1;
            AT(wb_experts_counters, e->counters)[c->layer].evictions++;
        }
        AT(int32_t, e->expert_in)[slot] = whole;
        AT(int32_t, e->slot_of)[whole] = (int32_t)slot;
        use(e, c, clock, slot);
        AT(wb_experts_miss, e->misses)[next] = (wb_experts_miss){expert, slot};
        next++;
    }
    return admitted;
}

/* Finds the experts of a call in slots or gives them slots, and rewrites their numbers. */
static void admit(const wb_experts *e, const wb_experts_call *c)
{
    static const uint32_t BITS = 32;
    uint32_t needed[WB_MOST_EXPERTS / 32] = {0};
    uint16_t absent[WB_MOST_EXPERTS];
    uint32_t absent_count = 0, hits = 0;
    wb_experts_head *head = AT(wb_experts_head, e->head);
    const int32_t *slot_of = AT(const int32_t, e->slot_of) + c->base;
    wb_experts_counters *counters = AT(wb_experts_counters, e->counters) + c->layer;
    const uint64_t clock = head->clock + 1;
    for (uint64_t index = 0; index < c->count; index++) {
        const int64_t id = id_at(c, index);
        if (id >= c->first && id < c->end) needed[id / BITS] |= 1u << id % BITS;
        else counters->ignored += id < 0 || id >= c->experts;
    }
    for (uint32_t expert = c->first; expert < c->end; expert++) {
        if (!(needed[expert / BITS] >> expert % BITS & 1)) continue;
        if (slot_of[expert] < 0) {
            absent[absent_count++] = (uint16_t)expert;
        } else {
            use(e, c, clock, (uint32_t)slot_of[expert]);
            hits++;
        }
    }
    const uint32_t admitted = admit_absent(e, c, clock, absent, absent_count);
    if (c->slots != 0) {
        for (uint64_t index = 0; index < c->count; index++) {
            const int64_t id = id_at(c, index);
            write_slot(c, index, id >= c->first && id < c->end ? slot_of[id] : -1);
        }
    }
    head->clock = clock;
    head->admitted = admitted;
    counters->bytes += admitted * e->expert_bytes;
    counters->refused += absent_count - admitted;
    if (c->hint) {
        counters->prefetched += admitted;
    } else {
        AT(uint64_t, e->lanes)[c->lane] = clock;
        counters->hits += hits;
        counters->misses += absent_count;
        counters->calls++;
    }
}

/* Copies the experts that the last call admitted into their slots. */
static void gather(const wb_experts *e, const wb_experts_call *c)
{
    const uint32_t admitted = AT(const wb_experts_head, e->head)->admitted;
    const wb_experts_tensor *tensors = AT(const wb_experts_tensor, e->tensors);
    const wb_experts_source *sources =
        AT(const wb_experts_source, e->sources) + (uint64_t)c->layer * e->tensor_count;
    for (uint32_t index = 0; index < admitted; index++) {
        const wb_experts_miss miss = AT(const wb_experts_miss, e->misses)[index];
        for (uint32_t tensor = 0; tensor < e->tensor_count; tensor++) {
            const uint64_t bytes = tensors[tensor].bytes;
            const uint64_t from =
                sources[tensor].address + (uint64_t)(sources[tensor].stride * (int64_t)miss.expert);
            memcpy(AT(void, tensors[tensor].slots + miss.slot * bytes), AT(const void, from), bytes);
        }
    }
}

void KERNEL(experts_route)(const wb_experts *e, const wb_experts_call *c)
{
    admit(e, c);
    gather(e, c);
}

/* Empties the slots from `keep` on, and sets how many slots are in use. */
void KERNEL(experts_resize)(const wb_experts *e, uint32_t keep, uint32_t slots)
{
    int32_t *expert_in = AT(int32_t, e->expert_in);
    for (uint32_t slot = keep; slot < e->capacity; slot++) {
        if (expert_in[slot] >= 0) AT(int32_t, e->slot_of)[expert_in[slot]] = -1;
        expert_in[slot] = -1;
        AT(uint64_t, e->used)[slot] = 0;
        for (uint32_t lane = 0; lane < e->lane_count; lane++) {
            AT(uint64_t, e->held)[(uint64_t)lane * e->capacity + slot] = 0;
        }
    }
    AT(wb_experts_head, e->head)->slots = slots;
}
