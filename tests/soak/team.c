/* Threads around an offloader. */
#include "team.h"

#include "changer.h"
#include "counts.h"
#include "stepper.h"

/* A stepper or a changer on a thread of its own, until it is told to end. */
struct member {
    pthread_t thread;
    int running;
    const int *over;
    struct stepper stepper;
    struct changer changer;
};

static void *run_stepper(void *user)
{
    struct member *member = (struct member *)user;
    if (!stepper_begin(&member->stepper)) return NULL;
    while (!__atomic_load_n(member->over, __ATOMIC_ACQUIRE) && failures() == 0) {
        stepper_step(&member->stepper);
        sleep_us((long)draw(&member->stepper.random, 300));
    }
    stepper_end(&member->stepper);
    return NULL;
}

static void *run_changer(void *user)
{
    struct member *member = (struct member *)user;
    while (!__atomic_load_n(member->over, __ATOMIC_ACQUIRE) && failures() == 0) {
        changer_change(&member->changer);
        sleep_us((long)draw(&member->changer.random, 2000));
    }
    return NULL;
}

static void start(struct member *member, void *(*run)(void *))
{
    member->running = CHECK(pthread_create(&member->thread, NULL, run, member) == 0);
}

static void await(struct member *member)
{
    if (member->running) pthread_join(member->thread, NULL);
}

static struct random random_of_team(const struct team *team, uint64_t member)
{
    return random_of(team->round->number * 1000 + 500 + (uint64_t)team->index * 10 + member);
}

int lasting_begin(struct lasting *lasting, wb_device *device)
{
    wb_plan_options plan = WB_PLAN_OPTIONS_INIT;
    wb_status status = WB_OK;
    plan.offload_bytes = WB_UNSET - 1;
    plan.carrier = WB_TRANSFER_MODE_PREFETCH;
    plan.depth = 3;
    memset(lasting, 0, sizeof *lasting);
    lasting->device = device;
    weights_init(&lasting->weights, 12, 2, 40000, CONTENT_CHANGES, settings.seed);
    if (!CHECK_OK(wb_device_stream_new(device, &lasting->stream, &error))) return 0;
    lasting->offloader = weights_offload(&lasting->weights, device, lasting->stream, &plan, NULL,
                                         &status);
    if (!CHECK_OK(status)) return 0;
    /* The last group is not in its slot: both streams for copies have run, and their threads are there. */
    const uint64_t last = (uint64_t)lasting->weights.groups - 1;
    return CHECK_OK(wb_offloader_acquire_group(lasting->offloader, last, lasting->stream, &error)) &&
           CHECK_OK(wb_offloader_release_group(lasting->offloader, last, lasting->stream, &error)) &&
           CHECK_OK(wb_device_stream_synchronize(device, lasting->stream, &error));
}

void lasting_end(struct lasting *lasting)
{
    wb_offloader_release(lasting->offloader);
    CHECK_OK(wb_device_stream_release(lasting->device, lasting->stream, &error));
}

void *team_lasting(void *user)
{
    struct team *team = (struct team *)user;
    struct lasting *lasting = team->lasting;
    struct member members[LASTING_STEPPERS + 1];
    struct changer *changer = &members[LASTING_STEPPERS].changer;
    memset(members, 0, sizeof members);
    for (int index = 0; index <= LASTING_STEPPERS; index++) {
        struct stepper *stepper = &members[index].stepper;
        stepper->device = lasting->device;
        stepper->offloader = lasting->offloader;
        stepper->weights = &lasting->weights;
        stepper->random = random_of_team(team, (uint64_t)index);
        members[index].over = &team->round->stop;
    }
    changer->device = lasting->device;
    changer->offloader = lasting->offloader;
    changer->weights = &lasting->weights;
    changer->random = members[LASTING_STEPPERS].stepper.random;
    if (!changer_begin(changer)) return NULL;
    for (int index = 0; index < LASTING_STEPPERS; index++) start(&members[index], run_stepper);
    run_changer(&members[LASTING_STEPPERS]);
    for (int index = 0; index < LASTING_STEPPERS; index++) await(&members[index]);
    changer_end(changer);
    return NULL;
}

