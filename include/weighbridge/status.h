/* Status codes.
 * Generated from the Rust sources; change those and run `make header`. */
#ifndef WEIGHBRIDGE_STATUS_H
#define WEIGHBRIDGE_STATUS_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/** The outcome of a call: `WB_OK` or one of `WB_ERR_*`. */
typedef int32_t wb_status;
/** The call succeeded. */
#define WB_OK 0
/** A defect of the library (it caught a panic); please report it. */
#define WB_ERR_INTERNAL 1
/**
 * An argument is invalid: NULL where NULL is not allowed, an unknown constant, a reserved field
 * that is not zero, or another invalid value. The message names it.
 */
#define WB_ERR_INVALID_ARGUMENT 2
/**
 * The handle is not alive: it was released too often or never created (detected by debug builds
 * only).
 */
#define WB_ERR_HANDLE 3
/** `struct_size` is smaller than the smallest valid size or larger than this library knows. */
#define WB_ERR_STRUCT_SIZE 4
/** A product or sum of sizes does not fit in 64 bits. */
#define WB_ERR_OVERFLOW 5
/** An index or a range lies outside its bounds. */
#define WB_ERR_OUT_OF_RANGE 6
/** The memory is not mapped for the device; use an explicit copy. */
#define WB_ERR_NOT_MAPPED 7
/** The address does not have the required alignment. */
#define WB_ERR_UNALIGNED 8
/** Part of the range is already registered. */
#define WB_ERR_ALREADY_REGISTERED 9
/** Part of the range is not mapped in this process or is not readable. */
#define WB_ERR_UNMAPPED_RANGE 10
/** Registering this memory would silently copy its pages. */
#define WB_ERR_WOULD_COPY 11
/** The device does not exist. */
#define WB_ERR_NO_DEVICE 12
/** No NVIDIA driver is installed. */
#define WB_ERR_NO_DRIVER 13
/** The driver lacks a required function; the message names it. */
#define WB_ERR_DRIVER_TOO_OLD 14
/** The driver reported an error; `code` holds its CUresult. */
#define WB_ERR_DRIVER 15
/** The platform or this kind of device does not support the operation. */
#define WB_ERR_NOT_SUPPORTED 16
/** Pinning exceeds RLIMIT_MEMLOCK. */
#define WB_ERR_MEMLOCK 17
/** The allocation exceeds the memory limit of the control group. */
#define WB_ERR_CGROUP 18
/** Not enough host memory. */
#define WB_ERR_OUT_OF_MEMORY 19
/** Not enough device memory. */
#define WB_ERR_DEVICE_MEMORY 20
/** Huge pages are required and not available. */
#define WB_ERR_HUGE_PAGES 21
/** The file does not exist. */
#define WB_ERR_FILE_MISSING 22
/** The file is not readable or not a regular file. */
#define WB_ERR_FILE_ACCESS 23
/** The file is empty. */
#define WB_ERR_FILE_EMPTY 24
/** The file is shorter than its mapping or than its own header says. */
#define WB_ERR_FILE_TRUNCATED 25
/** Reading the file failed. */
#define WB_ERR_FILE_IO 26
/** The file is not a well-formed safetensors file. */
#define WB_ERR_FORMAT 27
/** No object has this name. */
#define WB_ERR_NOT_FOUND 28
/** The progress callback cancelled the call. */
#define WB_ERR_CANCELLED 29
/** The timeout expired before the work completed. */
#define WB_ERR_TIMEOUT 30
/** The stream is being captured into a graph, where this call is not possible. */
#define WB_ERR_CAPTURING 31
/** The device was opened before a fork, and this is the child process. */
#define WB_ERR_FORKED 32
/** The DLPack tensor has an unsupported version, device or type. */
#define WB_ERR_DLPACK 33
/** The plan offloads nothing. */
#define WB_ERR_NOTHING_OFFLOADED 34
/** A selector is malformed or matches no parameter. */
#define WB_ERR_SELECTOR 35
/** All parameters fit on the device. */
#define WB_ERR_EVERYTHING_FITS 36
/** The budget cannot be met. */
#define WB_ERR_BUDGET 37
/** The bytes allowed for slots do not hold one group. */
#define WB_ERR_SLOTS_BUDGET 38
/** The object is in use; release it first. */
#define WB_ERR_BUSY 39
/** The staging memory allowed does not hold one row. */
#define WB_ERR_STAGING 40
/** The tensor contains NaN or infinity, and the options reject them. */
#define WB_ERR_NOT_FINITE 41
/** Compressed bytes are damaged, or of another version of the format. */
#define WB_ERR_DAMAGED 42

/**
 * Returns the name of a status, such as "WB_ERR_INVALID_ARGUMENT", or NULL if there is no such
 * status.
 */
const char *wb_status_name(wb_status status);

#ifdef __cplusplus
}
#endif

#endif
