/* The engine resets the device's primary context, or destroys its own, under everything that was made in
 * it. Over the double: what a real driver does with such a handle is not defined. */
#include "every.h"

static void context_goes(void)
{
    int (*reset)(int) = NULL;
    REQUIRE(driver_function("cuDevicePrimaryCtxReset_v2", &reset));
    CHECK_SAME(reset(0), 0);
}

/* With a new context there instead of the old one, or none. */
static void every_function_answers_without_its_context(int renewed)
{
    int (*retain)(void **, int) = NULL;
    int (*release)(int) = NULL;
    void *context = NULL;
    const wb_device_stats nothing = WB_DEVICE_STATS_INIT;
    every_begin();
    REQUIRE(driver_function("cuDevicePrimaryCtxRetain", &retain));
    REQUIRE(driver_function("cuDevicePrimaryCtxRelease_v2", &release));
    REQUIRE(scene_begin(&scene));
    context_goes();
    if (renewed) CHECK_SAME(retain(&context, 0), 0);
    for (int i = 0; i < EVERY_COUNT; i++) {
        const struct every *each = &every[i];
        const wb_status status = every_call(each, &scene);
        const int fails = each->needs == DEVICE;
        if (!CHECK_SAME(status, fails ? WB_ERR_DRIVER : WB_OK) ||
            (fails && !CHECK(strstr(error.message, "CONTEXT_IS_DESTROYED") != NULL))) {
            fprintf(stderr, "  %s: \"%s\"\n", each->name, error.message);
        }
        if (fails) CHECK(scene_made_nothing(&scene));
        scene_release_made(&scene, 0);
    }
    scene_release(&scene, 0);
    CHECK_OK(wb_device_drain(scene.watched, 10000, &error));
    CHECK_USAGE(scene.watched, nothing);
    CHECK_SAME(measure(scene.watched).errors_logged, 0);
    wb_device_release(scene.watched);
    CHECK_SAME(double_alive("contexts"), renewed); /* the new one was not ours to release */
    REQUIRE(scene_begin(&scene)); /* a device that is opened now is as good as any */
    CHECK_OK(call_wb_offloader_release_group(&scene));
    scene_end(&scene);
    if (renewed) CHECK_SAME(release(0), 0);
    CHECK_SAME(double_alive("contexts"), 0);
}

static void a_reset_leaves_errors_and_no_crash(wb_device *device)
{
    (void)device;
    every_function_answers_without_its_context(0);
}

static void a_context_that_follows_is_left_alone(wb_device *device)
{
    (void)device;
    every_function_answers_without_its_context(1);
}

CHECK_MAIN(CASE_ALONE(DOUBLE_ONLY, a_reset_leaves_errors_and_no_crash),
           CASE_ALONE(DOUBLE_ONLY, a_context_that_follows_is_left_alone))
