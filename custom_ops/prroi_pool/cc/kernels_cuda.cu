// SPDX-License-Identifier: Apache-2.0
// PrRoIPool and RoIAlign on CUDA, over one or several levels: forward, gradient to the features,
// gradient to the boxes.
//
// A kernel per pass, after a small one that writes what does not depend on the channels (nodes that
// each bin touches, weights, derivatives) into the workspace, once per box. The passes then only
// move features: threads lie along the channels, 16 bytes each, and what a thread decides depends
// on the box and the bin alone, so that warps stay together. There are no atomics: every result has
// one owner, which sums in a fixed order.
//
// Compiled alone, without TensorFlow's headers, by for example
//   nvcc -std=c++17 -O3 -Xcompiler -fPIC -cudart static -c kernels_cuda.cu -o kernels_cuda.o
//     -gencode arch=compute_80,code=sm_80 -gencode arch=compute_90,code=[sm_90,compute_90]
// with a -gencode for each architecture that the toolkit has (`nvcc --list-gpu-arch`; CUDA 13
// begins at 75) and PTX of the newest. CUDA 11.8 is the oldest with cudaLaunchKernelEx. Never with
// --use_fast_math, which drops the checks for NaN.
#include "kernels_cuda.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <math.h>
#include <string.h>

#include <algorithm>
#include <type_traits>

namespace {

using prroi::Axis;
using prroi::kMaxLevels;
using prroi::NumEntries;
using prroi::Pyramid;
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
// Bins of a row that the gradient to the boxes takes from one level before it turns to the next: few
// enough that it finds upstream in the cache again, many enough that little of the map is read twice.
constexpr int kBinsOfLevel = 7;
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
  int32_t level;
  Range y;  // Nodes that any bin touches.
  Range x;
};

// Tables of one axis, for each entry (a box and a level) in turn. The weight of bin i on node k is at
// pair 2 * i + k: neighbouring bins share two nodes at most, so that 2 * i keeps their weights apart.
// A pair has one value, or three for the gradient to the boxes: the weight and its derivatives to
// the first and second coordinate.
template <typename A>
struct AxisTables {
  int64_t pairs;    // Of an entry: as many as the level with the most has.
  int64_t nodes;    // The same.
  Span* spans;      // [entries, num_bins]: nodes of a bin.
  A* weights;       // [entries, pairs, 1 or 3]
  Range* touching;  // [entries, nodes]: bins of a node, for the gradient to the features.
};

template <typename A>
struct Tables {
  BoxRecord* boxes;  // [entries]
  AxisTables<A> y;
  AxisTables<A> x;
  Range* of_image;  // [num_images]: first and last box of an image, for the features' gradient.
  A* partial;       // [num_boxes, output_height, chunks, 4]: the boxes' gradient, row by row.
};

