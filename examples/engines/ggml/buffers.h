// Memory of weighbridge as ggml's buffers. ggml frees a buffer with ggml_backend_buffer_free.
#pragma once

#include <memory>
#include <string>

#include <ggml-backend.h>
#include <weighbridge.hpp>

namespace wb = weighbridge;

// A buffer type of exactly allocated host memory, pinned if the device's policy says so, which
// `backend` reads in place. Belongs to the caller, as all buffers do that it allocates.
class HostBufferType {
 public:
  HostBufferType(ggml_backend_t backend, const wb::Device& device);
  ~HostBufferType();
  ggml_backend_buffer_type_t get() const { return type_; }

 private:
  ggml_backend_buffer_type_t type_;
};

// A buffer over memory that `owner` keeps: `bytes` bytes from `base` on, an address that `backend`
// reads. Host memory, such as a mapped file, is read in place.
ggml_backend_buffer_t buffer_over(ggml_backend_t backend, const wb::Device& device, void* base,
                                  size_t bytes, std::shared_ptr<const void> owner, bool read_only);

// As buffer_over, for all of a buffer of weighbridge.
ggml_backend_buffer_t buffer_over(ggml_backend_t backend, const wb::Device& device,
                                  std::shared_ptr<const wb::Buffer> buffer);
