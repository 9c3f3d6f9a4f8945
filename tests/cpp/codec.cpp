// Compression without loss.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "fixtures.hpp"

using namespace weighbridge;

TEST("values survive in host memory and on the device") {
  const Device device = fixtures::open();
  std::vector<float> numbers(3 * 2048 + 5), back(numbers.size());
  for (std::size_t i = 0; i < numbers.size(); i++) {
    numbers[i] = std::sin(static_cast<float>(i)) * 0.02f;
  }
  const std::uint64_t bytes = numbers.size() * sizeof(float);
  const Codec codec(WB_DTYPE_F32, 1);
  const std::uint64_t most = codec.get_max_bytes(bytes).value();
  std::vector<std::uint8_t> encoded(most), found(most);
  const wb_codec_info made = codec.encode(numbers.data(), bytes, encoded.data(), most).value();
  CHECK(made.encoded_bytes < bytes && made.tiles == 4 && made.raw_tiles == 1);
  CHECK(Codec::get_info(encoded.data(), most).value().encoded_bytes == made.encoded_bytes);
  CHECK(codec.measure(numbers.data(), bytes).value().encoded_bytes == made.encoded_bytes);
  codec.decode(encoded.data(), most, 0, back.data(), bytes, true).value();
  CHECK(std::memcmp(numbers.data(), back.data(), bytes) == 0);

  DeviceMemory memory = DeviceMemory::alloc(device, 3 * 32768 + 8).value();
  auto* first = static_cast<std::uint8_t*>(memory.get());
  std::uint8_t *compressed = first + 32768, *decoded = first + 65536, *count = first + 98304;
  std::uint64_t wrong = 0;
  device.copy(first, numbers.data(), bytes, nullptr).value();
  device.copy(count, &wrong, sizeof wrong, nullptr).value();
  codec.queue_encode(device, first, bytes, compressed, most, nullptr).value();
  codec.queue_decode(device, compressed, most, bytes, 0, decoded, bytes, nullptr).value();
  codec.queue_verify(device, compressed, most, bytes, 0, decoded, bytes, count, nullptr).value();
  device.copy(found.data(), compressed, most, nullptr).value();
  device.copy(back.data(), decoded, bytes, nullptr).value();
  device.copy(&wrong, count, sizeof wrong, nullptr).value();
  device.stream_synchronize(nullptr).value();
  CHECK(std::memcmp(found.data(), encoded.data(), made.encoded_bytes) == 0);
  CHECK(std::memcmp(numbers.data(), back.data(), bytes) == 0);
  CHECK(wrong == 0);
}

TEST("damaged bytes and types that are not compressed are refused") {
  std::uint8_t memory[64] = {};
  CHECK_STATUS(WB_ERR_NOT_SUPPORTED, Codec(WB_DTYPE_I32).get_max_bytes(4));
  CHECK_STATUS(WB_ERR_DAMAGED, Codec::get_info(memory, sizeof memory));
  CHECK_STATUS(WB_ERR_DAMAGED, Codec(WB_DTYPE_F32).decode(memory, sizeof memory, 0, memory, 4));
}

int main() { return check::run(); }
