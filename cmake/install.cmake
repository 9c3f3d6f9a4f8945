# What `cmake --install` puts where. The tree may be moved afterwards: neither the CMake package nor
# the pkg-config file holds a path of this machine.
include(CMakePackageConfigHelpers)

set(package_dir "${CMAKE_INSTALL_LIBDIR}/cmake/weighbridge")
set(pkgconfig_dir "${CMAKE_INSTALL_LIBDIR}/pkgconfig")

# Install rules run in this order, so a build directory without the library installs nothing.
install(CODE "
  if(NOT EXISTS [[${weighbridge_file}]])
    message(FATAL_ERROR [[weighbridge is not built, nothing was installed: there is no
  ${weighbridge_file}
Build first:  cmake --build ${CMAKE_BINARY_DIR}]])
  endif()")
install(DIRECTORY include/ DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}" FILES_MATCHING PATTERN "*.h")
install(FILES LICENSE THIRD-PARTY.md DESTINATION "${CMAKE_INSTALL_DOCDIR}")
# The C++ header is looked for when installing, since a checkout may have the C interface alone.
install(FILES bindings/cpp/weighbridge.hpp DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}" OPTIONAL)
install(DIRECTORY bindings/cpp/weighbridge DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}" OPTIONAL
  FILES_MATCHING PATTERN "*.hpp")
install(PROGRAMS "${weighbridge_file}" DESTINATION "${CMAKE_INSTALL_LIBDIR}")
install(FILES "${weighbridge_stage}/${weighbridge_soname}" "${weighbridge_stage}/libweighbridge.so"
  DESTINATION "${CMAKE_INSTALL_LIBDIR}")

if(weighbridge_static_file)
  install(FILES "${weighbridge_static_file}" DESTINATION "${CMAKE_INSTALL_LIBDIR}")
endif()
install(FILES cmake/tsan.supp DESTINATION "${CMAKE_INSTALL_DATADIR}/weighbridge")

configure_package_config_file(cmake/weighbridge-config.cmake.in
  "${CMAKE_CURRENT_BINARY_DIR}/weighbridge-config.cmake"
  INSTALL_DESTINATION "${package_dir}"
  PATH_VARS CMAKE_INSTALL_LIBDIR CMAKE_INSTALL_INCLUDEDIR
  NO_CHECK_REQUIRED_COMPONENTS_MACRO)
# Before 1.0 a minor version may break the interface.
if(PROJECT_VERSION_MAJOR EQUAL 0)
  set(compatibility SameMinorVersion)
else()
  set(compatibility SameMajorVersion)
endif()
write_basic_package_version_file("${CMAKE_CURRENT_BINARY_DIR}/weighbridge-config-version.cmake"
  COMPATIBILITY ${compatibility})
install(FILES
  "${CMAKE_CURRENT_BINARY_DIR}/weighbridge-config.cmake"
  "${CMAKE_CURRENT_BINARY_DIR}/weighbridge-config-version.cmake"
  DESTINATION "${package_dir}")

if(IS_ABSOLUTE "${CMAKE_INSTALL_LIBDIR}" OR IS_ABSOLUTE "${CMAKE_INSTALL_INCLUDEDIR}")
  set(pc_prefix "${CMAKE_INSTALL_PREFIX}")
  set(pc_libdir "${CMAKE_INSTALL_FULL_LIBDIR}")
  set(pc_includedir "${CMAKE_INSTALL_FULL_INCLUDEDIR}")
else()
  file(RELATIVE_PATH up "/${pkgconfig_dir}" "/")
  string(REGEX REPLACE "/$" "" up "${up}")
  set(pc_prefix "\${pcfiledir}/${up}")
  set(pc_libdir "\${prefix}/${CMAKE_INSTALL_LIBDIR}")
  set(pc_includedir "\${prefix}/${CMAKE_INSTALL_INCLUDEDIR}")
endif()
list(JOIN weighbridge_static_needs " -l" pc_private)
string(PREPEND pc_private "-l")
configure_file(cmake/weighbridge.pc.in "${CMAKE_CURRENT_BINARY_DIR}/weighbridge.pc" @ONLY)
install(FILES "${CMAKE_CURRENT_BINARY_DIR}/weighbridge.pc" DESTINATION "${pkgconfig_dir}")
