# Runs a program with a defect on purpose: the check for that defect must fail.
#   cmake -DPROGRAM=soak -DBREAK=leak "-DFOUND=buffers alive" -P defect.cmake
execute_process(COMMAND "${PROGRAM}" --seconds=1 --threads=4 --steps=1100 --break=${BREAK}
  RESULT_VARIABLE status OUTPUT_VARIABLE output ERROR_VARIABLE output TIMEOUT 60)
message("${output}")
if(NOT status EQUAL 1)
  message(FATAL_ERROR "exit ${status}, expected 1")
endif()
if(NOT output MATCHES "${FOUND}")
  message(FATAL_ERROR "no failed check printed \"${FOUND}\"")
endif()
