/* Weights whose sources are compressed already: carried unchanged, decoded where they are not carried so, and
 * refused where they are not what their parameters say. */
#include "compressed.h"

static unsigned char *encoded_at[WEIGHTS];
static wb_buffer *encoded;
/* What the sources have, which nothing writes. */
static unsigned char encoded_before[WEIGHTS * 2 * MOST_BYTES];

static uint64_t up(uint64_t bytes, uint64_t to) { return (bytes + to - 1) / to * to; }

/* Compresses the sources of all weights into one buffer, which the parameters name. */
static int encode_sources(wb_device *device)
{
    uint64_t at = 0;
    if (!CHECK_OK(wb_buffer_alloc(device, sizeof encoded_before, NULL, &encoded, &error))) return 0;
    unsigned char *const memory = (unsigned char *)buffer_info(encoded).data;
    memset(memory, 0, sizeof encoded_before);
    for (int one = 0; one < all.count; one++) {
        const struct weight *weight = &all.weights[one];
        wb_codec_info info = WB_CODEC_INFO_INIT;
        uint64_t most = 0;
        if (!CHECK_OK(wb_codec_get_max_bytes(weight->dtype, weight->bytes, &most, &error)) ||
            !CHECK_OK(wb_codec_encode(weight->dtype, weight->content, weight->bytes, memory + at, most, 0,
                                      &info, &error))) {
            return 0;
        }
        encoded_at[one] = memory + at;
        all.parameters[one].source = encoded_at[one];
        all.parameters[one].encoded_bytes = info.encoded_bytes;
        all.parameters[one].buffer = encoded;
        at += info.encoded_bytes;
    }
    memcpy(encoded_before, memory, sizeof encoded_before);
    return 1;
}

static void end_sources(void)
{
    CHECK(memcmp(buffer_info(encoded).data, encoded_before, sizeof encoded_before) == 0);
    wb_buffer_release(encoded);
}

static int is_given(int at) { return strstr(planned_at(at).reason, "compressed in its file") != NULL; }

/* Bytes of host memory for the plan's weights: those of the sources that are carried so, no others of them. */
static uint64_t host_bytes(int with_given)
{
    uint64_t bytes = 0;
    for (int at = 0; at < all.count; at++) {
        const wb_plan_parameter_info planned = planned_at(at);
        if (planned.placement == WB_PLACEMENT_RESIDENT) continue;
        if (!is_given(at)) bytes += up(all.weights[at].bytes, 256);
        if (is_given(at) && with_given) bytes += up(planned.encoded_bytes, 256);
    }
    return up(bytes, (uint64_t)sysconf(_SC_PAGESIZE));
}

static int seen_phases;

static int32_t note_phase(void *user, wb_phase phase, uint64_t done, uint64_t total)
{
    (void)user, (void)done, (void)total;
    seen_phases |= 1 << phase;
    return 0;
}

/* Commits the plan again, with a callback. */
static void commit_again(void)
{
    wb_buffer_options buffers = WB_BUFFER_OPTIONS_INIT;
    buffers.progress = note_phase;
    wb_offloader_release(all.offloader);
    all.offloader = NULL;
    seen_phases = 0;
    CHECK_OK(wb_offloader_new(all.plan, all.stream, &buffers, &all.offloader, &error));
}