// Features or their gradient, level by level.
template <typename T>
struct Maps {
  T* data[kMaxLevels];
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
AxisTables<A> TakeAxis(Arena* arena, int64_t entries, Pass pass, int64_t bins, int64_t nodes) {
  AxisTables<A> axis = {};
  axis.pairs = prroi::MaxPairs(bins, nodes);
  axis.nodes = nodes;
  arena->Take(entries * bins, &axis.spans);
  arena->Take(entries * axis.pairs * (pass == kBoxGradient ? 3 : 1), &axis.weights);
  if (pass == kFeatureGradient) arena->Take(entries * nodes, &axis.touching);
  return axis;
}

template <typename A>
Tables<A> TakeTables(Arena* arena, const Pyramid& pyramid, Pass pass) {
  const Shape& shape = pyramid.levels[0];
  const int64_t entries = NumEntries(pyramid);
  int64_t height = 0, width = 0;
  for (int64_t level = 0; level < pyramid.num_levels; ++level) {
    height = std::max(height, pyramid.levels[level].height);
    width = std::max(width, pyramid.levels[level].width);
  }
  Tables<A> tables = {};
  arena->Take(entries, &tables.boxes);
  tables.y = TakeAxis<A>(arena, entries, pass, shape.output_height, height);
  tables.x = TakeAxis<A>(arena, entries, pass, shape.output_width, width);
  if (pass == kFeatureGradient) arena->Take(shape.num_images, &tables.of_image);
  if (pass == kBoxGradient) {
    // Of single channels, whether or not the pointers will allow vectors.
    const int64_t chunks = SplitChannels(shape.channels, 1).chunks;
    arena->Take(shape.num_boxes * shape.output_height * chunks * 4, &tables.partial);
  }
  return tables;
}

// Writes entry e's tables of one axis, K values for a pair. `nodes` is set to the touched nodes; it
// must hold an empty range that all threads of the block see.
template <int K, typename A>
__device__ void PrepareAxis(const Axis& axis, int64_t num_bins, int64_t num_nodes, double scale,
                            int64_t e, const AxisTables<A>& tables, Range* nodes) {
  const int lane = threadIdx.x % kThreadsPerBin;
  const Span none = {0, 0};
  for (int64_t i = threadIdx.x / kThreadsPerBin; i < num_bins;
       i += kPrepareThreads / kThreadsPerBin) {
    const Span span = prroi::TouchedNodes(axis, i, num_nodes);
    const Span before = i > 0 ? prroi::TouchedNodes(axis, i - 1, num_nodes) : none;
    const Span after = i + 1 < num_bins ? prroi::TouchedNodes(axis, i + 1, num_nodes) : none;
    if (lane == 0) {
      tables.spans[e * num_bins + i] = span;
      if (span.count > 0 && before.count == 0) nodes->first = span.first;
      if (span.count > 0 && after.count == 0) nodes->last = span.first + span.count - 1;
    }
    for (int64_t k = span.first + lane; Contains(span, k); k += kThreadsPerBin) {
      A* weights = tables.weights + K * (e * tables.pairs + 2 * i + k);
      weights[0] = static_cast<A>(prroi::Weight(axis, i, k, num_nodes));
      if constexpr (K == 3) {
        double d_start, d_stop;
        prroi::WeightGradient(axis, i, k, num_bins, scale, &d_start, &d_stop);
        weights[1] = static_cast<A>(d_start);
        weights[2] = static_cast<A>(d_stop);
      }
      if (tables.touching != nullptr) {
        Range* bins = tables.touching + e * tables.nodes + k;
        if (!Contains(before, k)) bins->first = static_cast<int32_t>(i);
        if (!Contains(after, k)) bins->last = static_cast<int32_t>(i);
      }
    }
    if (tables.touching == nullptr || after.count == 0) continue;
    // RoIAlign's samples may leave nodes out. Those have no bin, between this one and the next.
    for (int64_t k = span.first + span.count + lane; k < after.first; k += kThreadsPerBin) {
      tables.touching[e * tables.nodes + k] = {static_cast<int32_t>(i + 1),
                                               static_cast<int32_t>(i)};
    }
  }
}

// First and last of the boxes of an image, by all threads of a block.
__device__ inline void FindBoxesOfImage(int64_t image, int64_t num_boxes,
                                        const int32_t* box_indices, Range* of_image) {
  __shared__ Range found[kPrepareThreads];
  const int thread = threadIdx.x;
  Range own = {INT32_MAX, -1};
  for (int64_t n = thread; n < num_boxes; n += kPrepareThreads) {
    if (box_indices[n] != image) continue;
    own.first = min(own.first, static_cast<int32_t>(n));
    own.last = static_cast<int32_t>(n);
  }
  __syncthreads();  // What was found for the last image has been read.
  found[thread] = own;
  __syncthreads();
  if (thread != 0) return;
  for (int k = 1; k < kPrepareThreads; ++k) {
    own.first = min(own.first, found[k].first);
    own.last = max(own.last, found[k].last);
  }
  *of_image = own;
}

// A block per entry, and per image where its boxes are wanted.
template <int K, typename Box, typename A>
__global__ void __launch_bounds__(kPrepareThreads)
    PrepareKernel(const __grid_constant__ Pyramid pyramid, const Box* boxes,
                  const int32_t* box_indices, const int32_t* box_levels, Tables<A> tables) {
  const int64_t num_boxes = pyramid.levels[0].num_boxes;
  const int64_t num_images = pyramid.levels[0].num_images;
  for (int64_t e = blockIdx.x; e < NumEntries(pyramid); e += gridDim.x) {
    double box[4];
    const int64_t n = e % num_boxes;
    const int32_t image = box_indices[n];
    const int64_t level = box_levels == nullptr ? e / num_boxes : box_levels[n];
    bool defined = image >= 0 && image < num_images && level >= 0 && level < pyramid.num_levels;
    for (int k = 0; k < 4; ++k) {
      box[k] = static_cast<double>(boxes[4 * n + k]);
      defined = defined && isfinite(box[k]);
    }
    const int32_t own = defined ? static_cast<int32_t>(level) : 0;
    const Shape& shape = pyramid.levels[own];
    Axis y, x;
    prroi::BoxAxes(box, shape, &y, &x);
    BoxRecord* record = tables.boxes + e;
    if (threadIdx.x == 0) *record = {defined ? image : -1, own, {0, -1}, {0, -1}};
    __syncthreads();
    const double scale = shape.spatial_scale;
    PrepareAxis<K>(y, shape.output_height, shape.height, scale, e, tables.y, &record->y);
    PrepareAxis<K>(x, shape.output_width, shape.width, scale, e, tables.x, &record->x);
  }
  if (tables.of_image == nullptr) return;
  for (int64_t image = blockIdx.x; image < num_images; image += gridDim.x) {
    FindBoxesOfImage(image, num_boxes, box_indices, tables.of_image + image);
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
  } else if constexpr (sizeof(vector) == sizeof(unsigned long long)) {
    // By itself the compiler would store the values of a 16-bit type one by one.
    unsigned long long bits;
    memcpy(&bits, &vector, sizeof(bits));
    *reinterpret_cast<unsigned long long*>(to) = bits;
  } else {
    *reinterpret_cast<Vector<T, V>*>(to) = vector;
  }
}

// What is read: features, or upstream of which one level may have won a part only.
template <typename T>
struct Nodes {
  const T* values;

