// Plans and offloaders.
#include <cstring>
#include <string>
#include <type_traits>
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
        {group + ".w", group, Layout::of<float>({50, 100}), made.weights.back().data()});
  }
  return made;
}

std::uint64_t index_of(const Offloader& offloader, const std::string& name) {
  return offloader.find_parameter(name).value();
}

wb_offloader_parameter_info info_of(const Offloader& offloader, const std::string& name) {
  return offloader.get_parameter_info(index_of(offloader, name)).value();
}

float first_on_device(const Device& device, const Offloader& offloader, const std::string& name,
                      void* stream) {
  const Buffer back = Buffer::alloc(device, sizeof(float)).value();
  const void* address = info_of(offloader, name).device_address;
  device.copy(back.writable_bytes().value().data(), address, sizeof(float), stream).value();
  device.stream_synchronize(stream).value();
  float found;
  std::memcpy(&found, back.bytes().data(), sizeof found);
  return found;
}

}  // namespace

TEST("a plan says what and why") {
  const Device device = fixtures::open();
  const Model given = model(4);
  PlanOptions options{Budget::offload_bytes(3 * 20480)};
  options.select = {"layers.0", "layers.[12].*"};
  const Plan plan = Plan::make(device, given.parameters, options).value();
  CHECK(plan.get_info().value().offloaded_bytes == 3 * 20000);
  CHECK(plan.find_parameter("layers.3.w").value() == 3);
  CHECK(plan.get_parameter_info(3).value().placement == WB_PLACEMENT_RESIDENT);
  CHECK(plan.get_parameter_info(3).value().transfer_mode == WB_TRANSFER_MODE_AUTO);
  CHECK(plan.get_parameter_info(1).value().placement == WB_PLACEMENT_OFFLOADED);
  CHECK(std::string(plan.get_parameter_info(3).value().reason) == "resident: not selected");
  CHECK(plan.get_group_info(1).value().offloaded_bytes == 20000);
  CHECK(plan.to_json().value().find("layers.2.w") != std::string::npos);
  // Of three layers in a ring any two are neighbours: three slots for three.
  CHECK(std::string(plan.get_warning(0).value()).find("slots") != std::string::npos);
  CHECK_STATUS(WB_ERR_OUT_OF_RANGE, plan.get_warning(1));
}

TEST("what is acquired is there, and goes when the object does") {
  const Device device = fixtures::open();
  const Stream stream = Stream::make(device).value();
  Model given = model(4);
  PlanOptions options{Budget::offload_bytes(1 << 20)};
  options.transfer_mode = TransferMode::Prefetch;
  const Plan plan = Plan::make(device, given.parameters, options).value();
  const Offloader offloader = Offloader::make(plan, stream.get()).value();
  given.weights.clear();
  for (int round = 0; round < 2; ++round) {
    for (std::uint64_t group = 0; group < 4; ++group) {
      const auto acquired = AcquiredGroup::make(offloader, group, stream.get()).value();
      const std::string name = "layers." + std::to_string(group) + ".w";
      CHECK(first_on_device(device, offloader, name, stream.get()) == static_cast<float>(group));
    }
  }
  CHECK(offloader.find_group("layers.2").value() == 2);
  CHECK(offloader.get_stats().value().acquires == 8);
  AcquiredGroup acquired = AcquiredGroup::make(offloader, 0, stream.get()).value();
  CHECK_STATUS(WB_ERR_BUSY, AcquiredGroup::make(offloader, 2, stream.get()));
  CHECK(acquired.release());
  CHECK(acquired.release());  // a second time does nothing
  CHECK(AcquiredGroup::make(offloader, 2, stream.get()));
  CHECK(offloader.reset(stream.get()));
}

TEST("elements in device memory are not given to the host") {
  const Device device = fixtures::open();
  const Stream stream = Stream::make(device).value();
  const Model given = model(2);
  PlanOptions options{Budget::offload_bytes(1 << 20)};
  options.transfer_mode = TransferMode::Prefetch;
  const Plan plan = Plan::make(device, given.parameters, options).value();
  const Offloader offloader = Offloader::make(plan, stream.get()).value();
  const auto acquired = AcquiredGroup::make(offloader, 0, stream.get()).value();
  const View view = offloader.get_view(index_of(offloader, "layers.0.w")).value();
  CHECK(view.get_info().value().elements == 5000);
  if (device.get_info().value().kind == WB_DEVICE_HOST) {
    CHECK(view.as<const float>().value().size() == 5000);
  } else {
    CHECK_STATUS(WB_ERR_NOT_MAPPED, view.as<const float>());
    CHECK_STATUS(WB_ERR_INVALID_ARGUMENT, view.as<const double>());
  }
}

