/* Errors, and the callback for errors that no call can return.
 * Generated from the Rust sources; change those and run `make header`. */
#ifndef WEIGHBRIDGE_ERROR_H
#define WEIGHBRIDGE_ERROR_H

#include <stdint.h>

#include "status.h"

#ifdef __cplusplus
extern "C" {
#endif

/** The numbering that an error's code belongs to. */
typedef int32_t wb_code_domain;
/** There is no code. */
#define WB_CODE_NONE 0
/** `errno` of a system call. */
#define WB_CODE_ERRNO 1
/** `CUresult` of the CUDA driver. */
#define WB_CODE_CUDA 2

/** Describes a failure; a call that succeeds does not write it. */
typedef struct {
    /** Size of the struct. */
    uint32_t struct_size;
    /** The status that the call returned. */
    wb_status status;
    /** The code of the driver or the kernel; 0 if there is none. */
    int32_t code;
    /** The numbering that `code` belongs to. */
    wb_code_domain code_domain;
    /** What was asked, what was found, and what to do. */
    char message[500];
} wb_error;
#define WB_ERROR_INIT {sizeof(wb_error), 0, 0, 0, {0}}

/**
 * Receives an error that no call could return, such as one of freeing memory. It is called on any
 * thread, with locks of the library held: it must not call the library.
 */
typedef void (*wb_log_callback)(void *user, const wb_error *error);

/**
 * Installs the log callback of the process; NULL removes it. Without one, such errors are only
 * counted (`wb_device_stats.errors_logged`). `user` must stay valid until the callback is
 * replaced.
 */
wb_status wb_log_set_callback(wb_log_callback callback, void *user);

#ifdef __cplusplus
}
#endif

#endif
