/* The version of the library.
 * Generated from the Rust sources; change those and run `make header`. */
#ifndef WEIGHBRIDGE_VERSION_H
#define WEIGHBRIDGE_VERSION_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/** The version of this header; wb_version() returns that of the library. */
#define WB_VERSION_MAJOR 0
#define WB_VERSION_MINOR 1
#define WB_VERSION_PATCH 0
#define WB_VERSION ((WB_VERSION_MAJOR << 16) | (WB_VERSION_MINOR << 8) | WB_VERSION_PATCH)

/** Returns the version of the loaded library, to be compared with WB_VERSION of the header. */
uint32_t wb_version(void);

#ifdef __cplusplus
}
#endif

#endif
