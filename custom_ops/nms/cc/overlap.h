// SPDX-License-Identifier: Apache-2.0
// What non-maximum suppression is asked for, and when two boxes overlap too much; for the CPU and the
// CUDA kernels alike, to the bit.
//
// The arithmetic is that of TensorFlow's CombinedNonMaxSuppression: float32, each operation rounded
// by itself. Multiplications must therefore not be fused with additions: the CPU's sources are
// compiled with -ffp-contract=off, and a GPU's product is an intrinsic that nvcc never fuses.
//
// No header of TensorFlow or CUDA is included, so that g++ and nvcc both compile it.
#ifndef NMS_OVERLAP_H_
#define NMS_OVERLAP_H_

#include <stdint.h>

#ifdef __CUDACC__
#define NMS_HOST_DEVICE __host__ __device__
#else
#define NMS_HOST_DEVICE
#endif

namespace nms {

struct Problem {
  int64_t num_groups;
  int64_t num_boxes;   // Of each group.
  int64_t max_output;  // Most that are chosen of a group.
  float iou_threshold;
  float score_threshold;
};

// Corners in order, whatever order they were given in.
struct Box {
  float y1;
  float x1;
  float y2;
  float x2;
  float area;
};

// Of a NaN and a number, the first argument; a vector instruction does the same.
NMS_HOST_DEVICE static inline float Lower(float a, float b) { return b < a ? b : a; }
NMS_HOST_DEVICE static inline float Upper(float a, float b) { return a < b ? b : a; }

NMS_HOST_DEVICE static inline float Product(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}

NMS_HOST_DEVICE static inline Box MakeBox(const float* corners) {
  Box box;
  box.y1 = Lower(corners[0], corners[2]);
  box.x1 = Lower(corners[1], corners[3]);
  box.y2 = Upper(corners[0], corners[2]);
  box.x2 = Upper(corners[1], corners[3]);
  box.area = Product(box.y2 - box.y1, box.x2 - box.x1);
  return box;
}

// Whether the IoU is above the threshold, which is at least 0. Never where a box has no area, a NaN
// or an infinite area: then the IoU is 0 or NaN. Without branches, for vector instructions.
NMS_HOST_DEVICE static inline bool Overlaps(const Box& a, const Box& b, float threshold) {
  const float height = Upper(Lower(a.y2, b.y2) - Upper(a.y1, b.y1), 0.0f);
  const float width = Upper(Lower(a.x2, b.x2) - Upper(a.x1, b.x1), 0.0f);
  const float common = Product(height, width);
  const float iou = common / (a.area + b.area - common);
  return (iou > threshold) & (a.area > 0.0f) & (b.area > 0.0f);
}

}  // namespace nms

#endif  // NMS_OVERLAP_H_
