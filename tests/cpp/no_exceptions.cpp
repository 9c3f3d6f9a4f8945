// Compiled with -fno-exceptions: value() of an error aborts.
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <string>

#include "fixtures.hpp"

using namespace weighbridge;

#ifdef __cpp_exceptions
#error "compile this test without exceptions"
#endif

TEST("results are tested, and have the error") {
  auto device = Device::open(fixtures::device_name());
  CHECK(device);
  auto buffer = Buffer::alloc(device.value(), 16);
  CHECK(buffer);
  auto view = View::make(buffer.value(), Layout::of<float>({4}));
  CHECK(view);
  view.value().as<float>().value()[3] = 4;
  CHECK_STATUS(WB_ERR_INVALID_ARGUMENT, view.value().as<int>());
  CHECK_STATUS(WB_ERR_OUT_OF_RANGE, View::make(buffer.value(), Layout::of<float>({5})));
}

TEST("a progress callback cancels") {
  const Device device = fixtures::open();
  BufferOptions options;
  options.progress = [](Phase, std::uint64_t, std::uint64_t) { return Proceed::Cancel; };
  CHECK_STATUS(WB_ERR_CANCELLED, Buffer::alloc(device, 1 << 20, options));
  fixtures::check_nothing_left(device);
}

TEST("value() of an error prints it and aborts") {
  int ends[2];
  CHECK(pipe(ends) == 0);
  const pid_t child = fork();
  if (child == 0) {
    dup2(ends[1], 2);
    Result<void>(Error{WB_ERR_TIMEOUT, 0, CodeDomain::None, "too slow"}).value();
    _exit(0);
  }
  close(ends[1]);
  char printed[256] = {};
  CHECK(read(ends[0], printed, sizeof(printed) - 1) > 0);
  close(ends[0]);
  int status = 0;
  CHECK(waitpid(child, &status, 0) == child);
  CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
  CHECK(std::string(printed) == "weighbridge: WB_ERR_TIMEOUT: too slow\n");
}

int main() { return check::run(); }