static void sources_are_carried_unchanged(wb_device *device)
{
    static const wb_transfer_mode modes[] = {WB_TRANSFER_MODE_PREFETCH, WB_TRANSFER_MODE_ON_DEMAND};
    for (int turn = 0; turn < 4; turn++) {
        const int stay = turn / 2;
        int given = 0;
        wb_plan_info plan = WB_PLAN_INFO_INIT;
        wb_plan_options options = compressed_options(modes[turn % 2]);
        options.host_store = stay ? WB_HOST_STORE_SOURCE : WB_HOST_STORE_COPY;
        weights_init(WEIGHTS);
        REQUIRE(encode_sources(device) && compressed_begin(device, options));
        for (int step = 0; step < 3; step++) check_all();
        for (int at = 0; at < WEIGHTS; at++) {
            const wb_offloader_parameter_info info = info_at(at);
            CHECK_SAME(is_given(at), at % CONTENTS == RANDOM_BITS ? 0 : planned_at(at).encoded_bytes > 0);
            given += is_given(at);
            CHECK_SAME(info.encoded_bytes, is_given(at) ? all.parameters[at].encoded_bytes : 0);
            CHECK_SAME(planned_at(at).encoded_bytes, info.encoded_bytes);
            CHECK_SAME(info.host_store, is_given(at) && stay ? WB_HOST_STORE_SOURCE : WB_HOST_STORE_COPY);
        }
        CHECK(given >= WEIGHTS / 2);
        CHECK_OK(wb_plan_get_info(all.plan, &plan, &error));
        CHECK_SAME(plan.arena_bytes, host_bytes(1));
        CHECK(plan.arena_bytes < plan.offloaded_bytes);
        /* Exactly the bytes above: no space for replacements, and of those that stay no copy. */
        CHECK_SAME(up(stats_now().asked_bytes - (stay ? sizeof encoded_before : 0), 4096),
                   host_bytes(!stay));
        CHECK_SAME(stats_now().unfilled_bytes, 0);
        commit_again();
        CHECK(!(seen_phases & 1 << WB_PHASE_COMPRESS));
        check_all();
        compressed_end();
        end_sources();
    }
}

/* Where they are not carried compressed: resident, without compress, read in place, named by no selector. */
static void other_weights_are_decoded(wb_device *device)
{
    static const char *const one[] = {"layers.4.w"};
    for (int turn = 0; turn < 4; turn++) {
        wb_plan_options options = compressed_options(WB_TRANSFER_MODE_PREFETCH);
        options.host_store = WB_HOST_STORE_SOURCE;
        if (turn == 0) options.compress = WB_COMPRESS_OFF, options.compress_select_count = 0;
        if (turn == 1) options.compress_select = one;
        weights_init(WEIGHTS);
        REQUIRE(encode_sources(device));
        if (turn == 2) all.parameters[0].placement = all.parameters[4].placement = WB_PLACEMENT_RESIDENT;
        if (turn == 3) all.parameters[2].transfer_mode = WB_TRANSFER_MODE_ZERO_COPY;
        REQUIRE(compressed_begin(device, options));
        check_all();
        if (turn == 0) CHECK_SAME(stats_now().encoded_bytes, 0);
        if (turn == 1) CHECK_SAME(stats_now().encoded_bytes, all.parameters[4].encoded_bytes);
        if (turn == 2) CHECK(info_at(4).placement == WB_PLACEMENT_RESIDENT && info_at(4).owned);
        if (turn == 3) CHECK(info_at(2).host_address != NULL && info_at(2).encoded_bytes == 0);
        compressed_end();
        end_sources();
    }
}

/* Those that are carried compressed are taken unchanged, with space for any bytes. */
static void fixed_addresses_take_them(wb_device *device)
{
    wb_device_info info = WB_DEVICE_INFO_INIT;
    CHECK_OK(wb_device_get_info(device, &info, &error));
    if (info.address_granularity == 0) return;
    for (int compress = 0; compress < 2; compress++) {
        wb_plan_options options = compressed_options(WB_TRANSFER_MODE_PREFETCH);
        if (!compress) options.compress = WB_COMPRESS_OFF, options.compress_select_count = 0;
        options.fixed_addresses = WB_TRISTATE_ON;
        options.budget_bytes = 256 << 20;
        weights_init(WEIGHTS);
        REQUIRE(encode_sources(device));
        all.parameters[3].placement = WB_PLACEMENT_RESIDENT;
        REQUIRE(compressed_begin(device, options));
        check_all();
        CHECK_SAME(stats_now().encoded_bytes > 0, (uint64_t)compress);
        CHECK_SAME(is_given(0), compress);
        CHECK_SAME(stats_now().encoded_by_device_bytes + stats_now().encoded_by_host_bytes, 0);
        set_weight(0, WB_DTYPE_BF16, 4 * TILE, RANDOM_BITS, 12);
        CHECK_OK(replace_weight(0));
        check_all();
        compressed_end();
        end_sources();
    }
}

