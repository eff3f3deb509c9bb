# Compiles the headers that most of a project's libraries include once, instead of once for each of their sources:
# the libraries' code stays the same, and takes half the time. LLVM has no switch for it.
#
# project() includes this file (CMAKE_PROJECT_INCLUDE); it acts when the whole project is known. Lists to be set:
#   PRECOMPILED_HEADERS    the headers, as after #include
#   PRECOMPILED_NEEDS      targets that generate what the headers include
#   PRECOMPILED_LIBRARIES  the global property that lists the project's libraries
#   PRECOMPILED_EXCEPT     the sources whose own names clash with the headers'

function(use_precompiled_headers)
    file(WRITE ${CMAKE_BINARY_DIR}/precompiled.cpp "")
    add_library(precompiled OBJECT ${CMAKE_BINARY_DIR}/precompiled.cpp)
    llvm_update_compile_flags(precompiled)
    target_precompile_headers(precompiled PRIVATE ${PRECOMPILED_HEADERS})
    add_dependencies(precompiled ${PRECOMPILED_NEEDS})

    get_property(libraries GLOBAL PROPERTY ${PRECOMPILED_LIBRARIES})
    foreach(library IN LISTS libraries)
        # Some libraries collect the objects of another target, and some have no sources at all.
        if(TARGET obj.${library})
            set(library obj.${library})
        endif()
        get_target_property(sources ${library} SOURCES)
        # A library with sources in C would want the headers in C, too.
        if(NOT sources OR sources MATCHES "\\.c(;|$)")
            continue()
        endif()
        target_precompile_headers(${library} REUSE_FROM precompiled)
        get_target_property(folder ${library} SOURCE_DIR)
        foreach(source IN LISTS sources)
            get_filename_component(name ${source} NAME)
            if(name IN_LIST PRECOMPILED_EXCEPT)
                cmake_path(ABSOLUTE_PATH source BASE_DIRECTORY ${folder})
                set_property(SOURCE ${source} TARGET_DIRECTORY ${library} PROPERTY SKIP_PRECOMPILE_HEADERS ON)
            endif()
        endforeach()
    endforeach()
endfunction()

cmake_language(DEFER DIRECTORY ${CMAKE_SOURCE_DIR} CALL use_precompiled_headers)
