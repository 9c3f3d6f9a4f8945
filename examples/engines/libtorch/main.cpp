// A Sequential of libtorch, with weights in memory of weighbridge, equal to a resident one.
//
//     offload_libtorch [host | cuda:N]
#include <cstdio>

#include "carried.h"

namespace {

constexpr std::int64_t width = 512;
constexpr int layers = 8;

torch::nn::Sequential make_model() {
  torch::manual_seed(1);
  torch::nn::Sequential model;
  for (int layer = 0; layer < layers; layer++) {
    model->push_back(torch::nn::Linear(width, 4 * width));
    model->push_back(torch::nn::GELU());
    model->push_back(torch::nn::Linear(4 * width, width));
  }
  return model;
}

bool same(const char* what, const torch::Tensor& found, const torch::Tensor& expected) {
  const bool equal = torch::equal(found, expected);  // compares after torch's queued work
  std::printf("%-38s %s\n", what, equal ? "bit-identical" : "DIFFERENT");
  return equal;
}

// A parameter in exactly allocated pinned memory, which the device reads in place. The tensor keeps
// the buffer, until torch calls the deleter: after the work queued until then, if the device has a
// stream.
torch::Tensor in_host_memory(const wb::Device& device, torch::Device where, void* stream,
                             const torch::Tensor& values) {
  auto buffer = wb::Buffer::alloc(device, values.nbytes()).value();
  std::memcpy(buffer.writable_bytes().value().data(), values.data_ptr(), values.nbytes());
  void* address = buffer.get_info().value().device_address;
  if (!address) throw std::runtime_error("the device cannot read host memory in place");
  auto kept = std::make_shared<wb::Buffer>(std::move(buffer));
  const auto drop = [kept, stream](void*) { kept->release_after(stream).value(); };
  return torch::from_blob(address, values.sizes(), drop, values.options().device(where));
}

int run(const std::string& name) {
  const auto device = wb::Device::open(name).value();
  const torch::Device where(name == "host" ? "cpu" : name);
  torch::NoGradGuard no_grad;
  const torch::Tensor x = torch::randn({16, width}, torch::TensorOptions().requires_grad(false));
  const torch::Tensor input = x.to(where);
  bool equal = true;

  torch::nn::Sequential resident = make_model();
  resident->to(where);
  const torch::Tensor expected = resident->forward(input);

  {  // Read in place: from_blob with a deleter.
    const TorchStream stream(device, where);
    torch::nn::Sequential model = make_model();
    for (torch::Tensor& parameter : model->parameters()) {
      parameter.set_data(in_host_memory(device, where, stream.get(), parameter));
    }
    equal &= same("read in place in host memory", model->forward(input), expected);
  }
  device.drain(std::chrono::seconds(10)).value();
  const auto left = device.get_stats().value();
  std::printf("%-38s %zu buffers\n", "left of it", static_cast<std::size_t>(left.buffers));
  equal &= left.buffers == 0;

  {  // Carried: fromDLPack and set_data.
    torch::nn::Sequential model = make_model();
    std::uint64_t bytes = 0;
    for (const torch::Tensor& parameter : model->parameters()) bytes += parameter.nbytes();
    CarriedSequential carried(model, device, where, {wb::Budget::device_bytes(bytes / 2)});
    for (int step = 0; step < 3; step++) {
      equal &= same("carried through the ring", carried.forward(input), expected);
    }
    // New bytes for a weight, in the carried model and the resident one.
    torch::Tensor weight = torch::randn({4 * width, width});
    carried.offloader()
        .replace("9.weight", weight.data_ptr(), layout_of(weight), carried.stream())
        .value();
    resident->named_parameters()["9.weight"].copy_(weight);
    const torch::Tensor changed = resident->forward(input);
    equal &= same("with a weight replaced", carried.forward(input), changed) &&
             !torch::equal(changed, expected);

    const auto stats = carried.offloader().get_stats().value();
    std::printf("%zu bytes of weights: %zu offloaded, %zu of slots; %zu copies of %zu bytes\n",
                static_cast<std::size_t>(bytes), static_cast<std::size_t>(stats.offloaded_bytes),
                static_cast<std::size_t>(stats.slot_bytes), static_cast<std::size_t>(stats.copies),
                static_cast<std::size_t>(stats.moved_bytes));
    equal &= stats.copies > 0;
  }
  return equal ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc > 1 ? argv[1] : "host");
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
