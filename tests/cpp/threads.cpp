// One device and one buffer in many threads, each with references of its own.
#include <atomic>
#include <thread>
#include <vector>

#include "fixtures.hpp"

using namespace weighbridge;

constexpr int threads = 8, rounds = 50;

TEST("threads share a buffer through references of their own") {
  const Device device = fixtures::open();
  fixtures::Memory memory = fixtures::pages(threads);
  std::atomic<int> deleted{0};
  {
    std::vector<std::thread> running;
    Buffer buffer = Buffer::register_memory(device, memory.get(), threads * fixtures::page,
                                            [&] { ++deleted; })
                        .value();
    for (int index = 0; index < threads; ++index) {
      running.emplace_back([mine = buffer.share(), index] {
        const std::uint64_t offset = index * fixtures::page;
        for (int round = 0; round < rounds; ++round) {
          const View view = View::make(mine, Layout::of<int>({16}, offset)).value();
          const auto elements = view.as<int>().value();
          for (int& element : elements) element += 1;
        }
      });
    }
    buffer.release();
    for (std::thread& thread : running) thread.join();
  }
  CHECK(deleted == 1);
  for (int index = 0; index < threads; ++index) {
    int first = 0;
    std::memcpy(&first, memory.get() + index * fixtures::page, sizeof(first));
    CHECK(first == rounds);
  }
  fixtures::check_nothing_left(device);
}

TEST("threads allocate, copy and release after streams of their own at once") {
  const Device device = fixtures::open();
  std::vector<std::thread> running;
  for (int index = 0; index < threads; ++index) {
    running.emplace_back([mine = device.share(), index] {
      const Stream stream = Stream::make(mine).value();
      const DeviceMemory memory = DeviceMemory::alloc(mine, fixtures::page).value();
      const Buffer back = Buffer::alloc(mine, fixtures::page).value();
      const auto copy = [&](void* to, const void* from) {
        mine.copy(to, from, fixtures::page, stream.get()).value();
      };
      for (int round = 0; round < rounds / 5; ++round) {
        Buffer buffer = Buffer::alloc(mine, fixtures::page).value();
        View view = View::make(buffer, Layout::of<int>({1024})).value();
        const auto elements = view.as<int>().value();
        for (int& element : elements) element = index * 1000 + round;
        copy(memory.get(), buffer.bytes().data());
        view.release_after(stream.get()).value();
        buffer.release_after(stream.get()).value();
        copy(back.writable_bytes().value().data(), memory.get());
        stream.synchronize().value();
        const View seen = View::make(back, Layout::of<int>({1024})).value();
        CHECK(seen.as<int>().value()[1023] == index * 1000 + round);
      }
    });
  }
  for (std::thread& thread : running) thread.join();
  fixtures::check_nothing_left(device);
}

int main() { return check::run(); }