// A plan needs exactly one budget.
static_assert(!std::is_default_constructible_v<Budget>);
static_assert(!std::is_default_constructible_v<PlanOptions>);

TEST("a budget limits what is offloaded, or what the device holds") {
  const Device device = fixtures::open();
  const Model given = model(4);
  const Plan by_host =
      Plan::make(device, given.parameters, {Budget::offload_bytes(2 * 20480)}).value();
  CHECK(by_host.get_info().value().offloaded_bytes == 2 * 20000);
  const Plan by_device =
      Plan::make(device, given.parameters, {Budget::device_bytes(3 * 20480)}).value();
  const wb_plan_info info = by_device.get_info().value();
  CHECK(info.resident_bytes + info.slot_bytes <= 3 * 20480);
  CHECK(info.offloaded_bytes > 0);
}

TEST("a parameter may be kept on the device, or given its own transfer mode") {
  const Device device = fixtures::open();
  Model given = model(3);
  given.parameters[0].placement = Placement::Resident;
  given.parameters[1].transfer_mode = TransferMode::OnDemand;
  given.parameters[2].access_pattern = AccessPattern::Sparse;
  const Plan plan =
      Plan::make(device, given.parameters, {Budget::offload_bytes(1 << 20)}).value();
  CHECK(plan.get_parameter_info(0).value().placement == WB_PLACEMENT_RESIDENT);
  CHECK(plan.get_parameter_info(1).value().transfer_mode == WB_TRANSFER_MODE_ON_DEMAND);
  given.parameters[0].placement = Placement::Offloaded;
  CHECK_STATUS(WB_ERR_INVALID_ARGUMENT,
               Plan::make(device, given.parameters, {Budget::offload_bytes(1 << 20)}));
}

TEST("all parameters are described in one call, in the order of their indexes") {
  const Device device = fixtures::open();
  Model given = model(3);
  given.parameters[1].placement = Placement::Resident;
  const Plan plan =
      Plan::make(device, given.parameters, {Budget::offload_bytes(1 << 20)}).value();
  const Offloader offloader = Offloader::make(plan).value();
  const auto infos = offloader.get_parameter_infos().value();
  CHECK(infos.size() == 3);
  for (std::uint64_t index = 0; index < infos.size(); ++index) {
    const wb_offloader_parameter_info info = offloader.get_parameter_info(index).value();
    CHECK(infos[index].name == given.parameters[index].name);
    CHECK(infos[index].group == index);
    CHECK(infos[index].placement == info.placement);
    CHECK(infos[index].host_address == info.host_address);
    CHECK((infos[index].host_address == nullptr) == (index == 1));
    CHECK(infos[index].span_bytes == 20000);
  }
  CHECK_STATUS(WB_ERR_OUT_OF_RANGE, offloader.get_parameter_info(3));
  CHECK_STATUS(WB_ERR_OUT_OF_RANGE, offloader.get_view(3));
  CHECK_STATUS(WB_ERR_NOT_FOUND, offloader.find_parameter("layers.3.w"));
}

TEST("parameters are replaced, added and removed") {
  const Device device = fixtures::open();
  const Stream stream = Stream::make(device).value();
  const Model given = model(3);
  PlanOptions options{Budget::offload_bytes(1 << 20)};
  const Plan plan = Plan::make(device, given.parameters, options).value();
  const Offloader offloader = Offloader::make(plan, stream.get()).value();
  const std::vector<double> larger(9000, 7.0);
  CHECK(
      offloader.replace("layers.1.w", larger.data(), Layout::of<double>({9000}), stream.get()));
  CHECK(info_of(offloader, "layers.1.w").span_bytes == 72000);
  CHECK(offloader.remove("layers.0.w", stream.get()));
  Parameter scale{"layers.2.scale", "layers.2", Layout::of<float>({100}), given.weights[2].data()};
  CHECK(offloader.add(scale, stream.get()));
  CHECK(offloader.compact(stream.get()));
  {
    const auto acquired = AcquiredGroup::make(offloader, 2, stream.get()).value();
    CHECK(first_on_device(device, offloader, "layers.2.scale", stream.get()) == 2.0f);
  }
  const View view = offloader.get_host_view(index_of(offloader, "layers.1.w")).value();
  CHECK(view.as<const double>().value()[8999] == 7.0);
  std::vector<Parameter> now = {scale};
  now[0].source = info_of(offloader, "layers.2.scale").device_address;
  const wb_offloader_reconcile_result done = offloader.reconcile(now, stream.get()).value();
  CHECK(done.kept == 1);
  CHECK(done.removed == 2);
}

int main() { return check::run(); }
