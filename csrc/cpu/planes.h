// Moves runs of coordinates between planes of any dtype and layout and dense scratch of the compute
// type.
#pragma once

#include "cpu/simd.h"
#include "shared/stage.h"

namespace cldfast {
namespace CLDFAST_LEVEL {
namespace {

// Pairs worked on at a time: the planes and normals of a block (2 KiB each in float) stay in L1.
constexpr int64_t BLOCK = 512;

// A run of flat pairs: `count` coordinates from (row, column) on, crossing rows where it is longer.
struct Run {
  int64_t row, column, count;
};

template <class T>
constexpr Dtype dtype_of() {
  return sizeof(T) == 4 ? Dtype::float32 : Dtype::float64;
}

// Rows narrower than a vector of floats, each with a matrix of its own, are worked on several at a time.
constexpr int64_t NARROW_ROW = VECTOR_BYTES / 4;

inline int64_t shorter(int64_t a, int64_t b) { return a < b ? a : b; }

// One plane with its shape, and how much of it is dense.
struct View {
  char* data;
  int64_t batch_stride, channel_stride, inner_stride;
  int64_t channels, inner, width;  // width = D
  Dtype dtype;
  bool dense_rows;  // a row's coordinates lie side by side
  bool flat;        // all rows too

  View() = default;

  // Args: rows, channels and inner of a call.
  template <class Args>
  View(const Plane& plane, const Args& args)
      : data(static_cast<char*>(plane.data)),
        batch_stride(plane.batch_stride),
        channel_stride(plane.channel_stride),
        inner_stride(plane.inner_stride),
        channels(args.channels),
        inner(args.inner),
        width(args.channels * args.inner),
        dtype(plane.dtype) {
    dense_rows = (inner == 1 || inner_stride == 1) && (channels == 1 || channel_stride == inner);
    flat = dense_rows && (batch_stride == width || args.rows == 1);
  }

  // Whether the run's coordinates lie side by side.
  bool is_dense(const Run& run) const {
    return flat || (dense_rows && run.column + run.count <= width);
  }

  // Bytes of an element.
  int64_t size() const { return dtype == Dtype::float32 ? 4 : dtype == Dtype::float64 ? 8 : 2; }

  template <class E>
  E* at(int64_t row, int64_t channel, int64_t position) const {
    return reinterpret_cast<E*>(data) + row * batch_stride + channel * channel_stride +
           position * inner_stride;
  }

