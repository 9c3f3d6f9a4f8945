/* Weights that the device keeps compressed in its own memory: under a budget of device memory, as many as are
 * needed, with every bit. */
#include "compressed_graph.h"

/* Weights of one size, each of a group of its own, that become about 40 %: the second half is zeros. */
static void layers_init(int count)
{
    weights_init(count);
    for (int at = 0; at < count; at++) {
        snprintf(all.weights[at].group, sizeof all.weights[at].group, "layers.%d", at);
        set_weight(at, WB_DTYPE_BF16, MOST_BYTES, TRAINED, (uint64_t)at + 1);
        memset(all.weights[at].content + MOST_BYTES / 2, 0, MOST_BYTES / 2);
    }
}

static wb_plan_options keeping_options(uint64_t device_bytes)
{
    wb_plan_options options = compressed_options(WB_TRANSFER_MODE_AUTO);
    options.budget_kind = WB_BUDGET_DEVICE_BYTES;
    options.budget_bytes = device_bytes;
    options.allow = WB_ALLOW_EVERYTHING_FITS;
    return options;
}

static wb_plan_info plan_now(void)
{
    wb_plan_info info = WB_PLAN_INFO_INIT;
    CHECK_OK(wb_plan_get_info(all.plan, &info, &error));
    return info;
}

/* Whether nothing crosses the link under this budget. */
static int keeps_all(wb_device *device, int count, uint64_t bytes)
{
    const wb_plan_options options = keeping_options(bytes);
    wb_plan *plan = NULL;
    wb_plan_info info = WB_PLAN_INFO_INIT;
    if (wb_plan_new(device, all.parameters, (uint64_t)count, &options, &plan, &error) != WB_OK) return 0;
    CHECK_OK(wb_plan_get_info(plan, &info, &error));
    wb_plan_release(plan);
    return info.step_bytes == 0;
}

/* The least budget under which nothing crosses the link, in steps of `step` bytes between these two: with more
 * memory nothing does either. */
static uint64_t least_keeping(wb_device *device, int count, uint64_t least, uint64_t most, uint64_t step)
{
    CHECK(!keeps_all(device, count, least) && keeps_all(device, count, most));
    while (most - least > step) {
        const uint64_t middle = least + (most - least) / step / 2 * step;
        if (keeps_all(device, count, middle)) {
            most = middle;
        } else {
            least = middle;
        }
    }
    return most;
}

/* Begins with the least budget, in steps of a kilobyte, under which nothing crosses the link. */
static int keeping_begin(wb_device *device, int count)
{
    const uint64_t most = (uint64_t)count * MOST_BYTES;
    return compressed_begin(device, keeping_options(least_keeping(device, count, 2 * MOST_BYTES, most, 1024)));
}

/* Steps and reads give the bytes, and no budget is exceeded: by the plan, and by what is held. */
static void every_budget_holds_with_every_bit(wb_device *device)
{
    uint64_t kept_once = 0, both = 0;
    for (uint64_t bytes = 200 << 10; bytes <= 800 << 10; bytes += 25 << 10) {
        const wb_plan_options options = keeping_options(bytes);
        layers_init(WEIGHTS);
        if (wb_plan_new(device, all.parameters, WEIGHTS, &options, &all.plan, &error) != WB_OK) {
            CHECK(error.status == WB_ERR_BUDGET);
            continue;
        }
        wb_plan_release(all.plan);
        REQUIRE(compressed_begin(device, options));
        const wb_plan_info plan = plan_now();
        uint64_t planned = 0, held = 0, decoded = 0, on_link = 0;
        for (int at = 0; at < WEIGHTS; at++) {
            const wb_offloader_parameter_info info = info_at(at);
            const wb_plan_parameter_info was = planned_at(at);
            planned += was.device_encoded_bytes;
            held += info.device_encoded_bytes;
            decoded += info.device_encoded_bytes > 0 ? info.span_bytes : 0;
            on_link += info.placement == WB_PLACEMENT_OFFLOADED && info.device_encoded_bytes == 0;
            CHECK_SAME(info.device_encoded_bytes > 0, was.device_encoded_bytes > 0);
            CHECK(info.device_encoded_bytes <= was.device_encoded_bytes);
            CHECK(info.device_encoded_bytes == 0 || info.device_encoded_bytes >= info.encoded_bytes);
            CHECK(info.device_encoded_reason[0] == 0);
            CHECK_SAME(strstr(was.reason, "%, on the device") != NULL, info.device_encoded_bytes > 0);
        }
        CHECK_SAME(plan.device_encoded_bytes, planned);
        CHECK_SAME(plan.device_decoded_bytes, decoded);
        CHECK(plan.resident_bytes + plan.slot_bytes + plan.device_encoded_bytes <= bytes);
        const wb_offloader_stats stats = stats_now();
        CHECK_SAME(stats.device_encoded_bytes, held);
        CHECK_SAME(stats.device_decoded_bytes, decoded);
        CHECK_SAME(stats.resident_bytes + stats.offloaded_bytes, plan.payload_bytes);
        CHECK(stats.resident_bytes + stats.slot_bytes + stats.device_encoded_bytes <= bytes);
        CHECK(device_stats(device).device_bytes <= bytes);
        kept_once += on_link == 0 && held > 0;
        both += on_link > 0 && held > 0;
        for (int step = 0; step < 2; step++) check_all();
        compressed_end();
    }
    CHECK(kept_once > 0 && both > 0);
}

