// A transformer from a GGUF file, with weights in memory of weighbridge, and equal logits.
//
//     offload_ggml [host | cuda:N [file.gguf]]
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>

#include <ggml-cpu.h>
#ifdef GGML_USE_CUDA
#include <ggml-cuda.h>
#endif

#include "steps.h"

namespace {

ggml_backend_t open_backend(const std::string& device) {
  if (device == "host") {
    const ggml_backend_t cpu = ggml_backend_cpu_init();
    ggml_backend_cpu_set_n_threads(cpu, 2);  // more than one, as in a real engine
    return cpu;
  }
#ifdef GGML_USE_CUDA
  if (device.compare(0, 5, "cuda:") == 0) return ggml_backend_cuda_init(std::atoi(&device[5]));
#endif
  throw std::runtime_error("asked for " + device +
                           "; this program was built for the host alone: "
                           "build it with -DGGML_CUDA=ON");
}

// Allocates the model's tensors in memory of a type, and reads the file into it, as llama.cpp does.
ggml_backend_buffer_t load(const Model& model, ggml_backend_buffer_type_t type,
                           const wb::Buffer& file) {
  const auto buffer = ggml_backend_alloc_ctx_tensors_from_buft(model.tensors, type);
  if (!buffer) throw std::runtime_error("ggml could not allocate the weights");
  for (ggml_tensor* t = ggml_get_first_tensor(model.tensors); t;
       t = ggml_get_next_tensor(model.tensors, t)) {
    ggml_backend_tensor_set(t, file.bytes().data() + model.offset(t->name), 0, ggml_nbytes(t));
  }
  return buffer;
}

bool same(const char* what, const std::vector<float>& found, const std::vector<float>& expected) {
  const bool equal = found.size() == expected.size() &&
                     std::memcmp(found.data(), expected.data(), found.size() * sizeof(float)) == 0;
  std::printf("%-34s %s\n", what, equal ? "bit-identical" : "DIFFERENT");
  return equal;
}

int run(const std::string& where, const std::string& path) {
  const auto device = wb::Device::open(where).value();
  const std::unique_ptr<ggml_backend, void (*)(ggml_backend_t)> backend(open_backend(where),
                                                                        ggml_backend_free);
  const auto own = ggml_backend_get_default_buffer_type(backend.get());
  const auto file = std::make_shared<const wb::Buffer>(wb::Buffer::map_file(device, path).value());
  const bool one_graph = ggml_backend_buft_is_host(own);
  const std::vector<int32_t> ids = {1, 5, 25, 125, 625, 77, 385, 901};
  bool equal = true;

  // With a graph for each part, backends fuse the same operations: bits are compared of equal work.
  const auto logits = [&](const Model& model, OffloadedWeights* weights, bool whole) {
    return Step(model, backend.get(), weights, (int)ids.size(), whole).run(ids);
  };
  std::vector<float> expected;
  {
    const Model model(path);
    const auto buffer = load(model, own, *file);
    expected = logits(model, nullptr, one_graph);
    ggml_backend_buffer_free(buffer);
  }
  {
    const Model model(path);
    const HostBufferType type(backend.get(), device);
    const auto buffer = load(model, type.get(), *file);
    equal &= same("in a buffer type of weighbridge", logits(model, nullptr, one_graph), expected);
    ggml_backend_buffer_free(buffer);
  }
  {
    const Model model(path);
    const auto buffer = buffer_over(backend.get(), device, file);
    for (ggml_tensor* t = ggml_get_first_tensor(model.tensors); t;
         t = ggml_get_next_tensor(model.tensors, t)) {
      char* base = static_cast<char*>(ggml_backend_buffer_get_base(buffer));
      ggml_backend_tensor_alloc(buffer, t, base + model.offset(t->name));
    }
    equal &= same("in the mapped file", logits(model, nullptr, one_graph), expected);
    ggml_backend_buffer_free(buffer);
  }
  {
    const Model model(path);
    const uint64_t bytes = file->get_info().value().asked_bytes;
    OffloadedWeights weights(model, backend.get(), device, file, bytes / 2);
    const auto info = weights.plan().get_info().value();
    std::printf(
        "%zu bytes of weights: %zu resident, %zu of slots for %u layers, %zu copied a step\n",
        (size_t)info.payload_bytes, (size_t)info.resident_bytes, (size_t)info.slot_bytes,
        info.depth, (size_t)info.step_bytes);
    size_t in_file = 0;
    for (const auto& weight : weights.offloader().get_parameter_infos().value()) {
      if (weight.host_store == WB_HOST_STORE_SOURCE) in_file += weight.span_bytes;
      if (*weight.host_store_reason) {
        std::printf("%s is copied: %s\n", weight.name, weight.host_store_reason);
      }
    }
    std::printf("%zu bytes offloaded, %zu of them in the mapped file\n",
                (size_t)info.offloaded_bytes, in_file);
    equal &= in_file > 0;
    if (one_graph)
      equal &= same("offloaded, in one graph", logits(model, &weights, true), expected);
    equal &= same("offloaded, between graphs", logits(model, &weights, false), expected);

    // New bytes for a weight, as after a fine-tune: those of another layer, then its own again.
    Step step(model, backend.get(), &weights, (int)ids.size(), one_graph);
    const ggml_tensor* weight = model.tensor("blk.2.ffn_up.weight");
    const auto bytes_of = [&](const char* name) {
      return file->bytes().data() + model.offset(name);
    };
    const auto replace = [&](const char* from) {
      weights.offloader().replace(weight->name, bytes_of(from), layout_of(weight)).value();
    };
    step.run(ids);
    replace("blk.3.ffn_up.weight");
    const bool changed = step.run(ids) != expected;
    std::printf("%-34s %s\n", "with a weight replaced",
                changed ? "other logits" : "THE SAME LOGITS");
    replace("blk.2.ffn_up.weight");
    equal &= same("with it put back", step.run(ids), expected) && changed;

    const auto stats = weights.offloader().get_stats().value();
    std::printf("%zu copies of %zu bytes\n", (size_t)stats.copies, (size_t)stats.moved_bytes);
    equal &= stats.copies > 0;
  }
  return equal ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    std::string path = argc > 2 ? argv[2] : "";
    if (path.empty()) {
      path = std::string(argv[0]) + ".gguf";
      write_gguf(path, 1);
    }
    return run(argc > 1 ? argv[1] : "host", path);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
