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

inline double real(const py::tuple& tuple, Py_ssize_t i) {
  const double value = PyFloat_AsDouble(PyTuple_GET_ITEM(tuple.ptr(), i));
  if (value == -1.0 && PyErr_Occurred()) throw py::error_already_set();
  return value;
}

// The operations of cldfast.kernels say more of what a user got wrong, and say it before.
inline void require(bool fits, const char* what) {
  if (!fits) throw std::invalid_argument(what);
}

inline py::tuple as_tuple(const py::object& object) {
  require(PyTuple_Check(object.ptr()), "tables and noise are described by tuples");
  return py::reinterpret_borrow<py::tuple>(object);
}

inline void require_four(const py::tuple& tuple) {
  require(PyTuple_GET_SIZE(tuple.ptr()) == 4, "a shape, a noise address and weights are 4 integers each");
}

// Rows, channels, inner positions, and the code of the state's dtype.
inline void read_shape(Call& call, const py::tuple& shape) {
  require_four(shape);
  call.rows = integer(shape, 0);
  call.channels = integer(shape, 1);
  call.inner = integer(shape, 2);
  call.compute = static_cast<Dtype>(integer(shape, 3));
  require(call.compute == Dtype::float32 || call.compute == Dtype::float64,
          "the state must be float32 or float64");
  require(call.rows > 0 && call.channels > 0 && call.inner > 0,
          "a call needs rows, channels and positions");
}

// Lists the planes of tensors after the first `before` planes; returns how many were added. A tensor is 7
// integers: pointer, planes, dtype code, and the strides of batch, plane, channel and inner position, in
// elements.
inline int read_planes(const py::tuple& tensors, Plane* planes, int before = 0) {
  constexpr Py_ssize_t FIELDS = 7;
  const Py_ssize_t size = PyTuple_GET_SIZE(tensors.ptr());
  require(size % FIELDS == 0, "a tensor is described by 7 integers");
  int count = before;
  for (Py_ssize_t i = 0; i < size; i += FIELDS) {
    char* data = pointer<char>(tensors, i);
    const int64_t number = integer(tensors, i + 1), code = integer(tensors, i + 2);
    require(code >= 0 && code <= 3, "unknown dtype code");
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
  require_four(noise);
  return {static_cast<uint64_t>(integer(noise, 0)), static_cast<uint64_t>(integer(noise, 1)),
          static_cast<uint32_t>(integer(noise, 2)), static_cast<uint32_t>(integer(noise, 3))};
}

// Matrices as Python describes them: pointer, number, rows and columns.
struct MatrixShape {
  const double* entries;
  int64_t count, rows, columns;

  explicit MatrixShape(const py::tuple& weights) {
    require_four(weights);
    entries = pointer<const double>(weights, 0);
    count = integer(weights, 1);
    rows = integer(weights, 2);
    columns = integer(weights, 3);
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
      require(std::isfinite(entries[i]), "weights must be finite, got NaN or infinity");
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
  if (args.addressed_noise) args.noise = read_noise(as_tuple(noise));
  require(args.results == weights.rows && args.columns() == weights.columns,
          "the weights do not fit the planes that are read, written and made of noise");
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
  require(args.outputs > 0 && weights.rows > 0 && weights.rows <= MOST_PLANES &&
              args.inputs == weights.columns && weights.count == args.rows &&
              (args.results == 0 || args.results == args.outputs),
          "the weights do not fit the planes of output, offset and gradient");
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
