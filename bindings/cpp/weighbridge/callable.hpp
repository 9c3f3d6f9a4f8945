/// Any callable, given to C to be called once.
#ifndef WEIGHBRIDGE_CALLABLE_HPP
#define WEIGHBRIDGE_CALLABLE_HPP

#include <memory>
#include <type_traits>
#include <utility>

#include "weighbridge.h"

namespace weighbridge {

namespace detail {

/// Runs a callable from C, once, and frees it. What it throws ends the process.
template <class F>
void run_once(void* callable) noexcept {
  (*std::unique_ptr<F>(static_cast<F*>(callable)))();
}

/// Gives a callable to C by `call(function, user)`; it stays ours to free where that fails.
template <class F, class Call>
wb_status give_callable(F&& callable, Call&& call) {
  using Callable = std::decay_t<F>;
  auto owned = std::make_unique<Callable>(std::forward<F>(callable));
  const wb_status status = call(run_once<Callable>, owned.get());
  if (status == WB_OK) static_cast<void>(owned.release());
  return status;
}

}  // namespace detail

}  // namespace weighbridge

#endif  // WEIGHBRIDGE_CALLABLE_HPP
