// SPDX-License-Identifier: Apache-2.0
// Everything that depends on a box but not on the features, computed once per box for all channels.
#ifndef PRROI_POOL_PLAN_H_
#define PRROI_POOL_PLAN_H_

#include <cstdint>
#include <vector>

#include "kernels_cpu.h"

namespace prroi {

// Owns what an `AxisPlan` points to.
template <typename R>
class AxisPlanStorage {
 public:
  AxisPlan<R> Build(const Axis& axis, int64_t num_bins, int64_t num_nodes) {
    BuildByBin(axis, num_bins, num_nodes);
    const Span window = Window();
    BuildByNode(window, num_bins);
    AxisPlan<R> plan;
    plan.axis = axis;
    plan.window = window;
    plan.by_bin = {bin_spans_.data(), bin_offsets_.data(), bin_weights_.data()};
    plan.by_node = {node_spans_.data(), node_offsets_.data(), node_weights_.data()};
    plan.num_pairs = static_cast<int32_t>(bin_weights_.size());
    return plan;
  }

 private:
  void BuildByBin(const Axis& axis, int64_t num_bins, int64_t num_nodes) {
    bin_spans_.resize(num_bins);
    bin_offsets_.resize(num_bins);
    for (int64_t bin = 0; bin < num_bins; ++bin) {
      const Span span = TouchedNodes(axis, bin, num_nodes);
      bin_spans_[bin] = span;
      bin_offsets_[bin] = static_cast<int32_t>(bin_weights_.size());
      for (int32_t k = 0; k < span.count; ++k) {
        bin_weights_.push_back(static_cast<R>(Weight(axis, bin, span.first + k, num_nodes)));
      }
    }
  }

  // Spans grow with the bins, so that the first and the last bin on the map bound them all.
  Span Window() const {
    Span window = {0, 0};
    for (const Span& span : bin_spans_) {
      if (span.count == 0) continue;
      if (window.count == 0) window.first = span.first;
      window.count = span.first + span.count - window.first;
    }
    return window;
  }

  void BuildByNode(const Span& window, int64_t num_bins) {
    node_spans_.assign(window.count, Span{0, 0});
    for (int64_t bin = 0; bin < num_bins; ++bin) {
      for (int32_t k = 0; k < bin_spans_[bin].count; ++k) {
        Span& bins = node_spans_[bin_spans_[bin].first + k - window.first];
        if (bins.count++ == 0) bins.first = static_cast<int32_t>(bin);
      }
    }
    node_offsets_.resize(window.count);
    int32_t offset = 0;
    for (int32_t node = 0; node < window.count; ++node) {
      node_offsets_[node] = offset;
      offset += node_spans_[node].count;
    }
    node_weights_.resize(offset);
    for (int64_t bin = 0; bin < num_bins; ++bin) {
      for (int32_t k = 0; k < bin_spans_[bin].count; ++k) {
        const int32_t node = bin_spans_[bin].first + k - window.first;
        const int32_t place = static_cast<int32_t>(bin) - node_spans_[node].first;
        node_weights_[node_offsets_[node] + place] = bin_weights_[bin_offsets_[bin] + k];
      }
    }
  }

  std::vector<Span> bin_spans_, node_spans_;
  std::vector<int32_t> bin_offsets_, node_offsets_;
  std::vector<R> bin_weights_, node_weights_;
};

// The plans of all entries. `box_levels` is null where every box is pooled from every level.
// `parallel_for(total, cost_in_cycles, function(begin, end))` spreads them.
template <typename R>
class BoxPlans {
 public:
  template <typename Coordinate, typename ParallelFor>
  BoxPlans(const Pyramid& pyramid, const Coordinate* boxes, const int32_t* box_indices,
           const int32_t* box_levels, const ParallelFor& parallel_for)
      : plans_(NumEntries(pyramid)), storage_(2 * NumEntries(pyramid)) {
    const int64_t num_boxes = pyramid.levels[0].num_boxes;
    const int64_t cost = 200 * (pyramid.levels[0].output_height + pyramid.levels[0].output_width);
    parallel_for(NumEntries(pyramid), cost, [&](int64_t begin, int64_t end) {
      for (int64_t e = begin; e < end; ++e) {
        const int64_t n = e % num_boxes;
        const int64_t level = box_levels == nullptr ? e / num_boxes : box_levels[n];
        const Shape& shape = pyramid.levels[level];
        const double box[4] = {boxes[4 * n], boxes[4 * n + 1], boxes[4 * n + 2],
                               boxes[4 * n + 3]};
        Axis y, x;
        BoxAxes(box, shape, &y, &x);
        plans_[e].image = box_indices[n];
        plans_[e].level = level;
        plans_[e].y = storage_[2 * e].Build(y, shape.output_height, shape.height);
        plans_[e].x = storage_[2 * e + 1].Build(x, shape.output_width, shape.width);
      }
    });
  }

  const BoxPlan<R>* data() const { return plans_.data(); }

 private:
  std::vector<BoxPlan<R>> plans_;
  std::vector<AxisPlanStorage<R>> storage_;
};

// Numbers of the boxes of one level, image by image and in their own order within each. A null
// `box_levels` says that they all are.
struct BoxesByImage {
  BoxesByImage(const Shape& shape, const int32_t* box_indices, const int32_t* box_levels,
               int64_t level)
      : first_of_image(shape.num_images + 1, 0) {
    const auto is_here = [&](int64_t n) { return box_levels == nullptr || box_levels[n] == level; };
    for (int64_t n = 0; n < shape.num_boxes; ++n) {
      if (is_here(n)) ++first_of_image[box_indices[n] + 1];
    }
    for (int64_t b = 0; b < shape.num_images; ++b) first_of_image[b + 1] += first_of_image[b];
    order.resize(first_of_image[shape.num_images]);
    std::vector<int64_t> next(first_of_image.begin(), first_of_image.end() - 1);
    for (int64_t n = 0; n < shape.num_boxes; ++n) {
      if (is_here(n)) order[next[box_indices[n]]++] = n;
    }
  }

  std::vector<int64_t> order;
  std::vector<int64_t> first_of_image;
};

}  // namespace prroi

#endif  // PRROI_POOL_PLAN_H_
