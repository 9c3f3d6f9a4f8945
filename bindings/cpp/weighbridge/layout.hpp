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
  std::string dtype_name = {};       ///< of a WB_DTYPE_OPAQUE
  std::uint32_t block_elements = 0;  ///< of the last dimension, in a block of a WB_DTYPE_OPAQUE
  std::uint32_t block_bytes = 0;     ///< of such a block

  template <class T>
  static Layout of(std::vector<std::int64_t> shape, std::uint64_t offset_bytes = 0) {
    return {dtype_of<T>::value, std::move(shape), {}, offset_bytes};
  }
  /// A layout of a type that the library does not know, such as block-quantized weights.
  static Layout opaque(std::string dtype_name, std::uint32_t block_elements,
                       std::uint32_t block_bytes, std::vector<std::int64_t> shape) {
    return {WB_DTYPE_OPAQUE, std::move(shape), {}, 0, std::move(dtype_name), block_elements,
            block_bytes};
  }
  /// The layout in an info of C, or one that C gave.
  template <class Info>
  static Layout from_c(const Info& info) {
    Layout layout;
    layout.dtype = info.dtype;
    if (info.shape) layout.shape.assign(info.shape, info.shape + info.ndim);
    layout.block_elements = info.block_elements;
    layout.block_bytes = info.block_bytes;
    if (info.dtype == WB_DTYPE_OPAQUE) layout.dtype_name = info.dtype_name;
    return layout;
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
    if (const auto valid = detail::check_text(dtype_name); !valid) return valid.error();
    raw.dtype_name = dtype_name.empty() ? nullptr : dtype_name.c_str();
    raw.block_elements = block_elements;
    raw.block_bytes = block_bytes;
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
