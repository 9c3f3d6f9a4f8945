# Installs weighbridge, moves the installation, and builds the examples with find_package and with
# pkg-config.
include("${CMAKE_CURRENT_LIST_DIR}/run.cmake")
file(REMOVE_RECURSE "${WORK}")
run("${CMAKE_COMMAND}" --install "${BUILD}" --prefix "${WORK}/installed")
file(RENAME "${WORK}/installed" "${PREFIX}")

string(REGEX MATCH "^[0-9]+" major "${VERSION}")
file(GLOB_RECURSE c_headers RELATIVE "${SOURCE}" "${SOURCE}/include/*.h")
file(GLOB_RECURSE cpp_headers RELATIVE "${SOURCE}/bindings/cpp" "${SOURCE}/bindings/cpp/*.hpp")
list(TRANSFORM cpp_headers PREPEND "include/")
foreach(file ${c_headers} ${cpp_headers} "${LIBDIR}/libweighbridge.so"
    "${LIBDIR}/libweighbridge.so.${major}" "${LIBDIR}/libweighbridge.so.${VERSION}"
    "${LIBDIR}/libweighbridge.a" "${LIBDIR}/pkgconfig/weighbridge.pc"
    "${LIBDIR}/cmake/weighbridge/weighbridge-config.cmake"
    "${LIBDIR}/cmake/weighbridge/weighbridge-config-version.cmake"
    share/weighbridge/tsan.supp)
  if(NOT EXISTS "${PREFIX}/${file}")
    message(FATAL_ERROR "${file} was not installed")
  endif()
endforeach()
file(READ_SYMLINK "${PREFIX}/${LIBDIR}/libweighbridge.so.${major}" link)
if(NOT link STREQUAL "libweighbridge.so.${VERSION}")
  message(FATAL_ERROR "libweighbridge.so.${major} is a link to ${link}")
endif()
foreach(file "${LIBDIR}/pkgconfig/weighbridge.pc"
    "${LIBDIR}/cmake/weighbridge/weighbridge-config.cmake")
  file(READ "${PREFIX}/${file}" text)
  foreach(path "${BUILD}" "${SOURCE}" "${WORK}")
    string(FIND "${text}" "${path}" at)
    if(NOT at EQUAL -1)
      message(FATAL_ERROR "${file} contains ${path}: the installation cannot be moved")
    endif()
  endforeach()
endforeach()

# find_package
run("${CMAKE_COMMAND}" -S "${SOURCE}/examples/c" -B "${WORK}/by cmake" -G "${GENERATOR}"
  "-DCMAKE_MAKE_PROGRAM=${MAKE_PROGRAM}" "-DCMAKE_C_COMPILER=${C_COMPILER}"
  "-DCMAKE_PREFIX_PATH=${PREFIX}")
run("${CMAKE_COMMAND}" --build "${WORK}/by cmake")
run_examples("${WORK}/by cmake")

run("${CMAKE_COMMAND}" -S "${SOURCE}/examples/cpp" -B "${WORK}/in C++" -G "${GENERATOR}"
  "-DCMAKE_MAKE_PROGRAM=${MAKE_PROGRAM}" "-DCMAKE_CXX_COMPILER=${CXX_COMPILER}"
  "-DCMAKE_PREFIX_PATH=${PREFIX}")
run("${CMAKE_COMMAND}" --build "${WORK}/in C++")
run_cpp_examples("${WORK}/in C++")

# find_package rejects another minor version.
file(WRITE "${WORK}/later/CMakeLists.txt" "cmake_minimum_required(VERSION 3.18)\n"
  "project(later LANGUAGES C)\nfind_package(weighbridge 0.2 CONFIG REQUIRED)\n")
execute_process(COMMAND "${CMAKE_COMMAND}" -S "${WORK}/later" -B "${WORK}/later/build"
  -G "${GENERATOR}" "-DCMAKE_MAKE_PROGRAM=${MAKE_PROGRAM}" "-DCMAKE_C_COMPILER=${C_COMPILER}"
  "-DCMAKE_PREFIX_PATH=${PREFIX}" RESULT_VARIABLE found OUTPUT_QUIET ERROR_QUIET)
if(found EQUAL 0)
  message(FATAL_ERROR "find_package accepted weighbridge ${VERSION} as 0.2")
endif()

# pkg-config and a compiler, without CMake
use_pkg_config()
run("${PKG_CONFIG}" --modversion weighbridge)
string(STRIP "${output}" output)
if(NOT output STREQUAL VERSION)
  message(FATAL_ERROR "pkg-config has version ${output}, expected ${VERSION}")
endif()
file(MAKE_DIRECTORY "${WORK}/by pkg-config")
foreach(example ten_lines engine two_layers device_budget)
  run(sh "${CMAKE_CURRENT_LIST_DIR}/compile.sh" "${PKG_CONFIG}" "${C_COMPILER}"
    "${SOURCE}/examples/c/${example}.c" "${WORK}/by pkg-config/${example}")
endforeach()
set(ENV{LD_LIBRARY_PATH} "${PREFIX}/${LIBDIR}")
run_examples("${WORK}/by pkg-config")
