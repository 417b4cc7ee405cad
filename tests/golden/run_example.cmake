# Runs the first ```tp block of a page.
cmake_minimum_required(VERSION 3.25)
file(READ ${PAGE} text)
string(REGEX MATCH "```tp\n([^`]*)```" block "${text}")
file(WRITE ${SCRATCH} "${CMAKE_MATCH_1}")
execute_process(COMMAND ${TPLIMIT} run ${SCRATCH} --particles 4096 --set eta=0.2 --quiet RESULT_VARIABLE status ERROR_VARIABLE error)
if(NOT status EQUAL 0)
  message(FATAL_ERROR "${PAGE}: exit code ${status}\n${error}")
endif()
