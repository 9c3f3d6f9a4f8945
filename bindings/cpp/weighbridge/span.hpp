/// span: std::span in C++20, a subset of it in C++17.
#ifndef WEIGHBRIDGE_SPAN_HPP
#define WEIGHBRIDGE_SPAN_HPP

#include "weighbridge/language.hpp"

#include <cstddef>
#include <type_traits>

#if __cplusplus >= 202002L
#include <span>
#endif

namespace weighbridge {

#if __cplusplus >= 202002L
template <class T>
using span = std::span<T>;
#else
/// The part of C++20's std::span that these headers use. Does not own its elements.
template <class T>
class span {
 public:
  constexpr span() = default;
  constexpr span(T* data, std::size_t size) : data_(data), size_(size) {}
  template <class U, class = std::enable_if_t<std::is_convertible_v<U (*)[], T (*)[]>>>
  constexpr span(span<U> other) : data_(other.data()), size_(other.size()) {}

  constexpr T* data() const { return data_; }
  constexpr std::size_t size() const { return size_; }
  constexpr std::size_t size_bytes() const { return size_ * sizeof(T); }
  constexpr bool empty() const { return size_ == 0; }
  constexpr T* begin() const { return data_; }
  constexpr T* end() const { return data_ + size_; }
  constexpr T& operator[](std::size_t index) const { return data_[index]; }

 private:
  T* data_ = nullptr;
  std::size_t size_ = 0;
};
#endif

}  // namespace weighbridge

#endif  // WEIGHBRIDGE_SPAN_HPP
