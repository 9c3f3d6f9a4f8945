// Moves, references, order of release.
#include <algorithm>
#include <array>
#include <functional>
#include <type_traits>

#include "fixtures.hpp"

using namespace weighbridge;

template <class T>
constexpr bool move_only = !std::is_copy_constructible_v<T> && !std::is_copy_assignable_v<T> &&
                           std::is_nothrow_move_constructible_v<T> &&
                           std::is_nothrow_move_assignable_v<T> &&
                           std::is_nothrow_default_constructible_v<T>;
static_assert(move_only<Device> && move_only<Buffer> && move_only<View>);
static_assert(move_only<Safetensors> && move_only<Stream> && move_only<DeviceMemory>);
static_assert(move_only<Plan> && move_only<Offloader> && move_only<Quantizer>);

TEST("a moved-from object is empty, and its calls fail") {
  Device device = fixtures::open();
  Device other = std::move(device);
  CHECK(!device);
  CHECK(other);
  CHECK_STATUS(WB_ERR_INVALID_ARGUMENT, device.get_info());
  CHECK_STATUS(WB_ERR_INVALID_ARGUMENT, device.get_stats());
  CHECK_STATUS(WB_ERR_INVALID_ARGUMENT, device.stream_synchronize(nullptr));
  CHECK_STATUS(WB_ERR_INVALID_ARGUMENT, Buffer::alloc(device, 1));
  CHECK_STATUS(WB_ERR_INVALID_ARGUMENT, Stream::make(device));
  CHECK_STATUS(WB_ERR_INVALID_ARGUMENT, DeviceMemory::alloc(device, 1));
  CHECK(!device.share());
}

TEST("calls on empty objects fail with WB_ERR_INVALID_ARGUMENT") {
  Buffer buffer;
  CHECK(buffer.bytes().empty());
  CHECK_STATUS(WB_ERR_INVALID_ARGUMENT, buffer.writable_bytes());
  CHECK_STATUS(WB_ERR_INVALID_ARGUMENT, buffer.get_stats());
  CHECK_STATUS(WB_ERR_INVALID_ARGUMENT, buffer.release_after(nullptr));
  CHECK_STATUS(WB_ERR_INVALID_ARGUMENT, View::make(buffer, Layout::of<float>({1})));
  View view;
  CHECK_STATUS(WB_ERR_INVALID_ARGUMENT, view.as<float>());
  CHECK_STATUS(WB_ERR_INVALID_ARGUMENT, view.get_buffer());
  CHECK_STATUS(WB_ERR_INVALID_ARGUMENT, view.to_dlpack());
  CHECK_STATUS(WB_ERR_INVALID_ARGUMENT, view.release_after(nullptr));
  const Safetensors file;
  CHECK(file.get_tensor_count() == 0);
  CHECK(file.get_header().empty());
  CHECK_STATUS(WB_ERR_INVALID_ARGUMENT, file.get_tensor_info(0));
  CHECK_STATUS(WB_ERR_INVALID_ARGUMENT, file.load_view(0));
  const Offloader offloader;
  CHECK_STATUS(WB_ERR_INVALID_ARGUMENT, offloader.get_parameter_infos());
  CHECK_STATUS(WB_ERR_INVALID_ARGUMENT, AcquiredGroup::make(offloader, 0, nullptr));
  Stream stream;
  CHECK_STATUS(WB_ERR_INVALID_ARGUMENT, stream.synchronize());
  CHECK(stream.release());
  DeviceMemory memory;
  CHECK(memory.get() == nullptr);
  CHECK(memory.release());
}

TEST("assignment releases the old object") {
  const Device device = fixtures::open();
  Buffer first = Buffer::alloc(device, 100).value();
  first = Buffer::alloc(device, 200).value();
  CHECK(first.bytes().size() == 200);
  CHECK(device.get_stats().value().buffers == 1);
  Buffer& alias = first;
  first = std::move(alias);
  CHECK(first.bytes().size() == 200);
  first.release();
  first.release();
  CHECK(!first);
  fixtures::check_nothing_left(device);
}

TEST("streams and device memory are movable, and released once") {
  const Device device = fixtures::open();
  DeviceMemory memory = DeviceMemory::alloc(device, 1000).value();
  const void* address = memory.get();
  DeviceMemory other = std::move(memory);
  CHECK(!memory);
  CHECK(memory.get() == nullptr);
  CHECK(other.get() == address);
  other = DeviceMemory::alloc(device, 2000).value();
  CHECK(other.release());
  CHECK(!other);
  Stream stream = Stream::make(device).value();
  Stream moved = std::move(stream);
  CHECK(!stream);
  CHECK(moved.synchronize());
  moved = Stream::make(device).value();
  CHECK(moved.synchronize());
  fixtures::check_nothing_left(device);
}

TEST("share() adds a reference that keeps the object") {
  const Device device = fixtures::open();
  Buffer buffer = Buffer::alloc(device, 64).value();
  const Buffer second = buffer.share();
  CHECK(second.get() == buffer.get());
  buffer.release();
  CHECK(second.bytes().size() == 64);
  CHECK(device.get_stats().value().buffers == 1);
}

TEST("detach() and adopt() transfer a reference") {
  const Device device = fixtures::open();
  Buffer buffer = Buffer::alloc(device, 64).value();
  wb_buffer* raw = buffer.detach();
  CHECK(!buffer);
  CHECK(device.get_stats().value().buffers == 1);
  CHECK(Buffer::adopt(raw).bytes().size() == 64);
  fixtures::check_nothing_left(device);
}

TEST("device, buffer, view and file can be released in any order") {
  const fixtures::File written(fixtures::three_tensors());
  std::array<int, 5> order{0, 1, 2, 3, 4};
  const Device observer = fixtures::open();
  do {
    Device device = observer.share();
    Buffer buffer = Buffer::alloc(device, 16).value();
    View view = View::make(buffer, Layout::of<int>({4})).value();
    Safetensors file = Safetensors::open(device, written.path()).value();
    View tensor = file.get_view(0, Accessor::Host).value();
    view.as<int>().value()[3] = 42;
    for (const int next : order) {
      if (view) CHECK(view.as<const int>().value()[3] == 42);
      if (tensor) CHECK(tensor.as<const float>().value()[5] == 6);
      switch (next) {
        case 0: device.release(); break;
        case 1: buffer.release(); break;
        case 2: view.release(); break;
        case 3: file.release(); break;
        default: tensor.release();
      }
    }
    fixtures::check_nothing_left(observer);
  } while (std::next_permutation(order.begin(), order.end()));
}

TEST("a device released first is kept by its objects") {
  std::array<int, 3> order{0, 1, 2};
  do {
    fixtures::Memory memory = fixtures::pages(1);
    int deleted = 0;
    Device device = fixtures::open();
    Buffer buffer =
        Buffer::register_memory(device, memory.get(), fixtures::page, [&] { ++deleted; }).value();
    View view = View::make(buffer, Layout::of<int>({4})).value();
    for (const int next : order) {
      CHECK(deleted == 0);
      if (view) CHECK(view.as<int>().value()[0] == 0);
      if (next == 0) device.release();
      if (next == 1) buffer.release();
      if (next == 2) view.release();
      if (!buffer && !view) break;
    }
    CHECK(deleted == 1);
  } while (std::next_permutation(order.begin(), order.end()));
}

int main() { return check::run(); }
