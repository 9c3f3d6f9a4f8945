// The header is included twice in this file, and in another file of the program.
#include "weighbridge.hpp"
#include "weighbridge.hpp"

#include "check.hpp"

int opened_in_the_other_file();

TEST("the header can be included twice, and in two files of one program") {
  CHECK(weighbridge::Device::open("host"));
  CHECK(opened_in_the_other_file() == 1);
}

int main() { return check::run(); }
