/// Passes any callable to C, which calls it once.
#ifndef WEIGHBRIDGE_CALLABLE_HPP
#define WEIGHBRIDGE_CALLABLE_HPP

#include "weighbridge/language.hpp"

#include <memory>
#include <type_traits>
#include <utility>

namespace weighbridge {

namespace detail {

/// Called by C: runs the callable and frees it. An exception ends the process.
template <class F>
void run_once(void* callable) noexcept {
  (*std::unique_ptr<F>(static_cast<F*>(callable)))();
}

/// Passes a callable to C by `pass(function, user)`; frees it without a call if that fails.
template <class F, class Pass>
auto with_callable(F&& callable, Pass&& pass) {
  using Callable = std::decay_t<F>;
  auto owned = std::make_unique<Callable>(std::forward<F>(callable));
  auto result = pass(run_once<Callable>, owned.get());
  if (result) static_cast<void>(owned.release());
  return result;
}

}  // namespace detail

}  // namespace weighbridge

#endif  // WEIGHBRIDGE_CALLABLE_HPP
