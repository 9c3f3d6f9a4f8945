/// Stream: a stream where there is no engine to have one.
#ifndef WEIGHBRIDGE_STREAM_HPP
#define WEIGHBRIDGE_STREAM_HPP

#include <utility>

#include "weighbridge.h"
#include "device.hpp"
#include "lent.hpp"
#include "result.hpp"

namespace weighbridge {

/// A stream of its own: work on it runs in order. What is queued still runs when it is released.
class Stream : public detail::Lent<void*, wb_device_stream_release> {
 public:
  Stream() = default;
  static Result<Stream> make(const Device& device) {
    auto made = detail::ask(static_cast<void*>(nullptr), [&](void** stream, wb_error* error) {
      return wb_device_stream_new(device.get(), stream, error);
    });
    if (!made) return made.error();
    return Stream(device, made.value());
  }
  Result<void> synchronize() const { return device().stream_synchronize(get()); }
  template <class F>
  Result<void> call(F&& function) const {
    return device().stream_call(get(), std::forward<F>(function));
  }

 private:
  using Lent::Lent;
};

}  // namespace weighbridge

#endif  // WEIGHBRIDGE_STREAM_HPP