/* A plan of any kind; some cannot be had, and are errors with a name. */
static wb_offloader *random_offloader(struct stepper *stepper)
{
    static const wb_transfer_mode carriers[] = {WB_TRANSFER_MODE_AUTO, WB_TRANSFER_MODE_ZERO_COPY, WB_TRANSFER_MODE_ON_DEMAND,
                                          WB_TRANSFER_MODE_PREFETCH, WB_TRANSFER_MODE_PREFETCH};
    struct random *random = &stepper->random;
    wb_plan_options plan = WB_PLAN_OPTIONS_INIT;
    wb_buffer_options options = WB_BUFFER_OPTIONS_INIT;
    wb_status status = WB_OK;
    uint64_t whole = 0;
    for (int index = 0; index < weights_count(stepper->weights); index++) {
        whole += weight_bytes(stepper->weights, index, stepper->weights->all[index].done);
    }
    plan.allow = WB_ALLOW_NOTHING_OFFLOADED | WB_ALLOW_EVERYTHING_FITS;
    plan.carrier = carriers[draw(random, 5)];
    plan.order = (wb_order)draw(random, 3);
    plan.depth = (uint32_t)draw(random, 9);
    if (draw(random, 4) == 0) options.pin = WB_TRISTATE_OFF;
    if (draw(random, 3) == 0) {
        plan.device_bytes = whole / 4 + draw(random, whole);
    } else {
        plan.offload_bytes = whole / 4 + draw(random, 2 * whole);
    }
    wb_offloader *made = weights_offload(stepper->weights, stepper->device, stepper->stream, &plan,
                                         &options, &status);
    if (status != WB_ERR_BUDGET && status != WB_ERR_NOT_MAPPED && CHECK_OK(status)) count(PLANNED);
    return made;
}

/* One offloader from its plan to its release. */
static void life(struct team *team, struct weights *weights, struct stepper *stepper)
{
    struct member member;
    int over = 0;
    wb_offloader *offloader = random_offloader(stepper);
    if (offloader == NULL) return;
    memset(&member, 0, sizeof member);
    stepper->offloader = offloader;
    member.over = &over;
    member.changer.device = team->round->device;
    member.changer.offloader = offloader;
    member.changer.weights = weights;
    member.changer.random = random_of(draw(&stepper->random, UINT64_MAX));
    if (changer_begin(&member.changer)) {
        start(&member, run_changer);
        for (uint64_t left = 20 + draw(&stepper->random, 200); left > 0; left--) {
            if (stopped(team->round) || failures() > 0) break;
            stepper_step(stepper);
            sleep_us((long)draw(&stepper->random, 300));
        }
        __atomic_store_n(&over, 1, __ATOMIC_RELEASE);
        await(&member);
        if (draw(&stepper->random, 2) == 0) {
            wb_offloader_release(offloader);
            offloader = NULL;
        }
        changer_end(&member.changer);
    }
    wb_offloader_release(offloader);
}

void *team_changing(void *user)
{
    struct team *team = (struct team *)user;
    struct stepper stepper;
    struct weights *weights = (struct weights *)malloc(sizeof *weights);
    if (weights == NULL) abort();
    memset(&stepper, 0, sizeof stepper);
    stepper.device = team->round->device;
    stepper.weights = weights;
    stepper.alone = 1;
    stepper.random = random_of_team(team, 0);
    weights_init(weights, 8, 3, 50000, WEIGHTS_COME_AND_GO, draw(&stepper.random, UINT64_MAX));
    if (stepper_begin(&stepper)) {
        while (!stopped(team->round) && failures() == 0) life(team, weights, &stepper);
        stepper_end(&stepper);
    }
    free(weights);
    return NULL;
}
