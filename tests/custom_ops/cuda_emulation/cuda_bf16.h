// SPDX-License-Identifier: Apache-2.0
// __nv_bfloat16 and its conversions, for the emulation.
#ifndef CUDA_EMULATION_CUDA_BF16_H_
#define CUDA_EMULATION_CUDA_BF16_H_

#include <math.h>
#include <stdint.h>
#include <string.h>

struct __nv_bfloat16 {
  uint16_t bits;
};

inline float __bfloat162float(__nv_bfloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float result;
  memcpy(&result, &bits, sizeof(result));
  return result;
}

// To the nearest, ties to even.
inline __nv_bfloat16 __float2bfloat16_rn(float value) {
  if (isnan(value)) return {0x7fff};
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  bits += 0x7fff + (bits >> 16 & 1);
  return {static_cast<uint16_t>(bits >> 16)};
}

#endif  // CUDA_EMULATION_CUDA_BF16_H_
