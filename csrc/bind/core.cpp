// Python's view of the core: integers for pointers, strides and sizes; no torch, no numpy.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cmath>
#include <stdexcept>
#include <string>

#include "bind/planes.h"
#include "shared/philox.h"
#include "cpu/residual.h"
#include "cpu/stage.h"
#include "cpu/table.h"
#include "cpu/threads.h"

namespace py = pybind11;

namespace {

cldfast::Table make_table(uintptr_t coefficients, uintptr_t octaves, int64_t count, int64_t terms,
                          int64_t stride, double end, uint64_t used) {
  if (stride % 8 != 0 || stride < 8) {
    throw std::invalid_argument("a table holds whole vectors of 8 entries, got " + std::to_string(stride));
  }
  if (terms < 1 || count < 1 || count >= 1000) {
    throw std::invalid_argument("a table has some terms and 1 to 999 octaves, got " + std::to_string(terms) +
                                " and " + std::to_string(count));
  }
  return {reinterpret_cast<const double*>(coefficients), reinterpret_cast<const int64_t*>(octaves),
          count, terms, stride, end, used};
}

void check_entries(const cldfast::Table& table, int64_t entries) {
  if (entries > table.stride) {
    throw std::invalid_argument("the table holds " + std::to_string(table.stride) + " entries, not " +
                                std::to_string(entries));
  }
}

// The columns that some matrix has something in, as bits.
uint64_t used_columns(const double* weights, int64_t matrices, int64_t rows, int64_t columns) {
  uint64_t used = 0;
  for (int64_t j = 0; j < columns; ++j) {
    bool zero = true;
    for (int64_t i = 0; zero && i < matrices * rows; ++i) zero = weights[i * columns + j] == 0.0;
    used |= static_cast<uint64_t>(!zero) << j;
  }
  return used;
}

// Where the (matrices, rows, columns) numbers are: an array, or a table at so many times. False where
// a time lies outside the table.
template <class Args>
bool read_matrices(Args& args, uintptr_t weights, uintptr_t table, uintptr_t times,
                   int64_t matrices, int64_t rows, int64_t columns) {
  args.weights = reinterpret_cast<const double*>(weights);
  args.table = reinterpret_cast<const cldfast::Table*>(table);
  args.times = reinterpret_cast<const double*>(times);
  if (!args.table) {
    args.used = used_columns(args.weights, matrices, rows, columns);
    return true;
  }
  check_entries(*args.table, rows * columns);
  args.used = args.table->used;
  return cldfast::covers_all(*args.table, args.times, matrices);
}

// Calls shorter than handing the interpreter over keep it.
template <class Body>
void run(int64_t pairs, const Body& body) {
  if (pairs < cldfast::SERIAL_PAIRS) {
    body();
  } else {
    py::gil_scoped_release release;
    body();
  }
}

bool stage(const py::tuple& inputs, const py::tuple& outputs, const py::tuple& copies, int64_t rows,
           int64_t channels, int64_t inner, int compute, uintptr_t weights, uintptr_t table,
           uintptr_t times, int64_t matrices, int64_t weight_rows, int64_t weight_columns,
           bool addressed_noise, uint64_t seed, uint64_t first_pair, uint32_t stage_index,
           uint32_t stream, int threads, const std::string& level) {
  cldfast::StageArgs args;
  args.rows = rows;
  args.channels = channels;
  args.inner = inner;
  args.compute = static_cast<cldfast::Dtype>(compute);
  args.inputs = cldfast::read_planes(inputs, args.input);
  args.outputs = cldfast::read_planes(outputs, args.output);
  args.copies = cldfast::read_planes(copies, args.copy);
  for (int i = 0; i < args.copies; ++i) args.copy_of[i] = i;
  args.matrices = matrices;
  args.addressed_noise = addressed_noise;
  args.seed = seed;
  args.first_pair = first_pair;
  args.stage_index = stage_index;
  args.stream = stream;
  if (compute != 0 && compute != 1) throw std::invalid_argument("the state must be float32 or float64");
  if (matrices != rows && (matrices != 1 || table)) {
    throw std::invalid_argument("weights must hold 1 or " + std::to_string(rows) + " matrices, got " +
                                std::to_string(matrices));
  }
  if (args.outputs != weight_rows || args.inputs + (addressed_noise ? 2 : 0) != weight_columns ||
      args.copies > args.outputs) {
    throw std::invalid_argument(
        "weights of shape (" + std::to_string(weight_rows) + ", " + std::to_string(weight_columns) +
        ") do not fit " + std::to_string(args.inputs) + " input planes" +
        (addressed_noise ? " and 2 of noise" : "") + ", " + std::to_string(args.outputs) + " outputs");
  }
  if (!read_matrices(args, weights, table, times, matrices, weight_rows, weight_columns)) return false;
  if (!table && matrices == 1) {
    for (int64_t i = 0; i < weight_rows * weight_columns; ++i) {
      if (!std::isfinite(args.weights[i])) {
        throw std::invalid_argument("weights must be finite, got NaN or infinity");
      }
    }
  }
  const cldfast::Kernels& kernels = cldfast::kernels_for(level);
  run(rows * channels * inner, [&] { cldfast::run_stage(args, kernels, threads); });
  return true;
}

bool residual(const py::tuple& outputs, const py::tuple& others, const py::tuple& gradients, int64_t rows,
              int64_t channels, int64_t inner, int compute, uintptr_t weights,
              uintptr_t table, uintptr_t times, int64_t residuals, int64_t weight_columns,
              uintptr_t scale, double factor, bool addressed_noise, uint64_t seed, uint64_t first_pair,
              uint32_t stage_index, uint32_t stream, uintptr_t loss, bool reduce, int threads,
              const std::string& level) {
  cldfast::ResidualArgs args;
  args.rows = rows;
  args.channels = channels;
  args.inner = inner;
  args.compute = static_cast<cldfast::Dtype>(compute);
  args.residuals = static_cast<int>(residuals);
  args.outputs = cldfast::read_planes(outputs, args.input);
  args.inputs = args.outputs + cldfast::read_planes(others, args.input + args.outputs, args.outputs);
  const int written = cldfast::read_planes(gradients, args.gradient);
  args.wants_gradient = written > 0;
  args.scale = reinterpret_cast<const double*>(scale);
  args.factor = factor;
  args.addressed_noise = addressed_noise;
  args.seed = seed;
  args.first_pair = first_pair;
  args.stage_index = stage_index;
  args.stream = stream;
  if (compute != 0 && compute != 1) throw std::invalid_argument("the state must be float32 or float64");
  if (rows < 1 || channels < 1 || inner < 1 || args.outputs < 1 || residuals < 1 ||
      residuals > cldfast::MAX_PLANES || args.inputs + (addressed_noise ? 2 : 0) != weight_columns ||
      (args.wants_gradient && written != args.outputs)) {
    throw std::invalid_argument(
        "weights of shape (" + std::to_string(residuals) + ", " + std::to_string(weight_columns) +
        ") do not fit " + std::to_string(args.outputs) + " output planes, " +
        std::to_string(args.inputs - args.outputs) + " others" +
        (addressed_noise ? " and 2 of noise" : "") + ", " + std::to_string(written) + " gradients");
  }
  if (!read_matrices(args, weights, table, times, rows, residuals, weight_columns)) return false;
  const cldfast::Kernels& kernels = cldfast::kernels_for(level);
  void* target = reinterpret_cast<void*>(loss);
  run(rows * channels * inner, [&] { cldfast::run_residual(args, kernels, threads, target, reduce); });
  return true;
}

bool matrices(uintptr_t address, uintptr_t t, int64_t rows, int64_t entries, uintptr_t to, int threads,
              const std::string& level) {
  const cldfast::Table& table = *reinterpret_cast<const cldfast::Table*>(address);
  check_entries(table, entries);
  const double* times = reinterpret_cast<const double*>(t);
  if (!cldfast::covers_all(table, times, rows)) return false;
  cldfast::run_matrices(table, cldfast::kernels_for(level), times, rows, entries,
                        reinterpret_cast<double*>(to), threads);
  return true;
}

py::tuple philox4x32(const py::tuple& counter, uint64_t key) {
  const auto word = [&](size_t i) { return counter[i].cast<uint32_t>(); };
  const auto words = cldfast::scalar::philox4x32(
      cldfast::scalar::Words<uint64_t>{word(0), word(1), word(2), word(3)}, key);
  const auto low = [](uint64_t wide) { return static_cast<uint32_t>(wide); };
  return py::make_tuple(low(words.w0), low(words.w1), low(words.w2), low(words.w3));
}

template <class T>
void scalar_normals(uintptr_t radius, uintptr_t angle, int64_t count, uintptr_t z_x, uintptr_t z_v) {
  using Word = typename cldfast::scalar::Lane<T>::Unsigned;
  for (int64_t i = 0; i < count; ++i) {
    cldfast::scalar::box_muller<T>(Word(reinterpret_cast<const uint32_t*>(radius)[i]),
                                   Word(reinterpret_cast<const uint32_t*>(angle)[i]),
                                   reinterpret_cast<T*>(z_x)[i], reinterpret_cast<T*>(z_v)[i]);
  }
}

}  // namespace

