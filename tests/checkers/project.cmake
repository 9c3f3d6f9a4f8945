# Builds and runs the suites under a checker. tests/checkers/run.py has CMake include this file with
# CMAKE_PROJECT_weighbridge_INCLUDE and says which checker in WEIGHBRIDGE_CHECKER: address (with leaks
# and undefined behaviour), thread or valgrind.
if(WEIGHBRIDGE_CHECKER STREQUAL "valgrind")
  return()
elseif(WEIGHBRIDGE_CHECKER STREQUAL "address")
  set(checker_flags -fsanitize=address,undefined -fno-sanitize-recover=undefined)
elseif(WEIGHBRIDGE_CHECKER STREQUAL "thread")
  set(checker_flags -fsanitize=thread)
else()
  message(FATAL_ERROR "WEIGHBRIDGE_CHECKER=${WEIGHBRIDGE_CHECKER}: address, thread or valgrind")
endif()
add_compile_options(${checker_flags} -fno-omit-frame-pointer)
add_link_options(${checker_flags})

# Every program, but no shared library, has what the sanitizer's runtime lacks.
add_library(checker_sanitized OBJECT "${CMAKE_CURRENT_LIST_DIR}/sanitized.c")
link_libraries(
  "$<$<STREQUAL:$<TARGET_PROPERTY:TYPE>,EXECUTABLE>:$<TARGET_OBJECTS:checker_sanitized>>")
