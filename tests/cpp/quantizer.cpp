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
  Scheme scheme;
  scheme.block_rows = scheme.block_cols = 32;
  const wb_quantizer_scales_info info = Quantizer::scales(layout, scheme).value();
  CHECK(info.matrices == 1 && info.rows == 2 && info.cols == 3 && info.bytes == 24);
  std::vector<std::uint8_t> codes(numbers.size());
  std::vector<float> scales(6);
  const wb_quantizer_result done =
      quantizer
          .quantize(address(numbers.data()), layout, address(codes.data()), address(scales.data()),
                    scheme)
          .value();
  CHECK(done.passes == 1 && done.nonfinite == 0 && done.staging_bytes <= (1u << 20));
  quantizer
      .dequantize(address(codes.data()), address(scales.data()), address(back.data()), layout,
                  scheme)
      .value();
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
  Scheme scheme;
  scheme.format = WB_DTYPE_F16;
  CHECK_STATUS(WB_ERR_NOT_SUPPORTED, Quantizer::scales(Layout::of<float>({4}), scheme));
  CHECK_STATUS(WB_ERR_NOT_SUPPORTED,
               quantizer.quantize(1, Layout::of<std::int32_t>({4}), 1, 1));
  CHECK_STATUS(WB_ERR_INVALID_ARGUMENT, quantizer.quantize(0, Layout::of<float>({4}), 1, 1));
}

int main() { return check::run(); }
