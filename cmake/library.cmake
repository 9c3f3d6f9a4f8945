# The targets weighbridge::weighbridge and weighbridge::static of the build tree. Cargo's output is
# copied under the name that the loader looks for, so that a program linked to it runs, and goes on
# running while cargo builds.

set(weighbridge_stage "${CMAKE_CURRENT_BINARY_DIR}/lib")
set(weighbridge_soname "libweighbridge.so.${PROJECT_VERSION_MAJOR}")
set(weighbridge_file "${weighbridge_stage}/libweighbridge.so.${PROJECT_VERSION}")
set(weighbridge_static_file "${weighbridge_stage}/libweighbridge.a")
# What the static library needs, by `cargo rustc --crate-type staticlib -- --print native-static-libs`.
set(weighbridge_static_needs gcc_s util rt pthread m dl c)

if(WEIGHBRIDGE_LIBRARY)
  if(NOT EXISTS "${WEIGHBRIDGE_LIBRARY}")
    message(FATAL_ERROR "WEIGHBRIDGE_LIBRARY=${WEIGHBRIDGE_LIBRARY} does not exist")
  endif()
  set(built "${WEIGHBRIDGE_LIBRARY}")
  set(build_command "")
  # Cargo leaves both libraries in one folder.
  get_filename_component(folder "${WEIGHBRIDGE_LIBRARY}" DIRECTORY)
  if(WEIGHBRIDGE_BUILD_STATIC AND NOT EXISTS "${folder}/libweighbridge.a")
    message(STATUS "weighbridge: no static library: there is no ${folder}/libweighbridge.a")
    set(weighbridge_static_file "")
  endif()
else()
  find_program(WEIGHBRIDGE_CARGO cargo HINTS "$ENV{CARGO_HOME}/bin" "$ENV{HOME}/.cargo/bin")
  if(NOT WEIGHBRIDGE_CARGO)
    message(FATAL_ERROR "cargo is needed to build weighbridge (https://rustup.rs), or "
      "-DWEIGHBRIDGE_LIBRARY=/path/libweighbridge.so to use a built one")
  endif()
  if(WEIGHBRIDGE_PROFILE STREQUAL "dev")
    set(folder debug)
  else()
    set(folder "${WEIGHBRIDGE_PROFILE}")
  endif()
  set(WEIGHBRIDGE_TARGET_DIR "${CMAKE_CURRENT_SOURCE_DIR}/target" CACHE PATH
    "Where cargo builds weighbridge")
  set(folder "${WEIGHBRIDGE_TARGET_DIR}/${folder}")
  set(built "${folder}/libweighbridge.so")
  # Both libraries come of one compilation, so the static one costs no time. Without naming the crate
  # types, cargo would build a Rust library too, and then not optimize at link time.
  set(build_command COMMAND "${WEIGHBRIDGE_CARGO}" rustc --locked --lib
    --crate-type cdylib,staticlib
    --profile "${WEIGHBRIDGE_PROFILE}" --target-dir "${WEIGHBRIDGE_TARGET_DIR}")
endif()
if(NOT WEIGHBRIDGE_BUILD_STATIC)
  set(weighbridge_static_file "")
endif()
set(copy_static "")
if(weighbridge_static_file)
  set(copy_static COMMAND "${CMAKE_COMMAND}" -E copy_if_different
    "${folder}/libweighbridge.a" "${weighbridge_static_file}")
endif()

# Cargo knows best what is out of date, so it is always asked; what has not changed is not copied.
add_custom_target(weighbridge_build ALL
  ${build_command}
  COMMAND "${CMAKE_COMMAND}" -E make_directory "${weighbridge_stage}"
  COMMAND "${CMAKE_COMMAND}" -E copy_if_different "${built}" "${weighbridge_file}"
  COMMAND "${CMAKE_COMMAND}" -E create_symlink "libweighbridge.so.${PROJECT_VERSION}"
    "${weighbridge_stage}/${weighbridge_soname}"
  COMMAND "${CMAKE_COMMAND}" -E create_symlink "${weighbridge_soname}"
    "${weighbridge_stage}/libweighbridge.so"
  ${copy_static}
  BYPRODUCTS "${weighbridge_file}" ${weighbridge_static_file}
  # Where .cargo/config.toml applies.
  WORKING_DIRECTORY "${CMAKE_CURRENT_SOURCE_DIR}"
  COMMENT "Building libweighbridge"
  USES_TERMINAL VERBATIM)

add_library(weighbridge::weighbridge SHARED IMPORTED GLOBAL)
set_target_properties(weighbridge::weighbridge PROPERTIES
  IMPORTED_LOCATION "${weighbridge_file}"
  IMPORTED_SONAME "${weighbridge_soname}")
set(weighbridge_targets weighbridge::weighbridge)
if(weighbridge_static_file)
  add_library(weighbridge::static STATIC IMPORTED GLOBAL)
  set_target_properties(weighbridge::static PROPERTIES
    IMPORTED_LOCATION "${weighbridge_static_file}"
    INTERFACE_LINK_LIBRARIES "${weighbridge_static_needs}")
  list(APPEND weighbridge_targets weighbridge::static)
endif()
get_property(weighbridge_languages GLOBAL PROPERTY ENABLED_LANGUAGES)
foreach(target ${weighbridge_targets})
  add_dependencies(${target} weighbridge_build)
  set_property(TARGET ${target} PROPERTY INTERFACE_INCLUDE_DIRECTORIES
    "${CMAKE_CURRENT_SOURCE_DIR}/include" "${CMAKE_CURRENT_SOURCE_DIR}/bindings/cpp")
  # The standard of the C++ header. CMake 3.18 refuses it in a project of C alone.
  if("CXX" IN_LIST weighbridge_languages)
    set_property(TARGET ${target} PROPERTY INTERFACE_COMPILE_FEATURES cxx_std_17)
  endif()
endforeach()