/* A replacement leaves the source, which is not written, for memory of the offloader with space for any bytes. */
static void a_replacement_leaves_the_source(wb_device *device)
{
    for (int stay = 0; stay < 2; stay++) {
        uint64_t before = 0, after = 0;
        wb_plan_options options = compressed_options(WB_TRANSFER_MODE_PREFETCH);
        options.host_store = stay ? WB_HOST_STORE_SOURCE : WB_HOST_STORE_COPY;
        weights_init(WEIGHTS);
        REQUIRE(encode_sources(device) && compressed_begin(device, options));
        CHECK_OK(wb_offloader_get_generation(all.offloader, &before, &error));
        for (int turn = 0; turn < 6; turn++) {
            set_weight(0, WB_DTYPE_BF16, 4 * TILE, turn % 2 ? RANDOM_BITS : TRAINED, 50 + (uint64_t)turn);
            CHECK_OK(replace_weight(0));
            CHECK(info_at(0).host_store == WB_HOST_STORE_COPY && info_at(0).encoded_bytes > 0);
            if (turn == 0) {
                CHECK_OK(wb_offloader_get_generation(all.offloader, &after, &error));
                CHECK(after != before);
            }
            check_all();
        }
        CHECK_OK(wb_offloader_get_generation(all.offloader, &before, &error));
        CHECK_SAME(before, after); /* only the first has moved it */
        CHECK_OK(wb_offloader_compact(all.offloader, all.stream, &error));
        check_all();
        /* Other sizes, neighbours that go, and new ones in the space that they leave. */
        set_weight(4, WB_DTYPE_F8_E5M2, 9 * TILE, TRAINED, 71);
        CHECK_OK(replace_weight(4));
        set_weight(2, WB_DTYPE_BF16, 2 * TILE, TRAINED, 72);
        CHECK_OK(replace_weight(2));
        check_all();
        CHECK_OK(wb_offloader_remove(all.offloader, all.weights[7].name, all.stream, &error));
        CHECK_OK(wb_offloader_remove(all.offloader, all.weights[1].name, all.stream, &error));
        all.count = 7;
        CHECK_OK(wb_offloader_compact(all.offloader, all.stream, &error));
        all.parameters[1].source = all.weights[1].content;
        all.parameters[1].encoded_bytes = 0;
        all.parameters[1].buffer = NULL;
        CHECK_OK(wb_offloader_add(all.offloader, &all.parameters[1], all.stream, &error));
        check_all();
        for (int at = 0; at < 7; at++) {
            set_weight(at, all.weights[at].dtype, all.weights[at].bytes, SPECIAL, 90 + (uint64_t)at);
            CHECK_OK(replace_weight(at));
            CHECK(info_at(at).host_store == WB_HOST_STORE_COPY);
        }
        check_all();
        compressed_end();
        end_sources();
    }
}

/* What has left its source no longer holds its buffer: its owner's memory is free. */
static void the_last_weight_to_leave_releases_the_buffer(wb_device *device)
{
    wb_plan_options options = compressed_options(WB_TRANSFER_MODE_PREFETCH);
    options.host_store = WB_HOST_STORE_SOURCE;
    weights_init(1);
    REQUIRE(encode_sources(device) && compressed_begin(device, options));
    wb_plan_release(all.plan);
    all.plan = NULL;
    wb_buffer_release(encoded);
    const uint64_t held = stats_now().mapped_bytes;
    check_all();
    set_weight(0, WB_DTYPE_BF16, 4 * TILE, RANDOM_BITS, 5);
    CHECK_OK(replace_weight(0));
    check_all();
    CHECK(stats_now().mapped_bytes + sizeof encoded_before <= held + up(5 * TILE, 4096) + 3 * 4096);
    compressed_end();
}

