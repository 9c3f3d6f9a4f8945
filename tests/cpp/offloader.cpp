// Offloaders: groups, infos and views of parameters, changes.
#include <string>
#include <vector>

#include "model.hpp"

using namespace weighbridge;
using fixtures::Committed;
using fixtures::Model;

TEST("an acquired group has its bytes, and is released with its object") {
  Committed committed(Model(4), TransferMode::Prefetch);
  const auto& [device, stream, model, plan, offloader] = committed;
  committed.model.weights.clear();
  for (int round = 0; round < 2; ++round) {
    for (std::uint64_t group = 0; group < 4; ++group) {
      const auto acquired = AcquiredGroup::make(offloader, group, stream.get()).value();
      const std::string name = "layers." + std::to_string(group) + ".w";
      CHECK(committed.first(name) == static_cast<float>(group));
    }
  }
  CHECK(offloader.find_group("layers.2").value() == 2);
  CHECK(offloader.get_stats().value().acquires == 8);
  AcquiredGroup acquired = AcquiredGroup::make(offloader, 0, stream.get()).value();
  CHECK_STATUS(WB_ERR_BUSY, AcquiredGroup::make(offloader, 2, stream.get()));
  CHECK(acquired.release());
  CHECK(acquired.release());  // a second release has no effect
  CHECK(AcquiredGroup::make(offloader, 2, stream.get()));
  CHECK(offloader.reset(stream.get()));
}

TEST("elements in device memory are not accessible to the host") {
  const Committed committed(Model(2), TransferMode::Prefetch);
  const auto& [device, stream, model, plan, offloader] = committed;
  const auto acquired = AcquiredGroup::make(offloader, 0, stream.get()).value();
  const View view = offloader.get_view(committed.index("layers.0.w")).value();
  CHECK(view.get_info().value().elements == 5000);
  if (device.get_info().value().kind == WB_DEVICE_HOST) {
    CHECK(view.as<const float>().value().size() == 5000);
  } else {
    CHECK_STATUS(WB_ERR_NOT_MAPPED, view.as<const float>());
    CHECK_STATUS(WB_ERR_INVALID_ARGUMENT, view.as<const double>());
  }
}

TEST("get_parameter_infos() returns the info of every parameter in order") {
  Model model(3);
  model.parameters[1].placement = Placement::Resident;
  const Committed committed(std::move(model));
  const Offloader& offloader = committed.offloader;
  const auto infos = offloader.get_parameter_infos().value();
  CHECK(infos.size() == 3);
  for (std::uint64_t index = 0; index < infos.size(); ++index) {
    const wb_offloader_parameter_info info = offloader.get_parameter_info(index).value();
    CHECK(infos[index].name == committed.model.parameters[index].name);
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
  const Committed committed(Model(3));
  const auto& [device, stream, model, plan, offloader] = committed;
  const std::vector<double> larger(9000, 7.0);
  CHECK(
      offloader.replace("layers.1.w", larger.data(), Layout::of<double>({9000}), stream.get()));
  CHECK(committed.info("layers.1.w").span_bytes == 72000);
  CHECK(offloader.remove("layers.0.w", stream.get()));
  Parameter scale{"layers.2.scale", "layers.2", Layout::of<float>({100}), model.weights[2].data()};
  CHECK(offloader.add(scale, stream.get()));
  CHECK(offloader.compact(stream.get()));
  {
    const auto acquired = AcquiredGroup::make(offloader, 2, stream.get()).value();
    CHECK(committed.first("layers.2.scale") == 2.0f);
  }
  const View view = offloader.get_host_view(committed.index("layers.1.w")).value();
  CHECK(view.as<const double>().value()[8999] == 7.0);
  scale.source = committed.info("layers.2.scale").device_address;
  const wb_offloader_reconcile_result result = offloader.reconcile({scale}, stream.get()).value();
  CHECK(result.kept == 1);
  CHECK(result.removed == 2);
}

TEST("compressed parameters are read, and not viewed in host memory") {
  const Device device = fixtures::open();
  const Stream stream = Stream::make(device).value();
  const Model model(2);
  PlanOptions options = fixtures::offload_all(TransferMode::Prefetch);
  options.compress = Compress::Selected;
  options.compress_select = {"layers"};
  const Plan plan = Plan::make(device, model.parameters, options).value();
  const wb_plan_info planned = plan.get_info().value();
  CHECK(planned.decoded_bytes == 2 * 20000 && planned.encoded_bytes < 400);  // constant tiles
  const Offloader offloader = Offloader::make(plan, stream.get()).value();
  for (std::uint64_t at = 0; at < 2; ++at) {
    std::vector<float> found(5000);
    CHECK(offloader.read_parameter(at, found.data(), 20000));
    CHECK(found == model.weights[at]);
    CHECK_STATUS(WB_ERR_NOT_SUPPORTED, offloader.get_host_view(at));
    CHECK_STATUS(WB_ERR_OUT_OF_RANGE, offloader.read_parameter(at, found.data(), 19999));
    CHECK(offloader.get_parameter_info(at).value().encoded_bytes > 0);
  }
  CHECK(offloader.get_stats().value().decoded_bytes == 2 * 20000);
}

int main() { return check::run(); }
