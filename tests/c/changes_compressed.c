/* Compressed weights that are replaced, added and removed keep every bit, in graphs, too. */
#include "compressed_graph.h"

/* Bytes that do not compress fit as well, and any type is stored as the first one. */
static void a_replacement_of_as_many_bytes_moves_nothing(wb_device *device)
{
    static const wb_dtype types[] = {WB_DTYPE_F16, WB_DTYPE_F32, WB_DTYPE_F8_E4M3FN, WB_DTYPE_BF16};
    uint64_t before = 0, after = 0;
    weights_init(5);
    REQUIRE(compressed_begin(device, compressed_options(WB_TRANSFER_MODE_PREFETCH)));
    const void *address = info_at(0).device_address;
    CHECK_OK(wb_offloader_get_generation(all.offloader, &before, &error));
    for (int turn = 0; turn < 16; turn++) {
        set_weight(0, types[turn % 4], all.weights[0].bytes, (enum content)(turn / 4),
                   100 + (uint64_t)turn);
        CHECK_OK(replace_weight(0));
        CHECK(info_at(0).device_address == address);
        CHECK(info_at(0).encoded_bytes > 0);
        if (turn / 4 == RANDOM_BITS) {
            CHECK(info_at(0).encoded_bytes > all.weights[0].bytes);
            CHECK(info_at(0).encoded_bytes <= all.weights[0].bytes + 64 + 16 * 4);
        }
        if (turn / 4 == ZEROS) CHECK_SAME(info_at(0).encoded_bytes, 64 + 16 * 4);
        check_all();
    }
    CHECK_OK(wb_offloader_get_generation(all.offloader, &after, &error));
    CHECK_SAME(after, before);
    compressed_end();
}

static void a_replacement_of_another_size_is_compressed_again(wb_device *device)
{
    static const uint64_t sizes[] = {2 * TILE, 6 * TILE, 100, 12 * TILE, TILE, 0, 4 * TILE};
    weights_init(5);
    REQUIRE(compressed_begin(device, compressed_options(WB_TRANSFER_MODE_PREFETCH)));
    for (int turn = 0; turn < 7; turn++) {
        set_weight(0, WB_DTYPE_BF16, sizes[turn], TRAINED, 200 + (uint64_t)turn);
        CHECK_OK(replace_weight(0));
        CHECK_SAME(info_at(0).encoded_bytes > 0, sizes[turn] >= TILE);
        check_all();
        CHECK_OK(wb_offloader_compact(all.offloader, all.stream, &error));
        check_all();
    }
    compressed_end();
}

/* From device memory, and from the slot itself under another name. */
static void a_source_may_be_on_the_device(wb_device *device)
{
    void *memory = NULL;
    uint64_t group = 0;
    weights_init(5);
    REQUIRE(compressed_begin(device, compressed_options(WB_TRANSFER_MODE_PREFETCH)));
    REQUIRE_OK(wb_device_alloc(device, MOST_BYTES, &memory, &error));
    set_weight(4, WB_DTYPE_BF16, all.weights[4].bytes, TRAINED, 7);
    CHECK_OK(wb_device_copy(device, memory, all.weights[4].content, all.weights[4].bytes, NULL,
                            &error));
    CHECK_OK(wb_device_stream_synchronize(device, NULL, &error));
    CHECK_OK(wb_offloader_replace(all.offloader, all.weights[4].name, memory, &all.layouts[4],
                                  all.stream, &error));
    CHECK(holds(4));
    /* The first two share a group: a part of the first becomes the second. */
    CHECK_OK(wb_offloader_find_group(all.offloader, "layers.0", &group, &error));
    const unsigned char *slot = (const unsigned char *)info_at(0).device_address;
    memcpy(all.weights[1].content, all.weights[0].content + 4096, all.weights[1].bytes);
    CHECK_OK(wb_offloader_replace(all.offloader, all.weights[1].name, slot + 4096, &all.layouts[1],
                                  all.stream, &error));
    check_all();
    CHECK_OK(wb_device_free(device, memory, &error));
    compressed_end();
}

