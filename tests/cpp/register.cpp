// Registered memory of the caller, and its deleter.
#include <functional>
#include <memory>

#include "fixtures.hpp"

using namespace weighbridge;

TEST("a deleter is called once, after the last view is released") {
  const Device device = fixtures::open();
  fixtures::Memory memory = fixtures::pages(2);
  int deleted = 0;
  Buffer buffer =
      Buffer::register_memory(device, memory.get(), 2 * fixtures::page, [&] { ++deleted; }).value();
  CHECK(buffer.bytes().data() == memory.get());
  CHECK(buffer.get_info().value().origin == WB_ORIGIN_REGISTERED);
  View view = View::make(buffer, Layout::of<float>({8})).value();
  Buffer again = buffer.share();
  buffer.release();
  again.release();
  CHECK(deleted == 0);
  view.release();
  CHECK(deleted == 1);
  fixtures::check_nothing_left(device);
}

TEST("a deleter may be any callable, and own the memory") {
  const Device device = fixtures::open();
  const auto held = std::make_shared<int>(0);
  {
    fixtures::Memory memory = fixtures::pages(1);
    std::byte* data = memory.get();
    const Buffer buffer =
        Buffer::register_memory(device, data, fixtures::page,
                                [memory = std::move(memory), held] { ++*held; })
            .value();
    CHECK(!memory);
    CHECK(buffer.bytes().data() == data);
    CHECK(held.use_count() == 2);
  }
  CHECK(*held == 1);
  CHECK(held.use_count() == 1);

  fixtures::Memory memory = fixtures::pages(1);
  const std::function<void()> function = [held] { ++*held; };
  CHECK(Buffer::register_memory(device, memory.get(), fixtures::page, function));
  CHECK(*held == 2);
  CHECK(held.use_count() == 2);
}

TEST("memory can be registered without a deleter") {
  const Device device = fixtures::open();
  fixtures::Memory memory = fixtures::pages(1);
  {
    const Buffer buffer = Buffer::register_memory(device, memory.get(), fixtures::page).value();
    buffer.writable_bytes().value()[5] = std::byte{5};
  }
  CHECK(memory[5] == std::byte{5});
  fixtures::check_nothing_left(device);
}

TEST("on failure a deleter is destroyed and not called") {
  const Device device = fixtures::open();
  fixtures::Memory memory = fixtures::pages(1);
  const auto held = std::make_shared<int>(0);
  const auto deleter = [held] { ++*held; };
  const auto zero = Buffer::register_memory(device, memory.get(), 0, deleter);
  CHECK_STATUS(WB_ERR_INVALID_ARGUMENT, zero);
  CHECK(!Buffer::register_memory(device, nullptr, 10, deleter));
  void* unmapped = reinterpret_cast<void*>(fixtures::page);
  CHECK_STATUS(WB_ERR_UNMAPPED_RANGE, Buffer::register_memory(device, unmapped, 10, deleter));
  CHECK(*held == 0);
  CHECK(held.use_count() == 2);
  fixtures::check_nothing_left(device);
}

TEST("an overlapping registration is refused without an effect") {
  const Device device = fixtures::open();
  fixtures::Memory memory = fixtures::pages(4);
  int first = 0, second = 0;
  {
    const Buffer buffer =
        Buffer::register_memory(device, memory.get(), 4 * fixtures::page, [&] { ++first; }).value();
    CHECK_STATUS(WB_ERR_ALREADY_REGISTERED,
                 Buffer::register_memory(device, memory.get() + fixtures::page, fixtures::page,
                                         [&] { ++second; }));
    CHECK(first == 0);
  }
  CHECK(first == 1);
  CHECK(second == 0);
  fixtures::check_nothing_left(device);
}

int main() { return check::run(); }
