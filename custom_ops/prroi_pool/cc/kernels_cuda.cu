// SPDX-License-Identifier: Apache-2.0
// PrRoIPool on CUDA: forward, gradient to the features, gradient to the boxes.
//
// A kernel per pass, after a small one that writes what does not depend on the channels (nodes that
// each bin touches, weights, derivatives) into the workspace, once per box. The passes then only
// move features: threads lie along the channels, 16 bytes each, and what a thread decides depends
// on the box and the bin alone, so that warps stay together. Neither shared memory nor atomics add
// anything up across boxes: every result has one owner that sums in a fixed order.
//
// Compiled alone, without TensorFlow's headers, by for example
//   nvcc -std=c++17 -O3 -Xcompiler -fPIC -cudart static -c kernels_cuda.cu -o kernels_cuda.o
//     -gencode arch=compute_80,code=sm_80 -gencode arch=compute_90,code=[sm_90,compute_90]
// with a -gencode for each architecture that the toolkit has (CUDA 13 begins at 75) and PTX of the
// newest; never with --use_fast_math, which drops the checks for NaN.
#include "kernels_cuda.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <string.h>

#include <algorithm>
#include <type_traits>

namespace {

using prroi::Axis;
using prroi::Shape;
using prroi::Span;

constexpr int kThreads = 256;
// Blocks that a multiprocessor must be able to hold where the compiler, left alone, would take too
// many registers for that, or spill to make room for more.
constexpr int kMinBlocks = 2;
// Threads along the channels, at most. The rest of a block takes neighbouring rows, which touch
// the same features and find them in the L1 cache.
constexpr int kMaxWidth = 64;
// Nodes of a column in flight together: as many as a bin up to a node wide touches. More would cost
// registers, and with them warps.
constexpr int kAhead = 3;
// Columns of d_features that a thread keeps in registers.
constexpr int kTile = 4;
constexpr int kPrepareThreads = 128;
// Threads that share one bin's nodes in the preparation: most bins touch two to four.
constexpr int kThreadsPerBin = 4;
constexpr int kWarp = 32;
// Most blocks of a launch, CUDA's own limit. All kernels stride over what remains, so that results
// do not depend on the number of blocks.
constexpr int64_t kMaxGrid = 2147483647;
// Most elements of a row of pixels or bins, and most rows of either: strides and pairs within one
// fit into an int with room to spare, which halves the registers for them. Offsets of rows do not.
constexpr int64_t kMaxRow = int64_t{1} << 27;

// Inclusive at both ends; empty if last < first.
struct Range {
  int32_t first;
  int32_t last;
};

__host__ __device__ inline int64_t DivideUp(int64_t a, int64_t b) { return (a + b - 1) / b; }

__device__ inline bool Contains(const Span& span, int64_t node) {
  return node >= span.first && node < static_cast<int64_t>(span.first) + span.count;
}

// ------------------------------------------------------------------------------------------------
// What the passes read of a box.

struct BoxRecord {
  int32_t image;  // -1 for a box whose results are NaN.
  Range y;        // Nodes that any bin touches.
  Range x;
};

// Tables of one axis. The weight of bin i on node k is at pair 2 * i + k: neighbouring bins share
// two nodes at most, so that 2 * i keeps their weights apart. A pair has one value, or three for
// the gradient to the boxes: the weight and its derivatives to the first and second coordinate.
template <typename A>
struct AxisTables {
  int64_t pairs;
  Span* spans;      // [num_boxes, num_bins]: nodes of a bin.
  A* weights;       // [num_boxes, pairs, 1 or 3]
  Range* touching;  // [num_boxes, num_nodes]: bins of a node, for the gradient to the features.
};

template <typename A>
struct Tables {
  BoxRecord* boxes;
  AxisTables<A> y;
  AxisTables<A> x;
  A* partial;  // [num_boxes, output_height, chunks, 4]: the boxes' gradient, row by row.
};

enum Pass { kForward, kFeatureGradient, kBoxGradient };

// How channels are dealt out: `width` threads side by side take one vector each, `chunks` blocks
// take the channels of a row, and a block has `rows` rows. Threads beyond width * rows are idle.
struct Split {
  int width;
  int rows;
  int64_t chunks;
};

Split SplitChannels(int64_t channels, int vector) {
  const int64_t lanes = channels / vector;
  const int64_t chunks = DivideUp(lanes, kMaxWidth);
  const int width = chunks > 0 ? static_cast<int>(DivideUp(lanes, chunks)) : 1;
  return {width, kThreads / width, chunks};
}

// Cuts the workspace into tables. Counts only, if `workspace` is null.
class Arena {
 public:
  explicit Arena(void* workspace) : base_(static_cast<char*>(workspace)) {}

