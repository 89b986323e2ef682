// Moves runs of coordinates between planes of any dtype and layout and dense scratch of the compute
// type.
#pragma once

#include "cpu/simd.h"
#include "shared/call.h"

namespace cldfast::CLDFAST_LEVEL {
namespace {

// Pairs worked on at a time: the planes and normals of a block (2 KiB each in float) stay in L1.
constexpr int64_t BLOCK = 512;

// Noisy images of more channels are not walked by pixel: normals are made channel by channel.
constexpr int64_t PIXEL_CHANNELS = 16;

// A run of flat pairs: `count` coordinates from (row, column) on, crossing rows where it is longer.
struct Run {
  int64_t row, column, count;
};

template <class T>
constexpr Dtype dtype_of() {
  return sizeof(T) == 4 ? Dtype::float32 : Dtype::float64;
}

inline int64_t shorter(int64_t a, int64_t b) { return a < b ? a : b; }

// One plane with its shape, and how much of it is dense.
struct View {
  char* data;
  int64_t batch_stride, channel_stride, inner_stride;
  int64_t inner, width;  // width = D
  Dtype dtype;
  bool dense_rows;  // a row's coordinates lie side by side
  bool flat;        // all rows too

  View() = default;

  View(const Plane& plane, const Call& call)
      : data(static_cast<char*>(plane.data)),
        batch_stride(plane.batch_stride),
        channel_stride(plane.channel_stride),
        inner_stride(plane.inner_stride),
        inner(call.inner),
        width(call.width()),
        dtype(plane.dtype) {
    dense_rows = (inner == 1 || inner_stride == 1) && (call.channels == 1 || channel_stride == inner);
    flat = dense_rows && (batch_stride == width || call.rows == 1);
  }

  // Whether the run's coordinates lie side by side.
  bool is_dense(const Run& run) const {
    return flat || (dense_rows && run.column + run.count <= width);
  }

  // The address of a dense run.
  void* start(const Run& run) const {
    return data + (run.row * batch_stride + run.column) * size_of(dtype);
  }
};

enum class Way { in, out };

template <Way way, class E>
CLDFAST_HD void move_dense(E* plane, E* local, int64_t count) {
  if (way == Way::in) {
    memcpy(local, plane, static_cast<size_t>(count) * sizeof(E));
  } else {
    memcpy(plane, local, static_cast<size_t>(count) * sizeof(E));
  }
}

template <Way way, class E>
void move_strided(E* plane, int64_t stride, E* local, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    if (way == Way::in) {
      local[i] = plane[i * stride];
    } else {
      plane[i * stride] = local[i];
    }
  }
}

// Dense units whose width the compiler knows, so that a unit of two floats is one 8-byte move.
template <Way way, int WIDTH, class E>
void move_units(E* plane, int64_t stride, E* local, int64_t units) {
  for (int64_t i = 0; i < units; ++i) move_dense<way>(plane + i * stride, local + i * WIDTH, WIDTH);
}

template <Way way, class E>
void move_units(E* plane, int64_t stride, E* local, int64_t units, int64_t width) {
  switch (width) {
    case 1: return move_strided<way>(plane, stride, local, units);
    case 2: return move_units<way, 2>(plane, stride, local, units);
    case 3: return move_units<way, 3>(plane, stride, local, units);
    case 4: return move_units<way, 4>(plane, stride, local, units);
    case 5: return move_units<way, 5>(plane, stride, local, units);
    case 6: return move_units<way, 6>(plane, stride, local, units);
    case 7: return move_units<way, 7>(plane, stride, local, units);
    case 8: return move_units<way, 8>(plane, stride, local, units);
    default:
      for (int64_t i = 0; i < units; ++i) move_dense<way>(plane + i * stride, local + i * width, width);
  }
}

// Cuts `count` coordinates from `begin` on into units of `width`: part(unit, from, count, done) takes
// those of an incomplete unit, whole(unit, units, done) any number of complete ones.
template <class Part, class Whole>
void by_units(int64_t width, int64_t begin, int64_t count, const Part& part, const Whole& whole) {
  int64_t unit = begin / width, done = 0;
  const int64_t from = begin % width;
  if (from != 0) {
    done = shorter(width - from, count);
    part(unit++, from, done, int64_t(0));
  }
  const int64_t units = (count - done) / width;
  whole(unit, units, done);
  done += units * width;
  if (done < count) part(unit + units, int64_t(0), count - done, done);
}

// Part of the row at `row`, any strides.
template <Way way, class E>
void move_in_row(const View& view, E* row, int64_t column, E* local, int64_t count) {
  if (view.dense_rows) return move_dense<way>(row + column, local, count);
  const auto part = [&](int64_t channel, int64_t position, int64_t positions, int64_t done) {
    E* plane = row + channel * view.channel_stride + position * view.inner_stride;
    if (view.inner_stride == 1) {
      move_dense<way>(plane, local + done, positions);
    } else {
      move_strided<way>(plane, view.inner_stride, local + done, positions);
    }
  };
  by_units(view.inner, column, count, part, [&](int64_t channel, int64_t channels, int64_t done) {
    if (view.inner_stride == 1) {
      E* plane = row + channel * view.channel_stride;
      return move_units<way>(plane, view.channel_stride, local + done, channels, view.inner);
    }
    for (int64_t i = 0; i < channels; ++i) part(channel + i, 0, view.inner, done + i * view.inner);
  });
}

// Any run between a plane and `local`, element by element of E's size, no conversion.
template <Way way, class E>
void move_run(const View& view, const Run& run, E* local) {
  E* const first = reinterpret_cast<E*>(view.data) + run.row * view.batch_stride;
  if (run.column + run.count <= view.width) {
    return move_in_row<way>(view, first, run.column, local, run.count);
  }
  const auto part = [&](int64_t row, int64_t column, int64_t count, int64_t done) {
    move_in_row<way>(view, first + row * view.batch_stride, column, local + done, count);
  };
  by_units(view.width, run.column, run.count, part, [&](int64_t row, int64_t rows, int64_t done) {
    if (view.dense_rows) {
      E* plane = first + row * view.batch_stride;
      return move_units<way>(plane, view.batch_stride, local + done, rows, view.width);
    }
    for (int64_t i = 0; i < rows; ++i) part(row + i, 0, view.width, done + i * view.width);
  });
}

// The 16-bit types round to nearest even, and a NaN stays one.
struct BFloat16 {
  uint16_t bits;

