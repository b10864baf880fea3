// SPDX-License-Identifier: Apache-2.0
// The CPU kernels for AVX-512 F, VL, BW and DQ (compiled with -mavx512f -mavx512vl -mavx512bw -mavx512dq -mfma).
#define PRROI_TARGET avx512
#define PRROI_VECTOR_BYTES 64
#include "kernels_cpu.inc"
