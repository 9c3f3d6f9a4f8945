/// One reference to a C object: what Device, Buffer, View and Safetensors are.
#ifndef WEIGHBRIDGE_HANDLE_HPP
#define WEIGHBRIDGE_HANDLE_HPP

#include <utility>

#include "weighbridge.h"
#include "result.hpp"

namespace weighbridge {

namespace detail {

/// Makes a noun by `call(handle, error)`.
template <class Noun, class Call>
Result<Noun> make(Call&& call) {
  typename Noun::c_type* raw = nullptr;
  wb_error error = WB_ERROR_INIT;
  const wb_status status = call(&raw, &error);
  if (status != WB_OK) return error_of(status, error);
  return Noun::adopt(raw);
}

/// One reference to a C object.
template <class Noun, class C, void (*Retain)(const C*), void (*Release)(C*)>
class Handle {
 public:
  using c_type = C;

  /// Takes over a reference that C gave.
  static Noun adopt(C* raw) noexcept {
    Noun noun;
    noun.raw_ = raw;
    return noun;
  }
  /// Another reference to the same object.
  [[nodiscard]] Noun share() const noexcept {
    if (raw_) Retain(raw_);
    return adopt(raw_);
  }
  /// Drops the reference now; the object is empty after it.
  void release() noexcept {
    if (raw_) Release(std::exchange(raw_, nullptr));
  }
  /// Hands the reference to C; the object is empty after it.
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

  template <class Call>
  Result<void> release_by(Call&& call) {
    auto released = run([&](wb_error* error) { return call(raw_, error); });
    if (released) raw_ = nullptr;
    return released;
  }

 private:
  C* raw_ = nullptr;
};

}  // namespace detail

}  // namespace weighbridge

#endif  // WEIGHBRIDGE_HANDLE_HPP