/* The link moves nothing, and resident weights are not compressed without need. */
static void as_many_are_kept_as_are_needed(wb_device *device)
{
    layers_init(WEIGHTS);
    REQUIRE(keeping_begin(device, WEIGHTS));
    check_all();
    CHECK_SAME(stats_now().moved_bytes, 0);
    CHECK_SAME(stats_now().moved_decoded_bytes, 0);
    CHECK(stats_now().copies >= WEIGHTS);
    compressed_end();
    layers_init(WEIGHTS);
    REQUIRE(compressed_begin(device, keeping_options(WEIGHTS * MOST_BYTES)));
    CHECK_SAME(plan_now().device_decoded_bytes, 0); /* all fits */
    compressed_end();
}

/* Bytes that compress worse are read in host memory, at the same addresses, and those that follow and
 * compress again are kept again. */
static void a_replacement_that_does_not_fit_is_read_in_host_memory(wb_device *device)
{
    uint64_t before = 0, after = 0;
    layers_init(WEIGHTS);
    REQUIRE(keeping_begin(device, WEIGHTS));
    CHECK_OK(wb_offloader_get_generation(all.offloader, &before, &error));
    const uint64_t held = stats_now().device_encoded_bytes;
    const void *address = info_at(3).device_address;
    for (int turn = 0; turn < 6; turn++) {
        const enum content content = turn % 3 == 0 ? RANDOM_BITS : turn % 3 == 1 ? ZEROS : SPECIAL;
        const uint64_t moved = stats_now().moved_encoded_bytes;
        set_weight(3, WB_DTYPE_BF16, MOST_BYTES, content, 900 + (uint64_t)turn);
        CHECK_OK(replace_weight(3));
        check_all();
        const wb_offloader_parameter_info info = info_at(3);
        CHECK(info.device_address == address);
        CHECK_SAME(info.device_encoded_bytes > 0, content == ZEROS);
        CHECK_SAME(strstr(info.device_encoded_reason, "more bytes than it has space for") != NULL,
                   content != ZEROS);
        CHECK_SAME(stats_now().moved_encoded_bytes > moved, content != ZEROS);
        CHECK_SAME(stats_now().device_encoded_bytes, held);
        CHECK_SAME(stats_now().device_decoded_bytes, (WEIGHTS - (content != ZEROS)) * (uint64_t)MOST_BYTES);
    }
    CHECK_OK(wb_offloader_get_generation(all.offloader, &after, &error));
    CHECK_SAME(after, before);
    compressed_end();
}

/* A part of its bytes is tied, and stays. */
static void a_kept_weight_that_leaves_is_counted_no_more(wb_device *device)
{
    layers_init(WEIGHTS);
    set_weight(1, WB_DTYPE_BF16, MOST_BYTES / 4, TRAINED, 1);
    memcpy(all.weights[1].content, all.weights[0].content, all.weights[1].bytes);
    all.parameters[1].source = all.weights[0].content;
    snprintf(all.weights[1].group, sizeof all.weights[1].group, "layers.0");
    REQUIRE(keeping_begin(device, WEIGHTS));
    const uint64_t decoded = stats_now().device_decoded_bytes;
    CHECK(info_at(0).device_encoded_bytes > 0);
    CHECK_OK(wb_offloader_remove(all.offloader, all.weights[0].name, all.stream, &error));
    CHECK_SAME(stats_now().device_decoded_bytes, decoded - MOST_BYTES + MOST_BYTES / 4);
    all.weights[0] = all.weights[1];
    check_all();
    compressed_end();
}

