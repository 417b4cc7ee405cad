# Programs against theory and against each other: gradients, limits, laws.
tplimit_test(gradient_test LABEL property LINK tplimit::driver tplimit::math
  SOURCES property/gradient_test.cpp)