  __device__ Nodes At(int64_t offset) const { return {values + offset}; }
  template <int V>
  __device__ Vector<T, V> Get() const {
    return Load<V>(values);
  }
};

template <typename T>
struct Bins {
  const T* values;
  const uint8_t* winners;  // nullptr where there is one level.
  int level;

  __device__ Bins At(int64_t offset) const {
    return {values + offset, winners == nullptr ? nullptr : winners + offset, level};
  }
  // Zero where another level has won.
  template <int V>
  __device__ Vector<T, V> Get() const {
    Vector<T, V> vector = Load<V>(values);
    if (winners == nullptr) return vector;
    const Vector<uint8_t, V> won = Load<V>(winners);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      if (won.values[v] != level) Narrow(Accumulator<T>(0), &vector.values[v]);
    }
    return vector;
  }
};

// sums[s] += sum over k < count of weights[k * weight_stride + s] * from[k * stride], V channels.
// Loads are issued kAhead at a time, before any is used.
template <int V, int K, typename Source, typename A>
__device__ inline void Contract(const Source& from, int stride, const A* weights,
                                int weight_stride, int count, A (&sums)[K][V]) {
#pragma unroll 1
  for (int begin = 0; begin < count; begin += kAhead) {
    decltype(from.template Get<V>()) nodes[kAhead];
    A weight[kAhead][K];
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      if (begin + k >= count) continue;
      nodes[k] = from.At(static_cast<int64_t>(begin + k) * stride).template Get<V>();
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
  // Of bin row i of entry e, from a channel on.
  __device__ void Start(const Shape& shape, const AxisTables<A>& tables, const T* features,
                        int32_t image, int64_t e, int64_t i, int64_t channel) {
    const Span rows = tables.spans[e * shape.output_height + i];
    row_stride_ = static_cast<int>(shape.width * shape.channels);
    column_stride_ = static_cast<int>(shape.channels);
    count_ = rows.count;
    from_ = features + (image * shape.height + rows.first) * row_stride_ + channel;
    weights_ = tables.weights + K * (e * tables.pairs + 2 * i + rows.first);
    newest_ = -1;
  }

  __device__ bool IsEmpty() const { return count_ == 0; }

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
      Contract<V, K>(Nodes<T>{top}, row_stride_, weights_, K, count_, last_);
    }
    use(last_);
  }

 private:
  const T* from_;  // Top node of column 0.
  int row_stride_;
  int column_stride_;
  int count_;
  const A* weights_;  // K for a node, from that node on.
  int newest_;
  A last_[K][V] = {};
  A before_[K][V] = {};
};

// What bin j of entry e is, from its row's columns.
template <int V, typename T, typename A>
__device__ inline void SumBin(Columns<V, 1, T, A>* columns, const AxisTables<A>& tables,
                              int64_t e, int j, int64_t num_bins, A (&sum)[V]) {
  const Span span = tables.spans[e * num_bins + j];
  const A* weights = tables.weights + e * tables.pairs + 2 * j;
#pragma unroll 1
  for (int x = span.first; x < span.first + span.count; ++x) {
    const A weight = weights[x];
    columns->Visit(x, [&](const A(&column)[1][V]) {
#pragma unroll
      for (int v = 0; v < V; ++v) sum[v] += weight * column[0][v];
    });
  }
}

// ------------------------------------------------------------------------------------------------
// Forward.

// A row of bins that a thread has V channels of.
struct Row {
  int64_t n;
  int64_t i;
  int64_t channel;
};

// The thread's row in a group of rows, or none of them: i is -1.
__device__ inline Row RowOfThread(const Shape& shape, const Split& split, int64_t group,
                                  int vector) {
  const int y = threadIdx.x / split.width;
  const int64_t row = group / split.chunks * split.rows + y;
  const int64_t channel =
      vector * (group % split.chunks * split.width + threadIdx.x % split.width);
  const bool is_there = y < split.rows && row < shape.num_boxes * shape.output_height &&
                        channel < shape.channels;
  return {row / shape.output_height, is_there ? row % shape.output_height : -1, channel};
}

// Where the row begins in the output and what has its shape.
__device__ inline int64_t RowOffset(const Shape& shape, const Row& row) {
  return (row.n * shape.output_height + row.i) * shape.output_width * shape.channels + row.channel;
}

template <int V, typename T>
__device__ void StoreUndefined(const Shape& shape, T* out) {
  Accumulator<T> undefined[V];
  for (int v = 0; v < V; ++v) undefined[v] = static_cast<Accumulator<T>>(NAN);
  for (int64_t j = 0; j < shape.output_width; ++j) Store(undefined, out + j * shape.channels);
}

