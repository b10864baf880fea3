// SPDX-License-Identifier: Apache-2.0
// Non-maximum suppression on the CPU: a candidate is compared with what was chosen, several at a time.
#include "nms_cpu.h"

#include <algorithm>
#include <vector>

namespace nms {
namespace {

// Chosen boxes that are compared together: some vectors of any instruction set.
constexpr int kBlock = 16;

// Chosen boxes, coordinate by coordinate.
struct Block {
  float y1[kBlock];
  float x1[kBlock];
  float y2[kBlock];
  float x2[kBlock];
  float area[kBlock];
};

bool OverlapsAny(const Box& box, const Block& block, float threshold) {
  unsigned found = 0;
  for (int i = 0; i < kBlock; ++i) {
    const Box other = {block.y1[i], block.x1[i], block.y2[i], block.x2[i], block.area[i]};
    found |= Overlaps(box, other, threshold);
  }
  return found != 0;
}

class Chosen {
 public:
  // Places without a box have no area, and overlap nothing.
  explicit Chosen(int64_t most) : blocks_((most + kBlock - 1) / kBlock, Block{}) {}

  // The last ones first: neighbours in the order of scores are often the same object.
  bool OverlapsAny(const Box& box, float threshold) const {
    for (int64_t i = (count_ + kBlock - 1) / kBlock - 1; i >= 0; --i) {
      if (nms::OverlapsAny(box, blocks_[i], threshold)) return true;
    }
    return false;
  }

  void Add(const Box& box) {
    Block& block = blocks_[count_ / kBlock];
    const int i = static_cast<int>(count_++ % kBlock);
    block.y1[i] = box.y1;
    block.x1[i] = box.x1;
    block.y2[i] = box.y2;
    block.x2[i] = box.x2;
    block.area[i] = box.area;
  }

 private:
  std::vector<Block> blocks_;
  int64_t count_ = 0;
};

}  // namespace

int32_t SuppressGroup(const Problem& problem, const float* boxes, const float* scores,
                      int32_t* indices) {
  Chosen chosen(std::min(problem.max_output, problem.num_boxes));
  int64_t count = 0;
  for (int64_t i = 0; i < problem.num_boxes && count < problem.max_output; ++i) {
    if (!(scores[i] > problem.score_threshold)) continue;
    const Box box = MakeBox(boxes + 4 * i);
    if (chosen.OverlapsAny(box, problem.iou_threshold)) continue;
    chosen.Add(box);
    indices[count++] = static_cast<int32_t>(i);
  }
  std::fill(indices + count, indices + problem.max_output, 0);
  return static_cast<int32_t>(count);
}

}  // namespace nms
