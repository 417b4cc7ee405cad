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
tplimit_test(optimisers_test LABEL numeric LINK tplimit::driver
  SOURCES numeric/optimisers_test.cpp)
tplimit_test(classification_test LABEL numeric LINK tplimit::driver
  SOURCES numeric/classification_test.cpp)
tplimit_test(long_training_test LABEL numeric LINK tplimit::driver
  SOURCES numeric/long_training_test.cpp)
tplimit_test(graded_test LABEL numeric LINK tplimit::driver
  SOURCES numeric/graded_test.cpp)
tplimit_test(scores_test LABEL numeric LINK tplimit::driver tplimit::report
  SOURCES numeric/scores_test.cpp)
tplimit_test(kernel_regime_test LABEL numeric LINK tplimit::driver
  SOURCES numeric/kernel_regime_test.cpp)
tplimit_test(widths_test LABEL numeric LINK tplimit::driver
  SOURCES numeric/widths_test.cpp)
tplimit_test(networks_test LABEL numeric LINK tplimit::driver tplimit::report
  SOURCES numeric/networks_test.cpp)
tplimit_test(model_kernels_test LABEL numeric LINK tplimit::driver
  SOURCES numeric/model_kernels_test.cpp)
tplimit_test(linear_algebra_test LABEL numeric LINK tplimit::driver
  SOURCES numeric/linear_algebra_test.cpp)
tplimit_test(kernels_test LABEL numeric LINK tplimit::driver Boost::headers
  SOURCES numeric/kernels_test.cpp)
tplimit_test(unusual_programs_test LABEL property LINK tplimit::driver tplimit::math
  SOURCES property/unusual_programs_test.cpp)
tplimit_test(front_test LABEL numeric LINK tplimit::driver
  SOURCES numeric/front_test.cpp)
tplimit_test(kinks_test LABEL numeric LINK tplimit::driver
  SOURCES numeric/kinks_test.cpp)
tplimit_test(singular_covariance_test LABEL numeric LINK tplimit::driver tplimit::math
  SOURCES numeric/singular_covariance_test.cpp)
tplimit_test(quadrature_kinds_test LABEL numeric LINK tplimit::driver
  SOURCES numeric/quadrature_kinds_test.cpp)
tplimit_test(unresolved_test LABEL numeric LINK tplimit::driver
  SOURCES numeric/unresolved_test.cpp)
tplimit_test(lost_states_test LABEL unit LINK tplimit::driver
  SOURCES unit/driver/lost_states_test.cpp)
tplimit_test(stop_test LABEL unit LINK tplimit::driver tplimit::parallel TBB::tbb
  SOURCES unit/driver/stop_test.cpp)
tplimit_test(counting_test LABEL numeric LINK tplimit::driver
  SOURCES numeric/counting_test.cpp)
tplimit_test(depth_test LABEL numeric LINK tplimit::driver
  SOURCES numeric/depth_test.cpp)
tplimit_test(compare_words_test LABEL numeric LINK tplimit::report
  SOURCES numeric/compare_words_test.cpp)
tplimit_test(compare_networks_test LABEL numeric LINK tplimit::driver tplimit::report
  SOURCES numeric/compare_networks_test.cpp)
tplimit_test(budget_test LABEL numeric LINK tplimit::driver tplimit::moments
  SOURCES numeric/budget_test.cpp)
# Against data that tests/numeric/references makes without tplimit.
tplimit_test(reference_networks_test LABEL numeric LINK tplimit::driver nlohmann_json::nlohmann_json
  SOURCES numeric/reference_networks_test.cpp)
tplimit_test(reference_kernels_test LABEL numeric LINK tplimit::driver nlohmann_json::nlohmann_json
  SOURCES numeric/reference_kernels_test.cpp)

# Editors: the server by messages and as a process, the grammar against the words of tplimit.
tplimit_test(lsp_test LABEL unit LINK tplimit::lsp tplimit::lower tplimit::syntax nlohmann_json::nlohmann_json
  SOURCES unit/lsp/server_test.cpp)

enable_language(C)
pkg_check_modules(TREE_SITTER REQUIRED IMPORTED_TARGET tree-sitter)
tplimit_test(tree_sitter_test LABEL golden LINK PkgConfig::TREE_SITTER tplimit::syntax
  SOURCES editors/tree_sitter_test.cpp ${PROJECT_SOURCE_DIR}/editors/tree-sitter/src/parser.c ${PROJECT_SOURCE_DIR}/editors/tree-sitter/src/scanner.c)
set_source_files_properties(${PROJECT_SOURCE_DIR}/editors/tree-sitter/src/parser.c PROPERTIES COMPILE_OPTIONS -w)  # generated
target_include_directories(tree_sitter_test PRIVATE ${PROJECT_SOURCE_DIR}/editors/tree-sitter/src)

# Pages in headless Chromium, where it is installed; editors.
find_program(TPLIMIT_PYTHON3 python3)
if(TPLIMIT_PYTHON3)
  add_test(NAME pages COMMAND ${TPLIMIT_PYTHON3} ${CMAKE_CURRENT_SOURCE_DIR}/pages/pages_test.py $<TARGET_FILE:tplimit_cli> ${PROJECT_SOURCE_DIR}/programs)
  set_tests_properties(pages PROPERTIES LABELS pages TIMEOUT 600 SKIP_RETURN_CODE 77)
  foreach(test protocol grammar)
    add_test(NAME editors_${test} COMMAND ${TPLIMIT_PYTHON3} ${CMAKE_CURRENT_SOURCE_DIR}/editors/${test}_test.py $<TARGET_FILE:tplimit_cli> ${PROJECT_SOURCE_DIR})
    set_tests_properties(editors_${test} PROPERTIES LABELS golden TIMEOUT 120 ENVIRONMENT PYTHONDONTWRITEBYTECODE=1)
  endforeach()
endif()

# What users install: the Debian package, the manual, completions of shells.
add_test(NAME package COMMAND ${CMAKE_CURRENT_SOURCE_DIR}/package/package.sh ${PROJECT_BINARY_DIR} ${CMAKE_CURRENT_BINARY_DIR}/package ${PROJECT_SOURCE_DIR}/programs)
add_test(NAME manual COMMAND ${CMAKE_CURRENT_SOURCE_DIR}/package/manual.sh $<TARGET_FILE:tplimit_cli> ${CMAKE_CURRENT_BINARY_DIR}/manual)
add_test(NAME completions COMMAND ${CMAKE_CURRENT_SOURCE_DIR}/package/completions.sh $<TARGET_FILE:tplimit_cli> ${CMAKE_CURRENT_SOURCE_DIR}/golden/cli)
set_tests_properties(package manual completions PROPERTIES LABELS golden TIMEOUT 120 SKIP_RETURN_CODE 77)
