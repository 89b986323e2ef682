// Reads the tuples of integers that Python passes, and checks that they fit together.
#pragma once

#include <pybind11/pybind11.h>

#include <cmath>
#include <stdexcept>
#include <string>

#include "shared/operations.h"

namespace cldfast {

namespace py = pybind11;

// The low 64 bits of an integer: an address, a stride or a seed.
inline int64_t integer(const py::tuple& tuple, Py_ssize_t i) {
  const unsigned long long value = PyLong_AsUnsignedLongLongMask(PyTuple_GET_ITEM(tuple.ptr(), i));
  if (value == ~0ull && PyErr_Occurred()) throw py::error_already_set();
  return static_cast<int64_t>(value);
}

template <class T>
T* pointer(const py::tuple& tuple, Py_ssize_t i) {
  return reinterpret_cast<T*>(integer(tuple, i));
}

inline void check_size(const py::tuple& tuple, Py_ssize_t size, const char* what) {
  if (PyTuple_GET_SIZE(tuple.ptr()) != size) {
    throw std::invalid_argument(std::string(what) + " takes " + std::to_string(size) +
                                " integers, got " + std::to_string(PyTuple_GET_SIZE(tuple.ptr())));
  }
}

// Rows, channels, inner positions, and the code of the state's dtype.
inline void read_shape(Call& call, const py::tuple& shape) {
  check_size(shape, 4, "a shape");
  call.rows = integer(shape, 0);
  call.channels = integer(shape, 1);
  call.inner = integer(shape, 2);
  call.compute = static_cast<Dtype>(integer(shape, 3));
  if (call.compute != Dtype::float32 && call.compute != Dtype::float64) {
    throw std::invalid_argument("the state must be float32 or float64");
  }
  if (call.rows < 1 || call.channels < 1 || call.inner < 1) {
    throw std::invalid_argument("a call needs rows, channels and positions, got " +
                                std::to_string(call.rows) + ", " + std::to_string(call.channels) + ", " +
                                std::to_string(call.inner));
  }
}

// Lists the planes of tensors after the first `before` planes; returns how many were added. A tensor is 7
// integers: pointer, planes, dtype code, and the strides of batch, plane, channel and inner position, in
// elements.
inline int read_planes(const py::tuple& tensors, Plane* planes, int before = 0) {
  constexpr Py_ssize_t FIELDS = 7;
  const Py_ssize_t size = PyTuple_GET_SIZE(tensors.ptr());
  if (size % FIELDS != 0) throw std::invalid_argument("a tensor is described by 7 integers");
  int count = before;
  for (Py_ssize_t i = 0; i < size; i += FIELDS) {
    char* data = pointer<char>(tensors, i);
    const int64_t number = integer(tensors, i + 1), code = integer(tensors, i + 2);
    if (code < 0 || code > 3) throw std::invalid_argument("unknown dtype code " + std::to_string(code));
    if (number < 0 || number > MOST_PLANES - count) {
      throw std::invalid_argument("at most " + std::to_string(MOST_PLANES) + " planes");
    }
    const Dtype dtype = static_cast<Dtype>(code);
    for (int64_t p = 0; p < number; ++p) {
      planes[count++] = {data + p * integer(tensors, i + 4) * size_of(dtype), integer(tensors, i + 3),
                         integer(tensors, i + 5), integer(tensors, i + 6), dtype};
    }
  }
  return count - before;
}

// Seed, flat index of the first pair, stage index and stream.
inline NoiseAddress read_noise(const py::tuple& noise) {
  check_size(noise, 4, "a noise address");
  return {static_cast<uint64_t>(integer(noise, 0)), static_cast<uint64_t>(integer(noise, 1)),
          static_cast<uint32_t>(integer(noise, 2)), static_cast<uint32_t>(integer(noise, 3))};
}

// Matrices as Python describes them: pointer, number, rows and columns.
struct MatrixShape {
  const double* entries;
  int64_t count, rows, columns;

  explicit MatrixShape(const py::tuple& weights) {
    check_size(weights, 4, "an array of weights");
    entries = pointer<const double>(weights, 0);
    count = integer(weights, 1);
    rows = integer(weights, 2);
    columns = integer(weights, 3);
  }

  std::string misfit(const Call& call) const {
    return "weights of shape (" + std::to_string(rows) + ", " + std::to_string(columns) + ") do not fit " +
           std::to_string(call.inputs) + " input planes";
  }

  // Bit j: some matrix has a number other than 0 in column j.
  uint64_t used_columns() const {
    uint64_t used = 0;
    for (int64_t j = 0; j < columns; ++j) {
      bool zero = true;
      for (int64_t i = 0; zero && i < count * rows; ++i) zero = entries[i * columns + j] == 0.0;
      used |= static_cast<uint64_t>(!zero) << j;
    }
    return used;
  }

  // Throws unless all entries of the first matrix are finite.
  void check_finite() const {
    for (int64_t i = 0; i < rows * columns; ++i) {
      if (!std::isfinite(entries[i])) {
        throw std::invalid_argument("weights must be finite, got NaN or infinity");
      }
    }
  }
};

// The arguments of a stage. noise: None where the last two inputs are normals.
inline StageArgs read_stage(const py::tuple& shape, const py::tuple& inputs, const py::tuple& outputs,
                            const MatrixShape& weights, const py::object& noise) {
  StageArgs args = {};
  read_shape(args, shape);
  args.inputs = read_planes(inputs, args.input);
  args.results = read_planes(outputs, args.result);
  args.weights = weights.entries;
  args.matrices = weights.count;
  args.addressed_noise = !noise.is_none();
  if (args.addressed_noise) args.noise = read_noise(py::reinterpret_borrow<py::tuple>(noise));
  if (args.results != weights.rows || args.columns() != weights.columns) {
    throw std::invalid_argument(weights.misfit(args) + (args.addressed_noise ? " and 2 of noise" : "") +
                                ", " + std::to_string(args.results) + " outputs");
  }
  return args;
}

inline ResidualArgs read_residual(const py::tuple& shape, const py::tuple& outputs,
                                  const py::tuple& offsets, const py::tuple& gradients,
                                  const MatrixShape& weights, const double* scale, double factor) {
  ResidualArgs args = {};
  read_shape(args, shape);
  args.outputs = read_planes(outputs, args.input);
  args.inputs = args.outputs + read_planes(offsets, args.input, args.outputs);
  args.results = read_planes(gradients, args.result);
  args.weights = weights.entries;
  args.residuals = static_cast<int>(weights.rows);
  args.scale = scale;
  args.factor = factor;
  if (args.outputs < 1 || weights.rows < 1 || weights.rows > MOST_PLANES ||
      args.inputs != weights.columns || weights.count != args.rows ||
      (args.results > 0 && args.results != args.outputs)) {
    throw std::invalid_argument(weights.misfit(args) + ", of which " + std::to_string(args.outputs) +
                                " outputs, and " + std::to_string(args.results) + " gradients");
  }
  return args;
}

inline void show_limits(py::module_& module) {
  module.attr("MOST_PLANES") = MOST_PLANES;
  module.attr("MOST_COLUMNS") = MOST_COLUMNS;
  module.attr("MOST_OCTAVES") = MOST_OCTAVES;
  module.attr("LAUNCH_OUTPUTS") = LAUNCH_OUTPUTS;
  module.attr("MOST_OVERWRITTEN") = MOST_OVERWRITTEN;
}

}  // namespace cldfast
