/* A graph that reads a compressed weight, and is replayed after the weight was replaced. */
#ifndef COMPRESSED_GRAPH_H
#define COMPRESSED_GRAPH_H

#include "captures.h"
#include "compressed.h"

/* Captures a step that copies a weight to the host. NULL after a failed check. */
static inline void *capture_read(const struct captures *captures, int at)
{
    const struct weight *weight = &all.weights[at];
    unsigned char *back = (unsigned char *)buffer_info(all.back).data;
    void *graph = NULL, *exec = NULL;
    uint64_t group = 0;
    CHECK_OK(wb_offloader_find_group(all.offloader, weight->group, &group, &error));
    CHECK(captures->begin(all.stream, 2) == 0);
    CHECK_OK(wb_offloader_begin_step(all.offloader, all.stream, &error));
    CHECK_OK(wb_offloader_acquire_group(all.offloader, group, all.stream, &error));
    CHECK_OK(wb_device_copy(all.device, back, info_at(at).device_address, weight->bytes,
                            all.stream, &error));
    CHECK_OK(wb_offloader_release_group(all.offloader, group, all.stream, &error));
    CHECK_OK(wb_offloader_join(all.offloader, all.stream, &error));
    if (!CHECK(captures->end(all.stream, &graph) == 0)) return NULL;
    CHECK(captures->instantiate(&exec, graph, 0) == 0 && captures->destroy(graph) == 0);
    return exec;
}

/* Replaces the weight by what set_weight() has set, and checks what the graph reads, and eager steps. */
static inline void check_replay_of_replaced(const struct captures *captures, void *exec, int at)
{
    unsigned char *back = (unsigned char *)buffer_info(all.back).data;
    CHECK_OK(replace_weight(at));
    memset(back, 0xee, MOST_BYTES);
    CHECK(captures->launch(exec, all.stream) == 0);
    CHECK_OK(wb_device_stream_synchronize(all.device, all.stream, &error));
    CHECK(memcmp(back, all.weights[at].content, all.weights[at].bytes) == 0);
    check_all();
}

#endif
