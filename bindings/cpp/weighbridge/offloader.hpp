/// Offloader: a committed plan, and the machinery that carries its parameters.
#ifndef WEIGHBRIDGE_OFFLOADER_HPP
#define WEIGHBRIDGE_OFFLOADER_HPP

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "weighbridge.h"
#include "handle.hpp"
#include "layout.hpp"
#include "options.hpp"
#include "plan.hpp"
#include "result.hpp"
#include "view.hpp"

namespace weighbridge {

class Acquired;

/// Parameters where they are kept, carried group by group.
class Offloader : public detail::Handle<Offloader, wb_offloader, wb_offloader_retain,
                                        wb_offloader_release> {
 public:
  /// Commits a plan behind what is queued on `stream`.
  static Result<Offloader> commit(const Plan& plan, void* stream = nullptr,
                                  const BufferOptions& options = {}) {
    return detail::make<Offloader>(options, [&](auto* given, auto** offloader, auto* error) {
      return wb_offloader_new(plan.get(), stream, given, offloader, error);
    });
  }
  /// The number of the group of a name.
  Result<std::uint64_t> group(const std::string& name) const {
    if (const auto whole = detail::whole(name); !whole) return whole.error();
    return detail::ask(std::uint64_t{0}, [&](auto* group, auto* error) {
      return wb_offloader_find_group(get(), name.c_str(), group, error);
    });
  }
  Result<void> acquire_group(std::uint64_t group, void* stream) const {
    return detail::run(
        [&](auto* error) { return wb_offloader_acquire_group(get(), group, stream, error); });
  }
  Result<void> release_group(std::uint64_t group, void* stream) const {
    return detail::run(
        [&](auto* error) { return wb_offloader_release_group(get(), group, stream, error); });
  }
  /// Acquires a group for as long as the answer lives.
  Result<Acquired> acquire(std::uint64_t group, void* stream) const;
  Result<void> join(void* stream) const {
    return detail::run([&](auto* error) { return wb_offloader_join(get(), stream, error); });
  }
  Result<void> reset(void* stream) const {
    return detail::run([&](auto* error) { return wb_offloader_reset(get(), stream, error); });
  }
  Result<wb_offloader_parameter_info> parameter(const std::string& name) const {
    if (const auto whole = detail::whole(name); !whole) return whole.error();
    return detail::ask<wb_offloader_parameter_info>(WB_OFFLOADER_PARAMETER_INFO_INIT, [&](auto* info, auto* error) {
      return wb_offloader_get_parameter_info(get(), name.c_str(), info, error);
    });
  }
  Result<View> view(const std::string& name) const {
    if (const auto whole = detail::whole(name); !whole) return whole.error();
    return detail::make<View>([&](auto** view, auto* error) {
      return wb_offloader_get_view(get(), name.c_str(), view, error);
    });
  }
  Result<View> host_view(const std::string& name) const {
    if (const auto whole = detail::whole(name); !whole) return whole.error();
    return detail::make<View>([&](auto** view, auto* error) {
      return wb_offloader_get_host_view(get(), name.c_str(), view, error);
    });
  }
  /// Gives a parameter new bytes from an address in host or device memory.
  Result<void> replace(const std::string& name, std::uint64_t source, const Layout& layout,
                       void* stream = nullptr) const {
    if (const auto whole = detail::whole(name); !whole) return whole.error();
    return detail::with_layout<void>(layout, [&](const wb_layout* raw) {
      return detail::run([&](auto* error) {
        return wb_offloader_replace(get(), name.c_str(), source, raw, stream, error);
      });
    });
  }
  Result<void> add(const Parameter& parameter, void* stream = nullptr) const {
    return detail::with_parameters<void>({parameter}, [&](auto* given, std::uint64_t) {
      return detail::run(
          [&](auto* error) { return wb_offloader_add(get(), given, stream, error); });
    });
  }
  Result<void> remove(const std::string& name, void* stream = nullptr) const {
    if (const auto whole = detail::whole(name); !whole) return whole.error();
    return detail::run(
        [&](auto* error) { return wb_offloader_remove(get(), name.c_str(), stream, error); });
  }
  Result<wb_offloader_reconcile_result> reconcile(const std::vector<Parameter>& now,
                                  void* stream = nullptr) const {
    return detail::with_parameters<wb_offloader_reconcile_result>(now, [&](auto* given, std::uint64_t count) {
      return detail::ask<wb_offloader_reconcile_result>(WB_OFFLOADER_RECONCILE_RESULT_INIT, [&](auto* done, auto* error) {
        return wb_offloader_reconcile(get(), given, count, stream, done, error);
      });
    });
  }
  Result<void> compact(void* stream = nullptr) const {
    return detail::run([&](auto* error) { return wb_offloader_compact(get(), stream, error); });
  }
  Result<wb_offloader_stats> measure() const {
    return detail::ask<wb_offloader_stats>(WB_OFFLOADER_STATS_INIT, [&](auto* stats, auto* error) {
      return wb_offloader_get_stats(get(), stats, error);
    });
  }
};

/// A group while it is acquired: released on its stream with the last of this object.
class Acquired {
 public:
  Acquired(Offloader offloader, std::uint64_t group, void* stream) noexcept
      : offloader_(std::move(offloader)), group_(group), stream_(stream) {}
  Acquired(Acquired&&) noexcept = default;
  Acquired& operator=(Acquired&& other) noexcept {
    Acquired moved(std::move(other));
    std::swap(offloader_, moved.offloader_);
    std::swap(group_, moved.group_);
    std::swap(stream_, moved.stream_);
    return *this;
  }
  ~Acquired() { (void)release(); }
  /// Releases it now; what went wrong is told only here.
  Result<void> release() noexcept {
    if (!offloader_) return {};
    const Offloader held = std::move(offloader_);
    return held.release_group(group_, stream_);
  }

 private:
  Offloader offloader_;
  std::uint64_t group_;
  void* stream_;
};

inline Result<Acquired> Offloader::acquire(std::uint64_t group, void* stream) const {
  auto acquired = acquire_group(group, stream);
  if (!acquired) return acquired.error();
  return Acquired(share(), group, stream);
}

}  // namespace weighbridge

#endif  // WEIGHBRIDGE_OFFLOADER_HPP
