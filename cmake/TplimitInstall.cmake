include(CMakePackageConfigHelpers)
foreach(module IN LISTS TPLIMIT_MODULES)
  install(TARGETS ${module} EXPORT tplimitTargets
    ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR}
    FILE_SET HEADERS DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
endforeach()
install(TARGETS tplimit_cli RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
install(EXPORT tplimitTargets NAMESPACE tplimit:: DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/tplimit)
configure_package_config_file(cmake/tplimitConfig.cmake.in tplimitConfig.cmake
  INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/tplimit)
write_basic_package_version_file(tplimitConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/tplimitConfig.cmake ${CMAKE_CURRENT_BINARY_DIR}/tplimitConfigVersion.cmake
  DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/tplimit)