/* The budget counts what the sources have. */
static void a_budget_counts_compressed_bytes(wb_device *device)
{
    for (int stay = 0; stay < 2; stay++) {
        wb_plan_options options = compressed_options(WB_TRANSFER_MODE_PREFETCH);
        options.host_store = stay ? WB_HOST_STORE_SOURCE : WB_HOST_STORE_COPY;
        weights_init(WEIGHTS);
        REQUIRE(encode_sources(device) && compressed_begin(device, options));
        options.budget_bytes = host_bytes(1);
        compressed_end();
        REQUIRE(compressed_begin(device, options));
        for (int at = 0; at < WEIGHTS; at++) CHECK(planned_at(at).placement == WB_PLACEMENT_OFFLOADED);
        check_all();
        /* A replacement takes space that the budget does not have. */
        if (!stay) {
            set_weight(4, WB_DTYPE_F8_E5M2, all.weights[4].bytes, RANDOM_BITS, 8);
            CHECK_ERROR(WB_ERR_BUDGET, replace_weight(4), "over the budget");
            set_weight(4, WB_DTYPE_F8_E5M2, all.weights[4].bytes, TRAINED, 5);
            check_all();
        }
        compressed_end();
        options.budget_bytes -= 4096;
        REQUIRE(compressed_begin(device, options));
        int resident = 0;
        for (int at = 0; at < WEIGHTS; at++) {
            resident += planned_at(at).placement == WB_PLACEMENT_RESIDENT;
        }
        CHECK(resident > 0);
        compressed_end();
        end_sources();
    }
}

/* The same source twice is one storage; tensors of one buffer that overlap otherwise are not. */
static void tied_weights_have_one_source(wb_device *device)
{
    weights_init(2);
    set_weight(1, WB_DTYPE_BF16, 4 * TILE, TRAINED, 1);
    REQUIRE(encode_sources(device));
    const wb_parameter first = all.parameters[0];
    all.parameters[1].source = first.source;
    all.parameters[1].encoded_bytes = first.encoded_bytes;
    REQUIRE(compressed_begin(device, compressed_options(WB_TRANSFER_MODE_PREFETCH)));
    CHECK_SAME(planned_at(1).tied_to, 0);
    check_all();
    set_weight(0, WB_DTYPE_BF16, 4 * TILE, TRAINED, 9);
    memcpy(all.weights[1].content, all.weights[0].content, 4 * TILE);
    CHECK_OK(replace_weight(0));
    check_all();
    compressed_end();
    all.parameters[1].source = (const char *)first.source + 64;
    all.parameters[1].encoded_bytes -= 64;
    wb_plan *plan = UNTOUCHED(wb_plan);
    wb_plan_options options = compressed_options(WB_TRANSFER_MODE_PREFETCH);
    CHECK_ERROR(WB_ERR_DAMAGED, wb_plan_new(device, all.parameters, 2, &options, &plan, &error),
                "layers.1.w");
    end_sources();
}

static void put_u64(unsigned char *to, uint64_t number) { memcpy(to, &number, sizeof number); }

