/* For bindings of Python: DLPack capsules and owners of memory. Not part of weighbridge.h.
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

/**
 * The deleter of memory whose owner is a Python object: notes that the library does not use the
 * memory any more, for wb_python_owners_take. A Python function could not be called on any thread,
 * without the interpreter's lock, also after the interpreter has ended.
 *
 * `owner` is a block of memory that begins with two pointers: one that this function overwrites,
 * and the address of the list that the owner is added to, which must stay valid.
 */
void wb_python_owner_release(void *owner);

/**
 * Takes all owners that wb_python_owner_release added to a list. Returns the last one added, or
 * NULL; the first pointer of each is the one before. Any thread may call it, without waiting.
 */
void *wb_python_owners_take(void **list);

#ifdef __cplusplus
}
#endif

#endif
