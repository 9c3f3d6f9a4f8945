// Offloaders with fixed addresses: resizes, sleep, and an arbiter over several.
#include <string>
#include <vector>

#include "model.hpp"

using namespace weighbridge;
using fixtures::Model;

namespace {

constexpr std::uint64_t piece = 2 << 20, layers = 4;
constexpr std::chrono::seconds patience(60);

// All layers are offloaded, and each has a slot of a piece.
struct Fixed {
  explicit Fixed(const Device& of)
      : device(of), stream(Stream::make(of).value()), model(layers),
        plan(Plan::make(of, model.parameters, options()).value()),
        offloader(Offloader::make(plan, stream.get()).value()),
        slots(offloader.get_stats().value().slot_bytes), infos(offloader.get_parameter_infos().value()) {}

  static PlanOptions options() {
    PlanOptions options = fixtures::offload_all(TransferMode::Prefetch);
    options.depth = 2;
    options.fixed_addresses = Tristate::On;
    return options;
  }

  void check_step() const {
    for (std::uint64_t group = 0; group < layers; group++) {
      const auto acquired = AcquiredGroup::make(offloader, group, stream.get()).value();
      float found = -1;
      const wb_offloader_parameter_info info = offloader.get_parameter_info(group).value();
      CHECK(info.device_address == infos[group].device_address);
      device.copy(&found, info.device_address, sizeof found, stream.get()).value();
      stream.synchronize().value();
      CHECK(found == static_cast<float>(group));
    }
  }

  const Device& device;
  Stream stream;
  Model model;
  Plan plan;
  Offloader offloader;
  std::uint64_t slots;
  std::vector<wb_offloader_parameter_info> infos;
};

}  // namespace

TEST("a resized offloader holds what it may, and its addresses stay") {
  const Device device = fixtures::open();
  {
    const Fixed fixed(device);
    const Offloader& offloader = fixed.offloader;
    for (const std::uint64_t bytes : {fixed.slots + 3 * piece, fixed.slots, std::uint64_t{0},
                                      fixed.slots + layers * piece}) {
      offloader.resize(bytes, fixed.stream.get()).value();
      const auto progress = offloader.resize_wait(patience, fixed.stream.get()).value();
      CHECK(progress.pending_units == 0 && progress.device_bytes == bytes);
      CHECK(device.get_stats().value().device_bytes == bytes);
      if (bytes > 0) fixed.check_step();
    }
    offloader.resize_offload(2 * piece, fixed.stream.get()).value();
    CHECK(offloader.resize_wait(patience, fixed.stream.get()).value().device_bytes ==
          fixed.slots + 2 * piece);
    offloader.resize_offload(0, fixed.stream.get()).value();
    CHECK(offloader.resize_wait(patience, fixed.stream.get()).value().device_bytes ==
          fixed.slots + layers * piece);
    CHECK_STATUS(WB_ERR_BUDGET, offloader.resize(fixed.slots - 1, fixed.stream.get()));
    CHECK(offloader.resize_advance(fixed.stream.get()).value().pending_units == 0);
    fixed.check_step();
  }
  fixtures::check_nothing_left(device);
}

TEST("the hottest pieces of a parameter are on the device") {
  const Device device = fixtures::open();
  {
    const std::vector<unsigned char> bytes(4 * piece, 7);
    Parameter parameter;
    parameter.name = parameter.group = "table";
    parameter.layout = Layout::of<std::uint8_t>({static_cast<std::int64_t>(bytes.size())});
    parameter.source = bytes.data();
    PlanOptions options{Budget::device_bytes(2 * piece)};
    options.transfer_mode = TransferMode::ZeroCopy;
    options.fixed_addresses = Tristate::On;
    const Plan plan = Plan::make(device, {parameter}, options).value();
    const Offloader offloader = Offloader::make(plan).value();
    CHECK(offloader.get_parameter_info(0).value().resident_bytes == 2 * piece);
    offloader.prefer(0, 3 * piece, piece, 2.5).value();
    CHECK(offloader.rebalance(0).value().pending_bytes == 2 * piece);
    while (offloader.rebalance(2 * piece).value().pending_bytes > 0) {
    }
    CHECK(offloader.get_stats().value().device_parameter_bytes == 2 * piece);
    CHECK_STATUS(WB_ERR_OUT_OF_RANGE, offloader.prefer(0, 4 * piece, 1, 1));
  }
  fixtures::check_nothing_left(device);
}

TEST("an arbiter gives memory to what is used next") {
  const Device device = fixtures::open();
  {
    const Fixed first(device), second(device);
    const std::uint64_t whole = first.slots + layers * piece;
    const Arbiter arbiter = Arbiter::make(device, whole + first.slots).value();
    ArbiterOptions options;
    options.stream = first.stream.get();
    options.priority = 1;
    arbiter.add(first.offloader, options).value();
    options.stream = second.stream.get();
    options.min_bytes = 1;
    arbiter.add(second.offloader, options).value();
    CHECK_STATUS(WB_ERR_BUSY, arbiter.add(second.offloader, options));
    for (const Fixed* next : {&first, &second, &first}) {
      arbiter.use(next->offloader).value();
      const wb_arbiter_progress progress = arbiter.wait(patience).value();
      CHECK(progress.ready == 1 && progress.pending_offloaders == 0);
      CHECK(progress.device_bytes <= whole + first.slots);
      CHECK(arbiter.get_member_info(next->offloader).value().device_bytes == whole);
      next->check_step();
    }
    second.check_step();  // it keeps its slots
    CHECK_STATUS(WB_ERR_BUSY, first.offloader.resize(whole, first.stream.get()));
    arbiter.resize(2 * first.slots).value();
    CHECK(arbiter.wait(patience).value().device_bytes == 2 * first.slots);
    CHECK(arbiter.advance().value().pending_offloaders == 0);
    arbiter.remove(first.offloader).value();
    CHECK_STATUS(WB_ERR_NOT_FOUND, arbiter.use(first.offloader));
    first.offloader.resize(whole, first.stream.get()).value();
  }
  fixtures::check_nothing_left(device);
}

int main() { return check::run(); }
