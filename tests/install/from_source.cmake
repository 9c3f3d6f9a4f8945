# The documented commands on a fresh build directory: installing before building fails and leaves
# nothing, the tests are not built unless asked for, and building and installing give the libraries.
include("${CMAKE_CURRENT_LIST_DIR}/run.cmake")
file(REMOVE_RECURSE "${WORK}")
run("${CMAKE_COMMAND}" -S "${SOURCE}" -B "${WORK}/build" -G "${GENERATOR}"
  "-DCMAKE_MAKE_PROGRAM=${MAKE_PROGRAM}" "-DCMAKE_C_COMPILER=${C_COMPILER}"
  "-DWEIGHBRIDGE_LIBRARY=${LIBRARY}" -DCMAKE_INSTALL_LIBDIR=lib
  "-DCMAKE_INSTALL_PREFIX=/usr/local")
if(EXISTS "${WORK}/build/tests")
  message(FATAL_ERROR "the tests are built by default")
endif()

set(ENV{DESTDIR} "${WORK}/staged")
execute_process(COMMAND "${CMAKE_COMMAND}" --install "${WORK}/build"
  RESULT_VARIABLE result OUTPUT_QUIET ERROR_VARIABLE errors)
if(result EQUAL 0 OR NOT errors MATCHES "weighbridge is not built, nothing was installed")
  message(FATAL_ERROR "installing before building ended with ${result}: ${errors}")
endif()
file(GLOB_RECURSE left "${WORK}/staged/*")
if(left)
  message(FATAL_ERROR "installing before building left ${left}")
endif()

run("${CMAKE_COMMAND}" --build "${WORK}/build")
run("${CMAKE_COMMAND}" --install "${WORK}/build")
foreach(file include/weighbridge.h include/weighbridge.hpp lib/libweighbridge.so lib/libweighbridge.a
    lib/pkgconfig/weighbridge.pc lib/cmake/weighbridge/weighbridge-config.cmake)
  if(NOT EXISTS "${WORK}/staged/usr/local/${file}")
    message(FATAL_ERROR "${file} was not installed below DESTDIR")
  endif()
endforeach()

# A static library that an earlier build left is not installed when none is wanted.
run("${CMAKE_COMMAND}" -DWEIGHBRIDGE_BUILD_STATIC=OFF "${WORK}/build")
run("${CMAKE_COMMAND}" --build "${WORK}/build")
set(ENV{DESTDIR} "${WORK}/shared only")
run("${CMAKE_COMMAND}" --install "${WORK}/build")
if(NOT EXISTS "${WORK}/shared only/usr/local/lib/libweighbridge.so"
    OR EXISTS "${WORK}/shared only/usr/local/lib/libweighbridge.a")
  message(FATAL_ERROR "WEIGHBRIDGE_BUILD_STATIC=OFF did not install the shared library alone")
endif()