/* One storage: the second is within the first. */
static void tied_weights_are_compressed_together(wb_device *device)
{
    weights_init(2);
    set_weight(0, WB_DTYPE_BF16, 6 * TILE, TRAINED, 1);
    set_weight(1, WB_DTYPE_BF16, TILE + 512, TRAINED, 1);
    memcpy(all.weights[1].content, all.weights[0].content + 3000, all.weights[1].bytes);
    all.parameters[1].source = all.weights[0].content + 3000;
    REQUIRE(compressed_begin(device, compressed_options(WB_TRANSFER_MODE_PREFETCH)));
    CHECK_SAME(stats_now().decoded_bytes, 6 * TILE);
    CHECK_SAME(info_at(0).encoded_bytes, info_at(1).encoded_bytes);
    check_all();
    /* New bytes of the part are seen in the whole. */
    set_weight(1, WB_DTYPE_BF16, TILE + 512, SPECIAL, 5);
    CHECK_OK(replace_weight(1));
    memcpy(all.weights[0].content + 3000, all.weights[1].content, all.weights[1].bytes);
    check_all();
    /* Apart from then on. */
    CHECK_OK(wb_offloader_remove(all.offloader, all.weights[0].name, all.stream, &error));
    CHECK(stats_now().offloaded_bytes < 6 * TILE);
    CHECK_SAME(stats_now().decoded_bytes, stats_now().offloaded_bytes);
    all.weights[0] = all.weights[1];
    all.count = 1;
    check_all();
    set_weight(0, WB_DTYPE_BF16, TILE + 512, TRAINED, 6);
    CHECK_OK(replace_weight(0));
    check_all();
    set_weight(0, WB_DTYPE_BF16, 2 * TILE, TRAINED, 8);
    CHECK_OK(replace_weight(0));
    check_all();
    compressed_end();
}

static void a_weight_without_a_source_is_zeros_until_it_is_replaced(wb_device *device)
{
    uint64_t before = 0, after = 0;
    weights_init(3);
    all.parameters[0].source = NULL;
    memset(all.weights[0].content, 0, all.weights[0].bytes);
    REQUIRE(compressed_begin(device, compressed_options(WB_TRANSFER_MODE_PREFETCH)));
    CHECK_SAME(planned_at(0).encoded_bytes, all.weights[0].bytes * 68 / 100);
    CHECK_SAME(stats_now().unfilled_bytes, all.weights[0].bytes);
    check_all();
    CHECK_OK(wb_offloader_get_generation(all.offloader, &before, &error));
    set_weight(0, WB_DTYPE_BF16, all.weights[0].bytes, TRAINED, 9);
    CHECK_OK(replace_weight(0));
    CHECK_OK(wb_offloader_get_generation(all.offloader, &after, &error));
    CHECK_SAME(after, before);
    CHECK_SAME(stats_now().unfilled_bytes, 0);
    check_all();
    compressed_end();
}

/* A graph decodes what is in host memory when it is replayed: also weights that replace others of as
 * many bytes and do not compress. */
static void a_replay_reads_replaced_weights(wb_device *device)
{
    struct captures captures;
    uint64_t before = 0, after = 0;
    weights_init(5);
    REQUIRE(compressed_begin(device, compressed_options(WB_TRANSFER_MODE_PREFETCH)));
    REQUIRE(CHECK(captures_begin(&captures)));
    const uint64_t bytes = all.weights[3].bytes;
    CHECK_OK(wb_offloader_get_generation(all.offloader, &before, &error));
    set_weight(3, WB_DTYPE_F8_E4M3FN, bytes, TRAINED, 300);
    CHECK_OK(replace_weight(3));
    void *exec = capture_read(&captures, 3);
    REQUIRE(exec != NULL);
    for (int turn = 0; turn < 2 * CONTENTS; turn++) {
        set_weight(3, turn % 2 ? WB_DTYPE_BF16 : WB_DTYPE_F8_E4M3FN, bytes, (enum content)(turn / 2),
                   310 + (uint64_t)turn);
        check_replay_of_replaced(&captures, exec, 3);
    }
    CHECK_OK(wb_offloader_get_generation(all.offloader, &after, &error));
    CHECK_SAME(after, before);
    CHECK(captures.destroy_exec(exec) == 0);
    captures_end(&captures);
    compressed_end();
}

