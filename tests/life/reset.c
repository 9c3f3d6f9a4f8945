/* The engine resets the device's primary context while objects in it are alive. Over the driver double only:
 * a real driver does not define what happens to handles of a destroyed context. */
#include "every_function.h"

static void reset_context(void)
{
    int (*reset)(int) = NULL;
    REQUIRE(driver_function("cuDevicePrimaryCtxReset_v2", &reset));
    CHECK_SAME(reset(0), 0);
}

/* With a new context in place of the old one, or none. */
static void call_every_function_after_a_reset(int renewed)
{
    int (*retain)(void **, int) = NULL;
    int (*release)(int) = NULL;
    void *context = NULL;
    const wb_device_stats nothing = WB_DEVICE_STATS_INIT;
    every_begin();
    REQUIRE(driver_function("cuDevicePrimaryCtxRetain", &retain));
    REQUIRE(driver_function("cuDevicePrimaryCtxRelease_v2", &release));
    REQUIRE(scene_begin());
    reset_context();
    if (renewed) CHECK_SAME(retain(&context, 0), 0);
    for (int i = 0; i < EVERY_COUNT; i++) {
        const struct every *each = &every[i];
        const wb_status status = every_call(each);
        const int fails = each->needs == DEVICE;
        if (!CHECK_SAME(status, fails ? WB_ERR_DRIVER : WB_OK) ||
            (fails && !CHECK(strstr(error.message, "CONTEXT_IS_DESTROYED") != NULL))) {
            fprintf(stderr, "  %s: \"%s\"\n", each->name, error.message);
        }
        if (fails) CHECK(scene_made_nothing());
        scene_release_made(0);
    }
    scene_release(0);
    CHECK_OK(wb_device_drain(scene.watched, 10000, &error));
    CHECK_STATS(scene.watched, nothing);
    CHECK_SAME(device_stats(scene.watched).errors_logged, 0);
    wb_device_release(scene.watched);
    CHECK_SAME(double_alive("contexts"), renewed); /* the library does not release the new one */
    REQUIRE(scene_begin()); /* a device opened now works */
    CHECK_OK(call_wb_offloader_release_group());
    scene_end();
    if (renewed) CHECK_SAME(release(0), 0);
    CHECK_SAME(double_alive("contexts"), 0);
}

static void functions_fail_with_driver_errors_after_a_reset(wb_device *device)
{
    (void)device;
    call_every_function_after_a_reset(0);
}

static void a_new_context_is_not_released(wb_device *device)
{
    (void)device;
    call_every_function_after_a_reset(1);
}

CHECK_MAIN(CASE_ALONE(DOUBLE_ONLY, functions_fail_with_driver_errors_after_a_reset),
           CASE_ALONE(DOUBLE_ONLY, a_new_context_is_not_released))
