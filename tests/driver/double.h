/* The control functions of the driver double. A test finds them with dlsym in
 * libcuda.so.1; a real driver has none of them.
 * They may be called from any thread, also before cuInit. In a forked child
 * they return -1 or NULL. */
#ifndef WB_DOUBLE_H
#define WB_DOUBLE_H

#ifdef __cplusplus
extern "C" {
#endif

#pragma GCC visibility push(default)

/* Sets a setting (README.md lists them) as the environment variable `name`
 * does; call numbers in WB_DOUBLE_FAIL count from here. NULL or "" restores the
 * default. Returns 0, or -1 for an unknown setting, an invalid value, or
 * WB_DOUBLE_DEVICES after cuInit. */
int double_configure(const char *name, const char *value);

/* Returns the number of calls of a CUDA function by symbol name, including failed
 * calls; NULL: of all functions. -1: unknown function. */
long long double_calls(const char *name);

/* Returns the number of live objects of a kind in all contexts: "contexts" (with
 * retained primary contexts), "registrations", "registered_bytes",
 * "unmapped_registrations" (of memory that is gone), "host_allocations",
 * "host_bytes", "device_allocations", "device_bytes", "streams", "events",
 * "captures", "graphs", "graph execs", "reservations", "physical_memory",
 * "physical_host_bytes"; or "orphans": objects released only by the destruction
 * of their context so far, each of them a leak of the caller. -1: unknown kind. */
long long double_live(const char *kind);

/* Returns the symbol name of a CUDA function, by its number from 0 on; NULL: there are fewer. */
const char *double_function(int number);

/* Returns the first function that WB_DOUBLE_FAIL failed or delayed since it was set; NULL: none. */
const char *double_failed(void);

/* Returns how many calls of a function it failed or delayed since then. -1: unknown function. */
long long double_failures(const char *name);

/* Returns 1 if the thread whose call failed first has repeated it: the same function, and for
 * cuStreamSynchronize and cuEventSynchronize the same stream or event. */
int double_failed_call_repeated(void);

/* Returns the depth of the calling thread's context stack. */
int double_context_depth(void);

#pragma GCC visibility pop

#ifdef __cplusplus
}
#endif

#endif
