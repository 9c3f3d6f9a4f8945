/* Threads that step offloaders and change their weights meanwhile. */
#include "soak.h"

enum { STEPPERS = 2, KEPT_VIEWS = 8, PIECED = 3, PIECED_BYTES = 3 << 20, PIECES = 2 * PIECED,
       PIECES_AT_REST = 3, MINUTE = 60000 };

/* A thread that steps an offloader, or that changes its weights while others step it. */
struct member {
    pthread_t thread;
    int running;
    const int *over; /* the thread ends once this is 1 */
    /* Held while an index is in use, and exclusively to remove a weight, which invalidates indexes. */
    pthread_rwlock_t *indexes;
    wb_device *device;
    wb_offloader *offloader;
    struct weights *weights;
    struct random random;
    int alone;     /* no other thread steps this offloader */
    int in_pieces; /* its weights are */
    void *stream;
    wb_buffer *readback;        /* of a stepper */
    wb_view *views[KEPT_VIEWS]; /* of weights, by a changer; some are older than the last change */
};

/* The bytes that were copied from a weight while its group was acquired. They must be those of a version
 * between the current one before that and the newest one attempted since. */
struct sample {
    int index;
    uint64_t oldest;
    uint64_t bytes; /* 0 if the weight did not exist */
    unsigned char *seen;
};

static struct member new_member(wb_device *device, wb_offloader *offloader, struct weights *weights,
                                const int *over, pthread_rwlock_t *indexes, struct random random)
{
    struct member member;
    memset(&member, 0, sizeof member);
    member.device = device;
    member.offloader = offloader;
    member.weights = weights;
    member.over = over;
    member.indexes = indexes;
    member.random = random;
    return member;
}

static int begin_stepping(struct member *member)
{
    const uint64_t bytes = (uint64_t)weights_count(member->weights) * member->weights->most_bytes;
    return CHECK_OK(wb_device_stream_new(member->device, &member->stream, &error)) &&
           CHECK_OK(wb_buffer_alloc(member->device, bytes, NULL, &member->readback, &error));
}

static int begin_changing(struct member *member)
{
    return CHECK_OK(wb_device_stream_new(member->device, &member->stream, &error));
}

static void end(struct member *member)
{
    if (member->readback != NULL) { /* the stream writes to it */
        CHECK_OK(wb_device_stream_synchronize(member->device, member->stream, &error));
    }
    for (int view = 0; view < KEPT_VIEWS; view++) wb_view_release(member->views[view]);
    wb_buffer_release(member->readback);
    CHECK_OK(wb_device_stream_release(member->device, member->stream, &error));
}

static void check_sample(const struct weights *weights, const struct sample *sample)
{
    const struct weight *weight = &weights->all[sample->index];
    const uint64_t newest = __atomic_load_n(&weight->attempted, __ATOMIC_ACQUIRE);
    char what[160];
    for (uint64_t version = sample->oldest; version <= newest; version++) {
        if (has_weight(weights, sample->index, version, sample->seen, sample->bytes)) return;
    }
    snprintf(what, sizeof what,
             "%s, %" PRIu64 " bytes, matches none of its versions %" PRIu64 " to %" PRIu64,
             weight->name, sample->bytes, sample->oldest, newest);
    check_failed(__FILE__, __LINE__, what);
}

/* Gets the current properties of a weight. Returns WB_ERR_NOT_FOUND if it does not exist. */
static wb_status weight_info(struct member *member, int index, wb_offloader_parameter_info *info)
{
    const char *name = member->weights->all[index].name;
    const wb_offloader_parameter_info empty = WB_OFFLOADER_PARAMETER_INFO_INIT;
    uint64_t parameter = 0;
    *info = empty;
    pthread_rwlock_rdlock(member->indexes);
    wb_status status = wb_offloader_find_parameter(member->offloader, name, &parameter, &error);
    if (status == WB_OK) {
        status = wb_offloader_get_parameter_info(member->offloader, parameter, info, &error);
        CHECK(status != WB_OK || strcmp(info->name, name) == 0);
    }
    pthread_rwlock_unlock(member->indexes);
    return status;
}