// A row of a box that is pooled from one level.
template <int V, typename T, typename A>
__device__ void ForwardRow(const Shape& shape, const Tables<A>& tables, const T* features,
                           const Row& row, T* out) {
  Columns<V, 1, T, A> columns;
  columns.Start(shape, tables.y, features, tables.boxes[row.n].image, row.n, row.i, row.channel);
  for (int j = 0; j < shape.output_width; ++j, out += shape.channels) {
    A sum[V] = {};
    SumBin(&columns, tables.x, row.n, j, shape.output_width, sum);
    Store(sum, out);
  }
}

template <int V, typename T>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    ForwardKernel(const __grid_constant__ Pyramid pyramid, Split split,
                  Tables<Accumulator<T>> tables, const __grid_constant__ Maps<const T> features,
                  T* __restrict__ output) {
  const Shape& common = pyramid.levels[0];
  const int64_t rows = common.num_boxes * common.output_height;
  const int64_t groups = DivideUp(rows, split.rows) * split.chunks;
  for (int64_t group = blockIdx.x; group < groups; group += gridDim.x) {
    const Row row = RowOfThread(common, split, group, V);
    if (row.i < 0) continue;
    const BoxRecord& box = tables.boxes[row.n];
    T* out = output + RowOffset(common, row);
    if (box.image < 0) {
      StoreUndefined<V>(common, out);
      continue;
    }
    ForwardRow<V>(pyramid.levels[box.level], tables, features.data[box.level], row, out);
  }
}

// ------------------------------------------------------------------------------------------------
// Forward, the maximum over the levels.

template <int V>
__device__ inline void StoreWinners(const int (&winner)[V], uint8_t* to) {
  Vector<uint8_t, V> vector;
#pragma unroll
  for (int v = 0; v < V; ++v) vector.values[v] = static_cast<uint8_t>(winner[v]);
  *reinterpret_cast<Vector<uint8_t, V>*>(to) = vector;
}

// Keeps the larger of two values and its level. Both are compared as they are stored, so that the
// first of the levels wins a tie of 16-bit values, too; the first NaN stays.
template <typename T, typename A>
__device__ inline void KeepLarger(A value, int level, A* best, int* winner) {
  T stored;
  Narrow(value, &stored);
  const A rounded = Widen(stored);
  const bool wins = level == 0 || (*best == *best && !(rounded <= *best));
  *best = wins ? rounded : *best;
  *winner = wins ? level : *winner;
}

// The levels go from bin to bin side by side, each with its own columns, so that every column is
// read once and every result written once.
template <int V, typename T, typename A>
__device__ void MaximumRow(const Pyramid& pyramid, const Tables<A>& tables,
                           const Maps<const T>& features, const Row& row, T* out,
                           uint8_t* winners) {
  const Shape& common = pyramid.levels[0];
  Columns<V, 1, T, A> columns[kMaxLevels];
#pragma unroll
  for (int level = 0; level < kMaxLevels; ++level) {
    if (level >= pyramid.num_levels) continue;
    const int64_t e = level * common.num_boxes + row.n;
    columns[level].Start(pyramid.levels[level], tables.y, features.data[level],
                         tables.boxes[e].image, e, row.i, row.channel);
  }
  for (int j = 0; j < common.output_width; ++j) {
    A best[V] = {};
    int winner[V] = {};
#pragma unroll
    for (int level = 0; level < kMaxLevels; ++level) {
      if (level >= pyramid.num_levels) continue;
      A sum[V] = {};
      SumBin(&columns[level], tables.x, level * common.num_boxes + row.n, j, common.output_width,
             sum);
#pragma unroll
      for (int v = 0; v < V; ++v) KeepLarger<T>(sum[v], level, &best[v], &winner[v]);
    }
    Store(best, out + j * common.channels);
    StoreWinners(winner, winners + j * common.channels);
  }
}

template <int V, typename T>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    MaximumKernel(const __grid_constant__ Pyramid pyramid, Split split,
                  Tables<Accumulator<T>> tables, const __grid_constant__ Maps<const T> features,
                  T* __restrict__ output, uint8_t* __restrict__ winners) {
  const Shape& common = pyramid.levels[0];
  const int64_t rows = common.num_boxes * common.output_height;
  const int64_t groups = DivideUp(rows, split.rows) * split.chunks;
  for (int64_t group = blockIdx.x; group < groups; group += gridDim.x) {
    const Row row = RowOfThread(common, split, group, V);
    if (row.i < 0) continue;
    const int64_t offset = RowOffset(common, row);
    if (tables.boxes[row.n].image < 0) {
      StoreUndefined<V>(common, output + offset);
      const int first[V] = {};
      for (int64_t j = 0; j < common.output_width; ++j) {
        StoreWinners(first, winners + offset + j * common.channels);
      }
      continue;
    }
    MaximumRow<V>(pyramid, tables, features, row, output + offset, winners + offset);
  }
}

// ------------------------------------------------------------------------------------------------
// Gradient to the boxes.