  template <typename Item>
  void Take(int64_t count, Item** items) {
    *items = base_ == nullptr ? nullptr : reinterpret_cast<Item*>(base_ + used_);
    used_ += DivideUp(count * static_cast<int64_t>(sizeof(Item)), 16) * 16;
  }

  int64_t used() const { return used_; }

 private:
  char* base_;
  int64_t used_ = 0;
};

template <typename A>
AxisTables<A> TakeAxis(Arena* arena, const Shape& shape, Pass pass, int64_t bins, int64_t nodes) {
  AxisTables<A> axis = {};
  axis.pairs = prroi::MaxPairs(bins, nodes);
  arena->Take(shape.num_boxes * bins, &axis.spans);
  arena->Take(shape.num_boxes * axis.pairs * (pass == kBoxGradient ? 3 : 1), &axis.weights);
  if (pass == kFeatureGradient) arena->Take(shape.num_boxes * nodes, &axis.touching);
  return axis;
}

template <typename A>
Tables<A> TakeTables(Arena* arena, const Shape& shape, Pass pass) {
  Tables<A> tables = {};
  arena->Take(shape.num_boxes, &tables.boxes);
  tables.y = TakeAxis<A>(arena, shape, pass, shape.output_height, shape.height);
  tables.x = TakeAxis<A>(arena, shape, pass, shape.output_width, shape.width);
  if (pass == kBoxGradient) {
    // Of single channels, whether or not the pointers will allow vectors.
    const int64_t chunks = SplitChannels(shape.channels, 1).chunks;
    arena->Take(shape.num_boxes * shape.output_height * chunks * 4, &tables.partial);
  }
  return tables;
}

// Writes box n's tables of one axis, K values for a pair. `nodes` is set to the touched nodes; it
// must hold an empty range that all threads of the block see.
template <int K, typename A>
__device__ void PrepareAxis(const Axis& axis, int64_t num_bins, int64_t num_nodes, double scale,
                            int64_t n, const AxisTables<A>& tables, Range* nodes) {
  const int lane = threadIdx.x % kThreadsPerBin;
  const Span none = {0, 0};
  for (int64_t i = threadIdx.x / kThreadsPerBin; i < num_bins;
       i += kPrepareThreads / kThreadsPerBin) {
    const Span span = prroi::TouchedNodes(axis, i, num_nodes);
    const Span before = i > 0 ? prroi::TouchedNodes(axis, i - 1, num_nodes) : none;
    const Span after = i + 1 < num_bins ? prroi::TouchedNodes(axis, i + 1, num_nodes) : none;
    if (lane == 0) {
      tables.spans[n * num_bins + i] = span;
      if (span.count > 0 && before.count == 0) nodes->first = span.first;
      if (span.count > 0 && after.count == 0) nodes->last = span.first + span.count - 1;
    }
    for (int64_t k = span.first + lane; Contains(span, k); k += kThreadsPerBin) {
      A* weights = tables.weights + K * (n * tables.pairs + 2 * i + k);
      weights[0] = static_cast<A>(prroi::Weight(axis, i, k));
      if constexpr (K == 3) {
        double d_start, d_stop;
        prroi::WeightGradient(axis, i, k, num_bins, scale, &d_start, &d_stop);
        weights[1] = static_cast<A>(d_start);
        weights[2] = static_cast<A>(d_stop);
      }
      if (tables.touching != nullptr) {
        Range* bins = tables.touching + n * num_nodes + k;
        if (!Contains(before, k)) bins->first = static_cast<int32_t>(i);
        if (!Contains(after, k)) bins->last = static_cast<int32_t>(i);
      }
    }
  }
}

// A block per box.
template <int K, typename Box, typename A>
__global__ void __launch_bounds__(kPrepareThreads)
    PrepareKernel(Shape shape, const Box* boxes, const int32_t* box_indices, Tables<A> tables) {
  for (int64_t n = blockIdx.x; n < shape.num_boxes; n += gridDim.x) {
    double box[4];
    const int32_t image = box_indices[n];
    bool defined = image >= 0 && image < shape.num_images;
    for (int k = 0; k < 4; ++k) {
      box[k] = static_cast<double>(boxes[4 * n + k]);
      defined = defined && isfinite(box[k]);
    }
    Axis y, x;
    prroi::BoxAxes(box, shape, &y, &x);
    BoxRecord* record = tables.boxes + n;
    if (threadIdx.x == 0) *record = {defined ? image : -1, {0, -1}, {0, -1}};
    __syncthreads();
    const double scale = shape.spatial_scale;
    PrepareAxis<K>(y, shape.output_height, shape.height, scale, n, tables.y, &record->y);
    PrepareAxis<K>(x, shape.output_width, shape.width, scale, n, tables.x, &record->x);
  }
}

// ------------------------------------------------------------------------------------------------
// Vectors of channels.

template <typename T>
struct AccumulatorOf {
  using type = float;
};
template <>
struct AccumulatorOf<double> {
  using type = double;
};
template <typename T>
using Accumulator = typename AccumulatorOf<T>::type;

__device__ inline float Widen(__half value) { return __half2float(value); }
__device__ inline float Widen(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ inline float Widen(float value) { return value; }
__device__ inline double Widen(double value) { return value; }

__device__ inline void Narrow(float value, __half* result) { *result = __float2half_rn(value); }
__device__ inline void Narrow(float value, __nv_bfloat16* result) {
  *result = __float2bfloat16_rn(value);
}
__device__ inline void Narrow(float value, float* result) { *result = value; }
__device__ inline void Narrow(double value, double* result) { *result = value; }

// V neighbouring channels, moved by one instruction.
template <typename T, int V>
struct alignas(V * sizeof(T)) Vector {
  T values[V];
};

template <int V, typename T>
__device__ inline Vector<T, V> Load(const T* from) {
  return *reinterpret_cast<const Vector<T, V>*>(from);
}

// Results are not read again by the kernel: whole vectors are marked so and leave the cache to the
// features.
template <int V, typename T, typename A>
__device__ inline void Store(const A (&sum)[V], T* to) {
  Vector<T, V> vector;
#pragma unroll
  for (int v = 0; v < V; ++v) Narrow(sum[v], &vector.values[v]);
  if constexpr (sizeof(vector) == sizeof(uint4)) {
    uint4 bits;
    memcpy(&bits, &vector, sizeof(bits));
    __stcs(reinterpret_cast<uint4*>(to), bits);
  } else {
    *reinterpret_cast<Vector<T, V>*>(to) = vector;
  }
}

// sums[s] += sum over k < count of weights[k * weight_stride + s] * from[k * stride], V channels.
// Loads are issued kAhead at a time, before any is used.
template <int V, int K, typename T, typename A>
__device__ inline void Contract(const T* from, int stride, const A* weights, int weight_stride,
                                int count, A (&sums)[K][V]) {
#pragma unroll 1
  for (int begin = 0; begin < count; begin += kAhead) {
    Vector<T, V> nodes[kAhead];
    A weight[kAhead][K];
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      if (begin + k >= count) continue;
      nodes[k] = Load<V>(from + static_cast<int64_t>(begin + k) * stride);
#pragma unroll
      for (int s = 0; s < K; ++s) weight[k][s] = weights[(begin + k) * weight_stride + s];
    }
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      if (begin + k >= count) continue;
#pragma unroll
      for (int s = 0; s < K; ++s) {
#pragma unroll
        for (int v = 0; v < V; ++v) sums[s][v] += weight[k][s] * Widen(nodes[k].values[v]);
      }
    }
  }
}

