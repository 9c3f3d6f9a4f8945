/* Makes the first call of each scenario fail, then the second, and so on until the scenario has no more
 * calls; with every code, of each function of the driver and of the system. Each point runs in its own process, so that it
 * cannot affect the next, and a crash or a hang is reported as a failed point. */
#include <sys/mman.h>

#include "scenarios.h"

enum { PASSED, FAILED, NOT_REACHED };
enum { DEINITIALIZED = 4 };

static const int driver_codes[] = {1, 2, 712, 801, 4242, DEINITIALIZED, 999};
static const int system_codes[] = {EIO, EACCES, EMFILE, EINTR, EFAULT, 4242, ENOMEM};
enum { CODES = 7, QUICK_FROM = 6, QUICK_ALL = 6, HANG_MS = 20, SECONDS = 30, MOST_FUNCTIONS = 200 };

static int quick;

/* How often the scenario that ran last called each function of the driver. Its process shares this. */
static long long *calls_of_last;

static uint64_t logged;

static void count_logged(void *user, const wb_error *failure)
{
    (void)user, (void)failure;
    __atomic_fetch_add(&logged, 1, __ATOMIC_RELAXED);
}

static void check_end(struct world *world, const struct observed *begin, const long long before[])
{
    const wb_device_stats nothing = WB_DEVICE_STATS_INIT;
    if (world->device != NULL) {
        STEP(wb_device_drain(world->device, 10000, &error));
    out:
        if (logged == 0 || is_released_later(world->fault)) CHECK_STATS(world->device, nothing);
    }
    if (world->opens) {
        wb_device_release(world->device);
        world->device = NULL;
    }
    if (fault_fired(world->fault) != NULL && world->failed == 0) check_absorbed(world, logged);
    check_system(begin, logged > 0 && !is_released_later(world->fault));
    if (world->opens && system_can_fail() && logged > 0 &&
        starts_with(fault_fired(world->fault), "cuMemHostUnregister")) {
        /* The page of the capability test is still registered, so it must stay mapped. */
        CHECK(system_held().mapped_bytes > begin->held.mapped_bytes);
    }
    if (world->fault->for_good) {
        CHECK_SAME(logged, 0); /* a driver that has ended need not free anything */
    } else if (logged > 0 && !is_released_later(world->fault)) {
        CHECK(leaked_objects(before) <= 1); /* the object whose release failed */
    } else {
        check_driver_empty(before);
    }
    if (check_failures > 0) print_fault(world->fault, "ended");
}

static void count_calls(void)
{
    const char *(*function)(int), *name;
    long long (*calls)(const char *);
    if (!CHECK(driver_function("double_function", &function)) ||
        !CHECK(driver_function("double_calls", &calls))) {
        return;
    }
    for (int number = 0; number < MOST_FUNCTIONS && (name = function(number)) != NULL; number++) {
        calls_of_last[number] = calls(name);
        CHECK(calls_of_last[number] >= 0);
    }
}

static int run_scenario(const struct scenario *scenario, const struct fault *fault)
{
    struct world world = {
        .fault = fault,
        .opens = scenario->run == opens,
        .waits_idle = scenario->run == reads_pageable || scenario->run == resizes ||
                      scenario->run == resizes_compressed || scenario->run == moves_pieces ||
                      scenario->run == shares};
    long long before[CHECK_KINDS] = {0};
    file_name(world.path, sizeof world.path, "faults");
    alarm(SECONDS);
    CHECK_OK(wb_log_set_callback(count_logged, NULL));
    if (scenario->run == reads_pageable) double_set("WB_DOUBLE_ATTRIBUTES", "88=1");
    if (!world.opens) {
        if (!CHECK_OK(wb_device_open(test_device(), NULL, &world.device, &error))) return FAILED;
        for (int kind = 0; kind < CHECK_KINDS; kind++) before[kind] = double_alive(check_kinds[kind]);
    }
    const struct observed begin = observe(world.device);
    fault_arm(fault);
    scenario->run(&world);
    check_end(&world, &begin, before);
    unlink(world.path);
    if (on_cuda()) count_calls();
    if (check_failures > 0) return FAILED;
    return fault_fired(fault) != NULL ? PASSED : NOT_REACHED;
}

