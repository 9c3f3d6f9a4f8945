// Plans and offloaders.
#include <cstring>
#include <string>
#include <vector>

#include "fixtures.hpp"

using namespace weighbridge;

namespace {

struct Model {
  std::vector<std::vector<float>> weights;
  std::vector<Parameter> parameters;
};

Model model(int layers) {
  Model made;
  for (int layer = 0; layer < layers; ++layer) {
    made.weights.emplace_back(5000, static_cast<float>(layer));
    const std::string group = "layers." + std::to_string(layer);
    made.parameters.push_back(
        {group + ".w", group, Layout::of<float>({50, 100}), address(made.weights.back().data())});
  }
  return made;
}

float first_on_device(const Device& device, const Offloader& offloader, const std::string& name,
                      void* stream) {
  const Buffer back = Buffer::alloc(device, sizeof(float)).value();
  const wb_offloader_parameter_info info = offloader.parameter(name).value();
  device.copy(address(back.bytes().data()), info.device_address, sizeof(float), stream).value();
  device.stream_synchronize(stream).value();
  float found;
  std::memcpy(&found, back.bytes().data(), sizeof found);
  return found;
}

PlanOptions options_with(wb_transfer_mode carrier) {
  PlanOptions options;
  options.offload_bytes = 1 << 20;
  options.carrier = carrier;
  return options;
}

/// A model that is planned and committed; its weights may be freed afterwards.
struct Committed {
  Committed(int layers, wb_transfer_mode carrier = WB_TRANSFER_MODE_AUTO)
      : given(model(layers)),
        plan(Plan::make(device, given.parameters, options_with(carrier)).value()),
        offloader(Offloader::commit(plan, stream.get()).value()) {}

  Device device = fixtures::open();
  Stream stream = Stream::make(device).value();
  Model given;
  Plan plan;
  Offloader offloader;
};

}  // namespace

TEST("a plan gives placements and reasons") {
  const Device device = fixtures::open();
  const Model given = model(4);
  PlanOptions options;
  options.offload_bytes = 3 * 20480;
  options.select = {"layers.0", "layers.[12].*"};
  const Plan plan = Plan::make(device, given.parameters, options).value();
  CHECK(plan.describe().value().offloaded_bytes == 3 * 20000);
  CHECK(plan.find("layers.3.w").value() == 3);
  CHECK(plan.parameter(3).value().carrier == WB_CARRIER_NONE);
  CHECK(std::string(plan.parameter(3).value().reason) == "resident: not selected");
  CHECK(plan.group(1).value().offloaded_bytes == 20000);
  CHECK(plan.json().value().find("layers.2.w") != std::string::npos);
  // In a ring of three layers each two are neighbours, so that the plan needs three slots.
  CHECK(std::string(plan.warning(0).value()).find("slots") != std::string::npos);
  CHECK_STATUS(WB_ERR_OUT_OF_RANGE, plan.warning(1));
  CHECK_STATUS(WB_ERR_INVALID_ARGUMENT, Plan::make(device, given.parameters, {}));
}

TEST("an acquired group has its bytes, and is released with its object") {
  Committed committed(4, WB_TRANSFER_MODE_PREFETCH);
  const auto& [device, stream, given, plan, offloader] = committed;
  committed.given.weights.clear();
  for (int round = 0; round < 2; ++round) {
    for (std::uint64_t group = 0; group < 4; ++group) {
      const Acquired held = offloader.acquire(group, stream.get()).value();
      const std::string name = "layers." + std::to_string(group) + ".w";
      CHECK(first_on_device(device, offloader, name, stream.get()) == static_cast<float>(group));
    }
  }
  CHECK(offloader.group("layers.2").value() == 2);
  CHECK(offloader.measure().value().acquires == 8);
  Acquired held = offloader.acquire(0, stream.get()).value();
  CHECK_STATUS(WB_ERR_BUSY, offloader.acquire(2, stream.get()));
  CHECK(held.release());
  CHECK(held.release());  // a second release has no effect
  CHECK(offloader.acquire(2, stream.get()));
  CHECK(offloader.reset(stream.get()));
}

TEST("elements in device memory are not accessible to the host") {
  const Committed committed(2, WB_TRANSFER_MODE_PREFETCH);
  const auto& [device, stream, given, plan, offloader] = committed;
  const Acquired held = offloader.acquire(0, stream.get()).value();
  const View view = offloader.view("layers.0.w").value();
  CHECK(view.describe().value().elements == 5000);
  if (device.describe().value().kind == WB_DEVICE_HOST) {
    CHECK(view.as<const float>().value().size() == 5000);
  } else {
    CHECK_STATUS(WB_ERR_NOT_MAPPED, view.as<const float>());
    CHECK_STATUS(WB_ERR_INVALID_ARGUMENT, view.as<const double>());
  }
}

TEST("parameters are replaced, added and removed") {
  const Committed committed(3);
  const auto& [device, stream, given, plan, offloader] = committed;
  const std::vector<double> larger(9000, 7.0);
  CHECK(offloader.replace("layers.1.w", address(larger.data()), Layout::of<double>({9000}),
                          stream.get()));
  CHECK(offloader.parameter("layers.1.w").value().span_bytes == 72000);
  CHECK(offloader.remove("layers.0.w", stream.get()));
  Parameter scale{"layers.2.scale", "layers.2", Layout::of<float>({100}),
                  address(given.weights[2].data())};
  CHECK(offloader.add(scale, stream.get()));
  CHECK(offloader.compact(stream.get()));
  {
    const Acquired held = offloader.acquire(2, stream.get()).value();
    CHECK(first_on_device(device, offloader, "layers.2.scale", stream.get()) == 2.0f);
  }
  const View view = offloader.host_view("layers.1.w").value();
  CHECK(view.as<const double>().value()[8999] == 7.0);
  std::vector<Parameter> now = {scale};
  now[0].source = offloader.parameter("layers.2.scale").value().device_address;
  const wb_offloader_reconcile_result done = offloader.reconcile(now, stream.get()).value();
  CHECK(done.kept == 1);
  CHECK(done.removed == 2);
}

int main() { return check::run(); }
