/*
 * A test runner: TEST("a promise") { CHECK(...); } and, at the end of the file,
 * int main() { return check::run(); }. It prints "N passed, N failed" and fails if a case failed or
 * there is none. Works without exceptions.
 */
#ifndef WEIGHBRIDGE_TESTS_CHECK_HPP
#define WEIGHBRIDGE_TESTS_CHECK_HPP

#include <atomic>
#include <cstdio>
#include <exception>
#include <vector>

namespace check {

struct Case {
  const char* name;
  void (*body)();
};

inline std::vector<Case>& cases() {
  static std::vector<Case> all;
  return all;
}

struct Registration {
  Registration(const char* name, void (*body)()) { cases().push_back({name, body}); }
};

inline std::atomic<int> failures{0};

inline void fail(const char* file, int line, const char* what, const char* found) {
  ++failures;
  std::printf("%s:%d: failed: %s%s%s\n", file, line, what, *found ? "; found: " : "", found);
}

inline void run_body(const Case& one) {
#ifdef __cpp_exceptions
  try {
    one.body();
  } catch (const std::exception& thrown) {
    fail(one.name, 0, "the case throws no exception", thrown.what());
  }
#else
  one.body();
#endif
}

inline int run() {
  int passed = 0, failed = 0;
  for (const Case& one : cases()) {
    failures = 0;
    run_body(one);
    const bool good = failures == 0;
    std::printf("%s  %s\n", good ? "ok    " : "FAILED", one.name);
    ++(good ? passed : failed);
  }
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed == 0 && passed > 0 ? 0 : 1;
}

}  // namespace check

#define CHECK_JOIN2(a, b) a##b
#define CHECK_JOIN(a, b) CHECK_JOIN2(a, b)
#define CHECK_TEST(name, body)                                              \
  static void body();                                                       \
  static const check::Registration CHECK_JOIN(body, _registered){name, body}; \
  static void body()
#define TEST(name) CHECK_TEST(name, CHECK_JOIN(test_at_, __LINE__))

#define CHECK(...)                                                             \
  do {                                                                         \
    if (!(__VA_ARGS__)) check::fail(__FILE__, __LINE__, #__VA_ARGS__, ""); \
  } while (false)

/// The Result has an error with this status and a message.
#define CHECK_STATUS(expected, ...)                                                        \
  do {                                                                                     \
    const auto& result_ = __VA_ARGS__;                                                     \
    if (result_) {                                                                         \
      check::fail(__FILE__, __LINE__, #__VA_ARGS__ " is " #expected, "a value");           \
    } else if (result_.error().status != (expected)) {                                     \
      check::fail(__FILE__, __LINE__, #__VA_ARGS__ " is " #expected, result_.error().name()); \
    } else if (result_.error().message.empty()) {                                          \
      check::fail(__FILE__, __LINE__, #__VA_ARGS__ " has a message", "none");              \
    }                                                                                      \
  } while (false)

/// The expression throws this type.
#define CHECK_THROWS(type, ...)                                                   \
  do {                                                                            \
    bool thrown_ = false;                                                         \
    try {                                                                         \
      static_cast<void>(__VA_ARGS__);                                             \
    } catch (const type&) {                                                       \
      thrown_ = true;                                                             \
    }                                                                             \
    if (!thrown_) check::fail(__FILE__, __LINE__, #__VA_ARGS__ " throws " #type, ""); \
  } while (false)

#endif  // WEIGHBRIDGE_TESTS_CHECK_HPP
