// SPDX-License-Identifier: Apache-2.0
// The CPU kernels for AVX2 and FMA (compiled with -mavx2 -mfma).
#define PRROI_TARGET avx2
#define PRROI_VECTOR_BYTES 32
#include "kernels_cpu.inc"
