// SPDX-License-Identifier: Apache-2.0
// Bins, nodes and weights of one axis of PrRoIPool and RoIAlign, for the CPU and the CUDA kernels.
//
// Node k of an axis stands at k, with no half-pixel shift. Between nodes the map is interpolated
// linearly: node k contributes its tent function max(0, 1 - |t - k|). PrRoIPool's weight of a bin on
// a node is the mean of the node's tent over the bin, RoIAlign's is the mean over some samples in
// the bin. Both are weighted sums along each axis (docs/prroi_pool.md has the derivation), and all
// that the kernels ask of the weights is that spans of nodes grow with the bins and that two bins
// share two nodes at most. All of this is computed once per box, in double precision, whatever the
// features are.
//
// No header of TensorFlow or CUDA is included, so that g++ and nvcc both compile it. The functions are
// static: the CPU kernels are compiled once per instruction set, and a linker that keeps one copy of
// an inline function may keep the one that an older processor cannot run.
#ifndef PRROI_POOL_GEOMETRY_H_
#define PRROI_POOL_GEOMETRY_H_

#include <math.h>
#include <stdint.h>

#ifdef __CUDACC__
#define PRROI_HOST_DEVICE __host__ __device__
#else
#define PRROI_HOST_DEVICE
#endif

namespace prroi {

// The numbers that every kernel needs of one level. `height` and `width` are the feature map's, in
// nodes.
struct Shape {
  int64_t num_images;
  int64_t height;
  int64_t width;
  int64_t channels;
  int64_t num_boxes;
  int64_t output_height;
  int64_t output_width;
  double spatial_scale;     // Nodes per pixel.
  int64_t samples_per_bin;  // RoIAlign's along each side of a bin; 0 for PrRoIPool's exact mean.
  double sample_offset;     // Of the first sample from the edge of the bin, in samples.
};

// Most levels that one call pools from: the CUDA kernels keep the state of each in registers.
constexpr int kMaxLevels = 4;

// The levels of one call. Of their numbers only height, width and spatial_scale differ.
struct Pyramid {
  int64_t num_levels;
  // num_levels where every box is pooled from every level and the maximum is taken; 1 where each is
  // pooled from its own.
  int64_t levels_per_box;
  Shape levels[kMaxLevels];
};

// Pairs of a box and a level, which have weights each. Where a box has several levels, entry
// level * num_boxes + n belongs to box n.
PRROI_HOST_DEVICE static inline int64_t NumEntries(const Pyramid& pyramid) {
  return pyramid.levels[0].num_boxes * pyramid.levels_per_box;
}

// One side of a box, cut into bins. `start` and `bin` are in nodes. A bin of 0 has no weights in
// PrRoIPool; in RoIAlign it has those of a point, and a negative one has none.
struct Axis {
  double start;
  double bin;
  int64_t samples;
  double sample_offset;
};

// Nodes first, ..., first + count - 1.
struct Span {
  int32_t first;
  int32_t count;
};

// Most (bin, node) pairs that an axis can have: a bin touches the two nodes around each of its
// points, and one more for every node strictly inside.
PRROI_HOST_DEVICE static inline int64_t MaxPairs(int64_t num_bins, int64_t num_nodes) {
  return 2 * num_bins + num_nodes;
}

// Both axes of a box in pixels, y1 x1 y2 x2. In PrRoIPool a box that is empty, reversed or
// infinitely large has no bins with an area; neither has one with a NaN. RoIAlign leaves out what is
// reversed, infinitely large or NaN, axis by axis.
PRROI_HOST_DEVICE static inline void BoxAxes(const double box[4], const Shape& shape, Axis* y,
                                             Axis* x) {
  const double height = (box[2] - box[0]) * shape.spatial_scale;
  const double width = (box[3] - box[1]) * shape.spatial_scale;
  const double largest = 1e300;
  const bool is_exact = shape.samples_per_bin == 0;
  const bool has_area = height > 0 && width > 0 && height < largest && width < largest;
  const bool has_height = is_exact ? has_area : height >= 0 && height < largest;
  const bool has_width = is_exact ? has_area : width >= 0 && width < largest;
  const double none = is_exact ? 0.0 : -1.0;
  y->start = box[0] * shape.spatial_scale;
  x->start = box[1] * shape.spatial_scale;
  y->bin = has_height ? height / static_cast<double>(shape.output_height) : none;
  x->bin = has_width ? width / static_cast<double>(shape.output_width) : none;
  y->samples = x->samples = shape.samples_per_bin;
  y->sample_offset = x->sample_offset = shape.sample_offset;
}

// Distance of edge i from a node. First from the node to the box, then along its bins: these are
// small numbers, which keep their digits far from the origin too.
PRROI_HOST_DEVICE static inline double EdgeFromNode(const Axis& axis, int64_t i, int64_t node) {
  return (axis.start - static_cast<double>(node)) + static_cast<double>(i) * axis.bin;
}

// Coordinate of RoIAlign's sample s of bin i.
PRROI_HOST_DEVICE static inline double SamplePoint(const Axis& axis, int64_t i, int64_t s) {
  const double bins = static_cast<double>(i) + (static_cast<double>(s) + axis.sample_offset) /
                                                   static_cast<double>(axis.samples);
  return axis.start + bins * axis.bin;
}

// The lower of the two nodes that a sample lies between, kept on the map.
PRROI_HOST_DEVICE static inline int32_t LowerNode(double point, int64_t num_nodes) {
  const double last_node = static_cast<double>(num_nodes - 1);
  const double lower = floor(point);
  return static_cast<int32_t>(!(lower > 0) ? 0 : (lower < last_node ? lower : last_node));
}

// From the first sample's lower node to the last sample's upper one.
PRROI_HOST_DEVICE static inline Span SampledNodes(const Axis& axis, int64_t i, int64_t num_nodes) {
  Span span = {0, 0};
  if (!(axis.bin >= 0) || num_nodes == 0) return span;
  span.first = LowerNode(SamplePoint(axis, i, 0), num_nodes);
  const int32_t lower = LowerNode(SamplePoint(axis, i, axis.samples - 1), num_nodes);
  span.count = (lower < num_nodes - 1 ? lower + 1 : lower) - span.first + 1;
  return span;
}

// The nodes that bin i has weight on; in PrRoIPool none for a bin without area or outside the map.
PRROI_HOST_DEVICE static inline Span TouchedNodes(const Axis& axis, int64_t i, int64_t num_nodes) {
  if (axis.samples > 0) return SampledNodes(axis, i, num_nodes);
  // Compared as double first: the integer types do not hold every coordinate.
  const double last_node = static_cast<double>(num_nodes - 1);
  const double low = floor(EdgeFromNode(axis, i, 0));
  const double high = ceil(EdgeFromNode(axis, i + 1, 0));
  Span span = {0, 0};
  if (!(axis.bin > 0) || !(low <= last_node) || !(high >= 0)) return span;
  span.first = low > 0 ? static_cast<int32_t>(low) : 0;
  const int32_t last = static_cast<int32_t>(high < last_node ? high : last_node);
  span.count = last - span.first + 1;
  return span;
}

PRROI_HOST_DEVICE static inline double Tent(double u) {
  const double distance = fabs(u);
  return distance < 1 ? 1 - distance : 0;
}

// Integral of the tent from 0 to u.
PRROI_HOST_DEVICE static inline double TentIntegral(double u) {
  const double inside = u < -1 ? -1 : (u > 1 ? 1 : u);
  return inside - 0.5 * inside * fabs(inside);
}

// PrRoIPool: mean of the node's tent over bin i.
PRROI_HOST_DEVICE static inline double MeanTent(const Axis& axis, int64_t i, int64_t node) {
  return (TentIntegral(EdgeFromNode(axis, i + 1, node)) -
          TentIntegral(EdgeFromNode(axis, i, node))) /
         axis.bin;
}

// RoIAlign: mean of the node's share of bin i's samples. As in the Model Garden, a sample beyond the
// last node has that node's value, and one before the first continues the line through the first two.
PRROI_HOST_DEVICE static inline double MeanShare(const Axis& axis, int64_t i, int64_t node,
                                                 int64_t num_nodes) {
  double sum = 0;
  for (int64_t s = 0; s < axis.samples; ++s) {
    const double point = SamplePoint(axis, i, s);
    const int64_t lower = LowerNode(point, num_nodes);
    const double beyond = point - static_cast<double>(lower);
    const bool is_last = lower == num_nodes - 1;
    if (node == lower) sum += is_last ? 1 : 1 - beyond;
    if (node == lower + 1) sum += beyond;
  }
  return sum / static_cast<double>(axis.samples);
}

// Bin i's weight on a node that it touches.
PRROI_HOST_DEVICE static inline double Weight(const Axis& axis, int64_t i, int64_t node,
                                              int64_t num_nodes) {
  return axis.samples > 0 ? MeanShare(axis, i, node, num_nodes) : MeanTent(axis, i, node);
}

// Derivatives of PrRoIPool's weight to the box's first and second coordinate, in pixels.
//
// With edges e_i = start + i / h (stop - start), the integral changes by the tent at its two edges
// as these move, and the division by the size of the bin by weight / h.
PRROI_HOST_DEVICE static inline void WeightGradient(const Axis& axis, int64_t i, int64_t node,
                                             int64_t num_bins, double spatial_scale,
                                             double* d_start, double* d_stop) {
  const double lower = Tent(EdgeFromNode(axis, i, node));
  const double upper = Tent(EdgeFromNode(axis, i + 1, node));
  const double share = 1.0 / static_cast<double>(num_bins);
  const double size_part = MeanTent(axis, i, node) * share;
  const double at_lower = static_cast<double>(i) * share;
  const double at_upper = static_cast<double>(i + 1) * share;
  const double scale = spatial_scale / axis.bin;
  *d_start = scale * ((1 - at_upper) * upper - (1 - at_lower) * lower + size_part);
  *d_stop = scale * (at_upper * upper - at_lower * lower - size_part);
}

}  // namespace prroi

#endif  // PRROI_POOL_GEOMETRY_H_
