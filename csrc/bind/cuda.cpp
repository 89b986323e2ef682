// Python's view of the CUDA kernels: integers for pointers, strides, sizes and streams; no torch.
#include <pybind11/pybind11.h>

#include "bind/arguments.h"
#include "cuda/launch.h"
#include "cuda/run.h"

namespace py = pybind11;
using namespace cldfast;

namespace {

// Device number and stream handle.
Queue read_queue(const py::tuple& queue) {
  require(PyTuple_GET_SIZE(queue.ptr()) == 2, "a queue is 2 integers");
  return {static_cast<int>(integer(queue, 0)), reinterpret_cast<cudaStream_t>(integer(queue, 1))};
}

void stage(const py::tuple& shape, const py::tuple& inputs, const py::tuple& outputs,
           const py::tuple& weights, bool on_device, uintptr_t step, uint64_t used, const py::object& noise,
           const py::tuple& queue, bool fast) {
  const MatrixShape matrices(weights);
  StageArgs args = read_stage(shape, inputs, outputs, matrices, noise);
  require(matrices.count == 1 || (on_device && matrices.count == args.rows),
          "weights must hold 1 matrix, or one for each row on the device");
  if (!on_device) matrices.check_finite();
  args.used = on_device ? used : matrices.used_columns();
  const auto run = fast ? run_stage_fast : run_stage;
  run(args, on_device, reinterpret_cast<const int64_t*>(step), read_queue(queue));
}

void residual(const py::tuple& shape, const py::tuple& outputs, const py::tuple& offsets,
              const py::tuple& gradients, const py::tuple& weights, uintptr_t scale, double factor,
              uintptr_t sums, const py::tuple& queue) {
  ResidualArgs args = read_residual(shape, outputs, offsets, gradients, MatrixShape(weights),
                                    reinterpret_cast<const double*>(scale), factor);
  args.sums = reinterpret_cast<double*>(sums);
  run_residual(args, read_queue(queue));
}

}  // namespace

PYBIND11_MODULE(_cuda, module) {
  using namespace py::literals;
  module.doc() = "CUDA kernels of cldfast. Device pointers and strides only; needs no driver to load.";
  py::register_local_exception<CudaError>(module, "CudaError", PyExc_RuntimeError);
  show_limits(module);
  module.attr("CUDART_VERSION") = CUDART_VERSION;
  module.attr("ARCHITECTURES") = CLDFAST_ARCHITECTURES;
  module.def("device_count", &device_count, "Devices; CudaError where there is no driver.");
  module.def("check_device", &check_device, "device"_a,
             "Architecture of the kernels on a device, 90 for 9.0; CudaError where none runs.");
  module.def("stage", &stage,
             "One stage on a stream. As `_core.stage`, with weights on the host or the device, a step "
             "counter on the device or 0, a mask of the columns that weights on the device use, and whether the "
             "hardware's functions make the normals.");
  module.def("residual", &residual,
             "Losses of the pieces of rows, float64 (rows, pieces), and gradients on a stream. As "
             "`_core.residual`, all memory on the device.");
  module.def("pieces_of", &pieces_of, "width"_a, "Pieces of a row.");
  module.def(
      "matrices",
      [](uintptr_t coefficients, uintptr_t octaves, int64_t count, int64_t terms, int64_t stride,
         double end, uintptr_t times, int64_t rows, int64_t entries, uintptr_t to, const py::tuple& queue) {
        const Table table = {reinterpret_cast<const double*>(coefficients),
                             reinterpret_cast<const int64_t*>(octaves), count, terms, stride, end, 0};
        run_matrices(table, reinterpret_cast<const double*>(times), rows, entries,
                     reinterpret_cast<double*>(to), read_queue(queue));
      },
      "A table's matrices at times that it covers. As `_core.matrices`, all memory on the device.");
  module.def(
      "advance",
      [](uintptr_t step, uintptr_t times, uintptr_t time, int64_t count, bool wide,
         const py::tuple& queue) {
        advance(reinterpret_cast<int64_t*>(step), reinterpret_cast<const void*>(times),
                reinterpret_cast<void*>(time), count, wide, read_queue(queue));
      },
      "Adds one to a step counter and fetches that step's time.");
  module.def(
      "philox_words",
      [](const py::tuple& noise, int64_t count, uintptr_t radius, uintptr_t angle,
         const py::tuple& queue) {
        run_words(read_noise(noise), count, reinterpret_cast<uint32_t*>(radius),
                  reinterpret_cast<uint32_t*>(angle), read_queue(queue));
      },
      "Words of a run of pairs, to two uint32 arrays in device memory.");
}
