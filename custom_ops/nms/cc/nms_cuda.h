// SPDX-License-Identifier: Apache-2.0
// C launcher of the CUDA kernels of non-maximum suppression.
//
// Includable by any C++ compiler: neither CUDA nor TensorFlow headers are needed. Every pointer but
// `problem` is to device memory. The launcher enqueues its kernels on the stream, waits for nothing,
// allocates nothing, and returns a cudaError_t as int (0 is success), of the launch alone.
//
// Layouts, all contiguous:
//   boxes    [num_groups, num_boxes, 4], y1 x1 y2 x2
//   scores   [num_groups, num_boxes]
//   indices  [num_groups, max_output], ascending in a group; 0 behind the last
//   counts   [num_groups], how many of a group were chosen
//
// Of a group, boxes are chosen one after the other, in their order: those whose score is above the
// threshold and that overlap no chosen one too much (overlap.h). Every result is written, none is
// read before, and there are no atomics: the bits are the same on every run and for every grid.
#ifndef NMS_CUDA_H_
#define NMS_CUDA_H_

#include <stdint.h>

#include "overlap.h"

extern "C" {

// Most boxes of a group.
enum { kNmsCudaMaxBoxes = 65536 };

// Bytes of device memory that `workspace` must have, aligned to 16 as every allocator does. May be
// 0, and the pointer null then. The contents need not outlive the kernels.
int64_t NmsCudaWorkspace(const nms::Problem* problem);

// `stream` is a cudaStream_t. More than kNmsCudaMaxBoxes boxes give cudaErrorInvalidValue.
int NmsCuda(const nms::Problem* problem, const float* boxes, const float* scores, void* workspace,
            int32_t* indices, int32_t* counts, void* stream);

// What an error code means, in CUDA's words.
const char* NmsCudaErrorString(int error);

}  // extern "C"

#endif  // NMS_CUDA_H_
