/// Layout, and the dtype of a C++ type.
#ifndef WEIGHBRIDGE_LAYOUT_HPP
#define WEIGHBRIDGE_LAYOUT_HPP

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

/// A C++ type's dtype: dtype_of<float>::value. Specialize it for an engine's own half types:
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

/// wb_layout: strides in elements, none for contiguous in row-major order.
struct Layout {
  wb_dtype dtype = 0;
  std::vector<std::int64_t> shape = {};
  std::vector<std::int64_t> strides = {};
  std::uint64_t offset_bytes = 0;

  template <class T>
  static Layout of(std::vector<std::int64_t> shape, std::uint64_t offset_bytes = 0) {
    return {dtype_of<T>::value, std::move(shape), {}, offset_bytes};
  }
};

/// The sizes that a wb_view_info or a wb_safetensors_tensor_info points to; alive as long as what was asked.
template <class Info>
span<const std::int64_t> shape_of(const Info& info) {
  return {info.shape, info.shape ? static_cast<std::size_t>(info.ndim) : 0};
}

namespace detail {

/// Calls with the layout as C reads it.
template <class Noun, class Call>
Result<Noun> with_layout(const Layout& layout, Call&& call) {
  if (!layout.strides.empty() && layout.strides.size() != layout.shape.size()) {
    return invalid("the layout has " + std::to_string(layout.shape.size()) + " sizes and " +
                   std::to_string(layout.strides.size()) + " strides: give as many, or none");
  }
  wb_layout raw = WB_LAYOUT_INIT;
  raw.dtype = layout.dtype;
  raw.ndim = static_cast<std::int32_t>(layout.shape.size());
  raw.shape = layout.shape.data();
  raw.strides = layout.strides.empty() ? nullptr : layout.strides.data();
  raw.offset_bytes = layout.offset_bytes;
  return call(&raw);
}

}  // namespace detail

}  // namespace weighbridge

#endif  // WEIGHBRIDGE_LAYOUT_HPP
