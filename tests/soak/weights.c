/* A model whose weights change. */
#include "weights.h"

#include "content.h"

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
    return 1 + chosen / 8 % (weights->most_bytes >> chosen % 4);
}

unsigned char *weight_content(const struct weights *weights, int index, uint64_t version)
{
    const uint64_t bytes = weight_bytes(weights, index, version);
    unsigned char *content = (unsigned char *)malloc(bytes);
    if (content == NULL) abort();
    content_fill(content, bytes, key_of(weights, index, version));
    return content;
}

int weight_is(const struct weights *weights, int index, uint64_t version, const void *memory,
              uint64_t bytes)
{
    return bytes == weight_bytes(weights, index, version) &&
           content_is(memory, 0, bytes, key_of(weights, index, version));
}

wb_offloader *weights_offload(struct weights *weights, wb_device *device, void *stream,
                              const wb_plan_options *plan, const wb_buffer_options *options,
                              wb_status *status)
{
    wb_parameter parameters[MOST_WEIGHTS];
    wb_layout layouts[MOST_WEIGHTS];
    int64_t shapes[MOST_WEIGHTS];
    unsigned char *contents[MOST_WEIGHTS];
    wb_plan *made = NULL;
    wb_offloader *offloader = NULL;
    uint64_t there = 0;
    memset(parameters, 0, sizeof parameters);
    for (int index = 0; index < weights_count(weights); index++) {
        const struct weight *weight = &weights->all[index];
        const wb_parameter empty = WB_PARAMETER_INIT;
        const uint64_t bytes = weight_bytes(weights, index, weight->done);
        if (bytes == 0) continue;
        shapes[there] = (int64_t)bytes;
        layouts[there] = layout_of(WB_DTYPE_U8, 1, &shapes[there], NULL, 0);
        contents[there] = weight_content(weights, index, weight->done);
        parameters[there] = empty;
        parameters[there].name = weight->name;
        parameters[there].group = weight->group;
        parameters[there].layout = &layouts[there];
        parameters[there].source = number(contents[there]);
        there++;
    }
    *status = wb_plan_new(device, parameters, there, plan, &made, &error);
    if (*status == WB_OK) {
        const wb_plan_info empty = WB_PLAN_INFO_INIT;
        weights->planned = empty;
        CHECK_OK(wb_plan_get_info(made, &weights->planned, &error));
        *status = wb_offloader_new(made, stream, options, &offloader, &error);
    }
    wb_plan_release(made);
    for (uint64_t index = 0; index < there; index++) free(contents[index]);
    return *status == WB_OK ? offloader : NULL;
}
