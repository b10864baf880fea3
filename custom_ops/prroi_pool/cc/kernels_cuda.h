// SPDX-License-Identifier: Apache-2.0
// C launchers of the CUDA kernels of PrRoIPool and RoIAlign, over one level or several.
//
// Includable by any C++ compiler: neither CUDA nor TensorFlow headers are needed. Every pointer but
// `pyramid` and the arrays of pointers to the levels' maps is to device memory. A launcher enqueues
// its kernels on the stream, waits for nothing, allocates nothing, and returns a cudaError_t as int
// (0 is success), of the launch alone: what happens while the kernels run is reported by the stream,
// as always.
//
// Layouts, all contiguous:
//   features, d_features  a pointer for each level, [num_images, height, width, channels] of `type`
//   output, upstream      [num_boxes, output_height, output_width, channels] of `type`
//   winners               of the same shape, the number of the level that has the maximum; null
//                         where each box is pooled from one level
//   boxes, d_boxes        [num_boxes, 4], y1 x1 y2 x2 in pixels, double or float
//   box_indices           [num_boxes], the image of each box
//   box_levels            [num_boxes], the level of each box; null where there is one level, or
//                         every box is pooled from all
//
// Every result element is written exactly once and none is read before, so that nothing needs to be
// cleared. No atomics: the bits are the same on every run and for every grid. A box with a NaN or
// infinite coordinate, with an index outside [0, num_images) or a level outside [0, num_levels) gets
// NaN in `output` and `d_boxes` and nothing in `d_features`. PrRoIPool of a box without area, or
// reversed, is 0, and so are its gradients.
#ifndef PRROI_POOL_KERNELS_CUDA_H_
#define PRROI_POOL_KERNELS_CUDA_H_

#include <stdint.h>

#include "geometry.h"

extern "C" {

// Of features and everything shaped like them. Sums are kept in float, for double in double.
enum PrRoiPoolType {
  kPrRoiPoolHalf = 0,
  kPrRoiPoolBFloat16 = 1,
  kPrRoiPoolFloat = 2,
  kPrRoiPoolDouble = 3,
};

// Bytes of device memory that `workspace` must have, aligned to 16 as every allocator does. May be
// 0, and the pointer null then; -1 for an unknown type. The contents need not outlive the kernels.
int64_t PrRoiPoolCudaForwardWorkspace(const prroi::Pyramid* pyramid, int type);
int64_t PrRoiPoolCudaFeatureGradientWorkspace(const prroi::Pyramid* pyramid, int type);
int64_t PrRoiPoolCudaBoxGradientWorkspace(const prroi::Pyramid* pyramid, int type);

// `stream` is a cudaStream_t. An unknown type, more than kMaxLevels levels, more than 2^27 elements
// in a row of pixels or bins, more than 2^27 rows and more than 2^31 - 1 boxes give
// cudaErrorInvalidValue. There is no other limit on sizes.
int PrRoiPoolCudaForward(int type, int boxes_are_double, const prroi::Pyramid* pyramid,
                         const void* const* features, const void* boxes,
                         const int32_t* box_indices, const int32_t* box_levels, void* workspace,
                         void* output, uint8_t* winners, void* stream);

int PrRoiPoolCudaFeatureGradient(int type, int boxes_are_double, const prroi::Pyramid* pyramid,
                                 const void* boxes, const int32_t* box_indices,
                                 const int32_t* box_levels, const void* upstream,
                                 const uint8_t* winners, void* workspace,
                                 void* const* d_features, void* stream);

// PrRoIPool's alone. `d_boxes` has the dtype of `boxes` and is per pixel.
int PrRoiPoolCudaBoxGradient(int type, int boxes_are_double, const prroi::Pyramid* pyramid,
                             const void* const* features, const void* boxes,
                             const int32_t* box_indices, const void* upstream,
                             const uint8_t* winners, void* workspace, void* d_boxes,
                             void* stream);

// What an error code means, in CUDA's words.
const char* PrRoiPoolCudaErrorString(int error);

}  // extern "C"

#endif  // PRROI_POOL_KERNELS_CUDA_H_
