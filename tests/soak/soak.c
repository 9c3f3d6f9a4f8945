/* Threads that call everything at random for the given time, in rounds. At the end of each round every
 * handle is released, and the counts of the library, the driver double and the kernel must be at their
 * baseline.
 *
 *   soak [--seconds=600] [--threads=16] [--seed=1] [--break=leak]      WEIGHBRIDGE_TEST_DEVICE=cuda:0 */
#include "soak.h"

/* Rounds last ten seconds; short runs need enough of them to compare sixths. */
enum { ROUND_SECONDS = 10, FEWEST_ROUNDS = 12, PROGRESS_SECONDS = 10, SHORT_LIVED = 2,
       WARM_SECONDS = 60, LASTING = 2 };

static uint64_t counts[OPERATIONS];

#define OPERATION_NAME(operation, name) name,
static const char *const operation_names[OPERATIONS] = {OPERATION_LIST(OPERATION_NAME)};

void count(enum operation operation)
{
    __atomic_fetch_add(&counts[operation], 1, __ATOMIC_RELAXED);
}

static uint64_t counted(enum operation operation)
{
    return __atomic_load_n(&counts[operation], __ATOMIC_RELAXED);
}

static uint64_t counted_sum(void)
{
    uint64_t sum = 0;
    for (int each = 0; each < OPERATIONS; each++) sum += counted((enum operation)each);
    return sum;
}

static int each_was_done(void)
{
    int all = 1;
    for (int each = 0; each < OPERATIONS; each++) all &= counted((enum operation)each) > 0;
    return all;
}

static void *endless(void *user)
{
    for (;;) pause();
    return user;
}

/* Makes the defect of the options. Wrong bytes are made where the content is written. */
static void make_defect(wb_device *device, uint64_t round)
{
    enum { AFTER_ROUNDS = 3, GROWTH = 1 << 20, BLOCK = 8 << 10, MAPPINGS = 64 };
    wb_buffer *buffer = NULL;
    pthread_t thread;
    void *stream = NULL;
    /* Blocks this small are on the heap, where no count of mappings shows them. */
    for (int block = 0; options.defect == DEFECT_MEMORY && block < GROWTH / BLOCK; block++) {
        content_new(BLOCK, round);
    }
    if (round != AFTER_ROUNDS) return;
    switch (options.defect) {
    case DEFECT_LEAK: CHECK_OK(wb_buffer_alloc(device, 1, NULL, &buffer, &error)); break;
    case DEFECT_FD: CHECK(open("/dev/null", O_RDONLY) >= 0); break;
    case DEFECT_MAP:
        for (int mapping = 0; mapping < MAPPINGS; mapping++) {
            CHECK(mmap(NULL, 1, PROT_READ, MAP_SHARED | MAP_ANONYMOUS, -1, 0) != MAP_FAILED);
        }
        break;
    case DEFECT_THREAD: CHECK(pthread_create(&thread, NULL, endless, NULL) == 0); break;
    case DEFECT_STREAM: CHECK_OK(wb_device_stream_new(device, &stream, &error)); break;
    case DEFECT_DELETER: borrowed_delete_twice(borrowed_new(1, 1)); break;
    default: break;
    }
}

/* The first round lasts until every operation was done, so that whatever a first use starts has
 * started. */
static void wait_for(double seconds, int first)
{
    const double now = seconds_now(), end = now + seconds, latest = now + WARM_SECONDS;
    while (failures() == 0 &&
           (seconds_now() < end || (first && !each_was_done() && seconds_now() < latest))) {
        sleep_ms(10);
    }
}

static void run_threads(struct round *round, struct lasting_offloader *lasting, double seconds)
{
    struct worker *workers = (struct worker *)calloc((size_t)options.threads, sizeof *workers);
    struct offload_thread offloads[LASTING + SHORT_LIVED];
    if (workers == NULL) abort();
    for (int index = 0; index < options.threads; index++) {
        workers[index].round = round;
        workers[index].index = index;
        if (pthread_create(&workers[index].thread, NULL, worker_run, &workers[index])) abort();
    }
    for (int index = 0; index < LASTING + SHORT_LIVED; index++) {
        offloads[index].round = round;
        offloads[index].lasting = index < LASTING ? &lasting[index] : NULL;
        offloads[index].index = index;
        if (pthread_create(&offloads[index].thread, NULL,
                           index < LASTING ? offload_lasting : offload_short_lived,
                           &offloads[index])) {
            abort();
        }
    }
    wait_for(seconds, round->number == 0);
    __atomic_store_n(&round->stop, 1, __ATOMIC_RELEASE);
    for (int index = 0; index < options.threads; index++) pthread_join(workers[index].thread, NULL);
    for (int index = 0; index < LASTING + SHORT_LIVED; index++) pthread_join(offloads[index].thread, NULL);
    free(workers);
}

