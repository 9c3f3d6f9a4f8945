# How a program finds the shared library in a prefix that the loader does not search: what README.md says.
include("${CMAKE_CURRENT_LIST_DIR}/run.cmake")
file(REMOVE_RECURSE "${WORK}")
file(MAKE_DIRECTORY "${WORK}")
unset(ENV{LD_LIBRARY_PATH})
use_pkg_config()
set(example "${SOURCE}/examples/c/ten_lines.c")
set(compile sh "${CMAKE_CURRENT_LIST_DIR}/compile.sh" "${PKG_CONFIG}" "${C_COMPILER}" "${example}")

# Without a path the loader finds nothing, or this test would show nothing.
run(${compile} "${WORK}/without")
execute_process(COMMAND "${WORK}/without" RESULT_VARIABLE result OUTPUT_QUIET ERROR_VARIABLE errors)
if(result EQUAL 0 OR NOT errors MATCHES "libweighbridge\\.so")
  message(FATAL_ERROR "without a path the program ended with ${result}: ${errors}")
endif()
run(${compile} "${WORK}/with" "-Wl,-rpath,${PREFIX}/${LIBDIR}")
run_example("4096000 weights at 0x" "${WORK}/with")

# What CMake installs.
file(WRITE "${WORK}/engine/CMakeLists.txt" "
cmake_minimum_required(VERSION 3.18)
project(engine LANGUAGES C)
find_package(weighbridge CONFIG REQUIRED)
add_executable(engine \"${example}\")
target_link_libraries(engine PRIVATE weighbridge::weighbridge)
install(TARGETS engine DESTINATION bin)
")
build_with_package("${WORK}/engine" -DCMAKE_INSTALL_RPATH_USE_LINK_PATH=ON)
run("${CMAKE_COMMAND}" --install "${WORK}/engine/build" --prefix "${WORK}/installed")
run_example("4096000 weights at 0x" "${WORK}/installed/bin/engine")

# What ldconfig would put in its cache: the name that programs ask for.
find_program(LDCONFIG ldconfig PATHS /sbin /usr/sbin)
file(WRITE "${WORK}/ld.so.conf" "${PREFIX}/${LIBDIR}\n")
run("${LDCONFIG}" -N -X -v -f "${WORK}/ld.so.conf")
string(REGEX MATCH "^[0-9]+" major "${VERSION}")
if(NOT output MATCHES "libweighbridge\\.so\\.${major} -> libweighbridge\\.so\\.${VERSION}")
  message(FATAL_ERROR "ldconfig finds no libweighbridge.so.${major}:\n${output}")
endif()
