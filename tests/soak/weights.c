/* A model whose weights change. */
#include "weights.h"

void weights_init(struct weights *weights, int groups, int each, uint64_t most_bytes,
                  enum change change, uint64_t key)
{
    memset(weights, 0, sizeof *weights);
    weights->groups = groups;
    weights->each = each;
    weights->most_bytes = most_bytes;
    weights->change = change;
    weights->key = key;
    for (int index = 0; index < groups * each; index++) {
        struct weight *weight = &weights->all[index];
        snprintf(weight->name, sizeof weight->name, "layers.%d.w%d", index / each, index % each);
        snprintf(weight->group, sizeof weight->group, "layers.%d", index / each);
    }
}

static uint64_t key_of(const struct weights *weights, int index, uint64_t version)
{
    return content_word(weights->key, version * MOST_WEIGHTS + (uint64_t)index);
}

uint64_t weight_bytes(const struct weights *weights, int index, uint64_t version)
{
    const uint64_t chosen = key_of(weights, index, weights->change > CONTENT_CHANGES ? version : 0);
    const int last = index % weights->each == weights->each - 1;
    if (weights->change == WEIGHTS_COME_AND_GO && last && chosen % 3 == 0) return 0;
    if (weights->are_large) return weights->most_bytes - chosen / 8 % (weights->most_bytes / 16);
    return 1 + chosen / 8 % (weights->most_bytes >> chosen % 4);
}

unsigned char *weight_content(const struct weights *weights, int index, uint64_t version)
{
    const uint64_t bytes = weight_bytes(weights, index, version);
    unsigned char *content = content_new(bytes, key_of(weights, index, version));
    for (uint64_t at = 0; weights->are_numbers && version % 4 != 3 && at < bytes; at++) {
        content[at] &= 0x9f; /* two of the four bits of the exponent */
    }
    return content;
}

wb_layout weight_layout(const struct weights *weights, const int64_t *bytes)
{
    wb_layout layout = bytes_layout(bytes);
    if (weights->are_numbers) layout.dtype = WB_DTYPE_F8_E4M3FN;
    return layout;
}

int has_weight(const struct weights *weights, int index, uint64_t version, const void *memory,
               uint64_t bytes)
{
    if (bytes != weight_bytes(weights, index, version)) return 0;
    if (!weights->are_numbers) {
        return has_content(memory, 0, bytes, key_of(weights, index, version));
    }
    unsigned char *content = weight_content(weights, index, version);
    const int same = memcmp(memory, content, bytes) == 0;
    free(content);
    return same;
}

wb_offloader *weights_offload(struct weights *weights, wb_device *device, void *stream,
                              const wb_plan_options *plan, const wb_buffer_options *buffers,
                              wb_status *status)
{
    const wb_plan_info no_plan = WB_PLAN_INFO_INIT;
    wb_parameter parameters[MOST_WEIGHTS];
    wb_layout layouts[MOST_WEIGHTS];
    int64_t shapes[MOST_WEIGHTS];
    unsigned char *contents[MOST_WEIGHTS];
    wb_plan *planned = NULL;
    wb_offloader *offloader = NULL;
    uint64_t count = 0;
    memset(parameters, 0, sizeof parameters);
    for (int index = 0; index < weights_count(weights); index++) {
        const struct weight *weight = &weights->all[index];
        const wb_parameter empty = WB_PARAMETER_INIT;
        wb_parameter *parameter = &parameters[count];
        shapes[count] = (int64_t)weight_bytes(weights, index, weight->current);
        if (shapes[count] == 0) continue;
        layouts[count] = weight_layout(weights, &shapes[count]);
        contents[count] = weight_content(weights, index, weight->current);
        *parameter = empty;
        parameter->name = weight->name;
        parameter->group = weight->group;
        parameter->layout = &layouts[count];
        parameter->source = contents[count];
        count++;
    }
    *status = wb_plan_new(device, parameters, count, plan, &planned, &error);
    if (*status == WB_OK) {
        weights->planned = no_plan;
        CHECK_OK(wb_plan_get_info(planned, &weights->planned, &error));
        *status = wb_offloader_new(planned, stream, buffers, &offloader, &error);
    }
    wb_plan_release(planned);
    while (count > 0) free(contents[--count]);
    return *status == WB_OK ? offloader : NULL;
}