// The columns of the nodes that one row of bins touches, each contracted along y with K sets of
// weights. Bins are asked from left to right and share at most the last two columns: those stay in
// registers, so that every column is read once.
template <int V, int K, typename T, typename A>
class Columns {
 public:
  // `from` is the top node of column 0; `weights`, K for a node, begin at that node.
  __device__ Columns(const T* from, int row_stride, int column_stride, int count,
                     const A* weights)
      : from_(from),
        row_stride_(row_stride),
        column_stride_(column_stride),
        count_(count),
        weights_(weights) {}

  // Hands the sums of column x to `use`: one of the last two that were asked for, or a later one.
  // The two calls are one piece of code each, which is cheaper than to select the sums.
  template <typename Use>
  __device__ void Visit(int x, const Use& use) {
    if (x < newest_) {
      use(before_);
      return;
    }
    if (x > newest_) {
      newest_ = x;
      for (int s = 0; s < K; ++s) {
        for (int v = 0; v < V; ++v) {
          before_[s][v] = last_[s][v];
          last_[s][v] = 0;
        }
      }
      const T* top = from_ + static_cast<int64_t>(x) * column_stride_;
      Contract<V, K>(top, row_stride_, weights_, K, count_, last_);
    }
    use(last_);
  }

 private:
  const T* from_;
  int row_stride_;
  int column_stride_;
  int count_;
  const A* weights_;
  int newest_ = -1;
  A last_[K][V] = {};
  A before_[K][V] = {};
};

