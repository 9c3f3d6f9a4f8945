/* A panic in any exported function, at its start and after each lock it takes, is WB_ERR_INTERNAL, does not
 * unwind into the caller, and leaves every object usable. For a library built with `forced-panics`. */
#include "every_function.h"

#ifdef __cplusplus
extern "C" {
#endif
void wb_force_panic(uint32_t point);
int32_t wb_take_back_panic(void);
#ifdef __cplusplus
}
#endif

/* More points than any call has, and the number of first points that are all tested: loops repeat the
 * later ones. */
enum { MOST_POINTS = 1000, EVERY_POINT = 64 };

static uint32_t next_point(uint32_t point)
{
    return point < EVERY_POINT ? point + 1 : point + 1 + point / 4;
}

/* These only read static tables. */
static int cannot_panic(const struct every *each)
{
    static const char *const atomic_or_constant[] = {
        "wb_version",
        "wb_status_name",
        "wb_python_owner_release",
        "wb_python_owners_take",
    };
    for (size_t i = 0; i < sizeof atomic_or_constant / sizeof *atomic_or_constant; i++) {
        if (strcmp(each->name, atomic_or_constant[i]) == 0) return 1;
    }
    return 0;
}

/* The status of a second call if the first changed the set of parameters before its panic. */
static wb_status status_of_retry(const struct every *each)
{
    if (strcmp(each->name, "wb_offloader_add") == 0) return WB_ERR_INVALID_ARGUMENT;
    if (strcmp(each->name, "wb_offloader_remove") == 0) return WB_ERR_NOT_FOUND;
    if (strcmp(each->name, "wb_arbiter_remove") == 0) return WB_ERR_BUSY; /* it adds first */
    return WB_OK;
}

/* Returns 0 if the call has fewer points: it has then succeeded. */
static int panics_at(const struct every *each, uint32_t point)
{
    const wb_device_stats nothing = WB_DEVICE_STATS_INIT;
    if (!scene_begin()) return 0;
    const uint64_t logged = device_stats(scene.watched).errors_logged;
    check_clear();
    wb_force_panic(point);
    const wb_status status = each->call();
    const int panicked = !wb_take_back_panic();
    if (!panicked && status != WB_OK) fprintf(stderr, "  %s\n", error.message);
    /* A panic during a release is logged, and the object may stay allocated. */
    const int kept = device_stats(scene.watched).errors_logged > logged;
    CHECK(!kept || panicked);
    if (panicked && !kept) {
        CHECK_SAME(status, WB_ERR_INTERNAL);
        CHECK(error.status == WB_OK || strstr(error.message, "forced by a test") != NULL);
        CHECK(scene_made_nothing());
    } else {
        CHECK(status == WB_OK || kept);
    }
    /* A reference is released wherever in the release the panic was; a reference to add is not added. */
    const int begun = point > 0 && strstr(each->name, "_retain") == NULL;
    if (status == WB_OK && each->undo != NULL && (!panicked || begun)) {
        each->undo();
    } else if (panicked) {
        const wb_status again = every_call(each);
        CHECK(again == WB_OK || again == status_of_retry(each));
    }
    if (own.offloader != NULL) {
        wb_status reset = wb_offloader_reset(own.offloader, own.stream, &error);
        if (panicked && reset == WB_ERR_DEVICE_MEMORY) { /* between two arrangements of the slots */
            CHECK_OK(wb_offloader_compact(own.offloader, own.stream, &error));
            reset = wb_offloader_reset(own.offloader, own.stream, &error);
        }
        CHECK_SAME(reset, WB_OK);
        CHECK_OK(call_wb_offloader_release_group());
    }
    if (own.quantizer != NULL) CHECK_OK(call_wb_quantizer_quantize());
    scene_release(1);
    CHECK_OK(wb_device_drain(scene.watched, 10000, &error));
    if (!kept || point == 0) CHECK_STATS(scene.watched, nothing);
    wb_device_release(scene.watched);
    return panicked;
}

static void a_panic_is_an_internal_error_and_leaks_nothing(wb_device *device)
{
    int tried = 0;
    (void)device;
    every_begin();
    for (int i = 0; i < EVERY_COUNT; i++) {
        uint32_t point = 0;
        int panics = 0;
        for (; point < MOST_POINTS && panics_at(&every[i], point); point = next_point(point)) {
            panics++;
        }
        CHECK(point < MOST_POINTS);
        CHECK((point == 0) == cannot_panic(&every[i]));
        if (check_failures > 0) {
            fprintf(stderr, "  in %s, at point %u\n", every[i].name, point);
            return;
        }
        tried += panics;
    }
    printf("  %d functions, %d panics\n", EVERY_COUNT, tried);
}

/* The table of functions is the list of exported symbols. */
static void every_exported_function_is_tested(wb_device *device)
{
    char line[200];
    int listed = 0;
    FILE *symbols = fopen(SYMBOLS, "r");
    (void)device;
    REQUIRE(symbols != NULL);
    while (fgets(line, sizeof line, symbols) != NULL) {
        int found = 0;
        line[strcspn(line, "\n")] = '\0';
        for (int i = 0; i < EVERY_COUNT; i++) found += strcmp(every[i].name, line) == 0;
        if (!CHECK_SAME(found, 1)) fprintf(stderr, "  %s\n", line);
        listed++;
    }
    fclose(symbols);
    CHECK_SAME(listed, EVERY_COUNT);
}

CHECK_MAIN(CASE_ALONE(HOST_ONLY, every_exported_function_is_tested),
           CASE_ALONE(EVERYWHERE, a_panic_is_an_internal_error_and_leaks_nothing))
