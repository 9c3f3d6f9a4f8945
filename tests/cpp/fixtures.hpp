/* The device under test, memory and files for tests. */
#ifndef WEIGHBRIDGE_TESTS_FIXTURES_HPP
#define WEIGHBRIDGE_TESTS_FIXTURES_HPP

#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "check.hpp"
#include "weighbridge.hpp"

namespace fixtures {

constexpr std::uint64_t page = 4096;

/// WEIGHBRIDGE_TEST_DEVICE, or "host".
inline std::string device_name() {
  const char* name = std::getenv("WEIGHBRIDGE_TEST_DEVICE");
  return name ? name : "host";
}

inline weighbridge::Device open() { return weighbridge::Device::open(device_name()).value(); }

/// Checks that everything allocated on a device is released.
inline void check_nothing_left(const weighbridge::Device& device) {
  CHECK(device.drain(std::chrono::seconds(10)));
  const wb_device_stats stats = device.get_stats().value();
  CHECK(stats.buffers == 0);
  CHECK(stats.views == 0);
  CHECK(stats.deferred == 0);
  CHECK(stats.asked_bytes == 0);
  CHECK(stats.mapped_bytes == 0);
  CHECK(stats.pinned_bytes == 0);
  CHECK(stats.device_bytes == 0);
}

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};
using Memory = std::unique_ptr<std::byte[], Free>;

/// Zeroed memory of whole pages that was not allocated by the library.
inline Memory pages(std::uint64_t count) {
  void* memory = std::aligned_alloc(page, count * page);
  std::memset(memory, 0, count * page);
  return Memory(static_cast<std::byte*>(memory));
}

/// A file in the temporary folder, removed by the destructor.
class File {
 public:
  explicit File(const std::string& contents) {
    const char* folder = std::getenv("TMPDIR");
    path_ = std::string(folder ? folder : "/tmp") + "/weighbridge-cpp-XXXXXX";
    const int file = mkstemp(path_.data());
    const auto written = write(file, contents.data(), contents.size());
    CHECK(written == static_cast<ssize_t>(contents.size()));
    close(file);
  }
  File(const File&) = delete;
  ~File() { unlink(path_.c_str()); }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

/// The bytes of a safetensors file; the data begins at a multiple of 64.
inline std::string safetensors(std::string header, const std::string& data) {
  while ((header.size() + 8) % 64 != 0) header += ' ';
  const std::uint64_t length = header.size();
  std::string file(sizeof(length), '\0');
  std::memcpy(file.data(), &length, sizeof(length));
  return file + header + data;
}

template <class T>
std::string raw(const std::vector<T>& elements) {
  std::string bytes(elements.size() * sizeof(T), '\0');
  std::memcpy(bytes.data(), elements.data(), bytes.size());
  return bytes;
}

/// Tensors "alpha" (aligned), "beta" and "gamma" (unaligned).
inline std::string three_tensors() {
  return safetensors(R"({"__metadata__":{"made":"here"},)"
                     R"("alpha":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},)"
                     R"("beta":{"dtype":"U8","shape":[5],"data_offsets":[24,29]},)"
                     R"("gamma":{"dtype":"F32","shape":[2],"data_offsets":[29,37]}})",
                     raw<float>({1, 2, 3, 4, 5, 6}) + "beta!" + raw<float>({7, 8}));
}

}  // namespace fixtures

#endif  // WEIGHBRIDGE_TESTS_FIXTURES_HPP