/* Nothing outside of a source is read, and nothing is made of one that lies. */
static void sources_that_lie_are_refused(wb_device *device)
{
    static const wb_host_store stores[] = {WB_HOST_STORE_COPY, WB_HOST_STORE_SOURCE};
    wb_plan *plan = UNTOUCHED(wb_plan);
    wb_offloader *offloader = UNTOUCHED(wb_offloader);
    for (int store = 0; store < 2; store++) {
        for (int compress = 0; compress < 2; compress++) {
            wb_plan_options options = compressed_options(WB_TRANSFER_MODE_PREFETCH);
            options.host_store = stores[store];
            if (!compress) options.compress = WB_COMPRESS_OFF, options.compress_select_count = 0;
            weights_init(1);
            REQUIRE(encode_sources(device));
            wb_parameter *one = &all.parameters[0];
            const wb_parameter good = *one;
            unsigned char *const header = encoded_at[0];
            const uint64_t bytes = good.encoded_bytes;
#define PLAN_FAILS(status, words, change)                                                          \
    change;                                                                                        \
    CHECK_ERROR(status, wb_plan_new(device, one, 1, &options, &plan, &error), words);              \
    *one = good;                                                                                   \
    memcpy(header, encoded_before, bytes)
            PLAN_FAILS(WB_ERR_DAMAGED, "layers.0.w|do not begin", header[0] ^= 1);
            PLAN_FAILS(WB_ERR_DAMAGED, "layers.0.w|version", header[4] = 9);
            PLAN_FAILS(WB_ERR_DAMAGED, "layers.0.w|f16", header[5] = 2; memset(header + 24, 0, 12));
            PLAN_FAILS(WB_ERR_DAMAGED, "layers.0.w|24576 bytes of bf16|32768", put_u64(header + 8, 3 * TILE));
            PLAN_FAILS(WB_ERR_DAMAGED, "layers.0.w|truncated", put_u64(header + 16, bytes + 16));
            PLAN_FAILS(WB_ERR_DAMAGED, "layers.0.w|truncated", one->encoded_bytes -= 16);
            PLAN_FAILS(WB_ERR_DAMAGED, "layers.0.w|encoded_bytes", one->encoded_bytes += 16);
            PLAN_FAILS(WB_ERR_UNALIGNED, "layers.0.w|multiple of 16", one->source = header + 8);
            PLAN_FAILS(WB_ERR_UNALIGNED, "layers.0.w|multiple of 16", one->source = NULL);
            PLAN_FAILS(WB_ERR_INVALID_ARGUMENT, "layers.0.w|128 to 32896 bytes", one->encoded_bytes = 64);
            PLAN_FAILS(WB_ERR_INVALID_ARGUMENT, "layers.0.w|128 to 32896 bytes", one->encoded_bytes = 1 << 20);
            PLAN_FAILS(WB_ERR_OUT_OF_RANGE, "layers.0.w|not in its buffer",
                       one->source = header + sizeof encoded_before - 128);
            CHECK(plan == UNTOUCHED(wb_plan));
            /* The directory is read at the commit: an entry that begins elsewhere, counts of other bytes, a kind
             * that does not exist. The header may have changed since, too. */
            REQUIRE(compressed_begin(device, options));
            wb_offloader_release(all.offloader); /* which may still read it */
#define COMMIT_FAILS(words, change)                                                                \
    change;                                                                                        \
    CHECK_ERROR(WB_ERR_DAMAGED, wb_offloader_new(all.plan, NULL, NULL, &offloader, &error), words); \
    memcpy(header, encoded_before, bytes)
            COMMIT_FAILS("layers.0.w|tile 1 begins", header[64 + 16] ^= 1);
            COMMIT_FAILS("layers.0.w|directory", put_u64(header + 64 + 8, (uint64_t)15 << 60));
            COMMIT_FAILS("layers.0.w", put_u64(header + 64 + 8, (uint64_t)1 << 60));
            COMMIT_FAILS("layers.0.w|f16", header[5] = 2; memset(header + 24, 0, 12));
            COMMIT_FAILS("layers.0.w", put_u64(header + 16, bytes - 16));
            CHECK(offloader == UNTOUCHED(wb_offloader));
            CHECK_OK(wb_offloader_new(all.plan, all.stream, NULL, &all.offloader, &error));
            check_all();
            compressed_end();
            end_sources();
        }
    }
    /* What is decoded at the commit is compared with its checksums. */
    wb_plan_options options = compressed_options(WB_TRANSFER_MODE_PREFETCH);
    options.compress = WB_COMPRESS_OFF;
    options.compress_select_count = 0;
    weights_init(1);
    REQUIRE(encode_sources(device) && compressed_begin(device, options));
    encoded_at[0][all.parameters[0].encoded_bytes / 2] ^= 4;
    CHECK_ERROR(WB_ERR_DAMAGED, wb_offloader_new(all.plan, NULL, NULL, &offloader, &error),
                "layers.0.w|tile");
    encoded_at[0][all.parameters[0].encoded_bytes / 2] ^= 4;
    compressed_end();
    end_sources();
    /* A resident one is decoded by a CUDA device itself, if it reads the source in place. */
    weights_init(2);
    REQUIRE(encode_sources(device));
    all.parameters[0].placement = WB_PLACEMENT_RESIDENT;
    REQUIRE(compressed_begin(device, options));
    check_all();
    encoded_at[0][all.parameters[0].encoded_bytes / 2] ^= 4;
    CHECK_ERROR(WB_ERR_DAMAGED, wb_offloader_new(all.plan, NULL, NULL, &offloader, &error),
                on_cuda() ? "layers.0.w|device has decoded|1 of 4 tiles|copy its file again" : "layers.0.w|tile");
    encoded_at[0][all.parameters[0].encoded_bytes / 2] ^= 4;
    compressed_end();
    end_sources();
}