/* Runs one point in its own process. */
static int run_point(const struct scenario *scenario, const struct fault *fault)
{
    int status = 0;
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        exit(run_scenario(scenario, fault));
    }
    waitpid(child, &status, 0);
    int outcome = WIFEXITED(status) ? WEXITSTATUS(status) : FAILED;
    if (outcome == FAILED) {
        const char *function = fault->function != NULL ? fault->function : "any function";
        fprintf(stderr, "FAIL %s: %s call %d of %s, code %d, hang %d ms", scenario->name,
                fault->layer == DRIVER ? "driver" : "system", fault->kth, function, fault->code,
                fault->hang_ms);
        if (WIFSIGNALED(status)) fprintf(stderr, ": ended by signal %d", WTERMSIG(status));
        fprintf(stderr, "\n");
    }
    return outcome;
}

/* Returns the number of points, and adds the failed ones to `failed`. */
static int each_call(const struct scenario *scenario, struct fault fault, int *failed)
{
    int points = 0;
    /* --quick leaves out ever more calls: of one function it makes the first, third, ninth and so on fail,
     * since most are like those before. */
    for (fault.kth = 1;; fault.kth += !quick ? 1 : fault.function ? 2 * fault.kth : 1 + fault.kth / QUICK_ALL) {
        int outcome = run_point(scenario, &fault);
        if (outcome == NOT_REACHED) return points;
        points++;
        *failed += outcome == FAILED;
        if (fault.kth > 5000) {
            fprintf(stderr, "FAIL %s: no end\n", scenario->name);
            ++*failed;
            return points;
        }
    }
}

/* By function, since how often a scenario asks whether work is done differs from run to run, and the
 * calls behind that would be missed. --quick leaves out functions that a scenario without a fault does not call. */
static int each_call_of_driver(const struct scenario *scenario, struct fault fault, int *failed)
{
    int points = 0;
    long long called[MOST_FUNCTIONS];
    const char *(*function)(int);
    if (fault.for_good) return each_call(scenario, fault, failed);
    if (!CHECK(driver_function("double_function", &function))) return 0;
    if (quick) {
        const struct fault none = {DRIVER, NULL, 1000000, 999, 0, 0, 0};
        *failed += run_point(scenario, &none) != NOT_REACHED;
        memcpy(called, calls_of_last, sizeof called);
    }
    for (int number = 0; (fault.function = function(number)) != NULL; number++) {
        if (!CHECK(number < MOST_FUNCTIONS)) return points;
        if (!quick || called[number] > 0) points += each_call(scenario, fault, failed);
    }
    return points;
}

/* --quick uses one code and no hangs, and leaves out calls. The next argument selects the scenarios whose
 * names contain it. */
int main(int count, char **arguments)
{
    int points = 0, failed = 0;
    quick = count > 1 && strcmp(arguments[1], "--quick") == 0;
    const char *only = count > 1 + quick ? arguments[1 + quick] : "";
    setvbuf(stdout, NULL, _IOLBF, 0);
    calls_of_last = (long long *)mmap(NULL, MOST_FUNCTIONS * sizeof *calls_of_last, PROT_READ | PROT_WRITE,
                                      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (!CHECK(calls_of_last != MAP_FAILED)) return 1;
    for (int i = 0; i < SCENARIOS; i++) {
        int here = points;
        if (strstr(scenarios[i].name, only) == NULL) continue;
        for (int code = quick ? QUICK_FROM : 0; code < CODES; code++) {
            /* Hints fail with one code only: the library does not distinguish codes there. */
            struct fault system = {SYSTEM, NULL, 1, system_codes[code], 0, code == 0, 0};
            struct fault driver = {DRIVER, NULL, 1, driver_codes[code], 0, 0,
                                   driver_codes[code] == DEINITIALIZED};
            if (system_can_fail()) points += each_call(&scenarios[i], system, &failed);
            if (on_cuda()) points += each_call_of_driver(&scenarios[i], driver, &failed);
        }
        if (on_cuda() && !quick) {
            struct fault hang = {DRIVER, NULL, 1, 0, HANG_MS, 0, 0};
            points += each_call_of_driver(&scenarios[i], hang, &failed);
        }
        printf("%s: %d points\n", scenarios[i].name, points - here);
    }
    printf("reliability: {\"device\": \"%s\", \"failure_points\": %d, \"failed\": %d}\n",
           test_device(), points, failed);
    return failed > 0 || points == 0;
}
