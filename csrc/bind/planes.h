// Reads the description of tensors that Python hands over: integers only.
#pragma once

#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "shared/stage.h"

namespace cldfast {

inline int64_t integer(PyObject* tuple, Py_ssize_t i) {
  const int64_t value = PyLong_AsLongLong(PyTuple_GET_ITEM(tuple, i));
  if (value == -1 && PyErr_Occurred()) throw pybind11::error_already_set();
  return value;
}

// Numbers that describe one tensor: pointer, planes, dtype, and the strides of batch, plane, channel
// and inner position, in elements.
constexpr Py_ssize_t FIELDS = 7;

// Writes down the planes of each tensor in a flat tuple of FIELDS integers a tensor; `before` are there.
inline int read_planes(const pybind11::tuple& tensors, Plane* planes, int before = 0) {
  PyObject* tuple = tensors.ptr();
  const Py_ssize_t size = PyTuple_GET_SIZE(tuple);
  if (size % FIELDS != 0) throw std::invalid_argument("a tensor is described by 7 integers");
  int count = 0;
  for (Py_ssize_t i = 0; i < size; i += FIELDS) {
    char* data = reinterpret_cast<char*>(integer(tuple, i));
    const int64_t number = integer(tuple, i + 1);
    const int64_t code = integer(tuple, i + 2);
    if (code < 0 || code > 3) throw std::invalid_argument("unknown dtype code " + std::to_string(code));
    if (number < 0 || number > MAX_PLANES - before - count) {
      throw std::invalid_argument("at most " + std::to_string(MAX_PLANES) + " planes");
    }
    const Dtype dtype = static_cast<Dtype>(code);
    const int64_t bytes = code == 0 ? 4 : code == 1 ? 8 : 2;
    for (int64_t p = 0; p < number; ++p) {
      planes[count++] = {data + p * integer(tuple, i + 4) * bytes, integer(tuple, i + 3),
                         integer(tuple, i + 5), integer(tuple, i + 6), dtype};
    }
  }
  return count;
}

}  // namespace cldfast
