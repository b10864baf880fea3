// SPDX-License-Identifier: Apache-2.0
// __half and its conversions, for the emulation.
#ifndef CUDA_EMULATION_CUDA_FP16_H_
#define CUDA_EMULATION_CUDA_FP16_H_

#include <math.h>
#include <stdint.h>

struct __half {
  uint16_t bits;
};

inline float __half2float(__half value) {
  const int exponent = value.bits >> 10 & 31;
  const int fraction = value.bits & 1023;
  const float sign = value.bits >> 15 ? -1.0f : 1.0f;
  if (exponent == 31) return fraction ? NAN : sign * INFINITY;
  if (exponent == 0) return sign * ldexpf(static_cast<float>(fraction), -24);
  return sign * ldexpf(static_cast<float>(1024 + fraction), exponent - 25);
}

// To the nearest, ties to even.
inline __half __float2half_rn(float value) {
  const uint16_t sign = signbit(value) ? 0x8000 : 0;
  if (isnan(value)) return {0x7fff};
  const float size = fabsf(value);
  if (size >= 65520.0f) return {static_cast<uint16_t>(sign | 0x7c00)};
  int exponent = size > 0 ? ilogbf(size) : -14;
  if (exponent < -14) exponent = -14;
  // 1024 to 2048 for normal numbers; a carry goes on into the exponent by itself.
  const int fraction = static_cast<int>(nearbyintf(ldexpf(size, 10 - exponent)));
  return {static_cast<uint16_t>(sign | ((exponent + 14) * 1024 + fraction))};
}

#endif  // CUDA_EMULATION_CUDA_FP16_H_