/* Gets the properties of all weights in one call. Names are not read: another thread may remove one. */
static void list_weights(struct member *member)
{
    const wb_offloader_parameter_info empty = WB_OFFLOADER_PARAMETER_INFO_INIT;
    wb_offloader_stats stats = WB_OFFLOADER_STATS_INIT;
    wb_offloader_parameter_info infos[MOST_WEIGHTS];
    for (int at = 0; at < MOST_WEIGHTS; at++) infos[at] = empty;
    if (!CHECK_OK(wb_offloader_get_stats(member->offloader, &stats, &error))) return;
    if (!CHECK(stats.parameters <= MOST_WEIGHTS)) return;
    const wb_status status = wb_offloader_get_parameter_infos(member->offloader, 0,
                                                              stats.parameters, infos, &error);
    if (status == WB_ERR_OUT_OF_RANGE || !CHECK_OK(status)) return; /* some were removed */
    for (uint64_t at = 0; at < stats.parameters; at++) {
        CHECK(infos[at].group < (uint64_t)member->weights->groups);
        CHECK(infos[at].span_bytes > 0 && infos[at].span_bytes <= member->weights->most_bytes);
    }
    count(LISTED);
}

/* Queues a copy of the bytes at a weight's device address. */
static void read_weight(struct member *member, struct sample *sample)
{
    wb_offloader_parameter_info info;
    const wb_status status = weight_info(member, sample->index, &info);
    sample->bytes = status == WB_OK ? info.span_bytes : 0;
    if (status == WB_ERR_NOT_FOUND || !CHECK_OK(status)) return;
    copy_pieces(member->device, sample->seen, info.device_address, sample->bytes, member->stream);
}

/* Retries while another thread's group uses the slot. */
static int acquire(struct member *member, uint64_t group)
{
    for (;;) {
        const wb_status status =
            wb_offloader_acquire_group(member->offloader, group, member->stream, &error);
        if (status != WB_ERR_BUSY || member->alone) return CHECK_OK(status);
        count(CHANGE_REFUSED);
        sleep_us(50);
    }
}

/* Runs one step. A stepper that is alone uses other orders of groups too, and abandons steps. */
static void step(struct member *member)
{
    static const long kernel_us = 100;
    struct weights *weights = member->weights;
    struct sample samples[MOST_WEIGHTS];
    unsigned char *readback = (unsigned char *)buffer_info(member->readback).data;
    const int in_order = !member->alone || draw(&member->random, 8) > 0;
    const int abandoned = member->alone && draw(&member->random, 50) == 0;
    int sampled = 0;
    for (int turn = 0; turn < weights->groups; turn++) {
        const int group = in_order ? turn : (int)draw(&member->random, (uint64_t)weights->groups);
        const int first = sampled;
        for (int each = 0; each < weights->each; each++, sampled++) {
            struct sample *sample = &samples[sampled];
            sample->index = group * weights->each + each;
            sample->oldest =
                __atomic_load_n(&weights->all[sample->index].current, __ATOMIC_ACQUIRE);
            sample->seen = readback + (uint64_t)sampled * weights->most_bytes;
        }
        if (!acquire(member, (uint64_t)group)) return;
        count(ACQUIRED);
        for (int at = first; at < sampled; at++) read_weight(member, &samples[at]);
        if (draw(&member->random, 10) == 0) {
            delay_stream(member->device, member->stream, &kernel_us);
        }
        if (abandoned && turn == weights->groups / 2) break;
        CHECK_OK(wb_offloader_release_group(member->offloader, (uint64_t)group, member->stream,
                                            &error));
    }
    if (abandoned) {
        CHECK_OK(wb_offloader_reset(member->offloader, member->stream, &error));
        count(ABANDONED);
    }
    if (draw(&member->random, 8) == 0) list_weights(member);
    CHECK_OK(wb_device_stream_synchronize(member->device, member->stream, &error));
    for (int at = 0; at < sampled; at++) check_sample(weights, &samples[at]);
    count(STEPPED);
}

/* Reads a compressed weight. No other thread removes weights. */
static void check_compressed(struct member *member, int index, uint64_t version, uint64_t bytes)
{
    const char *name = member->weights->all[index].name;
    unsigned char *read = (unsigned char *)malloc(bytes);
    uint64_t parameter = 0;
    if (read == NULL) abort();
    CHECK_OK(wb_offloader_find_parameter(member->offloader, name, &parameter, &error));
    CHECK_OK(wb_offloader_read_parameter(member->offloader, parameter, read, bytes, &error));
    CHECK(has_weight(member->weights, index, version, read, bytes));
    free(read);
    count(COMPRESSED);
}

