// Expert caches: routing, views of slots, passes, hints and errors.
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "model.hpp"

using namespace weighbridge;

namespace {

constexpr std::uint64_t layers = 2, experts = 6, bytes = 32;

std::uint8_t byte_of(std::uint64_t layer, std::uint64_t expert, std::uint64_t at) {
  return static_cast<std::uint8_t>(layer * 83 + expert * 31 + at * 3);
}

std::vector<ExpertTensor> describe(const Device& device) {
  std::vector<ExpertTensor> tensors;
  for (std::uint64_t layer = 0; layer < layers; layer++) {
    auto buffer = std::make_shared<const Buffer>(Buffer::alloc(device, experts * bytes).value());
    auto* data = static_cast<std::uint8_t*>(buffer->get_info().value().data);
    for (std::uint64_t at = 0; at < experts * bytes; at++) {
      data[at] = byte_of(layer, at / bytes, at % bytes);
    }
    tensors.push_back({layer, "w13", Layout::of<std::uint8_t>({experts, bytes}), buffer});
  }
  return tensors;
}

// Ids in device memory, which calls rewrite.
struct Numbers {
  explicit Numbers(const Device& of)
      : device(of), memory(DeviceMemory::alloc(of, 64).value()),
        staging(Buffer::alloc(of, 64).value()), stream(Stream::make(of).value()) {}

  std::vector<std::int32_t> route(const ExpertCache& cache, std::uint64_t layer,
                                  std::vector<std::int32_t> ids,
                                  const ExpertRouteOptions& options = {}) {
    void* host = staging.get_info().value().data;
    const std::uint64_t size = ids.size() * sizeof(std::int32_t);
    std::memcpy(host, ids.data(), size);
    device.copy(memory.get(), host, size, stream.get()).value();
    const ExpertIds given{memory.get(), ids.size(), WB_DTYPE_I32};
    cache.route(layer, given, memory.get(), stream.get(), options).value();
    device.copy(host, memory.get(), size, stream.get()).value();
    stream.synchronize().value();
    std::memcpy(ids.data(), host, size);
    return ids;
  }

  const Device& device;
  DeviceMemory memory;
  Buffer staging;
  Stream stream;
};

}  // namespace

TEST("ids become slots that hold their experts") {
  const Device device = fixtures::open();
  {
    ExpertCacheOptions options;
    options.slots = 3;
    const auto tensors = describe(device);
    const ExpertCache cache = ExpertCache::make(device, tensors, options).value();
    Numbers numbers(device);
    CHECK((numbers.route(cache, 1, {4, -1, 2}) == std::vector<std::int32_t>{1, -1, 0}));
    CHECK((numbers.route(cache, 1, {2, 5}) == std::vector<std::int32_t>{0, 2}));
    const wb_expert_cache_info info = cache.get_info().value();
    CHECK(info.slots == 3 && info.experts == 12 && info.expert_bytes == bytes);
    const View view = cache.get_view(0).value();
    const wb_view_info shown = view.get_info().value();
    CHECK(shown.ndim == 2 && shown.shape[0] == 3 && shown.shape[1] == 32);
    const wb_expert_slots_info slots = cache.get_slots_info(0).value();
    CHECK(slots.device_address == shown.device_address);
    auto* host = static_cast<std::uint8_t*>(numbers.staging.get_info().value().data);
    const auto* second = static_cast<const std::uint8_t*>(slots.device_address) + 2 * bytes;
    device.copy(host, second, bytes, numbers.stream.get()).value();
    numbers.stream.synchronize().value();
    for (std::uint64_t at = 0; at < bytes; at++) CHECK(host[at] == byte_of(1, 5, at));
    const wb_expert_cache_stats stats = cache.get_stats().value();
    CHECK(stats.calls == 2 && stats.hits == 1 && stats.misses == 3 && stats.ignored == 1);
    CHECK(cache.get_layer_stats(0).value().calls == 0);
  }
  fixtures::check_nothing_left(device);
}

