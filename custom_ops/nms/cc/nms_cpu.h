// SPDX-License-Identifier: Apache-2.0
// Non-maximum suppression of one group of boxes, on the CPU.
#ifndef NMS_CPU_H_
#define NMS_CPU_H_

#include <stdint.h>

#include "overlap.h"

namespace nms {

// Chooses boxes one after the other, in their order: those whose score is above the threshold and
// that overlap no chosen one too much. Ends when `max_output` are chosen.
//
//   boxes    [num_boxes, 4], y1 x1 y2 x2
//   scores   [num_boxes]
//   indices  [max_output], ascending; 0 behind the last
//
// Returns how many were chosen.
int32_t SuppressGroup(const Problem& problem, const float* boxes, const float* scores,
                      int32_t* indices);

}  // namespace nms

#endif  // NMS_CPU_H_
