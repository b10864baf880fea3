// SPDX-License-Identifier: Apache-2.0
// C launchers of PrRoIPool's CUDA kernels.
//
// Includable by any C++ compiler: neither CUDA nor TensorFlow headers are needed. Every pointer but
// `shape` is to device memory. A launcher enqueues its kernels on the stream, waits for nothing,
// allocates nothing, and returns a cudaError_t as int (0 is success), of the launch alone: what
// happens while the kernels run is reported by the stream, as always.
//
// Layouts, all contiguous:
//   features, d_features  [num_images, height, width, channels] of `type`
//   output, upstream      [num_boxes, output_height, output_width, channels] of `type`
//   boxes, d_boxes        [num_boxes, 4], y1 x1 y2 x2 in pixels, double or float
//   box_indices           [num_boxes], the image of each box
//
// Every result element is written exactly once and none is read before, so that nothing needs to be
// cleared. No atomics: the bits are the same on every run and for every grid. A box with a NaN or
// infinite coordinate or with an index outside [0, num_images) gets NaN in `output` and `d_boxes`
// and nothing in `d_features`; a box without area, or reversed, gets 0 everywhere.
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
int64_t PrRoiPoolCudaForwardWorkspace(const prroi::Shape* shape, int type);
int64_t PrRoiPoolCudaFeatureGradientWorkspace(const prroi::Shape* shape, int type);
int64_t PrRoiPoolCudaBoxGradientWorkspace(const prroi::Shape* shape, int type);

// `stream` is a cudaStream_t. An unknown type, more than 2^27 elements in a row of pixels or bins,
// and more than 2^27 rows give cudaErrorInvalidValue. There is no other limit on sizes.
int PrRoiPoolCudaForward(int type, int boxes_are_double, const prroi::Shape* shape,
                         const void* features, const void* boxes, const int32_t* box_indices,
                         void* workspace, void* output, void* stream);

int PrRoiPoolCudaFeatureGradient(int type, int boxes_are_double, const prroi::Shape* shape,
                                 const void* boxes, const int32_t* box_indices,
                                 const void* upstream, void* workspace, void* d_features,
                                 void* stream);

// `d_boxes` has the dtype of `boxes` and is per pixel.
int PrRoiPoolCudaBoxGradient(int type, int boxes_are_double, const prroi::Shape* shape,
                             const void* features, const void* boxes, const int32_t* box_indices,
                             const void* upstream, void* workspace, void* d_boxes, void* stream);

// What an error code means, in CUDA's words.
const char* PrRoiPoolCudaErrorString(int error);

}  // extern "C"

#endif  // PRROI_POOL_KERNELS_CUDA_H_
