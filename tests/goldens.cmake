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

# What commands print, byte by byte; TPLIMIT_UPDATE_GOLDEN=1 rewrites the expected texts.
function(tplimit_output_test name code)
  add_test(NAME output_${name} COMMAND ${CMAKE_COMMAND} -DTPLIMIT=$<TARGET_FILE:tplimit_cli> "-DARGS=${ARGN}" -DCODE=${code}
    -DFOLDER=${CMAKE_CURRENT_SOURCE_DIR}/golden/cli -DEXPECTED=${CMAKE_CURRENT_SOURCE_DIR}/golden/cli/${name}.expected -P ${CMAKE_CURRENT_SOURCE_DIR}/golden/compare_output.cmake)
  set_tests_properties(output_${name} PROPERTIES LABELS golden TIMEOUT 60)
endfunction()
tplimit_output_test(check 6 "check network.tp")
tplimit_output_test(check_depth 0 "check ../../../programs/architectures/residual_depth.tp")
tplimit_output_test(explain_parametrization 0 "explain network.tp --parametrization")
tplimit_output_test(explain 0 "explain two_steps.tp")
tplimit_output_test(explain_latex 0 "explain two_steps.tp --format latex --steps 1..2")
tplimit_output_test(explain_numbers 0 "explain bare.tp --numbers")
tplimit_output_test(explain_json 0 "explain bare.tp --numbers --format json")
# Each pass, as it leaves one program.
foreach(pass lower erase-identities cancel-terms leading-order)
  string(REPLACE "-" "_" name dump_${pass})
  tplimit_output_test(${name} 0 "run two_steps.tp --quiet --particles 512 --randomisations 2 --dump-after ${pass}")
endforeach()
tplimit_output_test(dump_graded 0 "run kernel_regime.tp --quiet --given out=1 --particles 512 --randomisations 2 --dump-after graded")
tplimit_output_test(dump_linearise 0 "run two_steps.tp --quiet --lazy --particles 512 --randomisations 2 --dump-after linearise")
tplimit_output_test(dump_decouple 0 "run two_steps.tp --quiet --no-correction --particles 512 --randomisations 2 --dump-after decouple")
tplimit_output_test(dump_at_width 0 "simulate two_steps.tp --quiet --width 64 --dump-after at-width")
tplimit_output_test(compare_corrections 0 "compare linear.tp --widths 16,64,256 --seeds 2000 --matrices dense --fit-corrections")

tplimit_output_test(compare_nngp 0 "compare kernel_outputs.tp --widths 64,256,1024 --seeds 64")
tplimit_output_test(compare_two_values 0 "compare two_values.tp --widths 64,256,1024 --seeds 16")
tplimit_output_test(compare_vanishing 0 "compare vanishing.tp --widths 64,256,1024 --seeds 8")
tplimit_output_test(compare_transformer 0 "compare transformer.tp --widths 256,1024 --particles 2048")
tplimit_output_test(std 0 "std rmsnorm attention")
tplimit_output_test(std_layout 0 "fmt --check ../../../lib/std.tp")
tplimit_output_test(compare_given 0 "compare kernel_regime.tp --widths 64,256,1024 --seeds 32 --given out=1")
tplimit_output_test(compare_draws 5 "compare kernel_regime.tp --widths 64,256,1024 --seeds 8 --draws 16")
tplimit_output_test(compare_random_scalar 0 "compare random_scalar.tp --widths 64,256,1024 --seeds 64")
tplimit_output_test(kernels_of_random_scalars 0 "run kernel_of_bias.tp")
tplimit_output_test(sweep 0 "sweep sweep.tp --over eta=0.1,0.5,2 --over parametrization=mup,ntk,standard --best loss --particles 1024 --randomisations 4")
tplimit_output_test(sweep_compare 0 "sweep linear.tp --over eta=0.2,0.3 --widths 16,64,256 --seeds 16 --best out --highest")
tplimit_output_test(extrapolate 0 "extrapolate depth.tp --in L=4,8,16,32")
tplimit_output_test(extrapolate_falling 0 "extrapolate linear.tp --in eta=0.4,0.2,0.1 --order 2")
tplimit_output_test(compare_against 0 "compare linear.tp --against linear_16.npz --against linear_64.npz --against linear_256.csv")
tplimit_output_test(coordcheck 0 "coordcheck network.tp --widths 64,256,1024 --seeds 8 --steps 3 --particles 1024 --randomisations 4")
tplimit_output_test(coordcheck_standard 0 "coordcheck sweep.tp --set parametrization=standard --widths 64,256,1024 --seeds 4 --steps 2 --particles 512 --randomisations 2")
tplimit_output_test(explain_base_width 0 "explain network.tp --parametrization --width 4096 --base-width 256")
tplimit_output_test(gallery 0 "gallery")
add_test(NAME streams COMMAND ${CMAKE_COMMAND} -DTPLIMIT=$<TARGET_FILE:tplimit_cli> -DFOLDER=${CMAKE_CURRENT_SOURCE_DIR}/golden/cli
  -DSCRATCH=${CMAKE_CURRENT_BINARY_DIR}/streams -P ${CMAKE_CURRENT_SOURCE_DIR}/golden/streams.cmake)
set_tests_properties(streams PROPERTIES LABELS golden TIMEOUT 120)
add_test(NAME sweep_rows COMMAND ${CMAKE_COMMAND} -DTPLIMIT=$<TARGET_FILE:tplimit_cli> -DFOLDER=${CMAKE_CURRENT_SOURCE_DIR}/golden/cli
  -DSCRATCH=${CMAKE_CURRENT_BINARY_DIR}/sweep_rows -P ${CMAKE_CURRENT_SOURCE_DIR}/golden/sweep_rows.cmake)
set_tests_properties(sweep_rows PROPERTIES LABELS golden TIMEOUT 120)
add_test(NAME compare_limit COMMAND ${CMAKE_COMMAND} -DTPLIMIT=$<TARGET_FILE:tplimit_cli> -DFOLDER=${CMAKE_CURRENT_SOURCE_DIR}/golden/cli
  -DSCRATCH=${CMAKE_CURRENT_BINARY_DIR}/compare_limit -P ${CMAKE_CURRENT_SOURCE_DIR}/golden/compare_limit.cmake)
set_tests_properties(compare_limit PROPERTIES LABELS golden TIMEOUT 120)

add_test(NAME memory_estimates COMMAND ${CMAKE_COMMAND} -DTPLIMIT=$<TARGET_FILE:tplimit_cli> -DPROGRAMS=${PROJECT_SOURCE_DIR}/programs
  -DOUT=${CMAKE_CURRENT_BINARY_DIR}/memory_estimates.json -P ${CMAKE_CURRENT_SOURCE_DIR}/golden/memory_estimates.cmake)
set_tests_properties(memory_estimates PROPERTIES LABELS numeric TIMEOUT 300 RUN_SERIAL ON)

# More directions than coordinates: bases that span everything.
add_test(NAME narrow_lazy_network COMMAND tplimit_cli simulate ${PROJECT_SOURCE_DIR}/programs/start/mlp_mup.tp --width 300 --matrices lazy --seeds 2 --quiet)
set_tests_properties(narrow_lazy_network PROPERTIES LABELS golden TIMEOUT 60)