/* Checks that the offloader has the version: its size, and its bytes if they can be read on the host. */
static void check_version(struct member *member, int index, uint64_t version)
{
    const struct weights *weights = member->weights;
    const uint64_t bytes = weight_bytes(weights, index, version);
    wb_offloader_parameter_info info;
    const wb_status status = weight_info(member, index, &info);
    CHECK(status == (bytes > 0 ? WB_OK : WB_ERR_NOT_FOUND));
    if (status != WB_OK) return;
    CHECK_SAME(info.span_bytes, bytes);
    if (info.host_address != NULL) {
        CHECK(has_weight(weights, index, version, info.host_address, info.span_bytes));
    }
    if (info.encoded_bytes > 0) check_compressed(member, index, version, bytes);
}

/* Returns a copy of the content in device memory; NULL for a resident weight, which would keep using
 * it. */
static void *copy_on_device(struct member *member, int index, const void *content, uint64_t bytes)
{
    wb_offloader_parameter_info info;
    void *address = NULL;
    const wb_status status = weight_info(member, index, &info);
    if (status != WB_OK || info.placement == WB_PLACEMENT_RESIDENT) return NULL;
    if (!CHECK_OK(wb_device_alloc(member->device, bytes, &address, &error))) return NULL;
    CHECK_OK(wb_device_copy(member->device, address, content, bytes, member->stream, &error));
    return address;
}

static wb_status replace(struct member *member, int index, const wb_layout *layout,
                         const void *content)
{
    const char *name = member->weights->all[index].name;
    const uint64_t bytes = (uint64_t)layout->shape[0];
    void *copy =
        draw(&member->random, 3) == 0 ? copy_on_device(member, index, content, bytes) : NULL;
    const wb_status status = wb_offloader_replace(
        member->offloader, name, copy != NULL ? copy : content, layout, member->stream, &error);
    if (copy != NULL) CHECK_OK(wb_device_free(member->device, copy, &error));
    return status;
}

static wb_status add(struct member *member, const struct weight *weight, const wb_layout *layout,
                     const void *content)
{
    wb_parameter parameter = WB_PARAMETER_INIT;
    parameter.name = weight->name;
    parameter.group = weight->group;
    parameter.layout = layout;
    parameter.source = content;
    return wb_offloader_add(member->offloader, &parameter, member->stream, &error);
}

static wb_status remove_weight(struct member *member, const struct weight *weight)
{
    pthread_rwlock_wrlock(member->indexes);
    const wb_status status =
        wb_offloader_remove(member->offloader, weight->name, member->stream, &error);
    pthread_rwlock_unlock(member->indexes);
    return status;
}

/* Changes the weight to the version; `done` is the operation to count. */
static wb_status change_to(struct member *member, int index, uint64_t version, enum operation *done)
{
    const struct weights *weights = member->weights;
    const struct weight *weight = &weights->all[index];
    const int64_t bytes = (int64_t)weight_bytes(weights, index, version);
    const wb_layout layout = weight_layout(weights, &bytes);
    const int exists = weight_bytes(weights, index, weight->current) > 0;
    *done = exists ? bytes > 0 ? REPLACED : REMOVED : ADDED;
    if (bytes == 0) return exists ? remove_weight(member, weight) : WB_OK;
    unsigned char *content = weight_content(weights, index, version);
    if (options.defect == DEFECT_WEIGHTS) content[bytes / 2] ^= 1;
    const wb_status status = exists ? replace(member, index, &layout, content)
                                    : add(member, weight, &layout, content);
    free(content);
    return status;
}

/* A group is acquired, or the budget would be exceeded. */
static int refused(wb_status status)
{
    return status == WB_ERR_BUSY || status == WB_ERR_BUDGET;
}

static int random_weight(struct member *member)
{
    return (int)draw(&member->random, (uint64_t)weights_count(member->weights));
}

/* Changes a weight to its next version. A refused change must leave the current one. */
static void change_weight(struct member *member)
{
    const int index = random_weight(member);
    struct weight *weight = &member->weights->all[index];
    const uint64_t before = weight->current, version = before + 1;
    enum operation done = REPLACED;
    __atomic_store_n(&weight->attempted, version, __ATOMIC_RELEASE);
    const wb_status status = change_to(member, index, version, &done);
    if (refused(status)) {
        __atomic_store_n(&weight->attempted, before, __ATOMIC_RELEASE);
        count(CHANGE_REFUSED);
        check_version(member, index, before);
        return;
    }
    if (!CHECK_OK(status)) return;
    __atomic_store_n(&weight->current, version, __ATOMIC_RELEASE);
    count(done);
    if (options.defect != DEFECT_WEIGHTS) check_version(member, index, version);
}

