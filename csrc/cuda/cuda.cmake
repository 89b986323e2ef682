# The module of CUDA kernels, _cuda: a build of its own, so that nothing it needs can fail the core's.
include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  message(FATAL_ERROR "no CUDA compiler that works was found")
endif()

# Machine code for the generations that this nvcc knows, and PTX for what comes after.
execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --list-gpu-arch OUTPUT_VARIABLE known)
set(architectures "")
foreach(number 80 90 100 120)
  if(known MATCHES "compute_${number}[^0-9]")
    list(APPEND architectures ${number})
  endif()
endforeach()
set(CLDFAST_CUDA_ARCHITECTURES "${architectures}" CACHE STRING
    "CUDA architectures; the last one's PTX is kept too")
list(TRANSFORM CLDFAST_CUDA_ARCHITECTURES APPEND "-real" OUTPUT_VARIABLE CMAKE_CUDA_ARCHITECTURES)
list(GET CLDFAST_CUDA_ARCHITECTURES -1 newest)
list(APPEND CMAKE_CUDA_ARCHITECTURES "${newest}-virtual")
enable_language(CUDA)
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
# Static: no CUDA library is needed to load the module, and none of another version is met.
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)

pybind11_add_module(_cuda MODULE NO_EXTRAS
  bind/cuda.cpp cuda/calls.cpp cuda/stage.cu cuda/stage_fast.cu cuda/residual.cu cuda/table.cu)
string(REPLACE ";" " " names "${CLDFAST_CUDA_ARCHITECTURES}")
target_compile_definitions(_cuda PRIVATE "CLDFAST_ARCHITECTURES=\"${names}\"")
target_include_directories(_cuda PRIVATE ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
# No product is fused unless the source says so, as on the host.
target_compile_options(_cuda PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:--fmad=false --threads=2>)