/* Replaces, adds, removes and compacts in an order drawn by lot, and compares all bytes each time. */
static void random_changes_lose_no_bit(wb_device *device)
{
    static const wb_dtype types[] = {WB_DTYPE_BF16, WB_DTYPE_F16, WB_DTYPE_F32, WB_DTYPE_F8_E4M3FN,
                                     WB_DTYPE_U8};
    uint64_t state = 12345;
    for (int round = 0; round < 6; round++) {
        weights_init(WEIGHTS);
        REQUIRE(compressed_begin(device, compressed_options(round % 2 ? WB_TRANSFER_MODE_ON_DEMAND
                                                                      : WB_TRANSFER_MODE_PREFETCH)));
        int gone = -1;
        for (int turn = 0; turn < 40; turn++) {
            const int at = (int)(next_random(&state) % WEIGHTS);
            const uint64_t kind = next_random(&state) % 8;
            struct weight *weight = &all.weights[at];
            if (gone >= 0 && (at == gone || kind == 7)) {
                CHECK_OK(wb_offloader_add(all.offloader, &all.parameters[gone], all.stream, &error));
                gone = -1;
            } else if (kind == 7) {
                gone = at % 2; /* of two in a group, which stays offloaded with the other */
                CHECK_OK(wb_offloader_remove(all.offloader, all.weights[gone].name, all.stream,
                                             &error));
            } else if (kind == 6) {
                CHECK_OK(wb_offloader_compact(all.offloader, all.stream, &error));
            } else {
                uint64_t bytes = weight->bytes;
                if (kind < 3) bytes = next_random(&state) % (MOST_BYTES / 4) * 4;
                set_weight(at, bytes % 4 ? WB_DTYPE_U8 : types[next_random(&state) % 5], bytes,
                           (enum content)(next_random(&state) % CONTENTS), next_random(&state));
                CHECK_OK(replace_weight(at));
            }
            for (int other = 0; other < WEIGHTS; other++) {
                if (other != gone && !CHECK(holds(other))) {
                    printf("round %d, turn %d, weight %d\n", round, turn, other);
                    turn = 40;
                }
            }
        }
        compressed_end();
    }
}

static void a_list_of_all_weights_is_reconciled(wb_device *device)
{
    wb_offloader_reconcile_result done = WB_OFFLOADER_RECONCILE_RESULT_INIT;
    wb_parameter now[WEIGHTS];
    weights_init(6);
    REQUIRE(compressed_begin(device, compressed_options(WB_TRANSFER_MODE_PREFETCH)));
    for (int at = 0; at < 6; at++) {
        now[at] = all.parameters[at];
        now[at].source = info_at(at).device_address; /* its own bytes */
    }
    CHECK_OK(wb_offloader_reconcile(all.offloader, now, 6, all.stream, &done, &error));
    CHECK_SAME(done.kept, 6);
    set_weight(2, WB_DTYPE_BF16, 5 * TILE, TRAINED, 50);
    set_weight(3, WB_DTYPE_F8_E4M3FN, 12 * TILE, RANDOM_BITS, 51);
    for (int at = 0; at < 6; at++) {
        now[at].source = at == 2 || at == 3 ? all.weights[at].content : NULL;
    }
    CHECK_OK(wb_offloader_reconcile(all.offloader, now, 6, all.stream, &done, &error));
    CHECK_SAME(done.replaced, 2);
    CHECK_SAME(done.kept, 4);
    check_all();
    compressed_end();
}

CHECK_MAIN(CASE(a_replacement_of_as_many_bytes_moves_nothing),
           CASE(a_replacement_of_another_size_is_compressed_again),
           CASE(a_source_may_be_on_the_device), CASE(tied_weights_are_compressed_together),
           CASE(a_weight_without_a_source_is_zeros_until_it_is_replaced),
           CASE_ON(CUDA_ONLY, a_replay_reads_replaced_weights), CASE(random_changes_lose_no_bit),
           CASE(a_list_of_all_weights_is_reconciled))
