# Plants faults in a copy of the table and a few files, and expects check.cmake to find each.
# Run: cmake -DROOT=<source> -DSCRATCH=<folder> -P faults.cmake
cmake_minimum_required(VERSION 3.25)

function(expect found file text)
  file(REMOVE_RECURSE ${SCRATCH})
  file(COPY ${ROOT}/docs/architecture.md DESTINATION ${SCRATCH}/docs)
  file(WRITE ${SCRATCH}/include/tplimit/ir/program.hpp "#include <vector>\n#include \"tplimit/support/ids.hpp\"\n")
  file(WRITE ${SCRATCH}/${file} "${text}\n")
  execute_process(COMMAND ${CMAKE_COMMAND} -DROOT=${SCRATCH} -P ${ROOT}/tests/layering/check.cmake
    RESULT_VARIABLE code OUTPUT_QUIET ERROR_QUIET)
  if((found AND code EQUAL 0) OR (NOT found AND NOT code EQUAL 0))
    message(SEND_ERROR "${file} with ${text}: exit code ${code}")
  endif()
endfunction()

expect(NO src/ir/a.cpp "#include \"tplimit/support/ids.hpp\"")
expect(NO src/ir/a.cpp "#include <tplimit/math/normals.hpp>")
expect(YES src/ir/a.cpp "#include \"tplimit/driver/driver.hpp\"")
expect(YES src/ir/a.cpp "#include <tplimit/driver/driver.hpp>")
expect(YES src/ir/a.cpp "#  include \"engines/block.hpp\"")
expect(YES src/gpu/a.cpp "#include <vector>")
expect(YES include/tplimit/gpu/a.hpp "#include <vector>")
