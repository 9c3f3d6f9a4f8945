# Runs a command that must succeed, and stores its output in `output`.
function(run)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE result OUTPUT_VARIABLE text ERROR_VARIABLE errors)
  if(NOT result EQUAL 0)
    string(REPLACE ";" " " shown "${ARGN}")
    message(FATAL_ERROR "${shown}\nfailed with ${result}:\n${text}${errors}")
  endif()
  set(output "${text}" PARENT_SCOPE)
endfunction()

# Runs a program, whose output must match the pattern.
function(run_example pattern)
  run(${ARGN})
  if(NOT output MATCHES "${pattern}")
    message(FATAL_ERROR "${ARGN} printed: ${output}")
  endif()
endfunction()

# Runs the C examples in a folder.
function(run_examples folder)
  run_example("4096000 weights at 0x" "${folder}/ten_lines")
  run_example("8388608 bytes asked.*bit-identical; 0 bytes pinned" "${folder}/engine")
  run_example("bit-identical" "${folder}/engine" host "${CMAKE_COMMAND}")
  run_example("8388608 bytes offloaded, 8388608 bytes of slots" "${folder}/two_layers")
  # The link is busy all the time, with 6.4 GB.
  run_example("128.7 ms a step: 128.7 ms of the link, 64.0 ms of kernels" "${folder}/device_budget")
endfunction()

# Runs the C++ examples in a folder.
function(run_cpp_examples folder)
  run_example("1048576 weights in" "${folder}/ten_lines")
  run_example("host: [0-9]+ bytes pinned, 65536 on the device" "${folder}/engine")
  run_example("8388608 bytes offloaded, 8388608 bytes of slots" "${folder}/two_layers")
endfunction()

# Configures and builds a project that uses the installation, with further options of CMake.
function(build_with_package project)
  run("${CMAKE_COMMAND}" -S "${project}" -B "${project}/build" -G "${GENERATOR}"
    "-DCMAKE_MAKE_PROGRAM=${MAKE_PROGRAM}" "-DCMAKE_C_COMPILER=${C_COMPILER}"
    "-DCMAKE_CXX_COMPILER=${CXX_COMPILER}" "-DCMAKE_PREFIX_PATH=${PREFIX}" ${ARGN})
  run("${CMAKE_COMMAND}" --build "${project}/build")
endfunction()

# Finds pkg-config, and makes it find the installation.
macro(use_pkg_config)
  find_program(PKG_CONFIG NAMES pkg-config pkgconf)
  if(NOT PKG_CONFIG)
    message(FATAL_ERROR "neither pkg-config nor pkgconf is installed")
  endif()
  set(ENV{PKG_CONFIG_PATH} "${PREFIX}/${LIBDIR}/pkgconfig")
endmacro()
