/// Progress: a callback that receives the progress of a call, and may cancel it.
#ifndef WEIGHBRIDGE_PROGRESS_HPP
#define WEIGHBRIDGE_PROGRESS_HPP

#include "weighbridge/language.hpp"

#include <cstdint>
#include <exception>
#include <functional>

#include "weighbridge.h"
#include "enums.hpp"

namespace weighbridge {

enum class Proceed { Yes, Cancel };

/// Receives the bytes done and the total bytes of a phase, on the thread that made the call.
using Progress = std::function<Proceed(Phase phase, std::uint64_t done, std::uint64_t total)>;

namespace detail {

/// Passes a Progress to C for one call and keeps the exception that it throws.
class ProgressCall {
 public:
  explicit ProgressCall(const Progress& progress) noexcept : progress_(progress) {}
  ProgressCall(const ProgressCall&) = delete;
  ProgressCall& operator=(const ProgressCall&) = delete;

  /// Sets the callback in `options`, which C must not use after this object is destroyed.
  template <class Options>
  void set(Options& options) noexcept {
    if (!progress_) return;
    options.progress = report;
    options.progress_user = this;
  }
  /// Throws what the callback has thrown.
  void rethrow() const {
#ifdef __cpp_exceptions
    if (thrown_) std::rethrow_exception(thrown_);
#endif
  }

 private:
  static std::int32_t report(void* user, wb_phase phase, std::uint64_t done,
                             std::uint64_t total) noexcept {
    auto* self = static_cast<ProgressCall*>(user);
    if (self->thrown_) return 1;
#ifdef __cpp_exceptions
    try {
      return self->progress_(Phase{phase}, done, total) != Proceed::Yes;
    } catch (...) {
      self->thrown_ = std::current_exception();
      return 1;
    }
#else
    return self->progress_(Phase{phase}, done, total) != Proceed::Yes;
#endif
  }

  const Progress& progress_;
  std::exception_ptr thrown_;
};

/// Runs `call(raw)` with `options` as C's struct; throws what their progress callback has thrown.
template <class Options, class Call>
auto with_options(const Options& options, Call&& call) {
  auto raw = options.to_c();
  ProgressCall progress(options.progress);
  progress.set(raw);
  auto result = call(&raw);
  progress.rethrow();
  return result;
}

}  // namespace detail

}  // namespace weighbridge

#endif  // WEIGHBRIDGE_PROGRESS_HPP
