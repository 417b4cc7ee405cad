# Runs TPLIMIT with ARGS in FOLDER and compares what it prints, and its exit code CODE, with the file EXPECTED.
separate_arguments(ARGS)
execute_process(COMMAND ${TPLIMIT} ${ARGS} WORKING_DIRECTORY ${FOLDER} OUTPUT_VARIABLE out RESULT_VARIABLE code ERROR_VARIABLE err)
string(REGEX REPLACE "(^|\n)time [^\n]*" "\\1time .." out "${out}")  # the only line that differs between two runs
if(DEFINED ENV{TPLIMIT_UPDATE_GOLDEN})
  file(WRITE ${EXPECTED} "${out}")
endif()
file(READ ${EXPECTED} expected)
if(NOT out STREQUAL expected)
  message(FATAL_ERROR "tplimit ${ARGS} printed\n${out}\nexpected\n${expected}\n${err}")
endif()
if(NOT code EQUAL ${CODE})
  message(FATAL_ERROR "tplimit ${ARGS}: exit code ${code}, expected ${CODE}\n${err}")
endif()
