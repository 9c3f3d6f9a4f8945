// The standard of C++ that the binding needs. Every header includes this one first.
#ifndef WEIGHBRIDGE_LANGUAGE_HPP
#define WEIGHBRIDGE_LANGUAGE_HPP

#if __cplusplus < 201703L
#error "weighbridge.hpp needs C++17: compile with -std=c++17 or later (weighbridge.h is for C and any C++)"
#endif

#endif  // WEIGHBRIDGE_LANGUAGE_HPP
