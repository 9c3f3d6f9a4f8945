// A program with a newer header than the library.
#include "weighbridge.h"
#undef WB_VERSION_MINOR
#define WB_VERSION_MINOR 200

#include <string>

#include "check.hpp"
#include "weighbridge.hpp"

using namespace weighbridge;

TEST("a library older than the header is refused with both versions") {
  const auto device = Device::open("host");
  CHECK_STATUS(WB_ERR_NOT_SUPPORTED, device);
  CHECK(device.error().message.find("0.200.") != std::string::npos);
  CHECK(device.error().message.find("loaded 0.") != std::string::npos);
}

int main() { return check::run(); }
