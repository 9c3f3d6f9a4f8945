// The loop of an engine over two offloaded layers: plan, commit, step.
//
//     two_layers [device]
#include <cstdio>
#include <cstdlib>
#include <vector>
#include <weighbridge.hpp>

namespace wb = weighbridge;

int main(int argc, char** argv) {
  const auto device = wb::Device::open(argc > 1 ? argv[1] : "host").value();
  const auto stream = wb::Stream::make(device).value();  // an engine uses its own

  std::vector<std::vector<float>> weights;
  std::vector<wb::Parameter> parameters;
  for (int layer = 0; layer < 2; ++layer) {
    weights.emplace_back(1 << 20, static_cast<float>(layer + 1));
    const std::string group = "layers." + std::to_string(layer);
    parameters.push_back({group + ".weight", group, wb::Layout::of<float>({1024, 1024}),
                          reinterpret_cast<std::uint64_t>(weights.back().data())});
  }
  wb::PlanOptions options;
  options.offload_bytes = 8 << 20;
  options.carrier = WB_TRANSFER_MODE_PREFETCH;
  const auto plan = wb::Plan::make(device, parameters, options).value();
  const auto offloader = wb::Offloader::commit(plan, stream.get()).value();
  weights.clear();  // the offloader has copied them

  const auto seen = wb::Buffer::alloc(device, 4 << 20).value();
  for (std::uint64_t layer = 0; layer < 2; ++layer) {
    const auto held = offloader.acquire(layer, stream.get()).value();
    const auto weight = offloader.parameter("layers." + std::to_string(layer) + ".weight").value();
    // An engine launches the layer's kernels here; this example copies the weight back.
    device
        .copy(reinterpret_cast<std::uint64_t>(seen.bytes().data()), weight.device_address,
              weight.span_bytes, stream.get())
        .value();
    stream.synchronize().value();
    const auto* first = reinterpret_cast<const float*>(seen.bytes().data());
    if (*first != static_cast<float>(layer + 1)) return std::puts("wrong weights"), EXIT_FAILURE;
  }
  const auto stats = offloader.measure().value();
  std::printf("%zu bytes offloaded, %zu of slots, %zu moved\n",
              static_cast<std::size_t>(stats.offloaded_bytes),
              static_cast<std::size_t>(stats.slot_bytes),
              static_cast<std::size_t>(stats.moved_bytes));
}
