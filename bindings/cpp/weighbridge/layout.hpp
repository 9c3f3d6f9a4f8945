/// Layout, and the dtype of a C++ type.
#ifndef WEIGHBRIDGE_LAYOUT_HPP
#define WEIGHBRIDGE_LAYOUT_HPP

#include "weighbridge/language.hpp"

#include <complex>
#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "weighbridge.h"
#include "result.hpp"
#include "span.hpp"

namespace weighbridge {

/// The dtype of a C++ type: dtype_of<float>::value. Specialize it for other types:
/// `template <> struct weighbridge::dtype_of<half> : dtype_constant<WB_DTYPE_F16> {};`
template <wb_dtype Dtype>
using dtype_constant = std::integral_constant<wb_dtype, Dtype>;
template <class T, class = void>
struct dtype_of;
template <>
struct dtype_of<bool> : dtype_constant<WB_DTYPE_BOOL> {};
template <>
struct dtype_of<float> : dtype_constant<WB_DTYPE_F32> {};
template <>
struct dtype_of<double> : dtype_constant<WB_DTYPE_F64> {};
template <>
struct dtype_of<std::complex<float>> : dtype_constant<WB_DTYPE_C64> {};
template <class T>
struct dtype_of<T, std::enable_if_t<std::is_integral_v<T> && std::is_signed_v<T>>>
    : dtype_constant<sizeof(T) == 1   ? WB_DTYPE_I8
                     : sizeof(T) == 2 ? WB_DTYPE_I16
                     : sizeof(T) == 4 ? WB_DTYPE_I32
                                      : WB_DTYPE_I64> {};
template <class T>
struct dtype_of<T, std::enable_if_t<std::is_integral_v<T> && std::is_unsigned_v<T>>>
    : dtype_constant<sizeof(T) == 1   ? WB_DTYPE_U8
                     : sizeof(T) == 2 ? WB_DTYPE_U16
                     : sizeof(T) == 4 ? WB_DTYPE_U32
                                      : WB_DTYPE_U64> {};

/// wb_layout. Strides are in elements; none mean contiguous in row-major order.
struct Layout {
  wb_dtype dtype = 0;
  std::vector<std::int64_t> shape = {};
  std::vector<std::int64_t> strides = {};
  std::uint64_t offset_bytes = 0;

  template <class T>
  static Layout of(std::vector<std::int64_t> shape, std::uint64_t offset_bytes = 0) {
    return {dtype_of<T>::value, std::move(shape), {}, offset_bytes};
  }
  /// This layout as C's struct, which points into this object.
  Result<wb_layout> to_c() const& {
    if (!strides.empty() && strides.size() != shape.size()) {
      return detail::invalid_argument(
          "the layout has " + std::to_string(shape.size()) + " sizes and " +
          std::to_string(strides.size()) + " strides: give as many, or none");
    }
    wb_layout raw = WB_LAYOUT_INIT;
    raw.dtype = dtype;
    raw.ndim = static_cast<std::int32_t>(shape.size());
    raw.shape = shape.data();
    raw.strides = strides.empty() ? nullptr : strides.data();
    raw.offset_bytes = offset_bytes;
    return raw;
  }
  Result<wb_layout> to_c() && = delete;
};

/// The shape in a wb_view_info or wb_safetensors_tensor_info, valid while the view or file lives.
template <class Info>
span<const std::int64_t> shape_of(const Info& info) {
  return {info.shape, info.shape ? static_cast<std::size_t>(info.ndim) : 0};
}

}  // namespace weighbridge

#endif  // WEIGHBRIDGE_LAYOUT_HPP