/* Compressed weights stay in their sources, and all others of the same buffer have memory that may be written. */
static void only_compressed_weights_stay(wb_device *device)
{
    wb_plan_options options = compressed_options(WB_TRANSFER_MODE_PREFETCH);
    options.host_store = WB_HOST_STORE_COMPRESSED;
    weights_init(4);
    memcpy(all.weights[2].group, "layers.0", 9);
    REQUIRE(encode_sources(device));
    /* The third has its values in the same buffer, behind the others. */
    unsigned char *const values = encoded_at[3] + up(all.parameters[3].encoded_bytes, 256);
    memcpy(values, all.weights[2].content, all.weights[2].bytes);
    memcpy(encoded_before, buffer_info(encoded).data, sizeof encoded_before);
    static const char *const some[] = {"layers.0", "layers.3"};
    options.compress_select = some;
    options.compress_select_count = 2;
    all.parameters[2].source = values;
    all.parameters[2].encoded_bytes = 0;
    REQUIRE(compressed_begin(device, options));
    CHECK(info_at(0).host_store == WB_HOST_STORE_SOURCE && info_at(0).encoded_bytes > 0);
    CHECK(info_at(2).host_store == WB_HOST_STORE_COPY && info_at(2).host_address != NULL);
    CHECK(info_at(2).host_address != (void *)values && strcmp(info_at(2).host_store_reason, "") == 0);
    check_all();
    memset(info_at(2).host_address, 7, all.weights[2].bytes);
    compressed_end();
    end_sources(); /* of which nothing was written */
}

/* Damage of bytes that are carried as they are is found on request, or when they are read, and has a name. */
static void damage_of_carried_bytes_is_found(wb_device *device)
{
    static unsigned char read[MOST_BYTES];
    wb_offloader *offloader = UNTOUCHED(wb_offloader);
    for (int stay = 0; stay < 2; stay++) {
        for (int verify = 0; verify < 2; verify++) {
            wb_plan_options options = compressed_options(WB_TRANSFER_MODE_PREFETCH);
            options.host_store = stay ? WB_HOST_STORE_SOURCE : WB_HOST_STORE_COPY;
            options.verify_compressed = (uint32_t)verify;
            weights_init(WEIGHTS);
            REQUIRE(encode_sources(device) && compressed_begin(device, options));
            wb_offloader_release(all.offloader);
            all.offloader = NULL;
            CHECK(is_given(0));
            unsigned char *const damaged = encoded_at[0] + all.parameters[0].encoded_bytes - 4096;
            *damaged ^= 0x10;
            const wb_status status = wb_offloader_new(all.plan, NULL, NULL, &offloader, &error);
            if (verify) {
                CHECK_SAME(status, WB_ERR_DAMAGED);
                CHECK(strstr(error.message, "layers.0.w") && strstr(error.message, "copy its file again"));
                CHECK(offloader == UNTOUCHED(wb_offloader));
            } else {
                CHECK_SAME(status, WB_OK);
                all.offloader = offloader;
                offloader = UNTOUCHED(wb_offloader);
                CHECK_ERROR(WB_ERR_DAMAGED,
                            wb_offloader_read_parameter(all.offloader, index_of("layers.0.w"), read,
                                                        all.weights[0].bytes, &error),
                            "layers.0.w|tile|replace it");
                wb_offloader_release(all.offloader);
                all.offloader = NULL;
            }
            *damaged ^= 0x10;
            CHECK_OK(wb_offloader_new(all.plan, all.stream, NULL, &all.offloader, &error));
            check_all();
            compressed_end();
            end_sources();
        }
    }
}

