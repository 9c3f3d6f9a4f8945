# ThreadSanitizer, which sees only part of what an uninstrumented library does: with the installed
# suppressions it reports the races of the program and no others.
include("${CMAKE_CURRENT_LIST_DIR}/run.cmake")
file(REMOVE_RECURSE "${WORK}")
file(MAKE_DIRECTORY "${WORK}")
use_pkg_config()
set(ENV{LD_LIBRARY_PATH} "${PREFIX}/${LIBDIR}")
set(options "halt_on_error=1 exitcode=66")
set(suppressed "${options} suppressions='${PREFIX}/share/weighbridge/tsan.supp'")

# Compiles a program for ThreadSanitizer; `result` is not 0 where that cannot be.
macro(compile source program)
  execute_process(COMMAND sh "${CMAKE_CURRENT_LIST_DIR}/compile.sh" "${PKG_CONFIG}" "${C_COMPILER}"
    "${source}" "${WORK}/${program}" -g -pthread -fsanitize=thread
    RESULT_VARIABLE result ERROR_VARIABLE errors)
endmacro()

# Runs a program and checks its status.
function(check_run program tsan_options expected)
  set(ENV{TSAN_OPTIONS} "${tsan_options}")
  execute_process(COMMAND "${WORK}/${program}" RESULT_VARIABLE result OUTPUT_VARIABLE text
    ERROR_VARIABLE text TIMEOUT 60)
  if(NOT result EQUAL expected)
    message(FATAL_ERROR "${program} with ${tsan_options} ended with ${result}, not ${expected}:\n${text}")
  endif()
endfunction()

file(WRITE "${WORK}/nothing.c" "int main(void) { return 0; }\n")
compile("${WORK}/nothing.c" nothing)
if(result EQUAL 0)
  execute_process(COMMAND "${WORK}/nothing" RESULT_VARIABLE result ERROR_VARIABLE errors)
endif()
if(NOT result EQUAL 0)
  message(STATUS "install.thread_sanitizer: not run: ThreadSanitizer does not work here: ${errors}")
  return()
endif()

compile("${SOURCE}/examples/c/two_layers.c" two_layers)
check_run(two_layers "${options}" 66) # the suppressions are needed
check_run(two_layers "${suppressed}" 0)
compile("${CMAKE_CURRENT_LIST_DIR}/racing.c" racing)
check_run(racing "${suppressed}" 66) # and hide nothing of the program
