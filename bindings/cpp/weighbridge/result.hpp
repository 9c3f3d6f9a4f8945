/// Error, Exception, and Result: a value or an error.
#ifndef WEIGHBRIDGE_RESULT_HPP
#define WEIGHBRIDGE_RESULT_HPP

#include "weighbridge/language.hpp"

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <variant>

#include "weighbridge.h"
#include "enums.hpp"

namespace weighbridge {

/// wb_error: describes a failure.
struct Error {
  wb_status status = WB_ERR_INTERNAL;
  std::int32_t code = 0;  ///< errno or CUresult, as `code_domain` says; 0 if there is none
  CodeDomain code_domain = CodeDomain::None;
  std::string message = {};

  /// The name of the status, such as "WB_ERR_INVALID_ARGUMENT".
  const char* name() const noexcept {
    const char* name = wb_status_name(status);
    return name ? name : "an unknown status";
  }
};

/// The exception that value() throws.
class Exception : public std::runtime_error {
 public:
  explicit Exception(Error error)
      : std::runtime_error(std::string(error.name()) + ": " + error.message),
        error_(std::make_shared<const Error>(std::move(error))) {}
  const Error& error() const noexcept { return *error_; }

 private:
  std::shared_ptr<const Error> error_;  // copying an exception must not throw
};

namespace detail {

[[noreturn]] inline void raise(const Error& error) {
#ifdef __cpp_exceptions
  throw Exception(error);
#else
  std::fprintf(stderr, "weighbridge: %s: %s\n", error.name(), error.message.c_str());
  std::abort();
#endif
}

}  // namespace detail

/// A value or an error. error() requires that the Result is false.
template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value) : state_(std::in_place_index<0>, std::move(value)) {}
  Result(Error error) : state_(std::in_place_index<1>, std::move(error)) {}

  explicit operator bool() const noexcept { return state_.index() == 0; }
  const Error& error() const { return std::get<1>(state_); }
  T& value() & { return check(), std::get<0>(state_); }
  const T& value() const& { return check(), std::get<0>(state_); }
  T value() && { return check(), std::get<0>(std::move(state_)); }

 private:
  void check() const {
    if (!*this) detail::raise(error());
  }
  std::variant<T, Error> state_;
};

template <>
class [[nodiscard]] Result<void> {
 public:
  Result() = default;
  Result(Error error) : error_(std::move(error)) {}

  explicit operator bool() const noexcept { return !error_; }
  const Error& error() const { return error_.value(); }
  void value() const {
    if (error_) detail::raise(*error_);
  }

 private:
  std::optional<Error> error_;
};

namespace detail {

inline Error make_error(wb_status status, std::string message) {
  return {status, 0, CodeDomain::None, std::move(message)};
}

inline Error invalid_argument(std::string message) {
  return make_error(WB_ERR_INVALID_ARGUMENT, std::move(message));
}

/// What C takes for a timeout.
inline std::uint64_t milliseconds(std::chrono::milliseconds timeout) {
  return timeout.count() < 0 ? 0 : static_cast<std::uint64_t>(timeout.count());
}

/// Fails if `text` holds a NUL character: C would read it only up to there.
inline Result<void> check_text(const std::string& text) {
  if (text.find('\0') == std::string::npos) return {};
  return invalid_argument("asked for the text \"" + std::string(text.c_str()) +
                          "\", which continues after a NUL character: C would stop there");
}

/// Calls `function(arguments..., &error)`.
template <class Function, class... Arguments>
Result<void> call(Function&& function, const Arguments&... arguments) {
  wb_error error = WB_ERROR_INIT;
  const wb_status status = function(arguments..., &error);
  if (status == WB_OK) return {};
  return Error{status, error.code, CodeDomain{error.code_domain}, error.message};
}

/// Calls `function(arguments..., &output, &error)` and returns the output.
template <class Output, class Function, class... Arguments>
Result<Output> fill(Output output, Function&& function, const Arguments&... arguments) {
  const auto called = call(function, arguments..., &output);
  if (!called) return called.error();
  return output;
}

}  // namespace detail

}  // namespace weighbridge

#endif  // WEIGHBRIDGE_RESULT_HPP
