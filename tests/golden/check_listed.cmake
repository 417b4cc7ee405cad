# Every program of the gallery has its line in programs/README.md, which names no other.
# cmake -DFOLDER=<programs> -P check_listed.cmake
file(GLOB_RECURSE programs RELATIVE ${FOLDER} ${FOLDER}/*.tp)
file(READ ${FOLDER}/README.md page)
string(REGEX MATCHALL "\\([a-z_0-9/]+[.]tp\\)" links "${page}")
string(REGEX REPLACE "[()]" "" links "${links}")
list(SORT links)
list(SORT programs)
if(NOT programs STREQUAL links)
  message(FATAL_ERROR "the files:\n${programs}\nthe links of programs/README.md:\n${links}")
endif()
