// Python's view of the core: integers for pointers, strides and sizes; no torch, no numpy.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bind/arguments.h"
#include "cpu/levels.h"
#include "cpu/run.h"
#include "cpu/threads.h"

namespace py = pybind11;
using namespace cldfast;

namespace {

Table make_table(uintptr_t coefficients, uintptr_t octaves, int64_t count, int64_t terms, int64_t stride,
                 double end, uint64_t used) {
  require(stride % 8 == 0 && stride > 0, "a table holds whole vectors of 8 entries");
  require(terms > 0 && count > 0 && count <= MOST_OCTAVES, "a table has some terms and octaves");
  return {reinterpret_cast<const double*>(coefficients), reinterpret_cast<const int64_t*>(octaves),
          count, terms, stride, end, used};
}

void check_entries(const Table& table, int64_t entries) {
  require(entries <= table.stride, "the table holds fewer entries");
}

// Takes matrices from a table, if there is one, and finds the used columns. False where a time lies outside
// the table.
bool place_matrices(Call& call, const MatrixShape& weights, uintptr_t table, uintptr_t times) {
  if (!table) {
    call.used = weights.used_columns();
    return true;
  }
  call.table = reinterpret_cast<const Table*>(table);
  call.times = reinterpret_cast<const double*>(times);
  check_entries(*call.table, weights.rows * weights.columns);
  call.used = call.table->used & ((uint64_t(1) << weights.columns) - 1);
  return covers_all(*call.table, call.times, call.rows);
}

// A short call keeps the interpreter's lock, because releasing it would take longer.
template <class Body>
void run(const Call& call, const Body& body) {
  if (call.pairs() < SERIAL_PAIRS) {
    body();
  } else {
    py::gil_scoped_release release;
    body();
  }
}

bool stage(const py::tuple& shape, const py::tuple& inputs, const py::tuple& outputs,
           const py::tuple& weights, uintptr_t table, uintptr_t times, const py::object& noise,
           int threads, const std::string& level) {
  const MatrixShape matrices(weights);
  StageArgs args = read_stage(shape, inputs, outputs, matrices, noise);
  require(matrices.count == args.rows || (matrices.count == 1 && !table),
          "weights must hold 1 matrix, or one for each row");
  if (!place_matrices(args, matrices, table, times)) return false;
  if (!table && matrices.count == 1) matrices.check_finite();
  const Kernels& kernels = kernels_for(level);
  run(args, [&] { run_stage(args, kernels, threads); });
  return true;
}

bool residual(const py::tuple& shape, const py::tuple& outputs, const py::tuple& offsets,
              const py::tuple& gradients, const py::tuple& weights, uintptr_t table, uintptr_t times,
              uintptr_t scale, double factor, uintptr_t loss, bool reduce, int threads,
              const std::string& level) {
  const MatrixShape matrices(weights);
  ResidualArgs args = read_residual(shape, outputs, offsets, gradients, matrices,
                                    reinterpret_cast<const double*>(scale), factor);
  if (!place_matrices(args, matrices, table, times)) return false;
  const Kernels& kernels = kernels_for(level);
  run(args, [&] { run_residual(args, kernels, threads, reinterpret_cast<void*>(loss), reduce); });
  return true;
}

bool matrices(uintptr_t address, uintptr_t t, int64_t rows, int64_t entries, uintptr_t to, int threads,
              const std::string& level) {
  const Table& table = *reinterpret_cast<const Table*>(address);
  check_entries(table, entries);
  const double* times = reinterpret_cast<const double*>(t);
  if (!covers_all(table, times, rows)) return false;
  run_matrices(table, kernels_for(level), times, rows, entries, reinterpret_cast<double*>(to), threads);
  return true;
}

}  // namespace

PYBIND11_MODULE(_core, module) {
  using namespace py::literals;
  module.doc() = "Fused kernels of cldfast. Pointers and strides only: it knows no tensor library.";
  module.attr("SERIAL_PAIRS") = SERIAL_PAIRS;
  show_limits(module);
  module.def("levels", &levels, "Instruction sets that this machine runs, slowest first.");
  module.def(
      "info",
      [] {
        return py::dict("level"_a = levels().back(), "levels"_a = levels(), "threading"_a = threading());
      },
      "The level in use, the levels that run here, and \"gomp\" or \"serial\" threads.");
  py::class_<Table>(module, "Table", "A table of matrices over time; others take its address.")
      .def(py::init(&make_table), "coefficients"_a, "octaves"_a, "count"_a, "terms"_a, "stride"_a,
           "end"_a, "used"_a)
      .def_property_readonly("address",
                             [](const Table& table) { return reinterpret_cast<uintptr_t>(&table); });
  module.def("stage", &stage,
             "One stage: out planes = weights * in planes. shape: rows, channels, inner positions, dtype "
             "code. A tensor is 7 integers: pointer, planes, dtype code, and the strides of batch, plane, "
             "channel and inner position. weights: pointer, matrices, rows, columns; a table and times "
             "may stand in their place, and False comes back, and nothing is written, where a time lies "
             "outside. noise: seed, first pair, stage index and stream, or None.");
  module.def("residual", &residual,
             "The sum over each row, or over all, of |weights * in planes|^2, and its gradient with "
             "respect to the first tensors' planes. Tensors, weights and result as in `stage`.");
  module.def("matrices", &matrices,
             "The matrices of a table at float64 times by address; False where a time lies outside.");
  module.def(
      "covers",
      [](uintptr_t table, uintptr_t t, int64_t rows) {
        return covers_all(*reinterpret_cast<const Table*>(table), reinterpret_cast<const double*>(t),
                          rows);
      },
      "Whether a table covers all of the float64 times at an address.");
  module.def(
      "philox_words",
      [](const py::tuple& noise, int64_t count, uintptr_t radius, uintptr_t angle,
         const std::string& level) {
        kernels_for(level).words(read_noise(noise), count, reinterpret_cast<uint32_t*>(radius),
                                 reinterpret_cast<uint32_t*>(angle));
      },
      "noise"_a, "count"_a, "radius"_a, "angle"_a, "level"_a = "",
      "Words of a run of pairs, to two uint32 arrays given by address.");
}