static int32_t cancels(void *user, wb_phase phase, uint64_t done, uint64_t total)
{
    (void)user, (void)total;
    return phase == WB_PHASE_READ && done > 0;
}

static void verifying_is_cancelled(wb_device *device)
{
    wb_plan_options options = compressed_options(WB_TRANSFER_MODE_PREFETCH);
    wb_buffer_options buffers = WB_BUFFER_OPTIONS_INIT;
    wb_offloader *offloader = UNTOUCHED(wb_offloader);
    options.host_store = WB_HOST_STORE_SOURCE; /* nothing is copied */
    options.verify_compressed = 1;
    weights_init(1);
    REQUIRE(encode_sources(device) && compressed_begin(device, options));
    buffers.progress = cancels;
    CHECK_ERROR(WB_ERR_CANCELLED, wb_offloader_new(all.plan, NULL, &buffers, &offloader, &error), "32768");
    CHECK(offloader == UNTOUCHED(wb_offloader));
    compressed_end();
    end_sources();
}

/* They are decoded, and compressed again where the plan has it so. */
static void parameters_that_come_later_have_them(wb_device *device)
{
    wb_offloader_reconcile_result result = WB_OFFLOADER_RECONCILE_RESULT_INIT;
    for (int stay = 0; stay < 2; stay++) {
        wb_plan_options options = compressed_options(WB_TRANSFER_MODE_PREFETCH);
        options.host_store = stay ? WB_HOST_STORE_SOURCE : WB_HOST_STORE_COPY;
        weights_init(WEIGHTS);
        REQUIRE(encode_sources(device));
        all.count = 6;
        memcpy(all.weights[2].group, "layers.0", 9); /* two that come later have groups of others */
        REQUIRE(compressed_begin(device, options));
        const uint64_t first_bytes = info_at(0).encoded_bytes;
        all.parameters[6].group = all.parameters[7].group = all.weights[3].group;
        memcpy(all.weights[6].group, all.weights[3].group, sizeof all.weights[3].group);
        memcpy(all.weights[7].group, all.weights[3].group, sizeof all.weights[3].group);
        CHECK_OK(wb_offloader_add(all.offloader, &all.parameters[6], all.stream, &error));
        all.count = 7;
        CHECK(info_at(6).encoded_bytes == all.parameters[6].encoded_bytes);
        CHECK(info_at(6).host_store == WB_HOST_STORE_COPY);
        check_all();
        /* All that are known have their bytes in their sources, or elsewhere in copies. */
        all.count = 8;
        CHECK_OK(wb_offloader_reconcile(all.offloader, all.parameters, 8, all.stream, &result, &error));
        CHECK_SAME(result.added, 1);
        CHECK_SAME(result.removed, 0);
        uint64_t kept = 0;
        for (int at = 0; at < 6 && stay; at++) kept += info_at(at).host_store == WB_HOST_STORE_SOURCE;
        CHECK(stay == 0 || kept > 0);
        CHECK_SAME(result.kept, kept);
        CHECK_SAME(result.kept + result.replaced, 7);
        CHECK_SAME(info_at(0).encoded_bytes, first_bytes); /* all encoders write the same */
        check_all();
        /* Damage has a name, and changes nothing but what came before it. */
        encoded_at[5][0] ^= 1;
        CHECK_ERROR(WB_ERR_DAMAGED,
                    wb_offloader_reconcile(all.offloader, all.parameters, 8, all.stream, &result, &error),
                    "layers.5.w|do not begin");
        encoded_at[5][0] ^= 1;
        CHECK_OK(wb_offloader_remove(all.offloader, "layers.7.w", all.stream, &error));
        encoded_at[7][all.parameters[7].encoded_bytes / 2] ^= 1;
        CHECK_ERROR(WB_ERR_DAMAGED,
                    wb_offloader_add(all.offloader, &all.parameters[7], all.stream, &error),
                    "layers.7.w|copy its file again");
        encoded_at[7][all.parameters[7].encoded_bytes / 2] ^= 1;
        all.count = 7;
        check_all();
        CHECK_OK(wb_offloader_add(all.offloader, &all.parameters[7], all.stream, &error));
        all.count = 8;
        check_all();
        compressed_end();
        end_sources();
    }
}

