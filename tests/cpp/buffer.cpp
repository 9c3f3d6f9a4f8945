// Buffers: allocation, mapped files, options.
#include <algorithm>
#include <cstring>
#include <string>

#include "fixtures.hpp"

using namespace weighbridge;

TEST("a buffer has exactly the requested bytes, zeroed") {
  const Device device = fixtures::open();
  const Buffer buffer = Buffer::alloc(device, 3 * fixtures::page + 1).value();
  const wb_buffer_info info = buffer.get_info().value();
  CHECK(info.origin == WB_ORIGIN_ALLOCATED);
  CHECK(info.asked_bytes == 3 * fixtures::page + 1);
  CHECK(info.mapped_bytes == 4 * fixtures::page);
  if (info.pinning != WB_PINNING_NONE) CHECK(info.pinned_bytes == 4 * fixtures::page);
  const auto bytes = buffer.bytes();
  CHECK(bytes.size() == info.asked_bytes);
  CHECK(std::count(bytes.begin(), bytes.end(), std::byte{}) == 3 * fixtures::page + 1);
  CHECK(buffer.get_stats().value().resident_bytes >= 4 * fixtures::page);
}

TEST("written bytes are read back") {
  const Device device = fixtures::open();
  const Buffer buffer = Buffer::alloc(device, 8).value();
  const auto bytes = buffer.writable_bytes().value();
  for (std::byte& byte : bytes) byte = std::byte{7};
  CHECK(buffer.bytes()[7] == std::byte{7});
}

TEST("a buffer of zero bytes has no memory") {
  const Device device = fixtures::open();
  const Buffer buffer = Buffer::alloc(device, 0).value();
  CHECK(buffer);
  CHECK(buffer.bytes().empty());
  CHECK(buffer.writable_bytes().value().empty());
}

TEST("a file is mapped whole or in part, and is read-only") {
  const Device device = fixtures::open();
  const fixtures::File file("0123456789");
  const auto text = [](const Buffer& buffer) {
    return std::string(reinterpret_cast<const char*>(buffer.bytes().data()), buffer.bytes().size());
  };
  const Buffer whole = Buffer::map_file(device, file.path()).value();
  CHECK(text(whole) == "0123456789");
  CHECK(whole.get_info().value().read_only == 1);
  CHECK_STATUS(WB_ERR_INVALID_ARGUMENT, whole.writable_bytes());
  BufferOptions read;
  read.file_mode = FileMode::Read;
  CHECK(text(Buffer::map_file(device, file.path(), 3, 4, read).value()) == "3456");
  CHECK(text(Buffer::map_file(device, file.path(), 8, 0).value()) == "89");
  CHECK_STATUS(WB_ERR_OUT_OF_RANGE, Buffer::map_file(device, file.path(), 8, 3));
}

TEST("options reach the library") {
  BufferOptions options;
  options.pin = Tristate::Off;
  options.huge_pages = HugePages::Off;
  options.threads = 2;
  options.numa_policy = NumaPolicy::Any;
  const Device device = fixtures::open();
  const Buffer unpinned = Buffer::alloc(device, fixtures::page, options).value();
  CHECK(unpinned.get_info().value().pinning == WB_PINNING_NONE);
  CHECK(unpinned.get_info().value().pinned_bytes == 0);
  options = {};
  options.chunk_bytes = 1 << 20;
  const Buffer chunked = Buffer::alloc(device, 4 << 20, options).value();
  if (chunked.get_info().value().pinning == WB_PINNING_REGISTERED) {
    CHECK(chunked.get_info().value().chunks == 4);
  }
}

TEST("an invalid option is refused by name") {
  const Device device = fixtures::open();
  const auto check_refused = [&](auto member, const std::string& name) {
    BufferOptions options;
    options.*member = std::decay_t<decltype(options.*member)>{-77};
    const auto buffer = Buffer::alloc(device, fixtures::page, options);
    CHECK_STATUS(WB_ERR_INVALID_ARGUMENT, buffer);
    CHECK(buffer.error().message.find(name) != std::string::npos);
  };
  check_refused(&BufferOptions::huge_pages, "huge_pages");
  check_refused(&BufferOptions::pin, "pin");
  check_refused(&BufferOptions::write_combined, "write_combined");
  check_refused(&BufferOptions::portable, "portable");
  check_refused(&BufferOptions::file_mode, "file_mode");
  check_refused(&BufferOptions::numa_policy, "numa_policy");
}

TEST("device options reach the library") {
  DeviceOptions options;
  options.pin = Tristate::Off;
  options.views = Tristate::Off;
  const Device device = Device::open(fixtures::device_name(), options).value();
  CHECK(device.get_info().value().pin == 0);
  CHECK(device.get_info().value().views == 0);
  options = {};
  options.context = &options;
  CHECK_STATUS(WB_ERR_INVALID_ARGUMENT, Device::open("host", options));
}

#if __cplusplus >= 202002L
TEST("options can be given as designated initializers") {
  const Device device = fixtures::open();
  const Buffer buffer =
      Buffer::alloc(device, 10, {.huge_pages = HugePages::Off, .pin = Tristate::Off}).value();
  CHECK(buffer.get_info().value().pinned_bytes == 0);
  const View view =
      View::make(buffer, {.dtype = WB_DTYPE_U8, .shape = {2, 5}}, Accessor::Host).value();
  CHECK(view.as<unsigned char>().value().size() == 10);
  CHECK(Device::open("host", {.pin = Tristate::Off, .capacity_bytes = 1 << 20}));
}
#endif

int main() { return check::run(); }
