/* The policy for pinning and views: options override the environment, which overrides the platform.
 * The device gives the reason. */
#include "memory.h"

#define PIN "WEIGHBRIDGE_DISABLE_PIN_MEMORY"
#define UVA "WEIGHBRIDGE_DISABLE_UVA"

static wb_device *opened(wb_tristate pin, wb_tristate views)
{
    wb_device_options options = WB_DEVICE_OPTIONS_INIT;
    options.pin = pin;
    options.views = views;
    return open_device(test_device(), &options);
}

static void check_policy(wb_tristate pin, wb_tristate views, int pin_on, int views_on,
                         const char *pin_why, const char *views_why)
{
    wb_device *device = opened(pin, views);
    if (device == NULL) return;
    wb_device_info info = describe_device(device);
    CHECK_SAME(info.pin, pin_on);
    CHECK_SAME(info.views, views_on);
    CHECK(strstr(info.pin_reason, pin_why) != NULL);
    CHECK(strstr(info.views_reason, views_why) != NULL);
    wb_device_release(device);
}

static void the_environment_disables_pinning(wb_device *device)
{
    setenv(PIN, "1", 1);
    check_policy(WB_TRISTATE_AUTO, WB_TRISTATE_AUTO, 0, !on_cuda(), PIN "=1", "");
    device = opened(WB_TRISTATE_AUTO, WB_TRISTATE_AUTO);
    wb_buffer *buffer = new_buffer(device, 10000);
    REQUIRE(buffer != NULL);
    CHECK_SAME(describe(buffer).pinning, WB_PINNING_NONE);
    CHECK_SAME(describe(buffer).pinned_bytes, 0);
    CHECK(strstr(describe(buffer).fallback_reason, PIN "=1") != NULL);
    CHECK_SAME(measure(device).pinned_bytes, 0);
    wb_buffer_release(buffer);
    wb_device_release(device);
}

static void the_environment_disables_views(wb_device *device)
{
    setenv(UVA, "true", 1);
    check_policy(WB_TRISTATE_AUTO, WB_TRISTATE_AUTO, 1, 0, "", UVA "=true");
    device = opened(WB_TRISTATE_AUTO, WB_TRISTATE_AUTO);
    wb_buffer *buffer = new_buffer(device, 10);
    REQUIRE(buffer != NULL);
    CHECK_SAME(describe(buffer).pinning, WB_PINNING_REGISTERED);
    check_only_host_views(buffer, "views are off|" UVA "=true|WB_ACCESSOR_HOST");
    wb_buffer_release(buffer);
    wb_device_release(device);
}

static void an_option_overrides_the_environment(wb_device *device)
{
    (void)device;
    setenv(PIN, "1", 1);
    setenv(UVA, "1", 1);
    check_policy(WB_TRISTATE_AUTO, WB_TRISTATE_AUTO, 0, 0, PIN, UVA);
    check_policy(WB_TRISTATE_ON, WB_TRISTATE_ON, 1, 1, "asked for in the options",
                 "asked for in the options");
    check_policy(WB_TRISTATE_ON, WB_TRISTATE_AUTO, 1, 0, "asked for", UVA);
    unsetenv(PIN);
    unsetenv(UVA);
    check_policy(WB_TRISTATE_OFF, WB_TRISTATE_OFF, 0, 0, "switched off in the options",
                 "switched off in the options");
    check_policy(WB_TRISTATE_AUTO, WB_TRISTATE_AUTO, 1, 1, "", "");
}

static void a_buffer_option_overrides_its_device(wb_device *device)
{
    for (int pinned = 0; pinned < 2; pinned++) {
        wb_buffer_options options = WB_BUFFER_OPTIONS_INIT;
        wb_buffer *buffer = NULL;
        device = opened(pinned ? WB_TRISTATE_OFF : WB_TRISTATE_ON, WB_TRISTATE_AUTO);
        options.pin = pinned ? WB_TRISTATE_ON : WB_TRISTATE_OFF;
        REQUIRE_OK(wb_buffer_alloc(device, 10000, &options, &buffer, &error));
        CHECK_SAME(describe(buffer).pinning, pinned ? WB_PINNING_REGISTERED : WB_PINNING_NONE);
        wb_buffer_release(buffer);
        wb_device_release(device);
    }
}

static void false_in_any_spelling_changes_nothing(wb_device *device)
{
    const char *spellings[] = {"", "0", "false", "NO", "Off"};
    (void)device;
    for (int i = 0; i < 5; i++) {
        setenv(PIN, spellings[i], 1);
        setenv(UVA, spellings[i], 1);
        check_policy(WB_TRISTATE_AUTO, WB_TRISTATE_AUTO, 1, 1, "", "");
    }
}

static void an_invalid_value_is_refused(wb_device *device)
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

CHECK_MAIN(CASE_ALONE(EVERYWHERE, the_environment_disables_pinning),
           CASE_ALONE(EVERYWHERE, the_environment_disables_views),
           CASE_ALONE(EVERYWHERE, an_option_overrides_the_environment),
           CASE_ALONE(EVERYWHERE, a_buffer_option_overrides_its_device),
           CASE_ALONE(EVERYWHERE, false_in_any_spelling_changes_nothing),
           CASE_ALONE(EVERYWHERE, an_invalid_value_is_refused))
