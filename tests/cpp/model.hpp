/* A model of a few layers, and its plan and offloader. */
#ifndef WEIGHBRIDGE_TESTS_MODEL_HPP
#define WEIGHBRIDGE_TESTS_MODEL_HPP

#include <string>
#include <vector>

#include "fixtures.hpp"

namespace fixtures {

/// One parameter "layers.N.w" of 5000 floats for each layer N, all of them N.
struct Model {
  explicit Model(int layers) {
    for (int layer = 0; layer < layers; ++layer) {
      weights.emplace_back(5000, static_cast<float>(layer));
      const std::string group = "layers." + std::to_string(layer);
      parameters.push_back({group + ".w", group, weighbridge::Layout::of<float>({50, 100}),
                            weights.back().data()});
    }
  }

  std::vector<std::vector<float>> weights;
  std::vector<weighbridge::Parameter> parameters;
};

/// Options by which all parameters of a Model are offloaded.
inline weighbridge::PlanOptions offload_all(weighbridge::TransferMode mode = {}) {
  weighbridge::PlanOptions options{weighbridge::Budget::offload_bytes(1 << 20)};
  options.transfer_mode = mode;
  return options;
}

/// A planned and committed model; its weights may be freed afterwards.
struct Committed {
  explicit Committed(Model committed, weighbridge::TransferMode mode = {})
      : model(std::move(committed)),
        plan(weighbridge::Plan::make(device, model.parameters, offload_all(mode)).value()),
        offloader(weighbridge::Offloader::make(plan, stream.get()).value()) {}

  std::uint64_t index(const std::string& name) const {
    return offloader.find_parameter(name).value();
  }
  wb_offloader_parameter_info info(const std::string& name) const {
    return offloader.get_parameter_info(index(name)).value();
  }
  /// The first element of a parameter on the device.
  float first(const std::string& name) const {
    float found = 0;
    device.copy(&found, info(name).device_address, sizeof(found), stream.get()).value();
    stream.synchronize().value();
    return found;
  }

  weighbridge::Device device = open();
  weighbridge::Stream stream = weighbridge::Stream::make(device).value();
  Model model;
  weighbridge::Plan plan;
  weighbridge::Offloader offloader;
};

}  // namespace fixtures

#endif  // WEIGHBRIDGE_TESTS_MODEL_HPP
