// The other file of header_first.cpp.
#include "weighbridge.hpp"

int opened_in_the_other_file() { return weighbridge::Device::open("host") ? 1 : 0; }