// ------------------------------------------------------------------------------------------------
// Forward.

// Bin i of box n, all columns, V channels from `channel` on.
template <int V, typename T, typename A>
__device__ void ForwardRow(const Shape& shape, const Tables<A>& tables, const T* features,
                           int64_t n, int64_t i, int64_t channel, T* output) {
  const BoxRecord box = tables.boxes[n];
  T* out = output + (n * shape.output_height + i) * shape.output_width * shape.channels + channel;
  if (box.image < 0) {
    A undefined[V];
    for (int v = 0; v < V; ++v) undefined[v] = static_cast<A>(NAN);
    for (int64_t j = 0; j < shape.output_width; ++j) Store(undefined, out + j * shape.channels);
    return;
  }
  const Span rows = tables.y.spans[n * shape.output_height + i];
  const A* weights_y = tables.y.weights + n * tables.y.pairs + 2 * i + rows.first;
  const int row_stride = static_cast<int>(shape.width * shape.channels);
  const T* top = features + (box.image * shape.height + rows.first) * row_stride + channel;
  Columns<V, 1, T, A> columns(top, row_stride, shape.channels, rows.count, weights_y);
  const Span* spans = tables.x.spans + n * shape.output_width;
  const A* weights_x = tables.x.weights + n * tables.x.pairs;
  for (int j = 0; j < shape.output_width; ++j, out += shape.channels) {
    const Span span = spans[j];
    A sum[V] = {};
#pragma unroll 1
    for (int x = span.first; x < span.first + span.count; ++x) {
      const A weight = weights_x[2 * j + x];
      columns.Visit(x, [&](const A(&column)[1][V]) {
#pragma unroll
        for (int v = 0; v < V; ++v) sum[v] += weight * column[0][v];
      });
    }
    Store(sum, out);
  }
}

template <int V, typename T>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    ForwardKernel(Shape shape, Split split, Tables<Accumulator<T>> tables,
                  const T* __restrict__ features, T* __restrict__ output) {
  const int64_t rows = shape.num_boxes * shape.output_height;
  const int64_t groups = DivideUp(rows, split.rows) * split.chunks;
  const int y = threadIdx.x / split.width;
  for (int64_t group = blockIdx.x; group < groups; group += gridDim.x) {
    const int64_t row = group / split.chunks * split.rows + y;
    const int64_t channel =
        V * (group % split.chunks * split.width + threadIdx.x % split.width);
    if (y >= split.rows || row >= rows || channel >= shape.channels) continue;
    ForwardRow<V>(shape, tables, features, row / shape.output_height, row % shape.output_height,
                  channel, output);
  }
}

// ------------------------------------------------------------------------------------------------
// Gradient to the boxes.

// Adds what bin row i of box n sends to y1, x1, y2, x2 through V channels.
template <int V, typename T, typename A>
__device__ void BoxGradientRow(const Shape& shape, const Tables<A>& tables, const T* features,
                               const T* upstream, int64_t n, int64_t i, int64_t channel,
                               A (&d_box)[4]) {
  const BoxRecord box = tables.boxes[n];
  const Span rows = tables.y.spans[n * shape.output_height + i];
  if (box.image < 0 || rows.count == 0) return;
  const A* weights_y = tables.y.weights + 3 * (n * tables.y.pairs + 2 * i + rows.first);
  const A* weights_x = tables.x.weights + 3 * n * tables.x.pairs;
  const int row_stride = static_cast<int>(shape.width * shape.channels);
  const T* top = features + (box.image * shape.height + rows.first) * row_stride + channel;
  Columns<V, 3, T, A> columns(top, row_stride, shape.channels, rows.count, weights_y);
  const Span* spans = tables.x.spans + n * shape.output_width;
  const T* from =
      upstream + (n * shape.output_height + i) * shape.output_width * shape.channels + channel;
  for (int j = 0; j < shape.output_width; ++j, from += shape.channels) {
    const Span span = spans[j];
    if (span.count == 0) continue;
    const Vector<T, V> bin = Load<V>(from);
#pragma unroll 1
    for (int x = span.first; x < span.first + span.count; ++x) {
      A dot[3] = {};
      columns.Visit(x, [&](const A(&column)[3][V]) {
#pragma unroll
        for (int v = 0; v < V; ++v) {
          const A value = Widen(bin.values[v]);
#pragma unroll
          for (int s = 0; s < 3; ++s) dot[s] += value * column[s][v];
        }
      });
      const A* weight = weights_x + 3 * (2 * j + x);
      d_box[0] += weight[0] * dot[1];
      d_box[1] += weight[1] * dot[0];
      d_box[2] += weight[0] * dot[2];
      d_box[3] += weight[2] * dot[0];
    }
  }
}

