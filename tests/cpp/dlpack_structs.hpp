/* DLPack's structs as <dlpack/dlpack.h> has them, for tests that make or read tensors. */
#ifndef WEIGHBRIDGE_TESTS_DLPACK_STRUCTS_HPP
#define WEIGHBRIDGE_TESTS_DLPACK_STRUCTS_HPP

#include <cstdint>

extern "C" {
typedef struct {
  void* data;
  struct {
    int32_t device_type, device_id;
  } device;
  int32_t ndim;
  struct {
    uint8_t code, bits;
    uint16_t lanes;
  } dtype;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;
} DLTensor;

typedef struct DLManagedTensor {
  DLTensor dl_tensor;
  void* manager_ctx;
  void (*deleter)(struct DLManagedTensor* self);
} DLManagedTensor;

typedef struct DLManagedTensorVersioned {
  struct {
    uint32_t major, minor;
  } version;
  void* manager_ctx;
  void (*deleter)(struct DLManagedTensorVersioned* self);
  uint64_t flags;
  DLTensor dl_tensor;
} DLManagedTensorVersioned;
}

#endif  // WEIGHBRIDGE_TESTS_DLPACK_STRUCTS_HPP