PYBIND11_MODULE(_core, module) {
  using namespace py::literals;
  module.doc() = "Fused kernels of cldfast. Pointers and strides only: it knows no tensor library.";
  module.attr("SERIAL_PAIRS") = cldfast::SERIAL_PAIRS;
  module.attr("MAX_PLANES") = cldfast::MAX_PLANES;
  module.def("levels", &cldfast::levels, "Instruction sets that this machine runs, slowest first.");
  module.def(
      "info",
      [] {
        return py::dict("level"_a = cldfast::levels().back(), "levels"_a = cldfast::levels(),
                        "threading"_a = cldfast::threading());
      },
      "The level in use, the levels that run here, and \"gomp\" or \"serial\" threads.");
  py::class_<cldfast::Table>(module, "Table", "A table of matrices over time; others take its address.")
      .def(py::init(&make_table), "coefficients"_a, "octaves"_a, "count"_a, "terms"_a, "stride"_a,
           "end"_a, "used"_a)
      .def_property_readonly("address", [](const cldfast::Table& table) {
        return reinterpret_cast<uintptr_t>(&table);
      });
  module.def("stage", &stage,
             "One stage: out planes = weights * in planes. A tensor is 7 integers: pointer, planes, "
             "dtype code, and the strides of batch, plane, channel and inner position. Weights are an "
             "array, or a table and times; False, and nothing is written, where a time lies outside.");
  module.def("residual", &residual,
             "The sum over each row, or over all, of |weights * in planes|^2, and its gradient with "
             "respect to the first tensors' planes. Tensors, weights and result as in `stage`.");
  module.def("matrices", &matrices,
             "The matrices of a table at float64 times by address; False where a time lies outside.");
  module.def(
      "covers",
      [](uintptr_t table, uintptr_t t, int64_t rows) {
        return cldfast::covers_all(*reinterpret_cast<const cldfast::Table*>(table),
                                   reinterpret_cast<const double*>(t), rows);
      },
      "Whether a table covers all of the float64 times at an address.");
  module.def("philox4x32", &philox4x32, "counter"_a, "key"_a,
             "Four words of one counter (4 words) and a 64-bit key.");
  module.def(
      "philox_words",
      [](uint64_t seed, uint64_t first_pair, int64_t count, uint32_t stage_index, uint32_t stream,
         uintptr_t radius, uintptr_t angle, const std::string& level) {
        cldfast::kernels_for(level).words(seed, first_pair, count, stage_index, stream,
                                          reinterpret_cast<uint32_t*>(radius),
                                          reinterpret_cast<uint32_t*>(angle));
      },
      "seed"_a, "first_pair"_a, "count"_a, "stage_index"_a, "stream"_a, "radius"_a, "angle"_a,
      "level"_a = "", "Words of a run of pairs, to two uint32 arrays given by address.");
  module.def(
      "normals",
      [](uint64_t seed, uint64_t first_pair, int64_t count, uint32_t stage_index, uint32_t stream,
         bool wide, uintptr_t z_x, uintptr_t z_v, const std::string& level) {
        cldfast::kernels_for(level).normals(
            seed, first_pair, count, stage_index, stream,
            wide ? cldfast::Dtype::float64 : cldfast::Dtype::float32, reinterpret_cast<void*>(z_x),
            reinterpret_cast<void*>(z_v));
      },
      "seed"_a, "first_pair"_a, "count"_a, "stage_index"_a, "stream"_a, "wide"_a, "z_x"_a, "z_v"_a,
      "level"_a = "", "Normals of a run of pairs, to two arrays of float32, or float64 if `wide`.");
  module.def(
      "normals_from_words",
      [](uintptr_t radius, uintptr_t angle, int64_t count, bool wide, uintptr_t z_x, uintptr_t z_v) {
        if (wide) {
          scalar_normals<double>(radius, angle, count, z_x, z_v);
        } else {
          scalar_normals<float>(radius, angle, count, z_x, z_v);
        }
      },
      "radius"_a, "angle"_a, "count"_a, "wide"_a, "z_x"_a, "z_v"_a,
      "The scalar form, which device code shares: normals from two uint32 arrays of words.");
}
