// SPDX-License-Identifier: Apache-2.0
// The CPU kernels for SSE2 on x86-64, NEON on aarch64: what every such processor has.
#define PRROI_TARGET baseline
#define PRROI_VECTOR_BYTES 16
#include "kernels_cpu.inc"
