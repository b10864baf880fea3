// SPDX-License-Identifier: Apache-2.0
// Bins, nodes and weights of one axis of PrRoIPool, for the CPU and the CUDA kernels alike.
//
// Node k of an axis stands at k, with no half-pixel shift. Between nodes the map is interpolated
// linearly: node k contributes its tent function max(0, 1 - |t - k|). A bin's weight on a node is
// the mean of the node's tent over the bin, so that PrRoIPool is a weighted sum along each axis
// (docs/prroi_pool.md has the derivation). All of this is computed once per box, in double
// precision, whatever the features are.
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

// The numbers that every kernel needs. `height` and `width` are the feature map's, in nodes.
struct Shape {
  int64_t num_images;
  int64_t height;
  int64_t width;
  int64_t channels;
  int64_t num_boxes;
  int64_t output_height;
  int64_t output_width;
  double spatial_scale;  // Nodes per pixel.
};

// One side of a box, cut into bins. Both in nodes; `bin` is 0 for a box without area.
struct Axis {
  double start;
  double bin;
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

// Both axes of a box in pixels, y1 x1 y2 x2. A box that is empty, reversed or infinitely large has
// no bins with an area; neither has one with a NaN.
PRROI_HOST_DEVICE static inline void BoxAxes(const double box[4], const Shape& shape, Axis* y, Axis* x) {
  const double height = (box[2] - box[0]) * shape.spatial_scale;
  const double width = (box[3] - box[1]) * shape.spatial_scale;
  const double largest = 1e300;
  const bool has_area = height > 0 && width > 0 && height < largest && width < largest;
  y->start = box[0] * shape.spatial_scale;
  x->start = box[1] * shape.spatial_scale;
  y->bin = has_area ? height / static_cast<double>(shape.output_height) : 0.0;
  x->bin = has_area ? width / static_cast<double>(shape.output_width) : 0.0;
}

// Distance of edge i from a node. First from the node to the box, then along its bins: these are
// small numbers, which keep their digits far from the origin too.
PRROI_HOST_DEVICE static inline double EdgeFromNode(const Axis& axis, int64_t i, int64_t node) {
  return (axis.start - static_cast<double>(node)) + static_cast<double>(i) * axis.bin;
}

// The nodes that bin i has weight on; none for a bin without area or outside the map.
PRROI_HOST_DEVICE static inline Span TouchedNodes(const Axis& axis, int64_t i, int64_t num_nodes) {
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

// Mean of the node's tent over bin i.
PRROI_HOST_DEVICE static inline double Weight(const Axis& axis, int64_t i, int64_t node) {
  return (TentIntegral(EdgeFromNode(axis, i + 1, node)) -
          TentIntegral(EdgeFromNode(axis, i, node))) /
         axis.bin;
}

// Derivatives of `Weight` to the box's first and second coordinate, in pixels.
//
// With edges e_i = start + i / h (stop - start), the integral changes by the tent at its two edges
// as these move, and the division by the size of the bin by weight / h.
PRROI_HOST_DEVICE static inline void WeightGradient(const Axis& axis, int64_t i, int64_t node,
                                             int64_t num_bins, double spatial_scale,
                                             double* d_start, double* d_stop) {
  const double lower = Tent(EdgeFromNode(axis, i, node));
  const double upper = Tent(EdgeFromNode(axis, i + 1, node));
  const double share = 1.0 / static_cast<double>(num_bins);
  const double size_part = Weight(axis, i, node) * share;
  const double at_lower = static_cast<double>(i) * share;
  const double at_upper = static_cast<double>(i + 1) * share;
  const double scale = spatial_scale / axis.bin;
  *d_start = scale * ((1 - at_upper) * upper - (1 - at_lower) * lower + size_part);
  *d_stop = scale * (at_upper * upper - at_lower * lower - size_part);
}

}  // namespace prroi

#endif  // PRROI_POOL_GEOMETRY_H_