static void other_types_cannot_have_them(wb_device *device)
{
    wb_plan *plan = UNTOUCHED(wb_plan);
    const wb_plan_options options = compressed_options(WB_TRANSFER_MODE_PREFETCH);
    weights_init(1);
    REQUIRE(encode_sources(device));
    all.layouts[0].dtype = WB_DTYPE_U8;
    CHECK_ERROR(WB_ERR_NOT_SUPPORTED, wb_plan_new(device, all.parameters, 1, &options, &plan, &error),
                "layers.0.w|not compressed");
    all.layouts[0].dtype = WB_DTYPE_BF16;
    all.layouts[0].offset_bytes = 2;
    CHECK_ERROR(WB_ERR_INVALID_ARGUMENT,
                wb_plan_new(device, all.parameters, 1, &options, &plan, &error), "layers.0.w|lowest");
    CHECK(plan == UNTOUCHED(wb_plan));
    end_sources();
}

/* Compressed values are quantized to the same numbers as raw ones. */
static void they_are_quantized(wb_device *device)
{
    enum { ROWS = 128, COLS = 128 };
    static unsigned char found[2][ROWS * COLS];
    static const int64_t shape[] = {ROWS, COLS};
    const wb_quantize_options quantize = WB_QUANTIZE_OPTIONS_INIT;
    for (int is_encoded = 0; is_encoded < 2; is_encoded++) {
        wb_plan_options options = compressed_options(WB_TRANSFER_MODE_PREFETCH);
        options.quantize = &quantize;
        options.compress = WB_COMPRESS_OFF;
        options.compress_select_count = 0;
        weights_init(1);
        set_weight(0, WB_DTYPE_BF16, 2 * ROWS * COLS, TRAINED, 1);
        REQUIRE(encode_sources(device));
        all.layouts[0] = layout_of(WB_DTYPE_BF16, 2, shape, NULL, 0);
        if (!is_encoded) {
            all.parameters[0].source = all.weights[0].content;
            all.parameters[0].encoded_bytes = 0;
            all.parameters[0].buffer = NULL;
        }
        REQUIRE(compressed_begin(device, options));
        CHECK_OK(wb_offloader_read_parameter(all.offloader, 0, found[is_encoded], ROWS * COLS, &error));
        compressed_end();
        end_sources();
    }
    CHECK(memcmp(found[0], found[1], sizeof found[0]) == 0);
    CHECK(found[0][0] != found[0][1]);
}

CHECK_MAIN(CASE(sources_are_carried_unchanged), CASE(other_weights_are_decoded),
           CASE(fixed_addresses_take_them), CASE(a_replacement_leaves_the_source),
           CASE(the_last_weight_to_leave_releases_the_buffer), CASE(a_budget_counts_compressed_bytes),
           CASE(tied_weights_have_one_source), CASE(sources_that_lie_are_refused),
           CASE(only_compressed_weights_stay), CASE(damage_of_carried_bytes_is_found),
           CASE(verifying_is_cancelled),
           CASE(parameters_that_come_later_have_them), CASE(other_types_cannot_have_them),
           CASE(they_are_quantized))