// Adds what some bins of a row of entry e, [j_begin, j_end), send to y1, x1, y2, x2 through V
// channels.
template <int V, typename T, typename A>
__device__ void BoxGradientBins(const Shape& shape, const Tables<A>& tables, const T* features,
                                const Bins<T>& upstream, int64_t e, const Row& row, int j_begin,
                                int j_end, A (&d_box)[4]) {
  const int32_t image = tables.boxes[e].image;
  if (image < 0) return;
  Columns<V, 3, T, A> columns;
  columns.Start(shape, tables.y, features, image, e, row.i, row.channel);
  if (columns.IsEmpty()) return;
  const Span* spans = tables.x.spans + e * shape.output_width;
  const A* weights_x = tables.x.weights + 3 * e * tables.x.pairs;
  for (int j = j_begin; j < j_end; ++j) {
    const Span span = spans[j];
    if (span.count == 0) continue;
    const Vector<T, V> bin = upstream.At(j * shape.channels).template Get<V>();
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

// The whole row; with several levels in parts, level by level within each.
template <int V, typename T, typename A>
__device__ void BoxGradientRow(const Pyramid& pyramid, const Tables<A>& tables,
                               const Maps<const T>& features, const T* upstream,
                               const uint8_t* winners, const Row& row, A (&d_box)[4]) {
  const Shape& common = pyramid.levels[0];
  const int num_bins = static_cast<int>(common.output_width);
  const int step = pyramid.num_levels == 1 ? num_bins : kBinsOfLevel;
  for (int begin = 0; begin < num_bins; begin += step) {
#pragma unroll 1
    for (int level = 0; level < pyramid.num_levels; ++level) {
      const Bins<T> bins = Bins<T>{upstream, winners, level}.At(RowOffset(common, row));
      BoxGradientBins<V>(pyramid.levels[level], tables, features.data[level], bins,
                         level * common.num_boxes + row.n, row, begin,
                         min(begin + step, num_bins), d_box);
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
    // The last row may be cut off by the end of the block; its sums are not read.
    if (lane + half < left && thread + half < kThreads) {
      for (int k = 0; k < 4; ++k) shared[k][thread] += shared[k][thread + half];
    }
    left = half;
  }
  for (int k = 0; k < 4; ++k) values[k] = shared[k][thread];
}

template <int V, typename T>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    BoxGradientKernel(const __grid_constant__ Pyramid pyramid, Split split,
                      Tables<Accumulator<T>> tables,
                      const __grid_constant__ Maps<const T> features,
                      const T* __restrict__ upstream, const uint8_t* __restrict__ winners) {
  const Shape& common = pyramid.levels[0];
  const int64_t rows = common.num_boxes * common.output_height;
  const int64_t groups = DivideUp(rows, split.rows) * split.chunks;
  const int y = threadIdx.x / split.width;
  for (int64_t group = blockIdx.x; group < groups; group += gridDim.x) {
    const Row row = RowOfThread(common, split, group, V);
    Accumulator<T> d_box[4] = {};
    if (row.i >= 0) BoxGradientRow<V>(pyramid, tables, features, upstream, winners, row, d_box);
    SumOverLanes(split.width, d_box);
    const int64_t number = group / split.chunks * split.rows + y;
    if (y >= split.rows || number >= rows || threadIdx.x % split.width != 0) continue;
    auto* part = tables.partial + 4 * (number * split.chunks + group % split.chunks);
    for (int k = 0; k < 4; ++k) part[k] = d_box[k];
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

__device__ inline bool Overlap(const Range& a, const Range& b) {
  return a.first <= b.last && b.first <= a.last;
}

// Adds what entry e sends to row k, columns x0, ..., x0 + kTile - 1; `upstream` is its box's. With
// t[j] the sum over the bins i of weight y[i, k] times upstream [i, j], column x gets the sum of
// weight x[j, x] times t[j].
template <int V, typename T, typename A>
__device__ void FeatureGradientTile(const Shape& shape, const Tables<A>& tables,
                                    const Bins<T>& upstream, int64_t e, int64_t k, int32_t x0,
                                    A (&sums)[kTile][V]) {
  const Range window = tables.boxes[e].x;
  const Range* touching = tables.x.touching + e * tables.x.nodes;
  const int32_t j_first = touching[max(x0, window.first)].first;
  const int32_t j_last = touching[min(x0 + kTile - 1, window.last)].last;
  const Range rows = tables.y.touching[e * tables.y.nodes + k];
  const A* weights_y = tables.y.weights + e * tables.y.pairs + k + 2 * rows.first;
  const int row_stride = static_cast<int>(shape.output_width * shape.channels);
  const Bins<T> top = upstream.At(static_cast<int64_t>(rows.first) * row_stride);
  for (int j = j_first; j <= j_last; ++j) {
    A column[1][V] = {};
    Contract<V, 1>(top.At(j * shape.channels), row_stride, weights_y, 2,
                   rows.last - rows.first + 1, column);
    const Span span = tables.x.spans[e * shape.output_width + j];
    const A* weights_x = tables.x.weights + e * tables.x.pairs + 2 * j + x0;
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

// Where the groups of each level begin, and after the last of them where they end.
struct LevelGroups {
  int64_t first[kMaxLevels + 1];
};

// What a block owns: some rows and kTile columns of one image of one level.
struct Patch {
  int level;
  int64_t image;
  Range y;
  Range x;
  int64_t chunk;
};

__device__ inline Patch PatchOfGroup(const Pyramid& pyramid, const Split& split,
                                     const LevelGroups& groups, int64_t group) {
  int level = 0;
  while (group >= groups.first[level + 1]) ++level;
  const Shape& shape = pyramid.levels[level];
  const int64_t tiles = DivideUp(shape.width, kTile);
  const int64_t bands = DivideUp(shape.height, split.rows);
  const int64_t place = (group - groups.first[level]) / split.chunks;
  const auto x0 = static_cast<int32_t>(place % tiles * kTile);
  const auto y0 = static_cast<int32_t>(place / tiles % bands * split.rows);
  const auto y1 = min(y0 + split.rows, static_cast<int32_t>(shape.height)) - 1;
  return {level, place / tiles / bands, {y0, y1}, {x0, x0 + kTile - 1}, group % split.chunks};
}

// Threads of the block look at a box each, and then all walk those that touch the patch, in order:
// the sums do not depend on anything but the boxes.
template <int V, typename T>
__global__ void __launch_bounds__(kThreads)
    FeatureGradientKernel(const __grid_constant__ Pyramid pyramid, Split split,
                          const __grid_constant__ LevelGroups groups,
                          Tables<Accumulator<T>> tables, const T* __restrict__ upstream,
                          const uint8_t* __restrict__ winners,
                          const __grid_constant__ Maps<T> d_features) {
  __shared__ unsigned int hits[kThreads / kWarp];
  const int thread = threadIdx.x;
  for (int64_t group = blockIdx.x; group < groups.first[pyramid.num_levels]; group += gridDim.x) {
    const Patch patch = PatchOfGroup(pyramid, split, groups, group);
    const Shape& shape = pyramid.levels[patch.level];
    const int64_t channel = V * (patch.chunk * split.width + thread % split.width);
    const int64_t row = patch.y.first + thread / split.width;
    const bool owns = row <= patch.y.last && channel < shape.channels;
    const int64_t box_elements = shape.output_height * shape.output_width * shape.channels;
    const int64_t first_entry = pyramid.levels_per_box > 1 ? patch.level * shape.num_boxes : 0;
    const Bins<T> bins = {upstream, winners, patch.level};
    const Range of_image = tables.of_image[patch.image];
    Accumulator<T> sums[kTile][V] = {};
    for (int64_t base = of_image.first; base <= of_image.last; base += kThreads) {
      bool hit = false;
      if (base + thread <= of_image.last) {
        const BoxRecord box = tables.boxes[first_entry + base + thread];
        hit = box.image == patch.image && box.level == patch.level && Overlap(box.y, patch.y) &&
              Overlap(box.x, patch.x);
      }
      const unsigned int mask = __ballot_sync(0xffffffffu, hit);
      __syncthreads();  // The last hits have been read.
      if (thread % kWarp == 0) hits[thread / kWarp] = mask;
      __syncthreads();
      for (int warp = 0; warp < kThreads / kWarp; ++warp) {
        for (unsigned int left = hits[warp]; left != 0; left &= left - 1) {
          const int64_t n = base + warp * kWarp + __ffs(static_cast<int>(left)) - 1;
          const Range touched = tables.boxes[first_entry + n].y;
          if (!owns || row < touched.first || row > touched.last) continue;
          FeatureGradientTile<V>(shape, tables, bins.At(n * box_elements + channel),
                                 first_entry + n, row, patch.x.first, sums);
        }
      }
    }
    T* to = d_features.data[patch.level] +
            ((patch.image * shape.height + row) * shape.width + patch.x.first) * shape.channels;
#pragma unroll
    for (int u = 0; u < kTile; ++u) {
      if (owns && patch.x.first + u < shape.width) Store(sums[u], to + u * shape.channels + channel);
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
  // CUDA keeps the error until it is asked for it. Here it is returned, so that a later, sound launch
  // must not report it again.
  if (error != cudaSuccess) cudaGetLastError();
  return error;
}

template <int K, typename A>
cudaError_t Prepare(int boxes_are_double, const Pyramid& pyramid, const void* boxes,
                    const int32_t* box_indices, const int32_t* box_levels, const Tables<A>& tables,
                    void* stream) {
  const int64_t images = tables.of_image == nullptr ? 0 : pyramid.levels[0].num_images;
  const int64_t blocks = std::max(NumEntries(pyramid), images);
  if (boxes_are_double) {
    return Launch(PrepareKernel<K, double, A>, blocks, kPrepareThreads, stream, pyramid,
                  static_cast<const double*>(boxes), box_indices, box_levels, tables);
  }
  return Launch(PrepareKernel<K, float, A>, blocks, kPrepareThreads, stream, pyramid,
                static_cast<const float*>(boxes), box_indices, box_levels, tables);
}

bool IsTooLarge(const Shape& shape) {
  const int64_t depth = std::max<int64_t>(shape.channels, 1);
  const int64_t row = std::max(shape.width, shape.output_width) * depth;
  return std::max({row, shape.height, shape.output_height}) > kMaxRow ||
         shape.num_boxes > INT32_MAX;
}

// Calls `function` with a null pointer of the C++ type that `type` stands for.
template <typename Function>
int WithType(int type, const Pyramid& pyramid, Function function) {
  if (pyramid.num_levels < 1 || pyramid.num_levels > kMaxLevels) return cudaErrorInvalidValue;
  for (int64_t level = 0; level < pyramid.num_levels; ++level) {
    if (IsTooLarge(pyramid.levels[level])) return cudaErrorInvalidValue;
  }
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

// Less for 16-bit types where a thread keeps several sums: those of eight channels do not fit into
// its registers.
template <typename T>
constexpr int SmallVectorSize() {
  return std::min(VectorSize<T>(), 4);
}

// Whether whole vectors begin at every pixel of all arrays; those that are null are not there.
template <int V, typename T>
bool CanUseVectors(const Pyramid& pyramid, const Maps<T>& maps, const void* bins,
                   const uint8_t* winners) {
  auto bits = reinterpret_cast<uintptr_t>(bins);
  for (int64_t level = 0; level < pyramid.num_levels; ++level) {
    bits |= reinterpret_cast<uintptr_t>(maps.data[level]);
  }
  return pyramid.levels[0].channels % V == 0 && bits % (V * sizeof(T)) == 0 &&
         reinterpret_cast<uintptr_t>(winners) % V == 0;
}

template <typename T, typename Pointer>
Maps<T> MakeMaps(const Pyramid& pyramid, Pointer pointers) {
  Maps<T> maps = {};
  for (int64_t level = 0; level < pyramid.num_levels; ++level) {
    maps.data[level] = static_cast<T*>(pointers[level]);
  }
  return maps;
}

int64_t WorkspaceSize(const Pyramid& pyramid, int type, Pass pass) {
  if (type < kPrRoiPoolHalf || type > kPrRoiPoolDouble) return -1;
  Arena arena(nullptr);
  if (type == kPrRoiPoolDouble) {
    TakeTables<double>(&arena, pyramid, pass);
  } else {
    TakeTables<float>(&arena, pyramid, pass);
  }
  return arena.used();
}

// Blocks for all rows of bins.
int64_t NumRowGroups(const Shape& shape, const Split& split) {
  return DivideUp(shape.num_boxes * shape.output_height, split.rows) * split.chunks;
}

template <int V, typename T>
cudaError_t LaunchForward(const Pyramid& pyramid, const Tables<Accumulator<T>>& tables,
                          const Maps<const T>& features, T* output, void* stream) {
  const Split split = SplitChannels(pyramid.levels[0].channels, V);
  return Launch(ForwardKernel<V, T>, NumRowGroups(pyramid.levels[0], split), kThreads, stream,
                pyramid, split, tables, features, output);
}

template <int V, typename T>
cudaError_t LaunchMaximum(const Pyramid& pyramid, const Tables<Accumulator<T>>& tables,
                          const Maps<const T>& features, T* output, uint8_t* winners,
                          void* stream) {
  const Split split = SplitChannels(pyramid.levels[0].channels, V);
  return Launch(MaximumKernel<V, T>, NumRowGroups(pyramid.levels[0], split), kThreads, stream,
                pyramid, split, tables, features, output, winners);
}

template <int V, typename T>
cudaError_t LaunchFeatureGradient(const Pyramid& pyramid, const Tables<Accumulator<T>>& tables,
                                  const T* upstream, const uint8_t* winners,
                                  const Maps<T>& d_features, void* stream) {
  const Split split = SplitChannels(pyramid.levels[0].channels, V);
  LevelGroups groups = {};
  for (int64_t level = 0; level < pyramid.num_levels; ++level) {
    const Shape& shape = pyramid.levels[level];
    groups.first[level + 1] =
        groups.first[level] + shape.num_images * DivideUp(shape.height, split.rows) *
                                  DivideUp(shape.width, kTile) * split.chunks;
  }
  return Launch(FeatureGradientKernel<V, T>, groups.first[pyramid.num_levels], kThreads, stream,
                pyramid, split, groups, tables, upstream, winners, d_features);
}

// Also tells how many parts of a box are to be added.
template <int V, typename T>
cudaError_t LaunchBoxGradient(const Pyramid& pyramid, const Tables<Accumulator<T>>& tables,
                              const Maps<const T>& features, const T* upstream,
                              const uint8_t* winners, void* stream, int64_t* parts) {
  const Split split = SplitChannels(pyramid.levels[0].channels, V);
  *parts = pyramid.levels[0].output_height * split.chunks;
  return Launch(BoxGradientKernel<V, T>, NumRowGroups(pyramid.levels[0], split), kThreads, stream,
                pyramid, split, tables, features, upstream, winners);
}

template <typename Box, typename A>
cudaError_t AddParts(const Shape& shape, int64_t parts, const Tables<A>& tables, void* d_boxes,
                     void* stream) {
  return Launch(AddPartsKernel<Box, A>, DivideUp(4 * shape.num_boxes, kThreads), kThreads, stream,
                shape, parts, tables, static_cast<Box*>(d_boxes));
}

}  // namespace

extern "C" {

int64_t PrRoiPoolCudaForwardWorkspace(const Pyramid* pyramid, int type) {
  return WorkspaceSize(*pyramid, type, kForward);
}

int64_t PrRoiPoolCudaFeatureGradientWorkspace(const Pyramid* pyramid, int type) {
  return WorkspaceSize(*pyramid, type, kFeatureGradient);
}

int64_t PrRoiPoolCudaBoxGradientWorkspace(const Pyramid* pyramid, int type) {
  return WorkspaceSize(*pyramid, type, kBoxGradient);
}

int PrRoiPoolCudaForward(int type, int boxes_are_double, const Pyramid* pyramid,
                         const void* const* features, const void* boxes,
                         const int32_t* box_indices, const int32_t* box_levels, void* workspace,
                         void* output, uint8_t* winners, void* stream) {
  return WithType(type, *pyramid, [&](auto* of_type) -> int {
    using T = std::remove_pointer_t<decltype(of_type)>;
    Arena arena(workspace);
    const auto tables = TakeTables<Accumulator<T>>(&arena, *pyramid, kForward);
    const cudaError_t error = Prepare<1>(boxes_are_double, *pyramid, boxes, box_indices,
                                         box_levels, tables, stream);
    if (error != cudaSuccess) return error;
    const auto from = MakeMaps<const T>(*pyramid, features);
    T* to = static_cast<T*>(output);
    if (winners == nullptr) {
      constexpr int V = VectorSize<T>();
      return CanUseVectors<V>(*pyramid, from, to, nullptr)
                 ? LaunchForward<V>(*pyramid, tables, from, to, stream)
                 : LaunchForward<1>(*pyramid, tables, from, to, stream);
    }
    constexpr int V = SmallVectorSize<T>();
    return CanUseVectors<V>(*pyramid, from, to, winners)
               ? LaunchMaximum<V>(*pyramid, tables, from, to, winners, stream)
               : LaunchMaximum<1>(*pyramid, tables, from, to, winners, stream);
  });
}

int PrRoiPoolCudaFeatureGradient(int type, int boxes_are_double, const Pyramid* pyramid,
                                 const void* boxes, const int32_t* box_indices,
                                 const int32_t* box_levels, const void* upstream,
                                 const uint8_t* winners, void* workspace,
                                 void* const* d_features, void* stream) {
  return WithType(type, *pyramid, [&](auto* of_type) -> int {
    using T = std::remove_pointer_t<decltype(of_type)>;
    Arena arena(workspace);
    const auto tables = TakeTables<Accumulator<T>>(&arena, *pyramid, kFeatureGradient);
    const cudaError_t error = Prepare<1>(boxes_are_double, *pyramid, boxes, box_indices,
                                         box_levels, tables, stream);
    if (error != cudaSuccess) return error;
    const T* from = static_cast<const T*>(upstream);
    const auto to = MakeMaps<T>(*pyramid, d_features);
    constexpr int V = VectorSize<T>();
    return CanUseVectors<V>(*pyramid, to, from, winners)
               ? LaunchFeatureGradient<V>(*pyramid, tables, from, winners, to, stream)
               : LaunchFeatureGradient<1>(*pyramid, tables, from, winners, to, stream);
  });
}

int PrRoiPoolCudaBoxGradient(int type, int boxes_are_double, const Pyramid* pyramid,
                             const void* const* features, const void* boxes,
                             const int32_t* box_indices, const void* upstream,
                             const uint8_t* winners, void* workspace, void* d_boxes,
                             void* stream) {
  return WithType(type, *pyramid, [&](auto* of_type) -> int {
    using T = std::remove_pointer_t<decltype(of_type)>;
    Arena arena(workspace);
    const auto tables = TakeTables<Accumulator<T>>(&arena, *pyramid, kBoxGradient);
    cudaError_t error =
        Prepare<3>(boxes_are_double, *pyramid, boxes, box_indices, nullptr, tables, stream);
    if (error != cudaSuccess) return error;
    const auto nodes = MakeMaps<const T>(*pyramid, features);
    const T* bins = static_cast<const T*>(upstream);
    int64_t parts = 0;
    constexpr int V = SmallVectorSize<T>();
    error = CanUseVectors<V>(*pyramid, nodes, bins, winners)
                ? LaunchBoxGradient<V>(*pyramid, tables, nodes, bins, winners, stream, &parts)
                : LaunchBoxGradient<1>(*pyramid, tables, nodes, bins, winners, stream, &parts);
    if (error != cudaSuccess) return error;
    const Shape& shape = pyramid->levels[0];
    return boxes_are_double ? AddParts<double>(shape, parts, tables, d_boxes, stream)
                            : AddParts<float>(shape, parts, tables, d_boxes, stream);
  });
}

const char* PrRoiPoolCudaErrorString(int error) {
  return cudaGetErrorString(static_cast<cudaError_t>(error));
}

}  // extern "C"