  // The address of a dense run.
  template <class E>
  E* start(const Run& run) const {
    return reinterpret_cast<E*>(data) + run.row * batch_stride + run.column;
  }
};

// Images of few channels in channels-last memory are taken as rows of one pixel each, in memory order;
// only the normals have to be put in that order.
constexpr int64_t PIXEL_CHANNELS = 16;

template <class Args>
bool pixel_rows(const Plane* planes, int count, const Args& args) {
  if (args.inner == 1 || args.channels == 1 || args.channels > PIXEL_CHANNELS) return false;
  for (int i = 0; i < count; ++i) {
    const Plane& plane = planes[i];
    if (plane.channel_stride != 1 || plane.inner_stride < args.channels) return false;
    if (args.rows > 1 && plane.batch_stride != plane.inner_stride * args.inner) return false;
  }
  return true;
}

inline void to_pixel_rows(Plane* planes, int count) {
  for (int i = 0; i < count; ++i) planes[i].batch_stride = planes[i].inner_stride;
}

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

// Whole rows whose width the compiler knows, so that a row of two floats is one 8-byte move.
template <Way way, int WIDTH, class E>
void move_rows(E* plane, int64_t stride, E* local, int64_t rows) {
  for (int64_t i = 0; i < rows; ++i) move_dense<way>(plane + i * stride, local + i * WIDTH, WIDTH);
}

template <Way way, class E>
void move_rows(E* plane, int64_t stride, E* local, int64_t rows, int64_t width) {
  switch (width) {
    case 1: return move_strided<way>(plane, stride, local, rows);
    case 2: return move_rows<way, 2>(plane, stride, local, rows);
    case 3: return move_rows<way, 3>(plane, stride, local, rows);
    case 4: return move_rows<way, 4>(plane, stride, local, rows);
    case 5: return move_rows<way, 5>(plane, stride, local, rows);
    case 6: return move_rows<way, 6>(plane, stride, local, rows);
    case 7: return move_rows<way, 7>(plane, stride, local, rows);
    case 8: return move_rows<way, 8>(plane, stride, local, rows);
    default:
      for (int64_t i = 0; i < rows; ++i) move_dense<way>(plane + i * stride, local + i * width, width);
  }
}

// Part of one row, any strides.
template <Way way, class E>
void move_in_row(const View& view, Run run, E* local) {
  if (view.dense_rows) return move_dense<way>(view.start<E>(run), local, run.count);
  int64_t channel = run.column / view.inner;
  int64_t position = run.column % view.inner;
  for (int64_t done = 0; done < run.count; ++channel, position = 0) {
    const int64_t count = shorter(view.inner - position, run.count - done);
    E* plane = view.at<E>(run.row, channel, position);
    if (view.inner_stride == 1) {
      move_dense<way>(plane, local + done, count);
    } else {
      move_strided<way>(plane, view.inner_stride, local + done, count);
    }
    done += count;
  }
}

// Any run between a plane and `local`, element by element of E's size, no conversion.
template <Way way, class E>
void move_run(const View& view, Run run, E* local) {
  if (run.column != 0 || run.count < view.width) {
    const int64_t count = shorter(view.width - run.column, run.count);
    move_in_row<way>(view, {run.row, run.column, count}, local);
    run = {run.row + 1, 0, run.count - count};
    local += count;
  }
  const int64_t rows = run.count / view.width;
  if (view.dense_rows) {
    move_rows<way>(view.start<E>(run), view.batch_stride, local, rows, view.width);
  } else {
    for (int64_t i = 0; i < rows; ++i) {
      move_in_row<way>(view, {run.row + i, 0, view.width}, local + i * view.width);
    }
  }
  const int64_t moved = rows * view.width;
  if (moved < run.count) {
    move_in_row<way>(view, {run.row + rows, 0, run.count - moved}, local + moved);
  }
}

inline float float_of_bfloat16(uint16_t half) {
  return bit_cast<float>(static_cast<uint32_t>(half) << 16);
}

// Round to nearest even; a NaN stays one.
inline uint16_t bfloat16_of_float(float value) {
  const uint32_t bits = bit_cast<uint32_t>(value);
  const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  return static_cast<uint16_t>(value != value ? 0x7FC0u : rounded);
}

// float16 has 5 exponent bits and 10 mantissa bits. Moving them to a float's place scales the value by
// 2^(15 - 127), which one exact product undoes, subnormals included.
inline float float_of_float16(uint16_t half) {
  const uint32_t sign = (half & 0x8000u) << 16;
  const uint32_t rest = (half & 0x7FFFu) << 13;
  const float scaled = bit_cast<float>(rest) * 0x1p112f;
  const uint32_t special = bit_cast<uint32_t>(scaled) | 0x7F800000u;  // infinity or NaN
  return bit_cast<float>(sign | ((half & 0x7C00u) == 0x7C00u ? special : bit_cast<uint32_t>(scaled)));
}

// Round to nearest even. Adding 2^13 times the value's power of two, at least that of the smallest
// normal float16, makes the float adder drop exactly the bits that float16 has not.
inline uint16_t float16_of_float(float value) {
  const uint32_t bits = bit_cast<uint32_t>(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7FFFFFFFu;
  const uint32_t smallest = 0x38800000u;  // 2^-14
  const uint32_t exponent = (magnitude < smallest ? smallest : magnitude) & 0x7F800000u;
  const float room = bit_cast<float>(exponent + (13u << 23));
  const float sum = bit_cast<float>(magnitude) + room;
  // The sum's low mantissa bits count units of float16's last place.
  const uint32_t units = bit_cast<uint32_t>(sum) - bit_cast<uint32_t>(room);
  const uint32_t finite = units + ((exponent - smallest) >> 13);
  const uint32_t overflow = magnitude > 0x7F800000u ? 0x7E00u : 0x7C00u;
  return static_cast<uint16_t>(sign | (magnitude >= 0x47800000u ? overflow : finite));
}

template <class T>
void widen(const void* from, Dtype dtype, T* to, int64_t count) {
  switch (dtype) {
    case Dtype::float32:
      for (int64_t i = 0; i < count; ++i) to[i] = static_cast<T>(static_cast<const float*>(from)[i]);
      break;
    case Dtype::float64:
      for (int64_t i = 0; i < count; ++i) to[i] = static_cast<T>(static_cast<const double*>(from)[i]);
      break;
    case Dtype::bfloat16:
      for (int64_t i = 0; i < count; ++i) {
        to[i] = float_of_bfloat16(static_cast<const uint16_t*>(from)[i]);
      }
      break;
    case Dtype::float16:
      for (int64_t i = 0; i < count; ++i) {
        to[i] = float_of_float16(static_cast<const uint16_t*>(from)[i]);
      }
      break;
  }
}

template <class T>
void narrow(const T* from, void* to, Dtype dtype, int64_t count) {
  switch (dtype) {
    case Dtype::float32:
      for (int64_t i = 0; i < count; ++i) static_cast<float*>(to)[i] = static_cast<float>(from[i]);
      break;
    case Dtype::float64:
      for (int64_t i = 0; i < count; ++i) static_cast<double*>(to)[i] = static_cast<double>(from[i]);
      break;
    case Dtype::bfloat16:
      for (int64_t i = 0; i < count; ++i) {
        static_cast<uint16_t*>(to)[i] = bfloat16_of_float(static_cast<float>(from[i]));
      }
      break;
    case Dtype::float16:
      for (int64_t i = 0; i < count; ++i) {
        static_cast<uint16_t*>(to)[i] = float16_of_float(static_cast<float>(from[i]));
      }
      break;
  }
}

// Calls move_run with elements of the dtype's size.
template <Way way>
void move_bits(const View& view, const Run& run, void* local) {
  switch (view.dtype) {
    case Dtype::float32: return move_run<way>(view, run, static_cast<uint32_t*>(local));
    case Dtype::float64: return move_run<way>(view, run, static_cast<uint64_t*>(local));
    default: return move_run<way>(view, run, static_cast<uint16_t*>(local));
  }
}

inline void* address(const View& view, const Run& run) {
  return view.data + (run.row * view.batch_stride + run.column) * view.size();
}

// The run as dense T: where it lies if it can be used there, else `scratch`, filled. `bits` is room for
// the run in the plane's own dtype.
template <class T>
const T* gather(const View& view, const Run& run, T* scratch, void* bits) {
  const bool dense = view.is_dense(run);
  if (view.dtype == dtype_of<T>()) {
    if (dense) return static_cast<const T*>(address(view, run));
    move_bits<Way::in>(view, run, scratch);
    return scratch;
  }
  if (dense) {
    widen(address(view, run), view.dtype, scratch, run.count);
  } else {
    move_bits<Way::in>(view, run, bits);
    widen(bits, view.dtype, scratch, run.count);
  }
  return scratch;
}

// Writes a dense run of T to a plane.
template <class T>
void scatter(const View& view, const Run& run, T* values, void* bits) {
  const bool dense = view.is_dense(run);
  if (view.dtype == dtype_of<T>()) {
    move_bits<Way::out>(view, run, values);
  } else if (dense) {
    narrow(values, address(view, run), view.dtype, run.count);
  } else {
    narrow(values, bits, view.dtype, run.count);
    move_bits<Way::out>(view, run, bits);
  }
}

}  // namespace
}  // namespace CLDFAST_LEVEL
}  // namespace cldfast