/* A graph that was captured before reads what replaced a kept weight, whether it fits or not. */
static void a_replay_reads_what_replaced_a_kept_weight(wb_device *device)
{
    uint64_t before = 0, after = 0;
    struct captures captures;
    layers_init(WEIGHTS);
    REQUIRE(captures_begin(&captures));
    REQUIRE(keeping_begin(device, WEIGHTS));
    check_all();
    CHECK_OK(wb_offloader_get_generation(all.offloader, &before, &error));
    void *exec = capture_read(&captures, 5);
    REQUIRE(exec != NULL);
    for (int turn = 0; turn < 2 * CONTENTS; turn++) {
        set_weight(5, WB_DTYPE_BF16, MOST_BYTES, (enum content)(turn % CONTENTS),
                   700 + (uint64_t)turn);
        check_replay_of_replaced(&captures, exec, 5);
    }
    CHECK_OK(wb_offloader_get_generation(all.offloader, &after, &error));
    CHECK_SAME(after, before);
    CHECK(captures.destroy_exec(exec) == 0);
    captures_end(&captures);
    compressed_end();
}

/* The plan reads a sample; what it does not see is found at the commit, and stays within the budget. */
static void what_compresses_worse_than_its_sample_stays_in_host_memory(wb_device *device)
{
    enum { LARGE = 200 * TILE, COUNT = 6 };
    static unsigned char content[COUNT][LARGE], found[LARGE];
    static const int64_t shape[] = {LARGE / 2};
    uint64_t unkept = 0;
    layers_init(COUNT);
    for (int at = 0; at < COUNT; at++) {
        make_content(content[at], WB_DTYPE_BF16, LARGE / 2, TRAINED, (uint64_t)at);
        memset(content[at] + LARGE / 2, 0, LARGE / 2);
        /* Of 200 tiles 64 are sampled, each third: the others of the last weight are random bits. */
        for (int tile = 0; at == COUNT - 1 && tile < 200; tile++) {
            int sampled = 0;
            for (int one = 0; one < 64; one++) sampled |= one * 199 / 64 == tile;
            if (!sampled) {
                make_content(content[at] + tile * TILE, WB_DTYPE_BF16, TILE, RANDOM_BITS, (uint64_t)tile);
            }
        }
        all.layouts[at] = layout_of(WB_DTYPE_BF16, 1, shape, NULL, 0);
        all.parameters[at].source = content[at];
    }
    const uint64_t bytes = least_keeping(device, COUNT, 2 * LARGE, COUNT * LARGE, 4096);
    const wb_plan_options options = keeping_options(bytes);
    REQUIRE(compressed_begin(device, options));
    for (int at = 0; at < COUNT; at++) {
        const wb_offloader_parameter_info info = info_at(at);
        const int planned = planned_at(at).device_encoded_bytes > 0;
        const int lost = planned && info.device_encoded_bytes == 0;
        CHECK_SAME(strstr(info.device_encoded_reason, "no space for its compressed bytes") != NULL,
                   (uint64_t)lost);
        unkept += (uint64_t)lost;
        CHECK_OK(wb_offloader_read_parameter(all.offloader, (uint64_t)at, found, LARGE, &error));
        CHECK(memcmp(found, content[at], LARGE) == 0);
        CHECK_OK(wb_offloader_acquire_group(all.offloader, (uint64_t)at, all.stream, &error));
        CHECK_OK(wb_device_copy(device, found, info.device_address, LARGE, all.stream, &error));
        CHECK_OK(wb_device_stream_synchronize(device, all.stream, &error));
        CHECK_OK(wb_offloader_release_group(all.offloader, (uint64_t)at, all.stream, &error));
        CHECK(memcmp(found, content[at], LARGE) == 0);
    }
    CHECK_SAME(unkept, 1);
    CHECK(stats_now().moved_encoded_bytes > 0);
    CHECK(device_stats(device).device_bytes <= bytes);
    compressed_end();
}

