/// Parameter: describes one parameter of a model.
#ifndef WEIGHBRIDGE_PARAMETER_HPP
#define WEIGHBRIDGE_PARAMETER_HPP

#include "weighbridge/language.hpp"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "weighbridge.h"
#include "buffer.hpp"
#include "enums.hpp"
#include "layout.hpp"
#include "result.hpp"
#include "span.hpp"

namespace weighbridge {

/// wb_parameter
struct Parameter {
  std::string name;
  std::string group;  ///< the parameters that are acquired together: a layer
  Layout layout = {};
  const void* source = nullptr;  ///< address in host or device memory; null if there are no bytes
  std::uint64_t storage_id = 0;  ///< ties parameters that have no source
  AccessPattern access_pattern = {};
  TransferMode transfer_mode = {};
  Placement placement = {};
  std::shared_ptr<const Buffer> buffer = {};  ///< that `source` is in; a plan keeps it
  std::uint64_t encoded_bytes = 0;  ///< of `source`, if it has the values compressed
};

namespace detail {

/// Parameters as C's array, which points into the Parameter objects.
class RawParameters {
 public:
  static Result<RawParameters> make(const Parameter* parameters, std::size_t count) {
    RawParameters all;
    all.layouts_.reserve(count);
    for (const Parameter& parameter : span<const Parameter>(parameters, count)) {
      for (const std::string* text : {&parameter.name, &parameter.group}) {
        if (const auto valid = check_text(*text); !valid) return valid.error();
      }
      const auto layout = parameter.layout.to_c();
      if (!layout) return layout.error();
      all.layouts_.push_back(layout.value());
      wb_parameter raw = WB_PARAMETER_INIT;
      raw.access_pattern = to_c(parameter.access_pattern);
      raw.name = parameter.name.c_str();
      raw.group = parameter.group.c_str();
      raw.layout = &all.layouts_.back();
      raw.source = parameter.source;
      raw.storage_id = parameter.storage_id;
      raw.transfer_mode = to_c(parameter.transfer_mode);
      raw.placement = to_c(parameter.placement);
      raw.buffer = parameter.buffer ? parameter.buffer->get() : nullptr;
      raw.encoded_bytes = parameter.encoded_bytes;
      all.parameters_.push_back(raw);
    }
    return all;
  }
  RawParameters(RawParameters&&) = default;  // a copy would point into the original

  const wb_parameter* data() const noexcept { return parameters_.data(); }
  std::uint64_t size() const noexcept { return parameters_.size(); }

 private:
  RawParameters() = default;
  std::vector<wb_layout> layouts_;
  std::vector<wb_parameter> parameters_;
};

}  // namespace detail

}  // namespace weighbridge

#endif  // WEIGHBRIDGE_PARAMETER_HPP
