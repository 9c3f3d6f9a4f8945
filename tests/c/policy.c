/* One policy: an option wins over the environment, and that over the platform; and it says why. */
#include "memory.h"

#define PIN "WEIGHBRIDGE_DISABLE_PIN_MEMORY"
#define UVA "WEIGHBRIDGE_DISABLE_UVA"

static wb_device *opened(wb_tristate pin, wb_tristate views)
{
    wb_device_options options = WB_DEVICE_OPTIONS_INIT;
    wb_device *device = NULL;
    options.pin = pin;
    options.views = views;
    CHECK_OK(wb_device_open(test_device(), &options, &device, &error));
    return device;
}

static void check_policy(wb_tristate pin, wb_tristate views, int pins, int shows, const char *pin_why,
                         const char *views_why)
{
    wb_device *device = opened(pin, views);
    if (device == NULL) return;
    wb_device_info info = describe_device(device);
    CHECK_SAME(info.pin, pins);
    CHECK_SAME(info.views, shows);
    CHECK(strstr(info.pin_reason, pin_why) != NULL);
    CHECK(strstr(info.views_reason, views_why) != NULL);
    wb_device_release(device);
}

static void the_environment_switches_pinning_off(wb_device *device)
{
    wb_buffer *buffer = NULL;
    setenv(PIN, "1", 1);
    check_policy(WB_TRISTATE_AUTO, WB_TRISTATE_AUTO, 0, !on_cuda(), PIN "=1", "");
    device = opened(WB_TRISTATE_AUTO, WB_TRISTATE_AUTO);
    REQUIRE_OK(wb_buffer_alloc(device, 10000, NULL, &buffer, &error));
    CHECK_SAME(describe(buffer).pinning, WB_PINNING_NONE);
    CHECK_SAME(describe(buffer).pinned_bytes, 0);
    CHECK(strstr(describe(buffer).note, PIN "=1") != NULL);
    CHECK_SAME(measure(device).pinned_bytes, 0);
    wb_buffer_release(buffer);
    wb_device_release(device);
}

static void the_environment_switches_views_off(wb_device *device)
{
    wb_buffer *buffer = NULL;
    wb_view *view = NULL;
    int64_t shape[] = {10};
    wb_layout layout = layout_of(WB_DTYPE_U8, 1, shape, NULL, 0);
    setenv(UVA, "true", 1);
    check_policy(WB_TRISTATE_AUTO, WB_TRISTATE_AUTO, 1, 0, "", UVA "=true");
    device = opened(WB_TRISTATE_AUTO, WB_TRISTATE_AUTO);
    REQUIRE_OK(wb_buffer_alloc(device, 10, NULL, &buffer, &error));
    CHECK_SAME(describe(buffer).pinning, WB_PINNING_REGISTERED);
    CHECK_SAME(describe(buffer).device_address, 0);
    CHECK_ERROR(WB_ERR_NOT_MAPPED, wb_view_new(buffer, &layout, WB_ACCESSOR_DEVICE, &view, &error),
                "views are off|" UVA "=true|WB_ACCESSOR_HOST");
    CHECK(view == NULL);
    CHECK_OK(wb_view_new(buffer, &layout, WB_ACCESSOR_HOST, &view, &error));
    wb_view_release(view);
    wb_buffer_release(buffer);
    wb_device_release(device);
}

static void an_option_wins_over_the_environment(wb_device *device)
{
    (void)device;
    setenv(PIN, "1", 1);
    setenv(UVA, "1", 1);
    check_policy(WB_TRISTATE_AUTO, WB_TRISTATE_AUTO, 0, 0, PIN, UVA);
    check_policy(WB_TRISTATE_ON, WB_TRISTATE_ON, 1, 1, "asked for in the options", "asked for in the options");
    check_policy(WB_TRISTATE_ON, WB_TRISTATE_AUTO, 1, 0, "asked for", UVA);
    unsetenv(PIN);
    unsetenv(UVA);
    check_policy(WB_TRISTATE_OFF, WB_TRISTATE_OFF, 0, 0, "switched off in the options",
                 "switched off in the options");
    check_policy(WB_TRISTATE_AUTO, WB_TRISTATE_AUTO, 1, 1, "", "");
}

static void a_buffers_option_wins_over_its_device(wb_device *device)
{
    wb_buffer_options options = WB_BUFFER_OPTIONS_INIT;
    wb_buffer *buffer = NULL;
    device = opened(WB_TRISTATE_OFF, WB_TRISTATE_AUTO);
    options.pin = WB_TRISTATE_ON;
    REQUIRE_OK(wb_buffer_alloc(device, 10000, &options, &buffer, &error));
    CHECK_SAME(describe(buffer).pinning, WB_PINNING_REGISTERED);
    wb_buffer_release(buffer);
    wb_device_release(device);
    device = opened(WB_TRISTATE_ON, WB_TRISTATE_AUTO);
    options.pin = WB_TRISTATE_OFF;
    REQUIRE_OK(wb_buffer_alloc(device, 10000, &options, &buffer, &error));
    CHECK_SAME(describe(buffer).pinning, WB_PINNING_NONE);
    wb_buffer_release(buffer);
    wb_device_release(device);
}

static void no_in_any_spelling_changes_nothing(wb_device *device)
{
    const char *spellings[] = {"", "0", "false", "NO", "Off"};
    (void)device;
    for (int i = 0; i < 5; i++) {
        setenv(PIN, spellings[i], 1);
        setenv(UVA, spellings[i], 1);
        check_policy(WB_TRISTATE_AUTO, WB_TRISTATE_AUTO, 1, 1, "", "");
    }
}

static void a_value_that_says_neither_is_refused(wb_device *device)
{
    const char *names[] = {PIN, UVA};
    device = NULL;
    for (int i = 0; i < 2; i++) {
        char words[100];
        setenv(names[i], "perhaps", 1);
        snprintf(words, sizeof words, "%s=\"perhaps\"|1 or 0", names[i]);
        CHECK_ERROR(WB_ERR_INVALID_ARGUMENT, wb_device_open(test_device(), NULL, &device, &error),
                    words);
        unsetenv(names[i]);
    }
    CHECK(device == NULL);
}

CHECK_MAIN(CASE_ALONE(EVERYWHERE, the_environment_switches_pinning_off),
           CASE_ALONE(EVERYWHERE, the_environment_switches_views_off),
           CASE_ALONE(EVERYWHERE, an_option_wins_over_the_environment),
           CASE_ALONE(EVERYWHERE, a_buffers_option_wins_over_its_device),
           CASE_ALONE(EVERYWHERE, no_in_any_spelling_changes_nothing),
           CASE_ALONE(EVERYWHERE, a_value_that_says_neither_is_refused))