/* Runs one round, then releases the handles that remain in the inboxes, in random order. */
static void run_round(wb_device *device, const struct files *files,
                      struct lasting_offloader *lasting, uint64_t number, double seconds)
{
    struct round round = {device, NULL, files, NULL, 0, number};
    struct random random = random_of(number * 1000 + 999);
    round.inboxes = (struct inbox *)calloc((size_t)options.threads, sizeof *round.inboxes);
    if (round.inboxes == NULL) abort();
    for (int index = 0; index < options.threads; index++) {
        pthread_mutex_init(&round.inboxes[index].lock, NULL);
    }
    if (CHECK_OK(wb_quantizer_new(device, 4 << 20, &round.quantizer, &error))) {
        run_threads(&round, lasting, seconds);
    }
    for (int index = 0; index < options.threads; index++) {
        while (round.inboxes[index].count > 0) {
            struct handle left = inbox_take(&round.inboxes[index], &random);
            handle_release(&left);
        }
        pthread_mutex_destroy(&round.inboxes[index].lock);
    }
    wb_quantizer_release(round.quantizer);
    free(round.inboxes);
}

/* Runs all rounds. Returns the growth of private memory in bytes. */
static int64_t run(wb_device *device, struct lasting_offloader *lasting, const struct files *files)
{
    const int asked = (int)(options.seconds / ROUND_SECONDS);
    const int rounds = asked > FEWEST_ROUNDS ? asked : FEWEST_ROUNDS;
    const double begin = seconds_now();
    uint64_t *bytes = (uint64_t *)calloc((size_t)rounds, sizeof *bytes);
    double printed = begin;
    int done = 0;
    struct baseline baseline;
    if (bytes == NULL) abort();
    baseline_take(&baseline, device);
    while (done < rounds && failures() == 0) {
        make_defect(device, (uint64_t)done);
        run_round(device, files, lasting, (uint64_t)done, options.seconds / rounds);
        const struct process_counts now = baseline_check(&baseline);
        bytes[done++] = now.private_bytes;
        if (seconds_now() - printed < PROGRESS_SECONDS && done < rounds) continue;
        printed = seconds_now();
        printf("%.0f s: %" PRIu64 " operations; between rounds %" PRIu64 " threads, %" PRIu64
               " files, %" PRIu64 " mappings, %.1f MiB\n", printed - begin, counted_sum(),
               now.threads, now.files, now.mappings, (double)now.private_bytes / (1 << 20));
    }
    const int64_t growth = done == rounds ? check_growth(bytes, rounds) : 0;
    free(bytes);
    return growth;
}

static void report(double seconds, int64_t growth)
{
    for (int operation = 0; operation < OPERATIONS; operation++) {
        printf("%12" PRIu64 "  %s\n", counts[operation], operation_names[operation]);
    }
    printf("reliability: {\"minutes\": %.2f, \"threads\": %d, \"operations\": %" PRIu64
           ", \"private_growth_bytes\": %" PRId64 ", \"device\": \"%s\"}\n",
           seconds / 60, options.threads, counted_sum(), growth, device_kind());
}

int main(int argc, char **argv)
{
    static struct lasting_offloader lasting[LASTING];
    const wb_device_stats nothing = WB_DEVICE_STATS_INIT;
    long long before[CHECK_KINDS];
    wb_device *device = NULL;
    struct files files;
    int64_t growth = 0;
    restart_without_caches(argv);
    options_read(argc, argv);
    const double begin = seconds_now();
    if (!CHECK(files_write(&files))) return 1;
    for (int kind = 0; kind < CHECK_KINDS; kind++) before[kind] = double_alive(check_kinds[kind]);
    printf("seed %" PRIu64 ", %d threads, %.0f s, %s\n", options.seed, options.threads,
           options.seconds, device_kind());
    if (!CHECK_OK(wb_device_open(test_device(), NULL, &device, &error))) return 1;
    if (lasting_begin(&lasting[0], device, 0) && lasting_begin(&lasting[1], device, 1)) {
        growth = run(device, lasting, &files);
    }
    for (int index = 0; index < LASTING; index++) lasting_end(&lasting[index]);
    CHECK_OK(wb_device_drain(device, 60000, &error));
    CHECK_STATS(device, nothing);
    wb_device_release(device);
    check_driver_empty(before);
    files_remove(&files);
    report(seconds_now() - begin, growth);
    return exit_status();
}