static void renew_view(struct member *member)
{
    const char *name = member->weights->all[random_weight(member)].name;
    wb_view **kept = &member->views[draw(&member->random, KEPT_VIEWS)];
    wb_view_release(*kept);
    *kept = NULL;
    uint64_t parameter = 0; /* valid: no other thread removes weights */
    wb_status status = wb_offloader_find_parameter(member->offloader, name, &parameter, &error);
    if (status == WB_OK) {
        status = draw(&member->random, 2) == 0
                     ? wb_offloader_get_view(member->offloader, parameter, kept, &error)
                     : wb_offloader_get_host_view(member->offloader, parameter, kept, &error);
    }
    /* The weight may be removed, or resident, or compressed in host memory. */
    const int compressed = status == WB_ERR_NOT_SUPPORTED && member->weights->are_numbers;
    if (status != WB_ERR_NOT_FOUND && !compressed && CHECK_OK(status)) count(VIEWED);
}

/* Begins to hold so many pieces on the device; none puts the offloader to sleep. Others may step. */
static void resize_to(struct member *member, uint64_t pieces, wb_offloader_resize_progress *progress)
{
    wb_offloader_resize_options to = WB_OFFLOADER_RESIZE_OPTIONS_INIT;
    to.budget_kind = WB_BUDGET_DEVICE_BYTES;
    to.budget_bytes = pieces * PIECE_BYTES;
    CHECK_OK(wb_offloader_resize(member->offloader, &to, member->stream, progress, &error));
    count(RESIZED);
}

static void prefer(struct member *member, int index, double heat)
{
    uint64_t parameter = 0;
    const uint64_t bytes = weight_bytes(member->weights, index, 0);
    CHECK_OK(wb_offloader_find_parameter(member->offloader, member->weights->all[index].name, &parameter,
                                         &error));
    CHECK_OK(wb_offloader_prefer(member->offloader, parameter, 0, bytes, heat, &error));
}

static void rebalance(struct member *member, uint64_t most, wb_offloader_rebalance_progress *moved)
{
    CHECK_OK(wb_offloader_rebalance(member->offloader, most, member->stream, moved, &error));
    CHECK(moved->moved_bytes <= most && moved->device_bytes <= PIECES * PIECE_BYTES);
    if (moved->moved_bytes > 0) count(REBALANCED);
}

static void change_pieces(struct member *member)
{
    static const double heats[] = {0, 0.5, 1, 3};
    wb_offloader_resize_progress progress = WB_OFFLOADER_RESIZE_PROGRESS_INIT;
    wb_offloader_rebalance_progress moved = WB_OFFLOADER_REBALANCE_PROGRESS_INIT;
    switch (draw(&member->random, 6)) {
    case 0: change_weight(member); break; /* refused while pieces move */
    case 1: /* asleep, or not: steppers wait */
        resize_to(member, draw(&member->random, PIECES + 1), &progress);
        if (draw(&member->random, 2) == 0) break;
        resize_to(member, 1 + draw(&member->random, PIECES), &progress);
        CHECK_OK(wb_offloader_resize_wait(member->offloader, member->stream, MINUTE, &progress, &error));
        break;
    default:
        prefer(member, random_weight(member), heats[draw(&member->random, 4)]);
        rebalance(member, draw(&member->random, 5) * PIECE_BYTES, &moved);
    }
}

/* Makes the state that every round ends with, so that the mappings can be compared. */
static void rest_pieces(struct member *member)
{
    wb_offloader_resize_progress progress = WB_OFFLOADER_RESIZE_PROGRESS_INIT;
    wb_offloader_rebalance_progress moved = WB_OFFLOADER_REBALANCE_PROGRESS_INIT;
    for (int index = 0; index < PIECED; index++) prefer(member, index, 1 + index);
    resize_to(member, PIECES_AT_REST, &progress);
    CHECK_OK(wb_offloader_resize_wait(member->offloader, member->stream, MINUTE, &progress, &error));
    do {
        rebalance(member, PIECES * PIECE_BYTES, &moved);
    } while (moved.pending_bytes > 0 && failures() == 0);
    CHECK_SAME(moved.device_bytes, PIECES_AT_REST * PIECE_BYTES);
}

static void change(struct member *member)
{
    if (member->in_pieces) {
        change_pieces(member);
        return;
    }
    const uint64_t kind = draw(&member->random, 10);
    if (kind == 0) {
        renew_view(member);
    } else if (kind == 1) {
        const wb_status status = wb_offloader_compact(member->offloader, member->stream, &error);
        if (!refused(status) && CHECK_OK(status)) count(COMPACTED);
    } else {
        change_weight(member);
    }
}

