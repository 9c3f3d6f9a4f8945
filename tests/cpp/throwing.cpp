// Callables that C calls must not throw: as documented, the process terminates instead of leaving a
// release half done. (Progress callbacks may throw: progress.cpp.)
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <stdexcept>

#include "fixtures.hpp"

using namespace weighbridge;

// The signal that ends a child process that runs `body`, or 0.
template <class Body>
static int signal_of(Body body) {
  const pid_t child = fork();
  if (child == 0) {
    const rlimit none{0, 0};
    setrlimit(RLIMIT_CORE, &none);
    if (freopen("/dev/null", "w", stderr) == nullptr) _exit(1);  // std::terminate prints a message
    alarm(20);
    body();
    _exit(0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return WIFSIGNALED(status) ? WTERMSIG(status) : 0;
}

// No device is open in this process, so that the child can open one.
TEST("a deleter that throws ends the process") {
  CHECK(signal_of([] {
          const Device device = fixtures::open();
          fixtures::Memory memory = fixtures::pages(1);
          Buffer buffer = Buffer::register_memory(device, memory.get(), fixtures::page, [] {
                            throw std::runtime_error("thrown by a deleter");
                          }).value();
          buffer.release();
        }) == SIGABRT);
}

TEST("work on a stream that throws ends the process") {
  CHECK(signal_of([] {
          const Device device = fixtures::open();
          const Stream stream = Stream::make(device).value();
          static_cast<void>(stream.call([] { throw std::runtime_error("thrown on a stream"); }));
          static_cast<void>(stream.synchronize());
        }) == SIGABRT);
}

TEST("without a throw the process ends normally") {
  CHECK(signal_of([] {
          const Device device = fixtures::open();
          fixtures::Memory memory = fixtures::pages(1);
          static_cast<void>(
              Buffer::register_memory(device, memory.get(), fixtures::page, [] {}).value());
        }) == 0);
}

int main() { return check::run(); }
