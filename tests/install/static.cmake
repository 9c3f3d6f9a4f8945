# A program that contains the library: by the target weighbridge::static, and by pkg-config --static.
include("${CMAKE_CURRENT_LIST_DIR}/run.cmake")
file(REMOVE_RECURSE "${WORK}")

# Checks that a program needs no libweighbridge.so.
function(check_contains_library program)
  run("${READELF}" -d -W "${program}")
  if(NOT output MATCHES "NEEDED.*libc\\.so" OR output MATCHES "NEEDED[^\n]*weighbridge")
    message(FATAL_ERROR "${program} is not linked to the static library:\n${output}")
  endif()
endfunction()

file(WRITE "${WORK}/by cmake/CMakeLists.txt" "
cmake_minimum_required(VERSION 3.18)
project(engine LANGUAGES C CXX)
find_package(weighbridge CONFIG REQUIRED)
add_executable(in_c \"${SOURCE}/examples/c/engine.c\")
add_executable(in_cpp \"${SOURCE}/examples/cpp/engine.cpp\")
foreach(target in_c in_cpp)
  target_link_libraries(\${target} PRIVATE weighbridge::static)
endforeach()
")
build_with_package("${WORK}/by cmake")
run_example("bit-identical; 0 bytes pinned" "${WORK}/by cmake/build/in_c")
run_example("host: [0-9]+ bytes pinned, 65536 on the device" "${WORK}/by cmake/build/in_cpp")
check_contains_library("${WORK}/by cmake/build/in_c")
check_contains_library("${WORK}/by cmake/build/in_cpp")

# As README.md says: -lweighbridge would take the shared library, which is beside it.
use_pkg_config()
file(WRITE "${WORK}/compile.sh" [[
flags=$("$1" --static --cflags --libs weighbridge | sed s/-lweighbridge/-l:libweighbridge.a/)
eval "set -- \"\$2\" -std=c11 \"\$3\" -o \"\$4\" $flags"
exec "$@"
]])
run(sh "${WORK}/compile.sh" "${PKG_CONFIG}" "${C_COMPILER}" "${SOURCE}/examples/c/two_layers.c"
  "${WORK}/two_layers")
run_example("8388608 bytes offloaded" "${WORK}/two_layers")
check_contains_library("${WORK}/two_layers")
