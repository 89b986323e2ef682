// Normals by the hardware's functions: fewer instructions, and not the CPU's to the last place.
//
// The errors that NVIDIA states (PTX ISA, "Floating Point Instructions"): lg2.approx 2^-22, absolute for
// arguments in (1/2, 2) and relative elsewhere; sqrt.approx 2^-23 relative; sin.approx and cos.approx
// 2^-20.5 absolute within two turns. So a normal of radius r differs by some 2^-20.5 r, and by 2^-22 / r
// more for what the logarithm loses near 1.
#pragma once

#include <cmath>

#include "shared/philox.h"

namespace cldfast::CLDFAST_LEVEL {
namespace {

#if defined(__CUDA_ARCH__)
#define CLDFAST_HARDWARE(name, instruction, host)                \
  CLDFAST_HD float name(float x) {                               \
    float y;                                                     \
    asm(instruction ".approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); \
    return y;                                                    \
  }
#else
#define CLDFAST_HARDWARE(name, instruction, host) \
  CLDFAST_HD float name(float x) { return host(x); }
#endif
CLDFAST_HARDWARE(hardware_log2, "lg2", std::log2)
CLDFAST_HARDWARE(hardware_root, "sqrt", std::sqrt)
CLDFAST_HARDWARE(hardware_sine, "sin", std::sin)
CLDFAST_HARDWARE(hardware_cosine, "cos", std::cos)
#undef CLDFAST_HARDWARE

// As box_muller: radius (cos, sin)(2 pi angle / 2^32) with radius = sqrt(-2 ln(word / 2^32)).
CLDFAST_HD void fast_box_muller(uint32_t radius_word, uint32_t angle_word, float& z_cos, float& z_sin) {
  constexpr float MINUS_LN4 = -0x1.62e43p+0f, TURN = NormalConstants<float>::TURN_HIGH;
  // Near 1 the logarithm's error may make it positive.
  const float uniform = (word_to_float(radius_word) + 0.5f) * 0x1p-32f;
  const float square = hardware_log2(uniform) * MINUS_LN4;
  const float radius = hardware_root(square > 0.0f ? square : 0.0f);
  // As a signed integer the word is the angle less a turn, or the angle itself.
  const float angle = int_to_float(signed_of(angle_word)) * TURN;
  z_cos = radius * hardware_cosine(angle);
  z_sin = radius * hardware_sine(angle);
}

}  // namespace
}  // namespace cldfast::CLDFAST_LEVEL
