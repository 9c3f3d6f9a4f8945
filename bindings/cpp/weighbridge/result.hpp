/// Error, Exception, and Result: a value or an error.
#ifndef WEIGHBRIDGE_RESULT_HPP
#define WEIGHBRIDGE_RESULT_HPP

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

namespace weighbridge {

/// What went wrong: one of WB_ERR_*, the driver's code or errno (0 for none), and what to do.
struct Error {
  wb_status status = WB_ERR_INTERNAL;
  std::int32_t driver_code = 0;
  std::string message;

  /// Such as "WB_ERR_INVALID_ARGUMENT".
  const char* name() const noexcept {
    const char* name = wb_status_name(status);
    return name ? name : "an unknown status";
  }
};

/// What value() throws.
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

/// A value, or the error that there is instead of it. error() is only for a Result that is false.
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

inline Error error_of(wb_status status, const wb_error& error) {
  return {status, error.driver_code, error.message};
}

inline Error invalid(std::string message) {
  return {WB_ERR_INVALID_ARGUMENT, 0, std::move(message)};
}

/// Refuses a text that C would not read to its end.
inline Result<void> whole(const std::string& text) {
  if (text.find('\0') == std::string::npos) return {};
  return invalid("asked for the text \"" + std::string(text.c_str()) +
                 "\", which goes on behind a NUL character: C would stop there");
}

/// Does `call(error)`.
template <class Call>
Result<void> run(Call&& call) {
  wb_error error = WB_ERROR_INIT;
  const wb_status status = call(&error);
  if (status != WB_OK) return error_of(status, error);
  return {};
}

/// Has `call(answer, error)` fill an answer.
template <class T, class Call>
Result<T> ask(T answer, Call&& call) {
  wb_error error = WB_ERROR_INIT;
  const wb_status status = call(&answer, &error);
  if (status != WB_OK) return error_of(status, error);
  return answer;
}

}  // namespace detail

}  // namespace weighbridge

#endif  // WEIGHBRIDGE_RESULT_HPP
