// The scalar form of words and normals, which device code shares, for tests of numbers at the edges.
#include "shared/philox.h"

using namespace cldfast::scalar;

namespace {

template <class T>
void normals(const uint32_t* radius, const uint32_t* angle, int64_t count, T* z_x, T* z_v) {
  for (int64_t i = 0; i < count; ++i) {
    box_muller<T>(Bits<T>(radius[i]), Bits<T>(angle[i]), z_x[i], z_v[i]);
  }
}

}  // namespace

extern "C" {

// Four words of a counter, in place.
void philox(uint32_t* counter, uint64_t key) {
  const Words<uint64_t> words = {counter[0], counter[1], counter[2], counter[3]};
  const auto made = philox4x32(words, round_keys(key));
  const uint64_t wide[] = {made.w0, made.w1, made.w2, made.w3};
  for (int i = 0; i < 4; ++i) counter[i] = static_cast<uint32_t>(wide[i]);
}

void normals_float(const uint32_t* radius, const uint32_t* angle, int64_t count, float* z_x, float* z_v) {
  normals(radius, angle, count, z_x, z_v);
}

void normals_double(const uint32_t* radius, const uint32_t* angle, int64_t count, double* z_x,
                    double* z_v) {
  normals(radius, angle, count, z_x, z_v);
}

}  // extern "C"
