/// Stream: a stream that is created and released here, where no engine provides one.
#ifndef WEIGHBRIDGE_STREAM_HPP
#define WEIGHBRIDGE_STREAM_HPP

#include "weighbridge/language.hpp"

#include <utility>

#include "weighbridge.h"
#include "device.hpp"
#include "device_owned.hpp"
#include "result.hpp"

namespace weighbridge {

/// A stream of a device: its work runs in order, and still runs after the stream is released.
class Stream : public detail::DeviceOwned<wb_device_stream_release> {
 public:
  Stream() = default;
  /// wb_device_stream_new
  static Result<Stream> make(const Device& device) {
    void* none = nullptr;
    const auto stream = detail::fill(none, wb_device_stream_new, device.get());
    if (!stream) return stream.error();
    return Stream(device, stream.value());
  }
  Result<void> synchronize() const { return device().stream_synchronize(get()); }
  template <class F>
  Result<void> call(F&& function) const {
    return device().stream_call(get(), std::forward<F>(function));
  }

 private:
  using DeviceOwned::DeviceOwned;
};

}  // namespace weighbridge

#endif  // WEIGHBRIDGE_STREAM_HPP
