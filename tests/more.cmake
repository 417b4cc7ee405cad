# Programs against theory and against each other: gradients, limits, laws.
tplimit_test(gradient_test LABEL property LINK tplimit::driver tplimit::math
  SOURCES property/gradient_test.cpp)
tplimit_test(limit_against_networks_test LABEL property LINK tplimit::driver tplimit::math
  SOURCES property/limit_against_networks_test.cpp)
tplimit_test(explain_test LABEL property LINK tplimit::driver tplimit::math
  SOURCES property/explain_test.cpp)
tplimit_test(regime_test LABEL property LINK tplimit::driver
  SOURCES property/regime_test.cpp)
tplimit_test(ablations_test LABEL numeric LINK tplimit::driver
  SOURCES numeric/ablations_test.cpp)
tplimit_test(flow_test LABEL numeric LINK tplimit::driver
  SOURCES numeric/flow_test.cpp)
tplimit_test(long_training_test LABEL numeric LINK tplimit::driver
  SOURCES numeric/long_training_test.cpp)
tplimit_test(graded_test LABEL numeric LINK tplimit::driver
  SOURCES numeric/graded_test.cpp)
tplimit_test(kernel_regime_test LABEL numeric LINK tplimit::driver
  SOURCES numeric/kernel_regime_test.cpp)
tplimit_test(widths_test LABEL numeric LINK tplimit::driver
  SOURCES numeric/widths_test.cpp)
tplimit_test(networks_test LABEL numeric LINK tplimit::driver tplimit::report
  SOURCES numeric/networks_test.cpp)
