# Each source of ASKED (comma-separated) fails to compile with an operation it does not know, and for that reason.
# Run: cmake -DBUILD=<build> -DASKED=<sources> -P check.cmake
cmake_minimum_required(VERSION 3.25)
string(REPLACE "," ";" ASKED "${ASKED}")
execute_process(COMMAND ${CMAKE_COMMAND} --build ${BUILD} --target unknown_operation -- -k 0
  OUTPUT_VARIABLE said ERROR_VARIABLE said RESULT_VARIABLE rc)
if(rc EQUAL 0)
  message(FATAL_ERROR "all sources compile with an operation that none of them knows")
endif()
foreach(source IN LISTS ASKED)
  string(REGEX MATCH "FAILED: [^\n]*/src/${source}" failed "${said}")
  if(NOT failed)
    message(SEND_ERROR "${source} compiles with an operation that it does not know")
  endif()
endforeach()
string(REGEX MATCH "UnknownOperation" named "${said}")
if(NOT named)
  message(SEND_ERROR "the errors are about something else:\n${said}")
endif()