/* Other sizes, removals and additions: what no longer fits its memory is decoded from host memory. */
static void changes_lose_no_bit(wb_device *device)
{
    layers_init(WEIGHTS);
    REQUIRE(keeping_begin(device, WEIGHTS));
    const uint64_t budget = plan_now().resident_bytes + stats_now().slot_bytes +
                            stats_now().device_encoded_bytes;
    for (int turn = 0; turn < 12; turn++) {
        const int at = turn * 5 % WEIGHTS;
        set_weight(at, WB_DTYPE_BF16, MOST_BYTES - (uint64_t)(turn % 4) * TILE, (enum content)(turn % 3),
                   60 + (uint64_t)turn);
        CHECK_OK(replace_weight(at));
        if (turn % 4) CHECK_SAME(info_at(at).device_encoded_bytes, 0);
        check_all();
        if (turn % 5 == 4) CHECK_OK(wb_offloader_compact(all.offloader, all.stream, &error));
        check_all();
        const wb_offloader_stats stats = stats_now();
        CHECK(stats.resident_bytes + stats.slot_bytes + stats.device_encoded_bytes <= budget + 1024);
    }
    compressed_end();
}

/* With both, the weights are the same numbers. */
static void quantized_weights_are_kept_as_well(wb_device *device)
{
    enum { ROWS = 128, COLS = 512, COUNT = 6 };
    static float source[COUNT][ROWS * COLS];
    static unsigned char first[COUNT][ROWS * COLS], found[ROWS * COLS];
    static const int64_t shape[] = {ROWS, COLS};
    const wb_quantize_options quantize = WB_QUANTIZE_OPTIONS_INIT;
    uint64_t kept = 0;
    for (int compressed = 0; compressed < 2; compressed++) {
        wb_plan_options options = keeping_options(340 << 10);
        options.quantize = &quantize;
        options.allow = WB_ALLOW_UNMATCHED_SELECTOR;
        if (!compressed) options.compress = WB_COMPRESS_OFF;
        if (!compressed) options.compress_select_count = 0;
        layers_init(COUNT);
        for (int at = 0; at < COUNT; at++) {
            make_content((unsigned char *)source[at], WB_DTYPE_F32, sizeof source[at], TRAINED,
                         30 + (uint64_t)at);
            all.layouts[at] = layout_of(WB_DTYPE_F32, 2, shape, NULL, 0);
            all.parameters[at].source = source[at];
        }
        REQUIRE(compressed_begin(device, options));
        for (int turn = 0; turn < 2; turn++) {
            for (int at = 0; at < COUNT; at++) {
                const uint64_t index = index_of(all.weights[at].name);
                wb_offloader_parameter_info info = WB_OFFLOADER_PARAMETER_INFO_INIT;
                CHECK_OK(wb_offloader_acquire_group(all.offloader, (uint64_t)at, all.stream, &error));
                CHECK_OK(wb_offloader_get_parameter_info(all.offloader, index, &info, &error));
                CHECK_OK(wb_device_copy(device, found, info.device_address, sizeof found, all.stream,
                                        &error));
                CHECK_OK(wb_device_stream_synchronize(device, all.stream, &error));
                CHECK_OK(wb_offloader_release_group(all.offloader, (uint64_t)at, all.stream, &error));
                if (!compressed) memcpy(first[at], found, sizeof found);
                CHECK(memcmp(found, first[at], sizeof found) == 0);
                kept += info.device_encoded_bytes > 0;
                /* The second turn finds the same numbers, quantized again. */
                CHECK_OK(wb_offloader_replace(all.offloader, all.weights[at].name, source[at],
                                              &all.layouts[at], all.stream, &error));
            }
        }
        CHECK(stats_now().resident_bytes + stats_now().slot_bytes +
                  stats_now().device_encoded_bytes <= options.budget_bytes);
        compressed_end();
    }
    CHECK(kept > 0);
}

CHECK_MAIN(CASE(every_budget_holds_with_every_bit), CASE(as_many_are_kept_as_are_needed),
           CASE(a_replacement_that_does_not_fit_is_read_in_host_memory),
           CASE(a_kept_weight_that_leaves_is_counted_no_more),
           CASE_ON(CUDA_ONLY, a_replay_reads_what_replaced_a_kept_weight),
           CASE(what_compresses_worse_than_its_sample_stays_in_host_memory), CASE(changes_lose_no_bit),
           CASE(quantized_weights_are_kept_as_well))
