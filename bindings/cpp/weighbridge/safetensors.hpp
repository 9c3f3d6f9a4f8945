/// Safetensors: an open safetensors file.
#ifndef WEIGHBRIDGE_SAFETENSORS_HPP
#define WEIGHBRIDGE_SAFETENSORS_HPP

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#include "weighbridge.h"
#include "buffer.hpp"
#include "device.hpp"
#include "handle.hpp"
#include "options.hpp"
#include "result.hpp"
#include "view.hpp"

namespace weighbridge {

/// An open safetensors file. Its views hold its buffer: it may go before them.
class Safetensors : public detail::Handle<Safetensors, wb_safetensors, wb_safetensors_retain,
                                          wb_safetensors_release> {
 public:
  struct Loaded {
    View view;
    bool copied;  ///< the tensor was not aligned where it lies
  };

  static Result<Safetensors> open(const Device& device, const std::string& path,
                                  const BufferOptions& options = {}) {
    if (const auto whole = detail::whole(path); !whole) return whole.error();
    return detail::make<Safetensors>(options, [&](auto* given, auto** file, auto* error) {
      return wb_safetensors_open(device.get(), path.c_str(), given, file, error);
    });
  }
  /// Number of tensors, which are in the order of their data.
  std::uint64_t count() const noexcept { return wb_safetensors_get_tensor_count(get()); }
  /// The header's JSON text, alive as long as the file.
  std::string_view header() const noexcept {
    const char* json = wb_safetensors_get_header(get());
    return json ? json : std::string_view();
  }
  Result<wb_safetensors_tensor_info> describe(std::uint64_t index) const {
    return detail::ask<wb_safetensors_tensor_info>(WB_SAFETENSORS_TENSOR_INFO_INIT, [&](auto* info, auto* error) {
      return wb_safetensors_get_tensor_info(get(), index, info, error);
    });
  }
  /// The index of the tensor of a name.
  Result<std::uint64_t> find(const std::string& name) const {
    if (const auto whole = detail::whole(name); !whole) return whole.error();
    return detail::ask(std::uint64_t{0}, [&](auto* index, auto* error) {
      return wb_safetensors_find_tensor(get(), name.c_str(), index, error);
    });
  }
  /// A view of a tensor where it lies: it aliases, or fails.
  Result<View> view(std::uint64_t index, wb_accessor access = WB_ACCESSOR_DEVICE,
                    std::uint64_t alignment = 0) const {
    return detail::make<View>([&](auto** view, auto* error) {
      return wb_safetensors_get_view(get(), index, access, alignment, view, error);
    });
  }
  /// A view of a tensor where it lies if it is aligned, else of a copy.
  Result<Loaded> load(std::uint64_t index, wb_accessor access = WB_ACCESSOR_DEVICE,
                      std::uint64_t alignment = 0, const BufferOptions& options = {}) const {
    std::int32_t copied = 0;
    auto made = detail::make<View>(options, [&](auto* given, auto** view, auto* error) {
      return wb_safetensors_load_view(get(), index, access, alignment, given, view, &copied, error);
    });
    if (!made) return made.error();
    return Loaded{std::move(made).value(), copied != 0};
  }
  /// The buffer over the whole file.
  Result<Buffer> buffer() const {
    return detail::make<Buffer>(
        [&](auto** buffer, auto* error) { return wb_safetensors_get_buffer(get(), buffer, error); });
  }
};

}  // namespace weighbridge

#endif  // WEIGHBRIDGE_SAFETENSORS_HPP
