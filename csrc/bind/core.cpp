// Python's view of the core: integers for pointers, strides and sizes; no torch, no numpy.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <chrono>

#include "bind/arguments.h"
#include "cpu/run.h"
#include "cpu/threads.h"

namespace py = pybind11;
using namespace cldfast;

namespace {

// Addresses of coefficients and octaves, the numbers of octaves, terms and entries, the end, and the mask of
// used columns.
Table read_table(const py::tuple& table) {
  require(PyTuple_GET_SIZE(table.ptr()) == 7, "a table is described by 7 numbers");
  const Table made = {pointer<const double>(table, 0), pointer<const int64_t>(table, 1),
                      integer(table, 2), integer(table, 3), integer(table, 4),
                      real(table, 5), static_cast<uint64_t>(integer(table, 6))};
  require(made.stride % 8 == 0 && made.stride > 0, "a table holds whole vectors of 8 entries");
  require(made.terms > 0 && made.count > 0 && made.count <= MOST_OCTAVES,
          "a table has some terms and octaves");
  return made;
}

// Takes matrices from a table, if there is one, and finds the used columns. False where a time lies outside
// the table.
bool place_matrices(Call& call, const MatrixShape& weights, const py::object& described, uintptr_t times,
                    Table& table) {
  if (described.is_none()) {
    call.used = weights.used_columns();
    return true;
  }
  table = read_table(as_tuple(described));
  call.table = &table;
  call.times = reinterpret_cast<const double*>(times);
  require(weights.rows * weights.columns <= table.stride, "the table holds fewer entries");
  call.used = table.used & ((uint64_t(1) << weights.columns) - 1);
  return covers_all(table, call.times, call.rows);
}

// Lets Python look at its signals from time to time, so that an interrupt ends a long call.
class Signals {
 public:
  void operator()() {
    const Clock::time_point now = Clock::now();
    if (now - last_ < std::chrono::milliseconds(100)) return;
    last_ = now;
    py::gil_scoped_acquire acquire;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
  }

 private:
  using Clock = std::chrono::steady_clock;
  Clock::time_point last_ = Clock::now();
};

// A short call keeps the interpreter's lock, because releasing it would take longer; it has no pauses.
template <class Body>
void run(const Call& call, const Body& body) {
  if (call.pairs() < SERIAL_PAIRS) {
    body([] {});
  } else {
    py::gil_scoped_release release;
    body(Signals());
  }
}

bool stage(const py::tuple& shape, const py::tuple& inputs, const py::tuple& outputs,
           const py::tuple& weights, const py::object& described, uintptr_t times,
           const py::object& noise, int threads, const std::string& level) {
  const MatrixShape matrices(weights);
  Table table;
  StageArgs args = read_stage(shape, inputs, outputs, matrices, noise);
  require(matrices.count == args.rows || (matrices.count == 1 && described.is_none()),
          "weights must hold 1 matrix, or one for each row");
  if (!place_matrices(args, matrices, described, times, table)) return false;
  if (!args.table && matrices.count == 1) matrices.check_finite();
  const Kernels& kernels = kernels_for(level);
  run(args, [&](const Pause& pause) { run_stage(args, kernels, threads, pause); });
  return true;
}

bool residual(const py::tuple& shape, const py::tuple& outputs, const py::tuple& offsets,
              const py::tuple& gradients, const py::tuple& weights, const py::object& described,
              uintptr_t times, uintptr_t scale, double factor, uintptr_t loss, bool reduce, int threads,
              const std::string& level) {
  const MatrixShape matrices(weights);
  Table table;
  ResidualArgs args = read_residual(shape, outputs, offsets, gradients, matrices,
                                    reinterpret_cast<const double*>(scale), factor);
  if (!place_matrices(args, matrices, described, times, table)) return false;
  const Kernels& kernels = kernels_for(level);
  run(args, [&](const Pause& pause) {
    run_residual(args, kernels, threads, reinterpret_cast<void*>(loss), reduce, pause);
  });
  return true;
}

bool matrices(const py::tuple& described, uintptr_t t, int64_t rows, int64_t entries, uintptr_t to,
              int threads, const std::string& level) {
  const Table table = read_table(described);
  require(entries <= table.stride, "the table holds fewer entries");
  const double* times = reinterpret_cast<const double*>(t);
  if (!covers_all(table, times, rows)) return false;
  run_matrices(table, kernels_for(level), times, rows, entries, reinterpret_cast<double*>(to), threads,
               [] {});
  return true;
}

}  // namespace

PYBIND11_MODULE(_core, module) {
  using namespace py::literals;
  expect_forks();
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
      [](const py::tuple& table, uintptr_t t, int64_t rows) {
        return covers_all(read_table(table), reinterpret_cast<const double*>(t), rows);
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
