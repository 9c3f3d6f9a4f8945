/// Safetensors: an open safetensors file.
#ifndef WEIGHBRIDGE_SAFETENSORS_HPP
#define WEIGHBRIDGE_SAFETENSORS_HPP

#include "weighbridge/language.hpp"

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "weighbridge.h"
#include "buffer.hpp"
#include "buffer_options.hpp"
#include "device.hpp"
#include "enums.hpp"
#include "handle.hpp"
#include "layout.hpp"
#include "parameter.hpp"
#include "progress.hpp"
#include "result.hpp"
#include "view.hpp"

namespace weighbridge {

/// An open safetensors file. Its views hold its buffer, so they may outlive this object.
class Safetensors : public detail::Handle<Safetensors, wb_safetensors, wb_safetensors_retain,
                                          wb_safetensors_release> {
 public:
  struct LoadedView {
    View view;
    bool copied;  ///< the tensor is not aligned in the file, so the view is of a copy
  };

  static Result<Safetensors> open(const Device& device, const std::string& path,
                                  const BufferOptions& options = {}) {
    if (const auto valid = detail::check_text(path); !valid) return valid.error();
    return detail::with_options(options, [&](const wb_buffer_options* raw) {
      return detail::make<Safetensors>(wb_safetensors_open, device.get(), path.c_str(), raw);
    });
  }
  /// The number of tensors, which are in the order of their data.
  std::uint64_t get_tensor_count() const noexcept {
    return wb_safetensors_get_tensor_count(get());
  }
  /// The header's JSON text, valid while the file is alive.
  std::string_view get_header() const noexcept {
    const char* json = wb_safetensors_get_header(get());
    return json ? json : std::string_view();
  }
  Result<wb_safetensors_tensor_info> get_tensor_info(std::uint64_t index) const {
    return detail::fill<wb_safetensors_tensor_info>(WB_SAFETENSORS_TENSOR_INFO_INIT,
                                                    wb_safetensors_get_tensor_info, get(), index);
  }
  /// The names of all tensors, in the order of their data.
  Result<std::vector<std::string>> get_names() const {
    std::vector<const char*> raw(get_tensor_count());
    const auto filled = detail::call(wb_safetensors_get_names, get(), std::uint64_t{0},
                                     std::uint64_t{raw.size()}, raw.data());
    if (!filled) return filled.error();
    return std::vector<std::string>(raw.begin(), raw.end());
  }
  /// The index of the tensor with a name.
  Result<std::uint64_t> find_tensor(const std::string& name) const {
    if (const auto valid = detail::check_text(name); !valid) return valid.error();
    return detail::fill(std::uint64_t{0}, wb_safetensors_find_tensor, get(), name.c_str());
  }
  /// All tensors as parameters of a plan, which hold the file's buffer, where their sources are.
  Result<std::vector<Parameter>> get_parameters(Grouping grouping = Grouping::Layer) const {
    const wb_parameter empty = WB_PARAMETER_INIT;
    std::vector<wb_parameter> raw(get_tensor_count(), empty);
    const auto filled =
        detail::call(wb_safetensors_get_parameters, get(), detail::to_c(grouping),
                     std::uint64_t{0}, std::uint64_t{raw.size()}, raw.data());
    if (!filled) return filled.error();
    auto buffer = get_buffer();
    if (!buffer) return buffer.error();
    const auto shared = std::make_shared<const Buffer>(std::move(buffer).value());
    std::vector<Parameter> parameters;
    parameters.reserve(raw.size());
    for (const wb_parameter& one : raw) {
      Parameter parameter{one.name, one.group};
      parameter.layout = Layout::from_c(*one.layout);
      parameter.source = one.source;
      parameter.buffer = shared;
      parameter.encoded_bytes = one.encoded_bytes;
      parameters.push_back(std::move(parameter));
    }
    return parameters;
  }
  /// A view of a tensor in the file's memory. Fails if it is not aligned to `alignment` bytes.
  Result<View> get_view(std::uint64_t index, Accessor accessor = Accessor::Device,
                        std::uint64_t alignment = 0) const {
    return detail::make<View>(wb_safetensors_get_view, get(), index, detail::to_c(accessor),
                              alignment);
  }
  /// A view of a tensor in the file's memory if it is aligned, otherwise of an aligned copy.
  Result<LoadedView> load_view(std::uint64_t index, Accessor accessor = Accessor::Device,
                               std::uint64_t alignment = 0,
                               const BufferOptions& options = {}) const {
    std::int32_t copied = 0;
    auto view = detail::with_options(options, [&](const wb_buffer_options* raw) {
      return detail::make<View>([&](wb_view** made, wb_error* error) {
        return wb_safetensors_load_view(get(), index, detail::to_c(accessor), alignment, raw, made,
                                        &copied, error);
      });
    });
    if (!view) return view.error();
    return LoadedView{std::move(view).value(), copied != 0};
  }
  /// The buffer over the whole file.
  Result<Buffer> get_buffer() const {
    return detail::make<Buffer>(wb_safetensors_get_buffer, get());
  }
};

}  // namespace weighbridge

#endif  // WEIGHBRIDGE_SAFETENSORS_HPP