// Adds `values` over the `width` threads side by side, for all rows of the block; the first of each
// row gets the sums. All threads of the block must call it.
template <typename A>
__device__ void SumOverLanes(int width, A (&values)[4]) {
  __shared__ A shared[4][kThreads];
  const int thread = threadIdx.x;
  const int lane = thread % width;
  __syncthreads();  // The last sums have been read.
  for (int k = 0; k < 4; ++k) shared[k][thread] = values[k];
  for (int left = width; left > 1;) {
    const int half = (left + 1) / 2;
    __syncthreads();
    // The last row may be cut off by the end of the block; nobody reads its sums.
    if (lane + half < left && thread + half < kThreads) {
      for (int k = 0; k < 4; ++k) shared[k][thread] += shared[k][thread + half];
    }
    left = half;
  }
  for (int k = 0; k < 4; ++k) values[k] = shared[k][thread];
}

template <int V, typename T>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    BoxGradientKernel(Shape shape, Split split, Tables<Accumulator<T>> tables,
                      const T* __restrict__ features, const T* __restrict__ upstream) {
  const int64_t rows = shape.num_boxes * shape.output_height;
  const int64_t groups = DivideUp(rows, split.rows) * split.chunks;
  const int y = threadIdx.x / split.width;
  const int lane = threadIdx.x % split.width;
  for (int64_t group = blockIdx.x; group < groups; group += gridDim.x) {
    const int64_t chunk = group % split.chunks;
    const int64_t row = group / split.chunks * split.rows + y;
    const int64_t channel = V * (chunk * split.width + lane);
    const bool has_row = y < split.rows && row < rows;
    Accumulator<T> d_box[4] = {};
    if (has_row && channel < shape.channels) {
      BoxGradientRow<V>(shape, tables, features, upstream, row / shape.output_height,
                        row % shape.output_height, channel, d_box);
    }
    SumOverLanes(split.width, d_box);
    if (has_row && lane == 0) {
      for (int k = 0; k < 4; ++k) tables.partial[4 * (row * split.chunks + chunk) + k] = d_box[k];
    }
  }
}

// Adds the rows' parts, a thread per coordinate. In double: there are few, and they may cancel.
template <typename Box, typename A>
__global__ void __launch_bounds__(kThreads)
    AddPartsKernel(Shape shape, int64_t parts, Tables<A> tables, Box* d_boxes) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
       index < 4 * shape.num_boxes; index += step) {
    const int64_t n = index / 4;
    const A* part = tables.partial + 4 * n * parts + index % 4;
    double sum = tables.boxes[n].image < 0 ? NAN : 0.0;
#pragma unroll 4
    for (int64_t k = 0; k < parts; ++k) sum += static_cast<double>(part[4 * k]);
    d_boxes[index] = static_cast<Box>(sum);
  }
}

// ------------------------------------------------------------------------------------------------
// Gradient to the features.

// Rows and columns of d_features in one image.
struct Region {
  int32_t image;
  Range y;
  Range x;
};

__device__ inline bool Overlap(const Range& a, const Range& b) {
  return a.first <= b.last && b.first <= a.last;
}

