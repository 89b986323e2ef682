// Python's view of the CUDA kernels: integers for pointers, strides, sizes and streams; no torch.
#include <pybind11/pybind11.h>

#include <cmath>

#include "bind/planes.h"
#include "cuda/residual.h"
#include "cuda/stage.h"
#include "cuda/table.h"

namespace py = pybind11;

namespace {

cldfast::Queue queue_of(int device, uintptr_t stream) {
  return {device, reinterpret_cast<cudaStream_t>(stream)};
}

void stage(const py::tuple& inputs, const py::tuple& outputs, const py::tuple& copies, int64_t rows,
           int64_t channels, int64_t inner, int compute, uintptr_t weights, bool on_device,
           int64_t matrices, int64_t weight_rows, int64_t weight_columns, uintptr_t step,
           uint64_t used, bool addressed_noise, uint64_t seed, uint64_t first_pair,
           uint32_t stage_index, uint32_t stream_id, int device, uintptr_t stream) {
  cldfast::StageArgs args = {};
  args.rows = rows;
  args.channels = channels;
  args.inner = inner;
  args.compute = static_cast<cldfast::Dtype>(compute);
  args.inputs = cldfast::read_planes(inputs, args.input);
  args.outputs = cldfast::read_planes(outputs, args.output);
  args.copies = cldfast::read_planes(copies, args.copy);
  for (int i = 0; i < args.copies; ++i) args.copy_of[i] = i;
  args.weights = reinterpret_cast<const double*>(weights);
  args.matrices = matrices;
  args.addressed_noise = addressed_noise;
  args.seed = seed;
  args.first_pair = first_pair;
  args.stage_index = stage_index;
  args.stream = stream_id;
  if (compute != 0 && compute != 1) throw std::invalid_argument("the state must be float32 or float64");
  if (args.outputs != weight_rows || args.inputs + (addressed_noise ? 2 : 0) != weight_columns ||
      args.copies > args.outputs) {
    throw std::invalid_argument("weights of shape (" + std::to_string(weight_rows) + ", " +
                                std::to_string(weight_columns) + ") do not fit " +
                                std::to_string(args.inputs) + " input planes and " +
                                std::to_string(args.outputs) + " outputs");
  }
  if (on_device ? matrices != 1 && matrices != rows : matrices != 1) {
    throw std::invalid_argument("weights must hold 1 matrix, or one for each row on the device, got " +
                                std::to_string(matrices));
  }
  for (int64_t i = 0; !on_device && i < weight_rows * weight_columns; ++i) {
    if (!std::isfinite(args.weights[i])) {
      throw std::invalid_argument("weights must be finite, got NaN or infinity");
    }
  }
  cldfast::run_stage_cuda(args, on_device ? args.weights : nullptr,
                          reinterpret_cast<const int64_t*>(step), used, queue_of(device, stream));
}

void residual(const py::tuple& outputs, const py::tuple& others, const py::tuple& gradients, int64_t rows,
              int64_t channels, int64_t inner, int compute, uintptr_t weights, int64_t residuals,
              int64_t weight_columns, uint64_t used, uintptr_t scale, double factor,
              bool addressed_noise, uint64_t seed, uint64_t first_pair, uint32_t stage_index,
              uint32_t stream_id, uintptr_t sums, uintptr_t loss, bool reduce, int device, uintptr_t stream) {
  cldfast::ResidualArgs args = {};
  args.rows = rows;
  args.channels = channels;
  args.inner = inner;
  args.compute = static_cast<cldfast::Dtype>(compute);
  args.residuals = static_cast<int>(residuals);
  args.outputs = cldfast::read_planes(outputs, args.input);
  args.inputs = args.outputs + cldfast::read_planes(others, args.input + args.outputs, args.outputs);
  const int written = cldfast::read_planes(gradients, args.gradient);
  args.wants_gradient = written > 0;
  args.weights = reinterpret_cast<const double*>(weights);
  args.used = used;
  args.scale = reinterpret_cast<const double*>(scale);
  args.factor = factor;
  args.addressed_noise = addressed_noise;
  args.seed = seed;
  args.first_pair = first_pair;
  args.stage_index = stage_index;
  args.stream = stream_id;
  args.sums = reinterpret_cast<double*>(sums);
  if (compute != 0 && compute != 1) throw std::invalid_argument("the state must be float32 or float64");
  if (rows < 1 || channels < 1 || inner < 1 || args.outputs < 1 || residuals < 1 ||
      residuals > cldfast::MAX_PLANES || args.inputs + (addressed_noise ? 2 : 0) != weight_columns ||
      (args.wants_gradient && written != args.outputs)) {
    throw std::invalid_argument("weights of shape (" + std::to_string(residuals) + ", " +
                                std::to_string(weight_columns) + ") do not fit " +
                                std::to_string(args.outputs) + " output planes, " +
                                std::to_string(args.inputs - args.outputs) + " others, " +
                                std::to_string(written) + " gradients");
  }
  cldfast::run_residual_cuda(args, reinterpret_cast<void*>(loss), reduce, queue_of(device, stream));
}

}  // namespace

