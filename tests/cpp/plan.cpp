// Plans: budgets, placements, reasons.
#include <string>
#include <type_traits>

#include "model.hpp"

using namespace weighbridge;

// A plan needs exactly one budget.
static_assert(!std::is_default_constructible_v<Budget>);
static_assert(!std::is_default_constructible_v<PlanOptions>);

TEST("a plan gives placements and reasons") {
  const Device device = fixtures::open();
  const fixtures::Model model(4);
  PlanOptions options{Budget::offload_bytes(3 * 20480)};
  options.select = {"layers.0", "layers.[12].*"};
  const Plan plan = Plan::make(device, model.parameters, options).value();
  CHECK(plan.get_info().value().offloaded_bytes == 3 * 20000);
  CHECK(plan.find_parameter("layers.3.w").value() == 3);
  CHECK(plan.get_parameter_info(1).value().placement == WB_PLACEMENT_OFFLOADED);
  const wb_plan_parameter_info info = plan.get_parameter_info(3).value();
  CHECK(info.placement == WB_PLACEMENT_RESIDENT);
  CHECK(info.transfer_mode == WB_TRANSFER_MODE_AUTO);
  CHECK(std::string(info.reason) == "resident: not selected");
  CHECK(plan.get_group_info(1).value().offloaded_bytes == 20000);
  CHECK(plan.to_json().value().find("layers.2.w") != std::string::npos);
  // In a ring of three layers each two are neighbours, so that the plan needs three slots.
  CHECK(std::string(plan.get_warning(0).value()).find("slots") != std::string::npos);
  CHECK_STATUS(WB_ERR_OUT_OF_RANGE, plan.get_warning(1));
}

TEST("a budget limits the offloaded bytes or the device's bytes") {
  const Device device = fixtures::open();
  const fixtures::Model model(4);
  const PlanOptions host{Budget::offload_bytes(2 * 20480)};
  const Plan by_host = Plan::make(device, model.parameters, host).value();
  CHECK(by_host.get_info().value().offloaded_bytes == 2 * 20000);
  const PlanOptions limited{Budget::device_bytes(3 * 20480)};
  const Plan by_device = Plan::make(device, model.parameters, limited).value();
  const wb_plan_info info = by_device.get_info().value();
  CHECK(info.resident_bytes + info.slot_bytes <= 3 * 20480);
  CHECK(info.offloaded_bytes > 0);
}

TEST("a step is predicted from the link and the kernels of each group") {
  const Device device = fixtures::open();
  const fixtures::Model model(4);
  PlanOptions options = fixtures::offload_all();
  options.transfer_mode = TransferMode::Prefetch;
  options.link_bytes_per_second = 1e9;
  options.group_seconds = {1, 2, 3, 4};
  options.rows = 1;
  const auto info = Plan::make(device, model.parameters, options).value().get_info().value();
  CHECK(info.kernel_seconds == 10);
  CHECK(info.step_seconds == 10);
  CHECK(info.link_seconds == 1e-9 * static_cast<double>(info.step_bytes));
  options.group_seconds.pop_back();
  CHECK_STATUS(WB_ERR_INVALID_ARGUMENT, Plan::make(device, model.parameters, options));
  options.group_seconds.clear();
  options.compute_bytes_per_second = 4 * 20000;
  const auto by_rate = Plan::make(device, model.parameters, options).value().get_info().value();
  CHECK(by_rate.kernel_seconds == 1);
}

TEST("a parameter may be kept on the device, or have its own transfer mode") {
  const Device device = fixtures::open();
  fixtures::Model model(3);
  model.parameters[0].placement = Placement::Resident;
  model.parameters[1].transfer_mode = TransferMode::OnDemand;
  model.parameters[2].access_pattern = AccessPattern::Sparse;
  const Plan plan = Plan::make(device, model.parameters, fixtures::offload_all()).value();
  CHECK(plan.get_parameter_info(0).value().placement == WB_PLACEMENT_RESIDENT);
  CHECK(plan.get_parameter_info(1).value().transfer_mode == WB_TRANSFER_MODE_ON_DEMAND);
  model.parameters[0].placement = Placement::Offloaded;
  const auto refused = Plan::make(device, model.parameters, fixtures::offload_all());
  CHECK_STATUS(WB_ERR_INVALID_ARGUMENT, refused);
}

TEST("a quantized matrix is planned with its scales") {
  const Device device = fixtures::open();
  const fixtures::Model model(2);
  PlanOptions options = fixtures::offload_all();
  options.quantize = QuantizeOptions{};
  options.quantize_select = {"layers.1"};
  const Plan plan = Plan::make(device, model.parameters, options).value();
  CHECK(plan.get_info().value().parameters == 3);
  CHECK(plan.get_parameter_info(plan.find_parameter("layers.1.w").value()).value().span_bytes ==
        5000);
  CHECK(plan.find_parameter("layers.1.w_scale"));
}

TEST("what a commit compresses is compressed by what was asked for") {
  const Device device = fixtures::open();
  const fixtures::Model model(3);
  for (const Tristate asked : {Tristate::Off, Tristate::On}) {
    PlanOptions options = fixtures::offload_all();
    options.transfer_mode = TransferMode::Prefetch;
    options.compress = Compress::Selected;
    options.compress_select = {"*"};
    options.encode_on_device = asked;
    options.verify_compressed = true;
    options.host_store = HostStore::Compressed;
    const Plan plan = Plan::make(device, model.parameters, options).value();
    const auto stats = Offloader::make(plan, nullptr).value().get_stats().value();
    CHECK(stats.decoded_bytes > 0);
    CHECK((asked == Tristate::On ? stats.encoded_by_device_bytes : stats.encoded_by_host_bytes) ==
          stats.decoded_bytes);
  }
}

int main() { return check::run(); }
