/* System calls of the library that fail when a test asks for it: functions of this program take the
 * place of the C library's and count, of all calls, those that come from libweighbridge.so. Not under a
 * sanitizer, whose own functions are in that place: untouched.c. */
#ifndef SYSTEM_H
#define SYSTEM_H

/* Whether calls of the system can be made to fail, and counted, in this program. */
int system_can_fail(void);

/* What the library took from the system and has not given back; 0 where that is not counted. */
struct system_held {
    long long mapped_bytes, open_files;
};
struct system_held system_held(void);

/* Of the library's system calls from now on, the k-th fails with `errno` as `code`. 0: none. Calls
 * on hints, the files in which the kernel describes the machine and its limits, count only if
 * `hints`. */
void system_fail(int kth, int code, int hints);

/* The call that failed; NULL: none yet. */
const char *system_failed(void);

/* Whether the next call of the thread whose call failed was of the same function. */
int system_asked_again(void);

/* The file that the failed call was about; "" where it was about none. */
const char *system_failed_file(void);

/* Whether a file is a hint. */
int system_is_hint(const char *path);

#endif
