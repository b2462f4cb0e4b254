# Finds the LibTorch of a Python interpreter or of a folder, without torch's own find_package(Torch): for torch builds with
# CUDA that one wants a CUDA toolkit, which neither this library nor a program that serves CPU tensors needs.
#
# hps_find_libtorch()  sets in the caller's scope
#   HPS_LIBTORCH_DIR       folder with include/ and lib/
#   HPS_LIBTORCH_VERSION   for instance 2.11.0
# Reads, in this order:
#   TORCH_DIR              cache or environment variable: such a folder (an unpacked libtorch archive, or <site-packages>/torch)
#   HPS_PYTHON             cache or environment variable: a Python interpreter that has torch
#   python3 on PATH        (with an activated virtual environment that is the environment's)
#
# hps_add_libtorch(<target>)  makes an imported target to link programs with (all of LibTorch, headers included).

function(hps_find_libtorch)
  if(NOT TORCH_DIR AND DEFINED ENV{TORCH_DIR})
    set(TORCH_DIR "$ENV{TORCH_DIR}")
  endif()
  if(NOT TORCH_DIR)
    if(NOT HPS_PYTHON AND DEFINED ENV{HPS_PYTHON})
      set(HPS_PYTHON "$ENV{HPS_PYTHON}")
    endif()
    if(NOT HPS_PYTHON)
      find_program(HPS_PYTHON NAMES python3 python)
    endif()
    if(NOT HPS_PYTHON)
      message(FATAL_ERROR "LibTorch: no Python interpreter found. Set HPS_PYTHON to one that has torch, or TORCH_DIR to an "
                          "unpacked libtorch archive.")
    endif()
    # Finds the package without importing it, which would take seconds.
    execute_process(
      COMMAND "${HPS_PYTHON}" -c "import importlib.util as u; print(u.find_spec('torch').submodule_search_locations[0])"
      OUTPUT_VARIABLE TORCH_DIR OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE failed)
    if(failed)
      message(FATAL_ERROR "LibTorch: ${HPS_PYTHON} has no torch. Install it there (pip install torch), or set HPS_PYTHON to "
                          "an interpreter that has it, or TORCH_DIR to an unpacked libtorch archive.")
    endif()
  endif()

  set(version_header "${TORCH_DIR}/include/torch/headeronly/version.h")
  if(NOT EXISTS "${TORCH_DIR}/lib/libtorch_cpu.so" OR NOT EXISTS "${version_header}")
    message(FATAL_ERROR "LibTorch: ${TORCH_DIR} is not a LibTorch of version 2.10 or newer (it lacks lib/libtorch_cpu.so or "
                        "include/torch/headeronly/version.h).")
  endif()
  set(version "")
  foreach(part MAJOR MINOR PATCH)
    file(STRINGS "${version_header}" line REGEX "^#define TORCH_VERSION_${part} [0-9]+")
    string(REGEX REPLACE ".* ([0-9]+).*" "\\1" number "${line}")
    list(APPEND version "${number}")
  endforeach()
  list(JOIN version "." version)
  if(version VERSION_LESS 2.10)
    message(FATAL_ERROR "LibTorch: ${TORCH_DIR} has version ${version}; 2.10 or newer is needed.")
  endif()
  set(HPS_LIBTORCH_DIR "${TORCH_DIR}" PARENT_SCOPE)
  set(HPS_LIBTORCH_VERSION "${version}" PARENT_SCOPE)
endfunction()

function(hps_add_libtorch target)
  hps_find_libtorch()
  set(lib "${HPS_LIBTORCH_DIR}/lib")
  set(include "${HPS_LIBTORCH_DIR}/include")
  add_library(${target} INTERFACE IMPORTED)
  set_target_properties(${target} PROPERTIES
    INTERFACE_INCLUDE_DIRECTORIES "${include};${include}/torch/csrc/api/include"
    INTERFACE_LINK_LIBRARIES "${lib}/libtorch_cpu.so;${lib}/libc10.so")
  # libtorch.so brings the CUDA half of a CUDA build, which no program refers to by name.
  # The libraries that torch itself needs (of CUDA, for instance) are found by torch at run time, not by the linker.
  set_property(TARGET ${target} PROPERTY INTERFACE_LINK_OPTIONS
    "LINKER:--push-state,--no-as-needed,${lib}/libtorch.so,--pop-state" "LINKER:--allow-shlib-undefined")
  # The standard that this torch's headers ask for.
  file(STRINGS "${include}/ATen/ATen.h" needs_cxx20 REGEX "#error C\\+\\+20")
  if(needs_cxx20)
    set_property(TARGET ${target} PROPERTY INTERFACE_COMPILE_FEATURES cxx_std_20)
  else()
    set_property(TARGET ${target} PROPERTY INTERFACE_COMPILE_FEATURES cxx_std_17)
  endif()
  message(STATUS "LibTorch ${HPS_LIBTORCH_VERSION}: ${HPS_LIBTORCH_DIR}")
endfunction()
