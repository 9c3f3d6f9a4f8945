// What is refused, and what the error says.
#include <cerrno>
#include <cstdint>
#include <string>

#include "fixtures.hpp"

using namespace weighbridge;

static bool says(const Error& error, const std::string& part) {
  return error.message.find(part) != std::string::npos;
}

TEST("an error carries the status, the system's code and what was asked") {
  const Device device = fixtures::open();
  const auto missing = Buffer::map_file(device, "/nowhere/model.safetensors");
  CHECK_STATUS(WB_ERR_FILE_MISSING, missing);
  CHECK(missing.error().code == ENOENT);
  CHECK(missing.error().code_domain == CodeDomain::Errno);
  CHECK(says(missing.error(), "/nowhere/model.safetensors"));
}

TEST("value() throws the same") {
  const Device device = fixtures::open();
  bool thrown = false;
  try {
    Buffer::map_file(device, "/nowhere").value();
  } catch (const Exception& exception) {
    thrown = true;
    CHECK(exception.error().status == WB_ERR_FILE_MISSING);
    CHECK(exception.error().code == ENOENT);
    CHECK(std::string(exception.what()).find("WB_ERR_FILE_MISSING: ") == 0);
  }
  CHECK(thrown);
}

TEST("a device that there is not is refused") {
  CHECK(!Device::open("cuda:4711"));
  CHECK(!Device::open("abacus"));
  CHECK(!Device::open(""));
}

TEST("a text that C would not read to its end is refused") {
  const Device device = fixtures::open();
  const std::string nul(1, '\0');
  CHECK_STATUS(WB_ERR_INVALID_ARGUMENT, Device::open(fixtures::device_name() + nul));
  const fixtures::File file(fixtures::three_tensors());
  CHECK_STATUS(WB_ERR_INVALID_ARGUMENT, Buffer::map_file(device, file.path() + nul));
  CHECK_STATUS(WB_ERR_INVALID_ARGUMENT, Safetensors::open(device, file.path() + nul));
  const Safetensors opened = Safetensors::open(device, file.path()).value();
  CHECK_STATUS(WB_ERR_INVALID_ARGUMENT, opened.find_tensor("alpha" + nul + "bet"));

  const float weight = 3;
  Parameter parameter{"l.0.w", "l.0", Layout::of<float>({1}), &weight};
  PlanOptions options{Budget::offload_bytes(1 << 20)};
  const Plan plan = Plan::make(device, {parameter}, options).value();
  CHECK_STATUS(WB_ERR_INVALID_ARGUMENT, plan.find_parameter("l.0.w" + nul));
  options.exclude = {"l.1" + nul + "2"};
  CHECK_STATUS(WB_ERR_INVALID_ARGUMENT, Plan::make(device, {parameter}, options));
  options.exclude = {};
  const Offloader offloader = Offloader::make(plan).value();
  const std::string name = parameter.name + nul;
  CHECK_STATUS(WB_ERR_INVALID_ARGUMENT, offloader.find_group("l.0" + nul));
  CHECK_STATUS(WB_ERR_INVALID_ARGUMENT, offloader.find_parameter(name));
  const auto replaced = offloader.replace(name, &weight, parameter.layout);
  CHECK_STATUS(WB_ERR_INVALID_ARGUMENT, replaced);
  CHECK_STATUS(WB_ERR_INVALID_ARGUMENT, offloader.remove(name));
  parameter.group += nul;
  CHECK_STATUS(WB_ERR_INVALID_ARGUMENT, Plan::make(device, {parameter}, options));
  const Error error = offloader.find_parameter(name).error();
  CHECK(says(error, "\"l.0.w\""));
}

TEST("a value that is none of an option's is refused") {
  const Device device = fixtures::open();
  BufferOptions options;
  options.huge_pages = HugePages{77};
  CHECK_STATUS(WB_ERR_INVALID_ARGUMENT, Buffer::alloc(device, 1, options));
  options = {};
  options.pin = Tristate{-1};
  CHECK_STATUS(WB_ERR_INVALID_ARGUMENT, Buffer::alloc(device, 1, options));
  DeviceOptions open;
  open.views = Tristate{9};
  CHECK_STATUS(WB_ERR_INVALID_ARGUMENT, Device::open(fixtures::device_name(), open));
  fixtures::check_nothing_left(device);
}

TEST("a view outside of its buffer is refused") {
  const Device device = fixtures::open();
  const Buffer buffer = Buffer::alloc(device, 16).value();
  CHECK_STATUS(WB_ERR_OUT_OF_RANGE, View::make(buffer, Layout::of<float>({5})));
  CHECK_STATUS(WB_ERR_OUT_OF_RANGE, View::make(buffer, Layout::of<float>({4}, 4)));
  CHECK_STATUS(WB_ERR_OVERFLOW, View::make(buffer, Layout::of<float>({INT64_MAX, INT64_MAX})));
  CHECK_STATUS(WB_ERR_INVALID_ARGUMENT, View::make(buffer, Layout{12345, {1}, {}, 0}));
  CHECK_STATUS(WB_ERR_INVALID_ARGUMENT, View::make(buffer, Layout::of<float>({1}), Accessor{9}));
  CHECK(!View::make(buffer, Layout::of<float>({-1})));
}

TEST("sizes and strides of different number are refused before C reads them") {
  const Device device = fixtures::open();
  const Buffer buffer = Buffer::alloc(device, 16).value();
  const auto view = View::make(buffer, Layout{WB_DTYPE_F32, {2, 2}, {1}, 0});
  CHECK_STATUS(WB_ERR_INVALID_ARGUMENT, view);
  CHECK(says(view.error(), "2 sizes and 1 strides"));
}

TEST("more memory than there is gives an error, and leaves nothing") {
  const Device device = fixtures::open();
  CHECK(!Buffer::alloc(device, std::uint64_t{1} << 60));
  CHECK(!Buffer::alloc(device, UINT64_MAX));
  CHECK(DeviceMemory::alloc(device, std::uint64_t{1} << 60).error().status == WB_ERR_DEVICE_MEMORY);
  CHECK_STATUS(WB_ERR_INVALID_ARGUMENT, DeviceMemory::alloc(device, 0));
  fixtures::check_nothing_left(device);
}

TEST("a host device's capacity is a ceiling") {
  DeviceOptions options;
  options.capacity_bytes = 4 * fixtures::page;
  const Device device = Device::open("host", options).value();
  const DeviceMemory first = DeviceMemory::alloc(device, 3 * fixtures::page).value();
  CHECK_STATUS(WB_ERR_DEVICE_MEMORY, DeviceMemory::alloc(device, 2 * fixtures::page));
  CHECK(DeviceMemory::alloc(device, fixtures::page));
}

int main() { return check::run(); }
