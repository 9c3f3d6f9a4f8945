#include "buffers.h"

#include <ggml-backend-impl.h>

namespace {

struct Memory {
  wb::Device device;
  wb::Stream stream;
  void* base;
  std::shared_ptr<const void> owner;
  bool read_only;

  void copy(void* to, const void* from, size_t bytes) const {
    device.copy(to, from, bytes, stream.get()).value();
    stream.synchronize().value();
  }
};

Memory& memory_of(ggml_backend_buffer_t buffer) { return *static_cast<Memory*>(buffer->context); }

void set_tensor(ggml_backend_buffer_t buffer, ggml_tensor* tensor, const void* data, size_t offset,
                size_t bytes) {
  if (memory_of(buffer).read_only) GGML_ABORT("%s is in read-only memory", tensor->name);
  memory_of(buffer).copy(static_cast<char*>(tensor->data) + offset, data, bytes);
}

void get_tensor(ggml_backend_buffer_t buffer, const ggml_tensor* tensor, void* data, size_t offset,
                size_t bytes) {
  memory_of(buffer).copy(data, static_cast<const char*>(tensor->data) + offset, bytes);
}

// No clear, no memset_tensor: these are buffers of weights, whose bytes are always given.
ggml_backend_buffer_i buffer_interface() {
  ggml_backend_buffer_i functions = {};
  functions.free_buffer = [](ggml_backend_buffer_t buffer) { delete &memory_of(buffer); };
  functions.get_base = [](ggml_backend_buffer_t buffer) { return memory_of(buffer).base; };
  functions.set_tensor = set_tensor;
  functions.get_tensor = get_tensor;
  return functions;
}

// A type for memory that the CPU backend reads; other backends read memory of their own types only,
// and look at the address alone.
ggml_backend_buffer_type_t type_for(ggml_backend_t backend) {
  static ggml_backend_buffer_type host = [] {
    ggml_backend_buffer_type type = {};
    type.iface.get_name = [](ggml_backend_buffer_type_t) { return "weighbridge"; };
    type.iface.get_alignment = [](ggml_backend_buffer_type_t) -> size_t { return 64; };
    type.iface.is_host = [](ggml_backend_buffer_type_t) { return true; };
    return type;
  }();
  const auto own = ggml_backend_get_default_buffer_type(backend);
  return ggml_backend_buft_is_host(own) ? &host : own;
}

struct TypeContext {
  ggml_backend_t backend;
  wb::Device device;
};

ggml_backend_buffer_t allocate(ggml_backend_buffer_type_t type, size_t bytes) {
  const auto& context = *static_cast<TypeContext*>(type->context);
  auto buffer = wb::Buffer::alloc(context.device, bytes);
  if (!buffer) {  // ggml reports that there is no memory
    std::fprintf(stderr, "weighbridge: %s\n", buffer.error().message.c_str());
    return nullptr;
  }
  return buffer_over(context.backend, context.device,
                     std::make_shared<const wb::Buffer>(std::move(buffer).value()));
}

}  // namespace

HostBufferType::HostBufferType(ggml_backend_t backend, const wb::Device& device)
    : type_(new ggml_backend_buffer_type(*type_for(backend))) {
  const bool is_host = ggml_backend_buft_is_host(type_);
  type_->context = new TypeContext{backend, device.share()};
  // The functions of the backend's own type would read that type's context.
  ggml_backend_buffer_type_i functions = type_for(backend)->iface;
  functions.get_name = [](ggml_backend_buffer_type_t) { return "weighbridge"; };
  functions.alloc_buffer = allocate;
  if (!is_host) {
    functions.get_alloc_size = [](ggml_backend_buffer_type_t type, const ggml_tensor* tensor) {
      const auto backend = static_cast<TypeContext*>(type->context)->backend;
      return ggml_backend_buft_get_alloc_size(ggml_backend_get_default_buffer_type(backend),
                                              tensor);
    };
  }
  type_->iface = functions;
}

HostBufferType::~HostBufferType() {
  delete static_cast<TypeContext*>(type_->context);
  delete type_;
}

ggml_backend_buffer_t buffer_over(ggml_backend_t backend, const wb::Device& device, void* base,
                                  size_t bytes, std::shared_ptr<const void> owner, bool read_only) {
  auto memory = std::make_unique<Memory>(
      Memory{device.share(), wb::Stream::make(device).value(), base, std::move(owner), read_only});
  const auto buffer =
      ggml_backend_buffer_init(type_for(backend), buffer_interface(), memory.get(), bytes);
  memory.release();
  ggml_backend_buffer_set_usage(buffer, GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
  return buffer;
}

ggml_backend_buffer_t buffer_over(ggml_backend_t backend, const wb::Device& device,
                                  std::shared_ptr<const wb::Buffer> buffer) {
  const wb_buffer_info info = buffer->get_info().value();
  if (!info.device_address) {
    throw std::runtime_error(
        "asked for a buffer that the device reads in place; the memory is not "
        "mapped for it: " +
        std::string(info.fallback_reason));
  }
  const bool read_only = info.read_only != 0;
  return buffer_over(backend, device, info.device_address, info.asked_bytes, std::move(buffer),
                     read_only);
}
