# Compiler flags of a checker. tests/checkers/run.py has CMake include this file by
# CMAKE_PROJECT_weighbridge_INCLUDE; WEIGHBRIDGE_CHECKER is address (with leaks and undefined behaviour)
# or valgrind.
if(WEIGHBRIDGE_CHECKER STREQUAL "valgrind")
  return()
elseif(WEIGHBRIDGE_CHECKER STREQUAL "address")
  set(checker_flags -fsanitize=address,undefined -fno-sanitize-recover=undefined)
else()
  message(FATAL_ERROR "WEIGHBRIDGE_CHECKER=${WEIGHBRIDGE_CHECKER}: address or valgrind")
endif()
add_compile_options(${checker_flags} -fno-omit-frame-pointer)
add_link_options(${checker_flags})

# Corrections of the sanitizer's runtime, for every program and no shared library.
add_library(checker_sanitized OBJECT "${CMAKE_CURRENT_LIST_DIR}/sanitized.c")
link_libraries(
  "$<$<STREQUAL:$<TARGET_PROPERTY:TYPE>,EXECUTABLE>:$<TARGET_OBJECTS:checker_sanitized>>")
