# The target weighbridge::weighbridge of the build tree. Cargo's output is copied under the name
# that the loader looks for, so that a program linked to it runs, and goes on running while cargo builds.

set(weighbridge_stage "${CMAKE_CURRENT_BINARY_DIR}/lib")
set(weighbridge_soname "libweighbridge.so.${PROJECT_VERSION_MAJOR}")
set(weighbridge_file "${weighbridge_stage}/libweighbridge.so.${PROJECT_VERSION}")

if(WEIGHBRIDGE_LIBRARY)
  if(NOT EXISTS "${WEIGHBRIDGE_LIBRARY}")
    message(FATAL_ERROR "WEIGHBRIDGE_LIBRARY=${WEIGHBRIDGE_LIBRARY} does not exist")
  endif()
  set(built "${WEIGHBRIDGE_LIBRARY}")
  set(build_command "")
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
  set(built "${WEIGHBRIDGE_TARGET_DIR}/${folder}/libweighbridge.so")
  set(build_command COMMAND "${WEIGHBRIDGE_CARGO}" build --locked --lib
    --profile "${WEIGHBRIDGE_PROFILE}" --target-dir "${WEIGHBRIDGE_TARGET_DIR}"
    --manifest-path "${CMAKE_CURRENT_SOURCE_DIR}/Cargo.toml")
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
  BYPRODUCTS "${weighbridge_file}"
  COMMENT "Building libweighbridge.so"
  USES_TERMINAL VERBATIM)

add_library(weighbridge::weighbridge SHARED IMPORTED GLOBAL)
add_dependencies(weighbridge::weighbridge weighbridge_build)
set_target_properties(weighbridge::weighbridge PROPERTIES
  IMPORTED_LOCATION "${weighbridge_file}"
  IMPORTED_SONAME "${weighbridge_soname}"
  INTERFACE_INCLUDE_DIRECTORIES
    "${CMAKE_CURRENT_SOURCE_DIR}/include;${CMAKE_CURRENT_SOURCE_DIR}/bindings/cpp")
# The standard of the C++ header. CMake 3.18 refuses it in a project of C alone.
get_property(weighbridge_languages GLOBAL PROPERTY ENABLED_LANGUAGES)
if("CXX" IN_LIST weighbridge_languages)
  set_property(TARGET weighbridge::weighbridge PROPERTY INTERFACE_COMPILE_FEATURES cxx_std_17)
endif()
