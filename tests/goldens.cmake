# What users are told about their mistakes, byte by byte.
tplimit_test(bad_test LABEL golden LINK tplimit::driver
  SOURCES golden/bad_test.cpp)
target_include_directories(bad_test PRIVATE ${CMAKE_CURRENT_SOURCE_DIR})
tplimit_test(front_end_fuzz_test LABEL property LINK tplimit::driver
  SOURCES property/front_end_fuzz_test.cpp)

# Rewrites tests/golden/bad/*.expected; read the diff before you commit it.
add_custom_target(update-golden
  COMMAND ${CMAKE_COMMAND} -E env TPLIMIT_UPDATE_GOLDEN=1 $<TARGET_FILE:bad_test> --gtest_filter=BadPrograms.AreToldWhatIsWrong
  USES_TERMINAL)
