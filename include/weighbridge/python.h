/* For bindings of Python: DLPack capsules. Not part of weighbridge.h.
 * Generated from the Rust sources; change those and run `make header`. */
#ifndef WEIGHBRIDGE_PYTHON_H
#define WEIGHBRIDGE_PYTHON_H

#include "error.h"
#include "status.h"

#ifdef __cplusplus
extern "C" {
#endif

/** CPython's PyCapsule_IsValid. */
typedef int (*wb_capsule_is_valid)(void *capsule, const char *name);

/** CPython's PyCapsule_GetPointer. */
typedef void *(*wb_capsule_get_pointer)(void *capsule, const char *name);

/**
 * Passes two functions of CPython to the library, which is not linked to Python. To be called
 * once, before wb_python_capsule_destroy is used.
 */
wb_status wb_python_capsule_setup(wb_capsule_is_valid is_valid, wb_capsule_get_pointer get_pointer,
                                  wb_error *error);

/**
 * The destructor of a "dltensor" or "dltensor_versioned" capsule, for PyCapsule_New: deletes the
 * tensor if no consumer took it. CPython calls it with the interpreter's lock held.
 */
void wb_python_capsule_destroy(void *capsule);

#ifdef __cplusplus
}
#endif

#endif
