// An engine's loop over two layers whose weights stay in host memory: plan, commit, step.
//
//     two_layers [device]
#include <cstdio>
#include <cstdlib>
#include <vector>
#include <weighbridge.hpp>

namespace wb = weighbridge;

int main(int argc, char** argv) {
  const auto device = wb::Device::open(argc > 1 ? argv[1] : "host").value();
  const auto stream = wb::Stream::make(device).value();  // an engine passes its own CUstream

  std::vector<std::vector<float>> weights;
  std::vector<wb::Parameter> parameters;
  for (int layer = 0; layer < 2; ++layer) {
    weights.emplace_back(1 << 20, static_cast<float>(layer + 1));
    const std::string group = "layers." + std::to_string(layer);
    parameters.push_back({group + ".weight", group, wb::Layout::of<float>({1024, 1024}),
                          weights.back().data()});
  }
  wb::PlanOptions options{wb::Budget::offload_bytes(8 << 20)};
  options.transfer_mode = wb::TransferMode::Prefetch;
  const auto plan = wb::Plan::make(device, parameters, options).value();
  const auto offloader = wb::Offloader::make(plan, stream.get()).value();
  weights.clear();  // the offloader has copied them

  const auto buffer = wb::Buffer::alloc(device, 4 << 20).value();
  const auto seen = buffer.writable_bytes().value();
  for (std::uint64_t layer = 0; layer < 2; ++layer) {
    const auto acquired = wb::AcquiredGroup::make(offloader, layer, stream.get()).value();
    const auto index = offloader.find_parameter(parameters[layer].name).value();
    const auto weight = offloader.get_parameter_info(index).value();
    // An engine launches the layer's kernels here; this example copies the weight back.
    device.copy(seen.data(), weight.device_address, weight.span_bytes, stream.get()).value();
    stream.synchronize().value();
    const float found = *reinterpret_cast<const float*>(seen.data());
    if (found != static_cast<float>(layer + 1)) return std::puts("wrong weights"), EXIT_FAILURE;
  }
  const auto stats = offloader.get_stats().value();
  std::printf("%zu bytes offloaded, %zu bytes of slots, %zu bytes copied\n",
              static_cast<std::size_t>(stats.offloaded_bytes),
              static_cast<std::size_t>(stats.slot_bytes),
              static_cast<std::size_t>(stats.moved_bytes));
}