// Adds what box n sends to row k, columns x0, ..., x0 + kTile - 1. With t[j] the sum over the bins
// i of weight y[i, k] times upstream [i, j], column x gets the sum of weight x[j, x] times t[j].
template <int V, typename T, typename A>
__device__ void FeatureGradientTile(const Shape& shape, const Tables<A>& tables, const T* upstream,
                                    int64_t n, int64_t k, int32_t x0, int64_t channel,
                                    A (&sums)[kTile][V]) {
  const Range window = tables.boxes[n].x;
  const Range* touching = tables.x.touching + n * shape.width;
  const int32_t j_first = touching[max(x0, window.first)].first;
  const int32_t j_last = touching[min(x0 + kTile - 1, window.last)].last;
  const Range rows = tables.y.touching[n * shape.height + k];
  const A* weights_y = tables.y.weights + n * tables.y.pairs + k + 2 * rows.first;
  const int row_stride = static_cast<int>(shape.output_width * shape.channels);
  const T* top = upstream + (n * shape.output_height + rows.first) * row_stride + channel;
  for (int j = j_first; j <= j_last; ++j) {
    A column[1][V] = {};
    Contract<V, 1>(top + j * shape.channels, row_stride, weights_y, 2,
                   rows.last - rows.first + 1, column);
    const Span span = tables.x.spans[n * shape.output_width + j];
    const A* weights_x = tables.x.weights + n * tables.x.pairs + 2 * j + x0;
#pragma unroll
    for (int u = 0; u < kTile; ++u) {
      // Skipped, not multiplied by 0: a NaN must not reach nodes that the bin does not touch.
      if (!Contains(span, x0 + u)) continue;
      const A weight = weights_x[u];
#pragma unroll
      for (int v = 0; v < V; ++v) sums[u][v] += weight * column[0][v];
    }
  }
}

// A block owns some rows and kTile columns of one image. Its threads look at a box each, and then
// all walk those that touch the block, in order: the sums do not depend on anything but the boxes.
template <int V, typename T>
__global__ void __launch_bounds__(kThreads)
    FeatureGradientKernel(Shape shape, Split split, Tables<Accumulator<T>> tables,
                          const T* __restrict__ upstream, T* __restrict__ d_features) {
  __shared__ unsigned int hits[kThreads / kWarp];
  const int64_t tiles = DivideUp(shape.width, kTile);
  const int64_t bands = DivideUp(shape.height, split.rows);
  const int64_t groups = shape.num_images * bands * tiles * split.chunks;
  const int thread = threadIdx.x;
  for (int64_t group = blockIdx.x; group < groups; group += gridDim.x) {
    const int64_t channel = V * (group % split.chunks * split.width + thread % split.width);
    const int32_t x0 = static_cast<int32_t>(group / split.chunks % tiles * kTile);
    const int64_t band = group / split.chunks / tiles;
    const int64_t image = band / bands;
    const int64_t top = band % bands * split.rows;
    const int64_t row = top + thread / split.width;
    const bool owns = row < top + split.rows && row < shape.height && channel < shape.channels;
    const Range rows = {static_cast<int32_t>(top), static_cast<int32_t>(top + split.rows - 1)};
    const Range columns = {x0, x0 + kTile - 1};
    Accumulator<T> sums[kTile][V] = {};
    for (int64_t base = 0; base < shape.num_boxes; base += kThreads) {
      bool hit = false;
      if (base + thread < shape.num_boxes) {
        const BoxRecord box = tables.boxes[base + thread];
        hit = box.image == image && Overlap(box.y, rows) && Overlap(box.x, columns);
      }
      const unsigned int mask = __ballot_sync(0xffffffffu, hit);
      __syncthreads();  // The last hits have been read.
      if (thread % kWarp == 0) hits[thread / kWarp] = mask;
      __syncthreads();
      for (int warp = 0; warp < kThreads / kWarp; ++warp) {
        for (unsigned int left = hits[warp]; left != 0; left &= left - 1) {
          const int64_t n = base + warp * kWarp + __ffs(static_cast<int>(left)) - 1;
          const Range touched = tables.boxes[n].y;
          if (!owns || row < touched.first || row > touched.last) continue;
          FeatureGradientTile<V>(shape, tables, upstream, n, row, x0, channel, sums);
        }
      }
    }
    T* to = d_features + ((image * shape.height + row) * shape.width + x0) * shape.channels;
#pragma unroll
    for (int u = 0; u < kTile; ++u) {
      if (owns && x0 + u < shape.width) Store(sums[u], to + u * shape.channels + channel);
    }
  }
}

// ------------------------------------------------------------------------------------------------
// Launches.

// `groups` blocks, or as many as a grid may have.
template <typename... Parameters, typename... Arguments>
cudaError_t Launch(void (*kernel)(Parameters...), int64_t groups, int threads, void* stream,
                   const Arguments&... arguments) {
  if (groups == 0) return cudaSuccess;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned int>(std::min(groups, kMaxGrid)));
  config.blockDim = dim3(threads);
  config.stream = static_cast<cudaStream_t>(stream);
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, arguments...);
  // It is returned here; whoever asks CUDA next shall not be told of it again.
  if (error != cudaSuccess) cudaGetLastError();
  return error;
}

