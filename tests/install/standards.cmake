# The C++ header needs C++17: a project of CMake gets it, and another compilation a clear error.
include("${CMAKE_CURRENT_LIST_DIR}/run.cmake")
file(REMOVE_RECURSE "${WORK}")
file(WRITE "${WORK}/program.cpp" [[
#include <weighbridge.hpp>
static_assert(__cplusplus >= 201703L, "the target asks for C++17");
int main() { return 0; }
]])

# A target that names no standard, and one that names an older one.
file(WRITE "${WORK}/CMakeLists.txt" "
cmake_minimum_required(VERSION 3.18)
project(engine LANGUAGES CXX)
find_package(weighbridge CONFIG REQUIRED)
foreach(target unnamed older)
  add_library(\${target} OBJECT program.cpp)
  target_link_libraries(\${target} PRIVATE weighbridge::weighbridge)
endforeach()
set_property(TARGET older PROPERTY CXX_STANDARD 14)
")
build_with_package("${WORK}")

execute_process(COMMAND "${CXX_COMPILER}" -std=c++14 -fsyntax-only "-I${PREFIX}/include"
  "${WORK}/program.cpp" RESULT_VARIABLE result ERROR_VARIABLE errors)
if(result EQUAL 0 OR NOT errors MATCHES "#error[^\n]*C\\+\\+17")
  message(FATAL_ERROR "C++14 ended with ${result}, without an error that names C++17:\n${errors}")
endif()
