# Warnings and code generation for our own targets only; nothing of it is installed.
add_library(tplimit_options INTERFACE)
target_compile_options(tplimit_options INTERFACE
  -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wsign-conversion -Wold-style-cast -Wno-missing-field-initializers
  -Wno-maybe-uninitialized -Wno-uninitialized -Wno-restrict  # g++ 12 cries wolf: AVX-512 headers (PR 105593), std::string (PR 105651)
  -ffp-contract=off  # results must not depend on which products a compiler fuses
  $<IF:$<BOOL:${TPLIMIT_ARCH}>,-march=${TPLIMIT_ARCH},$<$<BOOL:${TPLIMIT_NATIVE}>:-march=native>>
  $<$<BOOL:${TPLIMIT_WARNINGS_AS_ERRORS}>:-Werror>)
target_compile_definitions(tplimit_options INTERFACE EIGEN_DONT_PARALLELIZE EIGEN_MAX_ALIGN_BYTES=64)
set(TPLIMIT_MODULES "" CACHE INTERNAL "")

# Compiled with -O1, in two thirds of the time of -O3: for what runs once per program and not once per particle.
function(tplimit_runs_once target)
  target_compile_options(${target} PRIVATE $<$<CONFIG:Release>:-O1>)
endfunction()

# Files of the module are compiled eight at a time: headers of Eigen, fmt and the standard library take longer to read than
# most files to compile.
function(tplimit_compiles_together target)
  if(TPLIMIT_UNITY)
    set_target_properties(${target} PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 8)
    # To g++ a type of an anonymous namespace outside the main file stands in a header.
    target_compile_options(${target} PRIVATE -Wno-subobject-linkage)
  endif()
endfunction()

# tplimit_module(name [HEADERS ..] SOURCES .. [PUBLIC ..] [PRIVATE ..])
# A static library tplimit::name from src/name/ with public headers in include/tplimit/name/.
function(tplimit_module name)
  cmake_parse_arguments(arg "" "" "HEADERS;SOURCES;PUBLIC;PRIVATE" ${ARGN})
  set(target tplimit_${name})
  list(TRANSFORM arg_SOURCES PREPEND src/${name}/)
  list(TRANSFORM arg_HEADERS PREPEND include/tplimit/${name}/)
  add_library(${target} STATIC ${arg_SOURCES})
  add_library(tplimit::${name} ALIAS ${target})
  target_sources(${target} PUBLIC FILE_SET HEADERS BASE_DIRS include FILES ${arg_HEADERS})
  target_include_directories(${target} PRIVATE src)
  target_compile_features(${target} PUBLIC cxx_std_20)
  target_link_libraries(${target} PUBLIC ${arg_PUBLIC} PRIVATE ${arg_PRIVATE} $<BUILD_INTERFACE:tplimit_options>)
  set_target_properties(${target} PROPERTIES EXPORT_NAME ${name} VERIFY_INTERFACE_HEADER_SETS ON)
  set(TPLIMIT_MODULES ${TPLIMIT_MODULES} ${target} CACHE INTERNAL "")
endfunction()