static int is_over(const struct member *member)
{
    return __atomic_load_n(member->over, __ATOMIC_ACQUIRE) || failures() > 0;
}

static void *run_stepper(void *user)
{
    struct member *member = (struct member *)user;
    if (!begin_stepping(member)) return NULL;
    while (!is_over(member)) {
        step(member);
        sleep_us((long)draw(&member->random, 300));
    }
    end(member);
    return NULL;
}

static void *run_changer(void *user)
{
    struct member *member = (struct member *)user;
    while (!is_over(member)) {
        change(member);
        sleep_us((long)draw(&member->random, 2000));
    }
    return NULL;
}

static void start(struct member *member, void *(*run)(void *))
{
    member->running = CHECK(pthread_create(&member->thread, NULL, run, member) == 0);
}

static void join(struct member *member)
{
    if (member->running) pthread_join(member->thread, NULL);
}

static struct random random_of_thread(const struct offload_thread *thread, uint64_t member)
{
    return random_of(thread->round->number * 1000 + 500 + (uint64_t)thread->index * 10 + member);
}

/* Weights in pieces, of which so many are on the device as at the end of each round. */
static int begin_pieces(struct lasting_offloader *lasting)
{
    pthread_rwlock_t indexes = PTHREAD_RWLOCK_INITIALIZER;
    const int over = 0;
    struct member changer = new_member(lasting->device, lasting->offloader, &lasting->weights, &over,
                                       &indexes, random_of(0));
    if (!begin_changing(&changer)) return 0;
    rest_pieces(&changer);
    end(&changer);
    return failures() == 0;
}

int lasting_begin(struct lasting_offloader *lasting, wb_device *device, int in_pieces)
{
    wb_plan_options plan = WB_PLAN_OPTIONS_INIT;
    wb_status status = WB_OK;
    plan.budget_kind = WB_BUDGET_OFFLOAD_BYTES;
    plan.budget_bytes = UINT64_MAX;
    plan.transfer_mode = in_pieces ? WB_TRANSFER_MODE_ZERO_COPY : WB_TRANSFER_MODE_PREFETCH;
    plan.depth = in_pieces ? 0 : 3;
    plan.fixed_addresses = in_pieces ? WB_TRISTATE_ON : WB_TRISTATE_AUTO;
    lasting->in_pieces = in_pieces;
    lasting->device = device;
    if (in_pieces) {
        weights_init(&lasting->weights, PIECED, 1, PIECED_BYTES, CONTENT_CHANGES, options.seed + 1);
        lasting->weights.are_large = 1;
    } else {
        weights_init(&lasting->weights, 12, 2, 40000, CONTENT_CHANGES, options.seed);
    }
    if (!CHECK_OK(wb_device_stream_new(device, &lasting->stream, &error))) return 0;
    lasting->offloader = weights_offload(&lasting->weights, device, lasting->stream, &plan, NULL,
                                         &status);
    if (!CHECK_OK(status)) return 0;
    /* The last group is not in a slot yet, so this starts the threads of both copy streams. */
    const uint64_t last = (uint64_t)lasting->weights.groups - 1;
    return CHECK_OK(wb_offloader_acquire_group(lasting->offloader, last, lasting->stream, &error)) &&
           CHECK_OK(wb_offloader_release_group(lasting->offloader, last, lasting->stream, &error)) &&
           CHECK_OK(wb_device_stream_synchronize(device, lasting->stream, &error)) &&
           (!in_pieces || begin_pieces(lasting));
}

void lasting_end(struct lasting_offloader *lasting)
{
    wb_offloader_release(lasting->offloader);
    CHECK_OK(wb_device_stream_release(lasting->device, lasting->stream, &error));
}

void *offload_lasting(void *user)
{
    struct offload_thread *thread = (struct offload_thread *)user;
    struct lasting_offloader *lasting = thread->lasting;
    struct member members[STEPPERS + 1], *changer = &members[STEPPERS];
    pthread_rwlock_t indexes = PTHREAD_RWLOCK_INITIALIZER;
    for (int index = 0; index <= STEPPERS; index++) {
        members[index] =
            new_member(lasting->device, lasting->offloader, &lasting->weights, &thread->round->stop,
                       &indexes, random_of_thread(thread, (uint64_t)index));
        members[index].in_pieces = lasting->in_pieces;
    }
    if (!begin_changing(changer)) return NULL;
    for (int index = 0; index < STEPPERS; index++) start(&members[index], run_stepper);
    run_changer(changer);
    if (lasting->in_pieces) rest_pieces(changer); /* it may be asleep, which steppers wait for */
    for (int index = 0; index < STEPPERS; index++) join(&members[index]);
    end(changer);
    return NULL;
}

