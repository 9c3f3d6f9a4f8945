/* Makes system calls of the library fail. Functions of this program replace those of the C library, and
 * count the calls that come from libweighbridge.so. A sanitizer replaces the same functions, so
 * system_stub.c is built instead under one. */
#ifndef SYSTEM_H
#define SYSTEM_H

/* Returns 1 if system calls can fail and are counted in this program. */
int system_can_fail(void);

/* Memory and files that the library has open; 0 if they are not counted. */
struct system_held {
    long long mapped_bytes, open_files;
};
struct system_held system_held(void);

/* From now on the k-th system call of the library fails with `code` in errno; none if 0. Calls on hints,
 * the files that describe the machine and its limits, count only if `hints`. */
void system_fail(int kth, int code, int hints);

/* Returns the function of the call that failed; NULL if none has yet. */
const char *system_failed(void);

/* Returns 1 if the thread whose call failed called the same function next. */
int system_was_retried(void);

/* Returns the file of the failed call; "" if it has none. */
const char *system_failed_file(void);

/* Returns 1 if the file is a hint. */
int system_is_hint(const char *path);

#endif
