/* What a test may ask of the driver double besides CUDA's own entry points.
 * Find these with dlsym in the loaded libcuda.so.1: a real driver has none of
 * them, so their absence tells a test that it runs on hardware.
 * All of them may be called from any thread, before cuInit too. In a forked
 * child they answer -1 or NULL. */
#ifndef WB_DOUBLE_H
#define WB_DOUBLE_H

#ifdef __cplusplus
extern "C" {
#endif

#pragma GCC visibility push(default)

/* Changes one setting (README.md lists them) as if the environment variable
 * `name` had held `value`; k in WB_DOUBLE_FAIL counts from this call on.
 * NULL or "" gives the default back.
 * 0: done. -1: no such setting, a value it cannot take, or too late
 * (WB_DOUBLE_DEVICES after cuInit). */
int double_configure(const char *name, const char *value);

/* Calls so far of one CUDA function by its symbol name, failed ones included;
 * NULL: of all functions. -1: no such function. */
long long double_calls(const char *name);

/* What is alive now, over all contexts: "contexts" (a retained primary context
 * is one), "registrations", "registered_bytes", "host_allocations",
 * "host_bytes", "device_allocations", "device_bytes", "streams", "events",
 * "captures", "graphs". And "orphans": how many of these a context took with it
 * when it died, summed since the start: a leak that a dying context would hide.
 * -1: no such kind. */
long long double_live(const char *kind);

/* The function that WB_DOUBLE_FAIL failed or held up first since it was set; NULL: none yet. */
const char *double_failed(void);

/* How often it has failed or held up a function since it was set. -1: no such function. */
long long double_failures(const char *name);

/* Whether the thread whose call was the first to fail has made it again: the same function, and for
 * cuStreamSynchronize and cuEventSynchronize the same stream or event. */
int double_asked_again(void);

/* Depth of the calling thread's context stack. */
int double_context_depth(void);

#pragma GCC visibility pop

#ifdef __cplusplus
}
#endif

#endif
