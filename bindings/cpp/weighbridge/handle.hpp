/// Handle: one reference to a C object, the base of Device, Buffer, View and others.
#ifndef WEIGHBRIDGE_HANDLE_HPP
#define WEIGHBRIDGE_HANDLE_HPP

#include "weighbridge/language.hpp"

#include <utility>

#include "weighbridge.h"
#include "result.hpp"

namespace weighbridge {

namespace detail {

/// Calls `function(arguments..., &handle, &error)` and returns a Noun that owns the new reference.
template <class Noun, class Function, class... Arguments>
Result<Noun> make(Function&& function, const Arguments&... arguments) {
  typename Noun::c_type* none = nullptr;
  const auto raw = fill(none, function, arguments...);
  if (!raw) return raw.error();
  return Noun::adopt(raw.value());
}

/// One reference to a C object.
template <class Noun, class C, void (*Retain)(const C*), void (*Release)(C*)>
class Handle {
 public:
  using c_type = C;

  /// Takes ownership of a reference.
  static Noun adopt(C* raw) noexcept {
    Noun noun;
    noun.raw_ = raw;
    return noun;
  }
  /// Adds a reference to the same object.
  [[nodiscard]] Noun share() const noexcept {
    if (raw_) Retain(raw_);
    return adopt(raw_);
  }
  /// Drops the reference now and leaves this object empty.
  void release() noexcept {
    if (raw_) Release(std::exchange(raw_, nullptr));
  }
  /// Transfers ownership of the reference to the caller and leaves this object empty.
  [[nodiscard]] C* detach() noexcept { return std::exchange(raw_, nullptr); }
  C* get() const noexcept { return raw_; }
  explicit operator bool() const noexcept { return raw_ != nullptr; }

 protected:
  Handle() = default;
  Handle(Handle&& other) noexcept : raw_(other.detach()) {}
  Handle& operator=(Handle&& other) noexcept {
    Handle moved(std::move(other));
    std::swap(raw_, moved.raw_);
    return *this;
  }
  ~Handle() { release(); }

  Result<void> release_by(wb_status (*function)(C*, void*, wb_error*), void* stream) {
    auto released = call(function, raw_, stream);
    if (released) raw_ = nullptr;
    return released;
  }

 private:
  C* raw_ = nullptr;
};

}  // namespace detail

}  // namespace weighbridge

#endif  // WEIGHBRIDGE_HANDLE_HPP
