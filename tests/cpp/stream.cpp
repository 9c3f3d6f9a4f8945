// Streams, device memory, and releases after a stream.
#include <atomic>
#include <future>
#include <memory>
#include <numeric>
#include <vector>

#include "fixtures.hpp"

using namespace weighbridge;

constexpr auto soon = std::chrono::seconds(10);

TEST("copies reach the device and return in order") {
  const Device device = fixtures::open();
  const Stream stream = Stream::make(device).value();
  const Buffer from = Buffer::alloc(device, 1 << 20).value();
  const Buffer to = Buffer::alloc(device, 1 << 20).value();
  unsigned char next = 0;
  const auto bytes = from.writable_bytes().value();
  for (std::byte& byte : bytes) byte = std::byte{next++};
  const DeviceMemory memory = DeviceMemory::alloc(device, 1 << 20).value();
  CHECK(device.get_stats().value().device_bytes == 1 << 20);
  CHECK(device.copy(memory.get(), from.bytes().data(), 1 << 20, stream.get()));
  CHECK(device.copy(to.writable_bytes().value().data(), memory.get(), 1 << 20, stream.get()));
  CHECK(stream.synchronize());
  CHECK(std::memcmp(from.bytes().data(), to.bytes().data(), 1 << 20) == 0);
}

TEST("callables run on a stream in order, once, and are freed") {
  const Device device = fixtures::open();
  const Stream stream = Stream::make(device).value();
  const auto order = std::make_shared<std::vector<int>>();
  for (int index = 0; index < 50; ++index) {
    CHECK(stream.call([order, index, owned = std::make_unique<int>(index)] {
      order->push_back(*owned == index ? index : -1);
    }));
  }
  CHECK(stream.synchronize());
  std::vector<int> expected(50);
  std::iota(expected.begin(), expected.end(), 0);
  CHECK(*order == expected);
  CHECK(order.use_count() == 1);
}

TEST("the default stream can be used") {
  const Device device = fixtures::open();
  std::atomic<bool> ran{false};
  CHECK(device.stream_call(nullptr, [&] { ran = true; }));
  CHECK(device.stream_synchronize(nullptr));
  CHECK(ran);
}

TEST("memory released after a stream is freed when the stream has run") {
  const Device device = fixtures::open();
  const Stream stream = Stream::make(device).value();
  fixtures::Memory memory = fixtures::pages(1);
  std::atomic<int> deleted{0};
  Buffer buffer =
      Buffer::register_memory(device, memory.get(), fixtures::page, [&] { ++deleted; }).value();
  View view = View::make(buffer, Layout::of<float>({4})).value();
  std::promise<void> gate;
  CHECK(stream.call([open = gate.get_future().share()] { open.wait(); }));
  CHECK(view.release_after(stream.get()));
  CHECK(!view);
  CHECK(buffer.release_after(stream.get()));
  CHECK(!buffer);
  CHECK_STATUS(WB_ERR_TIMEOUT, device.drain(std::chrono::milliseconds(20)));
  CHECK(deleted == 0);
  CHECK(device.get_stats().value().deferred == 2);
  gate.set_value();
  CHECK(device.drain(soon));
  CHECK(deleted == 1);
  fixtures::check_nothing_left(device);
}

TEST("a stream with queued work can be released") {
  const Device device = fixtures::open();
  Stream stream = Stream::make(device).value();
  Buffer buffer = Buffer::alloc(device, fixtures::page).value();
  std::promise<void> gate;
  std::promise<void> ran;
  CHECK(stream.call([open = gate.get_future().share()] { open.wait(); }));
  CHECK(stream.call([&] { ran.set_value(); }));
  CHECK(buffer.release_after(stream.get()));
  CHECK(stream.release());
  gate.set_value();
  CHECK(ran.get_future().wait_for(soon) == std::future_status::ready);
  fixtures::check_nothing_left(device);
}

TEST("a stream and device memory keep their device") {
  Device device = fixtures::open();
  const Stream stream = Stream::make(device).value();
  const DeviceMemory memory = DeviceMemory::alloc(device, 100).value();
  device.release();
  CHECK(stream.synchronize());
  CHECK(memory.device().get_stats().value().device_bytes > 0);
}

int main() { return check::run(); }
