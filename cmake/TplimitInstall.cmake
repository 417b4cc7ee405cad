# Two components: the program with what its users read, and the libraries.
include(CMakePackageConfigHelpers)
foreach(module IN LISTS TPLIMIT_MODULES)
  install(TARGETS ${module} EXPORT tplimitTargets
    ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT development
    FILE_SET HEADERS DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} COMPONENT development)
endforeach()
install(EXPORT tplimitTargets NAMESPACE tplimit:: DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/tplimit COMPONENT development)
configure_package_config_file(cmake/tplimitConfig.cmake.in tplimitConfig.cmake
  INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/tplimit)
write_basic_package_version_file(tplimitConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/tplimitConfig.cmake ${CMAKE_CURRENT_BINARY_DIR}/tplimitConfigVersion.cmake
  DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/tplimit COMPONENT development)

# The program writes its manual and its completions.
install(CODE "execute_process(COMMAND ${CMAKE_COMMAND} -DTPLIMIT=$<TARGET_FILE:tplimit_cli> -DFOLDER=${CMAKE_CURRENT_BINARY_DIR}/share
  -DCHANGELOG=${CMAKE_CURRENT_SOURCE_DIR}/CHANGELOG.md -P ${CMAKE_CURRENT_SOURCE_DIR}/cmake/write_manual.cmake COMMAND_ERROR_IS_FATAL ANY)" COMPONENT program)
install(TARGETS tplimit_cli RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR} COMPONENT program)
install(DIRECTORY ${CMAKE_CURRENT_BINARY_DIR}/share/ DESTINATION ${CMAKE_INSTALL_DATADIR} COMPONENT program)
file(READ programs/data/LICENSES.txt TPLIMIT_DATA_LICENSES)
configure_file(cmake/copyright.in "${CMAKE_CURRENT_BINARY_DIR}/copyright" @ONLY)
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS programs/data/LICENSES.txt)
# As in the sources, so that links between pages hold.
install(FILES "${CMAKE_CURRENT_BINARY_DIR}/copyright" README.md LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR} COMPONENT program)
install(DIRECTORY docs programs DESTINATION ${CMAKE_INSTALL_DOCDIR} COMPONENT program)

# A Debian package of the program, by cpack.
set(vector_units "${TPLIMIT_ARCH}")
if(NOT vector_units AND TPLIMIT_NATIVE)
  set(vector_units "the machine that built the package, and no other")
elseif(NOT vector_units)
  set(vector_units "every machine of the architecture")
endif()
set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGE_CONTACT "The developers of tplimit <developers@tplimit.invalid>")
set(CPACK_PACKAGE_DESCRIPTION "From a short program that describes a network, its initialisation and its training, tplimit computes the limit of\
 everything that is reported, with an error bar, and runs the same program at finite widths.\n.\nVector units: ${vector_units}.")
set(CPACK_COMPONENTS_ALL program)
set(CPACK_COMPONENTS_GROUPING ALL_COMPONENTS_IN_ONE)
set(CPACK_DEB_COMPONENT_INSTALL ON)
set(CPACK_STRIP_FILES ON)
set(CPACK_INSTALL_DEFAULT_DIRECTORY_PERMISSIONS OWNER_READ OWNER_WRITE OWNER_EXECUTE GROUP_READ GROUP_EXECUTE WORLD_READ WORLD_EXECUTE)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_SECTION science)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
set(CPACK_PACKAGING_INSTALL_PREFIX /usr)
include(CPack)