template <int K, typename A>
cudaError_t Prepare(int boxes_are_double, const Shape& shape, const void* boxes,
                    const int32_t* box_indices, const Tables<A>& tables, void* stream) {
  if (boxes_are_double) {
    return Launch(PrepareKernel<K, double, A>, shape.num_boxes, kPrepareThreads, stream, shape,
                  static_cast<const double*>(boxes), box_indices, tables);
  }
  return Launch(PrepareKernel<K, float, A>, shape.num_boxes, kPrepareThreads, stream, shape,
                static_cast<const float*>(boxes), box_indices, tables);
}

// Calls `function` with a null pointer of the C++ type that `type` stands for.
template <typename Function>
int WithType(int type, const Shape& shape, Function function) {
  const int64_t depth = std::max<int64_t>(shape.channels, 1);
  const int64_t row = std::max(shape.width, shape.output_width) * depth;
  if (std::max({row, shape.height, shape.output_height}) > kMaxRow) return cudaErrorInvalidValue;
  switch (type) {
    case kPrRoiPoolHalf:
      return function(static_cast<__half*>(nullptr));
    case kPrRoiPoolBFloat16:
      return function(static_cast<__nv_bfloat16*>(nullptr));
    case kPrRoiPoolFloat:
      return function(static_cast<float*>(nullptr));
    case kPrRoiPoolDouble:
      return function(static_cast<double*>(nullptr));
    default:
      return cudaErrorInvalidValue;
  }
}

template <typename T>
constexpr int VectorSize() {
  return 16 / static_cast<int>(sizeof(T));
}

// Less for 16-bit types: the three sums of eight channels do not fit into a thread's registers.
template <typename T>
constexpr int BoxGradientVectorSize() {
  return std::min(VectorSize<T>(), 4);
}

// Whether whole vectors begin at every pixel of both arrays.
template <int V, typename T>
bool CanUseVectors(const Shape& shape, const T* a, const T* b) {
  const auto bits = reinterpret_cast<uintptr_t>(a) | reinterpret_cast<uintptr_t>(b);
  return shape.channels % V == 0 && bits % (V * sizeof(T)) == 0;
}

int64_t WorkspaceSize(const Shape& shape, int type, Pass pass) {
  if (type < kPrRoiPoolHalf || type > kPrRoiPoolDouble) return -1;
  Arena arena(nullptr);
  if (type == kPrRoiPoolDouble) {
    TakeTables<double>(&arena, shape, pass);
  } else {
    TakeTables<float>(&arena, shape, pass);
  }
  return arena.used();
}

template <int V, typename T>
cudaError_t LaunchForward(const Shape& shape, const Tables<Accumulator<T>>& tables,
                          const T* features, T* output, void* stream) {
  const Split split = SplitChannels(shape.channels, V);
  const int64_t rows = shape.num_boxes * shape.output_height;
  return Launch(ForwardKernel<V, T>, DivideUp(rows, split.rows) * split.chunks, kThreads, stream,
                shape, split, tables, features, output);
}

template <int V, typename T>
cudaError_t LaunchFeatureGradient(const Shape& shape, const Tables<Accumulator<T>>& tables,
                                  const T* upstream, T* d_features, void* stream) {
  const Split split = SplitChannels(shape.channels, V);
  const int64_t blocks_per_image =
      DivideUp(shape.height, split.rows) * DivideUp(shape.width, kTile) * split.chunks;
  return Launch(FeatureGradientKernel<V, T>, shape.num_images * blocks_per_image, kThreads, stream,
                shape, split, tables, upstream, d_features);
}

// Also tells how many parts of a box are to be added.
template <int V, typename T>
cudaError_t LaunchBoxGradient(const Shape& shape, const Tables<Accumulator<T>>& tables,
                              const T* features, const T* upstream, void* stream, int64_t* parts) {
  const Split split = SplitChannels(shape.channels, V);
  const int64_t rows = shape.num_boxes * shape.output_height;
  *parts = shape.output_height * split.chunks;
  return Launch(BoxGradientKernel<V, T>, DivideUp(rows, split.rows) * split.chunks, kThreads,
                stream, shape, split, tables, features, upstream);
}