TEST("more experts than slots are computed in passes, and hints are found") {
  const Device device = fixtures::open();
  ExpertCacheOptions options;
  options.slots = 4;
  options.lanes = 2;
  const ExpertCache cache = ExpertCache::make(device, describe(device), options).value();
  CHECK(cache.get_passes(0, 6).value() == 3);
  Numbers numbers(device);
  const ExpertIds six{numbers.memory.get(), 6, WB_DTYPE_I32};
  CHECK_STATUS(WB_ERR_SLOTS_BUDGET,
               cache.route(0, six, numbers.memory.get(), numbers.stream.get()));
  ExpertRouteOptions last;
  last.pass = 2;
  last.passes = 3;
  CHECK((numbers.route(cache, 0, {0, 4, 5}, last) == std::vector<std::int32_t>{-1, 0, 1}));
  void* host = numbers.staging.get_info().value().data;
  const std::int32_t hint = 3;
  std::memcpy(host, &hint, sizeof hint);
  device.copy(numbers.memory.get(), host, sizeof hint, numbers.stream.get()).value();
  const ExpertIds one{numbers.memory.get(), 1, WB_DTYPE_I32};
  cache.prefetch(1, one, numbers.stream.get()).value();
  CHECK((numbers.route(cache, 1, {3}) == std::vector<std::int32_t>{2}));
  CHECK(cache.get_layer_stats(1).value().hits == 1);
  cache.reset(numbers.stream.get()).value();
  cache.resize(4, numbers.stream.get()).value();
  CHECK_STATUS(WB_ERR_OUT_OF_RANGE, cache.resize(5, numbers.stream.get()));
}

TEST("what makes no cache is refused, and a budget is measured") {
  const Device device = fixtures::open();
  auto tensors = describe(device);
  CHECK_STATUS(WB_ERR_INVALID_ARGUMENT, ExpertCache::make(device, tensors, {}));
  ExpertCacheOptions options;
  options.slots = 5;
  const wb_expert_cache_size size = ExpertCache::measure(device, tensors, options).value();
  CHECK(size.slots == 5 && size.slot_bytes == 5 * bytes);
  ExpertCacheOptions budget;
  budget.device_bytes = size.slot_bytes + size.state_bytes;
  CHECK(ExpertCache::measure(device, tensors, budget).value().slots >= 5);
  tensors[1].buffer = nullptr;
  CHECK_STATUS(WB_ERR_INVALID_ARGUMENT, ExpertCache::make(device, tensors, options));
  tensors[1].name = std::string("w\0x", 3);
  CHECK_STATUS(WB_ERR_INVALID_ARGUMENT, ExpertCache::make(device, tensors, options));
}

TEST("a cache of an offloader's parameters takes its memory from the plan") {
  const Device device = fixtures::open();
  {
    const Stream stream = Stream::make(device).value();
    fixtures::Model model(2);
    for (auto& parameter : model.parameters) parameter.access_pattern = AccessPattern::Experts;
    PlanOptions planned{Budget::device_bytes(30000)};  // of 40000 bytes: 50 experts of 400 each
    const Plan plan = Plan::make(device, model.parameters, planned).value();
    CHECK(plan.get_info().value().expert_bytes == 30000);
    const Offloader offloader = Offloader::make(plan, stream.get()).value();
    std::vector<ExpertTensor> tensors(2);
    for (std::uint64_t layer = 0; layer < 2; layer++) {
      tensors[layer].layer = layer;
      tensors[layer].name = "w";
      tensors[layer].parameter = model.parameters[layer].name;
    }
    const ExpertCache cache = ExpertCache::make_for(offloader, tensors).value();
    const wb_expert_cache_info info = cache.get_info().value();
    CHECK(info.experts == 100 && info.expert_bytes == 400 && info.slots > 50);
    CHECK(offloader.get_stats().value().expert_bytes == info.slot_bytes + info.state_bytes);
    Numbers numbers(device);
    CHECK((numbers.route(cache, 1, {49}) == std::vector<std::int32_t>{0}));
    float first = -1;
    device.copy(&first, cache.get_slots_info(0).value().device_address, 4, numbers.stream.get())
        .value();
    numbers.stream.synchronize().value();
    CHECK(first == 1);
    ExpertCacheOptions more;
    more.slots = 1;
    CHECK_STATUS(WB_ERR_BUDGET, ExpertCache::make_for(offloader, tensors, more));
    tensors[0].parameter = "none";
    CHECK_STATUS(WB_ERR_NOT_FOUND, ExpertCache::make_for(offloader, tensors, more));
  }
  fixtures::check_nothing_left(device);
}

int main() { return check::run(); }