PYBIND11_MODULE(_cuda, module) {
  using namespace py::literals;
  module.doc() = "CUDA kernels of cldfast. Device pointers and strides only; needs no driver to load.";
  py::register_local_exception<cldfast::CudaError>(module, "CudaError", PyExc_RuntimeError);
  module.attr("MAX_PLANES") = cldfast::MAX_PLANES;
  module.attr("CUDART_VERSION") = CUDART_VERSION;
  module.attr("ARCHITECTURES") = CLDFAST_ARCHITECTURES;
  module.def("device_count", &cldfast::device_count, "Devices; CudaError where there is no driver.");
  module.def("check_device", &cldfast::check_device, "device"_a,
             "Architecture of the kernels on a device, 90 for 9.0; CudaError where none runs.");
  module.def("stage", &stage,
             "One stage on a stream. As `_core.stage`, with weights on the host or the device, a step "
             "counter on the device or 0, and a mask of the columns that a table uses.");
  module.def("residual", &residual,
             "Losses and gradients on a stream. As `_core.residual`, all memory on the device, with a "
             "mask of the columns that the weights use and "
             "room for `residual_room` numbers of float64.");
  module.def("residual_room", &cldfast::residual_room, "rows"_a, "channels"_a, "inner"_a, "reduce"_a);
  module.def(
      "matrices",
      [](uintptr_t coefficients, uintptr_t octaves, int64_t count, int64_t terms, int64_t stride, double end,
         uintptr_t times, int64_t rows, int64_t entries, uintptr_t to, int device, uintptr_t stream) {
        const cldfast::Table table = {reinterpret_cast<const double*>(coefficients),
                                      reinterpret_cast<const int64_t*>(octaves), count, terms, stride,
                                      end, 0};
        cldfast::matrices_cuda(table, reinterpret_cast<const double*>(times), rows, entries,
                               reinterpret_cast<double*>(to), queue_of(device, stream));
      },
      "A table's matrices at times that it covers. As `_core.matrices`, all memory on the device.");
  module.def(
      "advance",
      [](uintptr_t step, uintptr_t times, uintptr_t time, int64_t count, bool wide, int device,
         uintptr_t stream) {
        cldfast::advance_cuda(reinterpret_cast<int64_t*>(step), reinterpret_cast<const void*>(times),
                              reinterpret_cast<void*>(time), count, wide, queue_of(device, stream));
      },
      "Adds one to a step counter and fetches that step's time.");
  module.def(
      "philox_words",
      [](uint64_t seed, uint64_t first_pair, int64_t count, uint32_t stage_index, uint32_t stream_id,
         uintptr_t radius, uintptr_t angle, int device, uintptr_t stream) {
        cldfast::philox_words_cuda(seed, first_pair, count, stage_index, stream_id,
                                   reinterpret_cast<uint32_t*>(radius),
                                   reinterpret_cast<uint32_t*>(angle), queue_of(device, stream));
      },
      "Words of a run of pairs, to two uint32 arrays in device memory.");
}
