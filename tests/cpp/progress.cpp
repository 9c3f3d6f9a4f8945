// Progress callbacks: told, cancelling, throwing.
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "fixtures.hpp"

using namespace weighbridge;

constexpr std::uint64_t bytes = 4 << 20;

struct Report {
  Phase phase;
  std::uint64_t done, total;
};

static BufferOptions in_chunks(Progress progress) {
  BufferOptions options;
  options.chunk_bytes = 1 << 20;
  options.progress = std::move(progress);
  return options;
}

static std::vector<Report> reports_of_alloc(const Device& device) {
  std::vector<Report> reports;
  const auto caller = std::this_thread::get_id();
  const auto keep = [&](Phase phase, std::uint64_t done, std::uint64_t total) {
    CHECK(std::this_thread::get_id() == caller);
    reports.push_back({phase, done, total});
    return Proceed::Yes;
  };
  CHECK(Buffer::alloc(device, bytes, in_chunks(keep)));
  return reports;
}

TEST("progress grows to the total in each phase, on the caller's thread") {
  const Device device = fixtures::open();
  const std::vector<Report> reports = reports_of_alloc(device);
  CHECK(!reports.empty());
  for (std::size_t index = 0; index < reports.size(); ++index) {
    const Report& report = reports[index];
    CHECK(report.done <= report.total);
    const bool last = index + 1 == reports.size() || reports[index + 1].phase != report.phase;
    CHECK(last ? report.done == report.total : report.done <= reports[index + 1].done);
  }
}

TEST("cancelling at any report gives WB_ERR_CANCELLED, and leaves nothing") {
  const Device device = fixtures::open();
  const std::size_t count = reports_of_alloc(device).size();
  for (std::size_t at = 0; at < count; ++at) {
    std::size_t told = 0;
    const auto cancel = [&](Phase, std::uint64_t, std::uint64_t) {
      return told++ == at ? Proceed::Cancel : Proceed::Yes;
    };
    CHECK_STATUS(WB_ERR_CANCELLED, Buffer::alloc(device, bytes, in_chunks(cancel)));
    CHECK(told == at + 1);
    fixtures::check_nothing_left(device);
  }
}

TEST("what a callback throws reaches the caller, and leaves nothing") {
  const Device device = fixtures::open();
  const std::size_t count = reports_of_alloc(device).size();
  for (std::size_t at = 0; at < count; ++at) {
    std::size_t told = 0;
    std::string caught;
    const auto fail = [&](Phase, std::uint64_t, std::uint64_t) {
      if (told++ == at) throw std::out_of_range("thrown at " + std::to_string(at));
      return Proceed::Yes;
    };
    try {
      static_cast<void>(Buffer::alloc(device, bytes, in_chunks(fail)));
    } catch (const std::out_of_range& thrown) {
      caught = thrown.what();
    }
    CHECK(caught == "thrown at " + std::to_string(at));
    CHECK(told == at + 1);
    fixtures::check_nothing_left(device);
  }
}

TEST("something that is no std::exception goes through as well") {
  const Device device = fixtures::open();
  const auto fail = [](Phase, std::uint64_t, std::uint64_t) -> Proceed { throw 42; };
  CHECK_THROWS(int, Buffer::alloc(device, bytes, in_chunks(fail)));
  fixtures::check_nothing_left(device);
}

TEST("a registration that was cancelled does not call its deleter") {
  const Device device = fixtures::open();
  fixtures::Memory memory = fixtures::pages(1024);
  int deleted = 0, told = 0;
  const auto stop = [&](Phase, std::uint64_t, std::uint64_t) -> Proceed {
    ++told;
    throw std::runtime_error("stop");
  };
  CHECK_THROWS(std::runtime_error,
               Buffer::register_memory(device, memory.get(), bytes, [&] { ++deleted; },
                                       in_chunks(stop)));
  CHECK(told == 1);
  CHECK(deleted == 0);
  fixtures::check_nothing_left(device);
}

TEST("reading a file, and a view's copy, can be cancelled") {
  const Device device = fixtures::open();
  const fixtures::File file(std::string(bytes, 'x'));
  BufferOptions options =
      in_chunks([](Phase, std::uint64_t, std::uint64_t) { return Proceed::Cancel; });
  options.file_mode = FileMode::Read;
  CHECK_STATUS(WB_ERR_CANCELLED, Buffer::map_file(device, file.path(), options));
  const std::vector<float> weights(bytes / sizeof(float));
  CHECK_STATUS(WB_ERR_CANCELLED,
               View::copy_from(device, weights.data(), Layout::of<float>({bytes / sizeof(float)}),
                               Accessor::Host, options));
  fixtures::check_nothing_left(device);
}

int main() { return check::run(); }