/* Commits a random plan. Returns NULL if the plan is an error, as some are. */
static wb_offloader *random_offloader(struct member *stepper)
{
    static const wb_transfer_mode modes[] = {WB_TRANSFER_MODE_AUTO, WB_TRANSFER_MODE_ZERO_COPY,
                                             WB_TRANSFER_MODE_ON_DEMAND, WB_TRANSFER_MODE_PREFETCH,
                                             WB_TRANSFER_MODE_PREFETCH};
    static const char *const every[] = {"*"};
    struct random *random = &stepper->random;
    struct weights *weights = stepper->weights;
    wb_plan_options plan = WB_PLAN_OPTIONS_INIT;
    wb_buffer_options buffers = WB_BUFFER_OPTIONS_INIT;
    wb_status status = WB_OK;
    uint64_t whole = 0;
    for (int index = 0; index < weights_count(weights); index++) {
        whole += weight_bytes(weights, index, weights->all[index].current);
    }
    plan.allow = WB_ALLOW_NOTHING_OFFLOADED | WB_ALLOW_EVERYTHING_FITS;
    plan.transfer_mode = modes[draw(random, 5)];
    plan.order = (wb_order)draw(random, 3);
    plan.depth = (uint32_t)draw(random, 9);
    if (draw(random, 4) == 0) buffers.pin = WB_TRISTATE_OFF;
    weights->are_numbers = draw(random, 3) == 0;
    if (weights->are_numbers) {
        plan.compress = WB_COMPRESS_SELECTED;
        plan.compress_select = every;
        plan.compress_select_count = 1;
    }
    if (draw(random, 3) == 0) {
        plan.budget_kind = WB_BUDGET_DEVICE_BYTES;
        plan.budget_bytes = whole / 4 + draw(random, whole);
    } else {
        plan.budget_kind = WB_BUDGET_OFFLOAD_BYTES;
        plan.budget_bytes = whole / 4 + draw(random, 2 * whole);
    }
    wb_offloader *made = weights_offload(weights, stepper->device, stepper->stream, &plan,
                                         &buffers, &status);
    if (status != WB_ERR_BUDGET && status != WB_ERR_NOT_MAPPED && CHECK_OK(status)) count(PLANNED);
    return made;
}

/* Commits, steps, changes and releases one offloader; half of them while views of it exist. */
static void use_offloader(struct round *round, struct member *stepper)
{
    pthread_rwlock_t indexes = PTHREAD_RWLOCK_INITIALIZER;
    int over = 0;
    stepper->indexes = &indexes;
    stepper->offloader = random_offloader(stepper);
    if (stepper->offloader == NULL) return;
    struct member changer =
        new_member(stepper->device, stepper->offloader, stepper->weights, &over, &indexes,
                   random_of(draw(&stepper->random, UINT64_MAX)));
    if (begin_changing(&changer)) {
        start(&changer, run_changer);
        for (uint64_t left = 20 + draw(&stepper->random, 200); left > 0 && !stopped(round); left--) {
            step(stepper);
            sleep_us((long)draw(&stepper->random, 300));
        }
        __atomic_store_n(&over, 1, __ATOMIC_RELEASE);
        join(&changer);
        if (draw(&stepper->random, 2) == 0) {
            wb_offloader_release(stepper->offloader);
            stepper->offloader = NULL;
        }
        end(&changer);
    }
    wb_offloader_release(stepper->offloader);
}

void *offload_short_lived(void *user)
{
    struct offload_thread *thread = (struct offload_thread *)user;
    struct weights *weights = (struct weights *)malloc(sizeof *weights);
    if (weights == NULL) abort();
    struct member stepper = new_member(thread->round->device, NULL, weights, &thread->round->stop,
                                       NULL, random_of_thread(thread, 0));
    stepper.alone = 1;
    weights_init(weights, 8, 3, 50000, WEIGHTS_COME_AND_GO, draw(&stepper.random, UINT64_MAX));
    if (begin_stepping(&stepper)) {
        while (!is_over(&stepper)) use_offloader(thread->round, &stepper);
        end(&stepper);
    }
    free(weights);
    return NULL;
}
