// The header twice, and in two files of one program.
#include "weighbridge.hpp"
#include "weighbridge.hpp"

#include "check.hpp"

int statuses_in_the_other_file();

TEST("the header is included twice, and in two files of one program") {
  CHECK(weighbridge::Device::open("host"));
  CHECK(statuses_in_the_other_file() == 1);
}

int main() { return check::run(); }