  BFloat16() = default;
  explicit BFloat16(float value) {
    const uint32_t wide = bits_of(value);
    const uint32_t rounded = (wide + 0x7FFFu + ((wide >> 16) & 1u)) >> 16;
    bits = static_cast<uint16_t>(value != value ? 0x7FC0u : rounded);
  }
  operator float() const { return float_of(static_cast<uint32_t>(bits) << 16); }
};

struct Float16 {
  uint16_t bits;

  Float16() = default;

  // Adding 2^13 times the value's power of two, at least that of the smallest normal float16, makes the
  // float adder drop exactly the bits that float16 has not.
  explicit Float16(float value) {
    const uint32_t wide = bits_of(value);
    const uint32_t sign = (wide >> 16) & 0x8000u;
    const uint32_t magnitude = wide & 0x7FFFFFFFu;
    const uint32_t smallest = 0x38800000u;  // 2^-14
    const uint32_t exponent = (magnitude < smallest ? smallest : magnitude) & 0x7F800000u;
    const float room = float_of(exponent + (13u << 23));
    const float sum = float_of(magnitude) + room;
    // The sum's low mantissa bits count units of float16's last place.
    const uint32_t units = bits_of(sum) - bits_of(room);
    const uint32_t finite = units + ((exponent - smallest) >> 13);
    const uint32_t overflow = magnitude > 0x7F800000u ? 0x7E00u : 0x7C00u;
    bits = static_cast<uint16_t>(sign | (magnitude >= 0x47800000u ? overflow : finite));
  }

  // float16 has 5 exponent bits and 10 mantissa bits. Moving them to a float's place scales the value by
  // 2^(15 - 127), which one exact product undoes, subnormals included.
  operator float() const {
    const uint32_t sign = (bits & 0x8000u) << 16;
    const float scaled = float_of((bits & 0x7FFFu) << 13) * 0x1p112f;
    const uint32_t special = bits_of(scaled) | 0x7F800000u;  // infinity or NaN
    return float_of(sign | ((bits & 0x7C00u) == 0x7C00u ? special : bits_of(scaled)));
  }
};

// Calls body with a null pointer to elements of a dtype.
template <class Body>
void with_type(Dtype dtype, const Body& body) {
  switch (dtype) {
    case Dtype::float32: return body(static_cast<float*>(nullptr));
    case Dtype::float64: return body(static_cast<double*>(nullptr));
    case Dtype::bfloat16: return body(static_cast<BFloat16*>(nullptr));
    case Dtype::float16: return body(static_cast<Float16*>(nullptr));
  }
}

template <class To, class From>
void convert(const From* from, To* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = static_cast<To>(from[i]);
}

// The run as dense T: where it lies if it can be used there, else `scratch`, filled. `own` is room for
// the run in the plane's own dtype.
template <class T>
const T* gather(const View& view, const Run& run, T* scratch, void* own) {
  const bool dense = view.is_dense(run);
  if (dense && view.dtype == dtype_of<T>()) return static_cast<const T*>(view.start(run));
  with_type(view.dtype, [&](auto* type) {
    using E = std::remove_pointer_t<decltype(type)>;
    if constexpr (std::is_same_v<E, T>) return move_run<Way::in>(view, run, scratch);
    E* const elements = static_cast<E*>(dense ? view.start(run) : own);
    if (!dense) move_run<Way::in>(view, run, elements);
    convert(elements, scratch, run.count);
  });
  return scratch;
}

// Writes a dense run of T to a plane.
template <class T>
void scatter(const View& view, const Run& run, T* values, void* own) {
  with_type(view.dtype, [&](auto* type) {
    using E = std::remove_pointer_t<decltype(type)>;
    if constexpr (std::is_same_v<E, T>) return move_run<Way::out>(view, run, values);
    const bool dense = view.is_dense(run);
    E* const elements = static_cast<E*>(dense ? view.start(run) : own);
    convert(values, elements, run.count);
    if (!dense) move_run<Way::out>(view, run, elements);
  });
}

}  // namespace
}  // namespace cldfast::CLDFAST_LEVEL
