/* Threads that do everything at random, for as long as is asked, in rounds: at the end of each all that
 * was made is given back, and what the library, the driver and the kernel count is as it was.
 *
 *   soak [--seconds=600] [--threads=16] [--seed=1] [--break=leak]      WEIGHBRIDGE_TEST_DEVICE=cuda:0 */
#include "broken.h"
#include "counts.h"
#include "rest.h"
#include "team.h"

/* Rounds of ten seconds; of short runs enough to compare sixths of them. */
enum { ROUND_SECONDS = 10, FEWEST_ROUNDS = 12, PROGRESS_SECONDS = 10, CHANGING_TEAMS = 2,
       WARM_SECONDS = 60 };

static int rounds_of_run(void)
{
    const int rounds = (int)(settings.seconds / ROUND_SECONDS);
    return rounds > FEWEST_ROUNDS ? rounds : FEWEST_ROUNDS;
}

/* The first round goes on until everything was done once: what starts with a first use is there. */
static void wait_for(double seconds, int first)
{
    const double now = seconds_now(), end = now + seconds, latest = now + WARM_SECONDS;
    while (failures() == 0 &&
           (seconds_now() < end || (first && !counted_all() && seconds_now() < latest))) {
        sleep_ms(10);
    }
}

static void run_threads(struct round *round, struct lasting *lasting, double seconds)
{
    struct worker *workers = (struct worker *)calloc((size_t)settings.threads, sizeof *workers);
    struct team teams[1 + CHANGING_TEAMS];
    if (workers == NULL) abort();
    for (int index = 0; index < settings.threads; index++) {
        workers[index].round = round;
        workers[index].index = index;
        if (pthread_create(&workers[index].thread, NULL, worker_run, &workers[index])) abort();
    }
    for (int index = 0; index <= CHANGING_TEAMS; index++) {
        teams[index].round = round;
        teams[index].lasting = lasting;
        teams[index].index = index;
        if (pthread_create(&teams[index].thread, NULL, index > 0 ? team_changing : team_lasting,
                           &teams[index])) {
            abort();
        }
    }
    wait_for(seconds, round->number == 0);
    __atomic_store_n(&round->stop, 1, __ATOMIC_RELEASE);
    for (int index = 0; index < settings.threads; index++) {
        pthread_join(workers[index].thread, NULL);
    }
    for (int index = 0; index <= CHANGING_TEAMS; index++) pthread_join(teams[index].thread, NULL);
    free(workers);
}

/* What was handed over and not taken is released here, in random order. */
static void run_round(wb_device *device, const struct files *files, struct lasting *lasting,
                      uint64_t number, double seconds)
{
    struct round round = {device, NULL, files, NULL, 0, number};
    struct random random = random_of(number * 1000 + 999);
    round.inboxes = (struct inbox *)calloc((size_t)settings.threads, sizeof *round.inboxes);
    if (round.inboxes == NULL) abort();
    for (int index = 0; index < settings.threads; index++) {
        pthread_mutex_init(&round.inboxes[index].lock, NULL);
    }
    if (CHECK_OK(wb_quantizer_new(device, 4 << 20, &round.quantizer, &error))) {
        run_threads(&round, lasting, seconds);
    }
    for (int index = 0; index < settings.threads; index++) {
        while (round.inboxes[index].count > 0) {
            struct thing left = inbox_take(&round.inboxes[index], &random);
            thing_release(&left);
        }
        pthread_mutex_destroy(&round.inboxes[index].lock);
    }
    wb_quantizer_release(round.quantizer);
    free(round.inboxes);
}

/* All rounds; bytes by which resident memory grew. */
static int64_t run(wb_device *device, struct lasting *lasting, const struct files *files)
{
    const int rounds = rounds_of_run();
    const double begin = seconds_now();
    uint64_t *resident = (uint64_t *)calloc((size_t)rounds, sizeof *resident);
    double told = begin;
    int done = 0;
    struct rest rest;
    if (resident == NULL) abort();
    rest_begin(&rest, device);
    while (done < rounds && failures() == 0) {
        break_something(device, (uint64_t)done);
        run_round(device, files, lasting, (uint64_t)done, settings.seconds / rounds);
        const struct process now = rest_check(&rest);
        resident[done++] = now.resident_bytes;
        if (seconds_now() - told < PROGRESS_SECONDS && done < rounds) continue;
        told = seconds_now();
        printf("%.0f s: %" PRIu64 " operations; at rest %" PRIu64 " threads, %" PRIu64
               " files, %" PRIu64 " mappings, %.1f MiB\n", told - begin, counted(), now.threads,
               now.files, now.mappings, (double)now.resident_bytes / (1 << 20));
    }
    const int64_t growth = done == rounds ? rest_growth(resident, rounds) : 0;
    free(resident);
    return growth;
}

int main(int argc, char **argv)
{
    long long before[CHECK_KINDS];
    wb_device *device = NULL;
    struct lasting *lasting = (struct lasting *)malloc(sizeof *lasting);
    struct files files;
    int64_t growth = 0;
    process_without_caches(argv);
    settings_read(argc, argv);
    const double begin = seconds_now();
    if (lasting == NULL || !CHECK(files_write(&files))) return 1;
    for (int kind = 0; kind < CHECK_KINDS; kind++) before[kind] = double_alive(check_kinds[kind]);
    printf("seed %" PRIu64 ", %d threads, %.0f s, %s\n", settings.seed, settings.threads,
           settings.seconds, device_kind());
    if (!CHECK_OK(wb_device_open(test_device(), NULL, &device, &error))) return 1;
    if (lasting_begin(lasting, device)) growth = run(device, lasting, &files);
    lasting_end(lasting);
    CHECK_OK(wb_device_drain(device, 60000, &error));
    const wb_device_stats nothing = WB_DEVICE_STATS_INIT;
    CHECK_USAGE(device, nothing);
    wb_device_release(device);
    check_driver_empty(before);
    files_remove(&files);
    free(lasting);
    counts_print();
    printf("reliability: {\"minutes\": %.2f, \"threads\": %d, \"operations\": %" PRIu64
           ", \"rss_growth_bytes\": %" PRId64 ", \"device\": \"%s\"}\n",
           (seconds_now() - begin) / 60, settings.threads, counted(), growth, device_kind());
    if (failures() > 0) printf("FAILED: seed %" PRIu64 ", %d checks\n", settings.seed, failures());
    return failures() > 0;
}