template <typename Box, typename A>
cudaError_t AddParts(const Shape& shape, int64_t parts, const Tables<A>& tables, void* d_boxes,
                     void* stream) {
  return Launch(AddPartsKernel<Box, A>, DivideUp(4 * shape.num_boxes, kThreads), kThreads, stream,
                shape, parts, tables, static_cast<Box*>(d_boxes));
}

}  // namespace

extern "C" {

int64_t PrRoiPoolCudaForwardWorkspace(const Shape* shape, int type) {
  return WorkspaceSize(*shape, type, kForward);
}

int64_t PrRoiPoolCudaFeatureGradientWorkspace(const Shape* shape, int type) {
  return WorkspaceSize(*shape, type, kFeatureGradient);
}

int64_t PrRoiPoolCudaBoxGradientWorkspace(const Shape* shape, int type) {
  return WorkspaceSize(*shape, type, kBoxGradient);
}

int PrRoiPoolCudaForward(int type, int boxes_are_double, const Shape* shape, const void* features,
                         const void* boxes, const int32_t* box_indices, void* workspace,
                         void* output, void* stream) {
  return WithType(type, *shape, [&](auto* of_type) -> int {
    using T = std::remove_pointer_t<decltype(of_type)>;
    Arena arena(workspace);
    const auto tables = TakeTables<Accumulator<T>>(&arena, *shape, kForward);
    const cudaError_t error =
        Prepare<1>(boxes_are_double, *shape, boxes, box_indices, tables, stream);
    if (error != cudaSuccess) return error;
    const T* from = static_cast<const T*>(features);
    T* to = static_cast<T*>(output);
    constexpr int V = VectorSize<T>();
    return CanUseVectors<V>(*shape, from, to)
               ? LaunchForward<V>(*shape, tables, from, to, stream)
               : LaunchForward<1>(*shape, tables, from, to, stream);
  });
}

int PrRoiPoolCudaFeatureGradient(int type, int boxes_are_double, const Shape* shape,
                                 const void* boxes, const int32_t* box_indices,
                                 const void* upstream, void* workspace, void* d_features,
                                 void* stream) {
  return WithType(type, *shape, [&](auto* of_type) -> int {
    using T = std::remove_pointer_t<decltype(of_type)>;
    Arena arena(workspace);
    const auto tables = TakeTables<Accumulator<T>>(&arena, *shape, kFeatureGradient);
    const cudaError_t error =
        Prepare<1>(boxes_are_double, *shape, boxes, box_indices, tables, stream);
    if (error != cudaSuccess) return error;
    const T* from = static_cast<const T*>(upstream);
    T* to = static_cast<T*>(d_features);
    constexpr int V = VectorSize<T>();
    return CanUseVectors<V>(*shape, from, to)
               ? LaunchFeatureGradient<V>(*shape, tables, from, to, stream)
               : LaunchFeatureGradient<1>(*shape, tables, from, to, stream);
  });
}

int PrRoiPoolCudaBoxGradient(int type, int boxes_are_double, const Shape* shape,
                             const void* features, const void* boxes, const int32_t* box_indices,
                             const void* upstream, void* workspace, void* d_boxes, void* stream) {
  return WithType(type, *shape, [&](auto* of_type) -> int {
    using T = std::remove_pointer_t<decltype(of_type)>;
    Arena arena(workspace);
    const auto tables = TakeTables<Accumulator<T>>(&arena, *shape, kBoxGradient);
    cudaError_t error = Prepare<3>(boxes_are_double, *shape, boxes, box_indices, tables, stream);
    if (error != cudaSuccess) return error;
    const T* nodes = static_cast<const T*>(features);
    const T* bins = static_cast<const T*>(upstream);
    int64_t parts = 0;
    constexpr int V = BoxGradientVectorSize<T>();
    error = CanUseVectors<V>(*shape, nodes, bins)
                ? LaunchBoxGradient<V>(*shape, tables, nodes, bins, stream, &parts)
                : LaunchBoxGradient<1>(*shape, tables, nodes, bins, stream, &parts);
    if (error != cudaSuccess) return error;
    return boxes_are_double ? AddParts<double>(*shape, parts, tables, d_boxes, stream)
                            : AddParts<float>(*shape, parts, tables, d_boxes, stream);
  });
}

const char* PrRoiPoolCudaErrorString(int error) {
  return cudaGetErrorString(static_cast<cudaError_t>(error));
}

}  // extern "C"
