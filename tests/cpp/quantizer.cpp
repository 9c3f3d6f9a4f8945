// Quantization to FP8 and dequantization.
#include <cmath>
#include <cstdint>
#include <vector>

#include "fixtures.hpp"

using namespace weighbridge;

TEST("dequantized numbers are within half a step") {
  const Device device = fixtures::open();
  const Quantizer quantizer = Quantizer::make(device, 1 << 20).value();
  std::vector<float> numbers(64 * 96), back(numbers.size());
  for (std::size_t i = 0; i < numbers.size(); i++) {
    numbers[i] = std::sin(static_cast<float>(i)) * static_cast<float>(i % 37 + 1);
  }
  const Layout layout = Layout::of<float>({64, 96});
  QuantizeOptions options;
  options.block_rows = options.block_cols = 32;
  const wb_quantizer_scales_info info = Quantizer::get_scales_info(layout, options).value();
  CHECK(info.matrices == 1 && info.rows == 2 && info.cols == 3 && info.bytes == 24);
  std::vector<std::uint8_t> codes(numbers.size());
  std::vector<float> scales(6);
  const wb_quantizer_result done =
      quantizer.quantize(numbers.data(), layout, codes.data(), scales.data(), options).value();
  CHECK(done.passes == 1 && done.nonfinite == 0 && done.staging_bytes <= (1u << 20));
  quantizer.dequantize(codes.data(), scales.data(), back.data(), layout, options).value();
  std::size_t far = 0;
  for (std::size_t i = 0; i < numbers.size(); i++) {
    const float scale = scales[i / 96 / 32 * 3 + i % 96 / 32];
    // The format has 3 mantissa bits; its subnormal numbers have steps of 2^-9.
    const float step = std::fmax(std::fabs(numbers[i]) / 16, scale / 1024);
    far += std::fabs(back[i] - numbers[i]) > step * 1.001f;
  }
  CHECK(far == 0);
}

TEST("unsupported types are refused") {
  const Device device = fixtures::open();
  const Quantizer quantizer = Quantizer::make(device).value();
  QuantizeOptions options;
  options.format = WB_DTYPE_F16;
  float memory[4] = {};
  CHECK_STATUS(WB_ERR_NOT_SUPPORTED, Quantizer::get_scales_info(Layout::of<float>({4}), options));
  CHECK_STATUS(WB_ERR_NOT_SUPPORTED,
               quantizer.quantize(memory, Layout::of<std::int32_t>({4}), memory, memory));
  CHECK_STATUS(WB_ERR_INVALID_ARGUMENT,
               quantizer.quantize(nullptr, Layout::of<float>({4}), memory, memory));
}

TEST("quantizing reports progress, which may cancel it, and checks the bytes for scales") {
  const Device device = fixtures::open();
  const Quantizer quantizer = Quantizer::make(device).value();
  std::vector<float> numbers(1000, 1.0f);
  std::vector<std::uint8_t> codes(numbers.size());
  float scale = 0;
  QuantizeOptions options;
  options.progress = [](Phase phase, std::uint64_t, std::uint64_t) {
    CHECK(phase == Phase::Quantize);
    return Proceed::Cancel;
  };
  const Layout layout = Layout::of<float>({1000});
  CHECK_STATUS(WB_ERR_CANCELLED,
               quantizer.quantize(numbers.data(), layout, codes.data(), &scale, options));
  options = {};
  options.scale_bytes = 8;
  CHECK_STATUS(WB_ERR_INVALID_ARGUMENT,
               quantizer.quantize(numbers.data(), layout, codes.data(), &scale, options));
}

int main() { return check::run(); }
