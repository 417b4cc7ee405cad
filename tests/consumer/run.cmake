# Installs the build into a scratch prefix, then configures, builds and runs the consumer against it.
foreach(command
    "${CMAKE_COMMAND};--install;${BUILD};--prefix;${SCRATCH}/prefix"
    "${CMAKE_COMMAND};-S;${ROOT}/tests/consumer;-B;${SCRATCH}/build;-G;Ninja;-DCMAKE_PREFIX_PATH=${SCRATCH}/prefix;-DCMAKE_BUILD_TYPE=Release"
    "${CMAKE_COMMAND};--build;${SCRATCH}/build"
    "${SCRATCH}/build/consumer")
  execute_process(COMMAND ${command} RESULT_VARIABLE status OUTPUT_VARIABLE output ERROR_VARIABLE output)
  if(NOT status EQUAL 0)
    message(FATAL_ERROR "${command}\n${output}")
  endif()
endforeach()
message(STATUS "${output}")
