// SPDX-License-Identifier: Apache-2.0
// What the CPU kernels compute from and what they are called by.
//
// The kernels are compiled several times, for different instruction sets (kernels_cpu.inc), and
// chosen at run time by what the processor has. This header and what those files include are
// therefore free of inline functions of the standard library and of TensorFlow.
#ifndef PRROI_POOL_KERNELS_CPU_H_
#define PRROI_POOL_KERNELS_CPU_H_

#include <stdint.h>

#include "geometry.h"

namespace prroi {

// 16-bit types as their bits.
struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// What a type is computed in.
template <typename T>
struct Accumulator {
  typedef float Type;
};
template <>
struct Accumulator<double> {
  typedef double Type;
};
template <typename T>
using Real = typename Accumulator<T>::Type;

// A banded matrix: row r has weights on columns spans[r].first, ..., which are
// weights[offsets[r]], ...
template <typename R>
struct Band {
  const Span* spans;
  const int32_t* offsets;
  const R* weights;
};

// One axis of a box: which bin takes how much of which node, by bins and by nodes.
template <typename R>
struct AxisPlan {
  Axis axis;
  Span window;      // Nodes that any bin touches.
  Band<R> by_bin;   // Row: bin. Column: node.
  Band<R> by_node;  // Row: node - window.first. Column: bin.
  int32_t num_pairs;
};

// Of a box and a level.
template <typename R>
struct BoxPlan {
  int64_t image;
  int64_t level;
  AxisPlan<R> y;
  AxisPlan<R> x;
};

// What the gradients come from. `winners` is null where each box is pooled from one level.
template <typename T>
struct Upstream {
  const T* values;
  const uint8_t* winners;
};

// Everything is row-major: features of a level [B, H, W, C], output, upstream and winners
// [N, h, w, C]. `boxes` are the plans of all entries (geometry.h). Each function does a range of
// units that share nothing, so that how they are spread over threads changes no bit.
template <typename T>
struct CpuKernels {
  // Units [begin, end) of N * h: one row of bins of one box each, pooled from the box's own level.
  void (*forward)(const Pyramid& pyramid, const BoxPlan<Real<T>>* boxes, const T* const* features,
                  int64_t begin, int64_t end, T* output);
  // The same units, pooled from every level: the maximum and the number of the level that has it,
  // the first of those that tie. NaN is larger than anything.
  void (*maximum)(const Pyramid& pyramid, const BoxPlan<Real<T>>* boxes, const T* const* features,
                  int64_t begin, int64_t end, T* output, uint8_t* winners);
  // Units of N: one box each. `d_boxes` is [N, 4], in pixels.
  void (*box_gradient)(const Pyramid& pyramid, const BoxPlan<Real<T>>* boxes,
                       const T* const* features, const Upstream<T>& upstream, int64_t begin,
                       int64_t end, double* d_boxes);
  // Units of B * H of one level: one row of one image each, summed over the image's boxes in their
  // order. `boxes` are the plans of that level by box; `order` holds the numbers of its boxes, those
  // of image b from first_of_image[b] on.
  void (*feature_gradient)(const Shape& shape, const BoxPlan<Real<T>>* boxes,
                           const int64_t* order, const int64_t* first_of_image,
                           const Upstream<T>& upstream, int64_t begin, int64_t end,
                           T* d_features);
};

// One for each instruction set that the library was built for.
#define PRROI_DECLARE_KERNELS(TARGET)                    \
  namespace TARGET {                                     \
  extern const CpuKernels<Half> kHalfKernels;            \
  extern const CpuKernels<BFloat16> kBFloat16Kernels;    \
  extern const CpuKernels<float> kFloatKernels;          \
  extern const CpuKernels<double> kDoubleKernels;        \
  }
PRROI_DECLARE_KERNELS(baseline)
PRROI_DECLARE_KERNELS(avx2)
PRROI_DECLARE_KERNELS(avx512)
#undef PRROI_DECLARE_KERNELS

}  // namespace prroi

#endif  // PRROI_POOL_KERNELS_CPU_H_
