// SPDX-License-Identifier: Apache-2.0
// Non-maximum suppression on CUDA, of all groups at once.
//
// Two kernels. The first compares all pairs of a group, 64 by 64, and keeps a bit for each: row i
// has a word for every 64 boxes, whose bit k says that box k of them comes after i and overlaps it
// too much. The second has a block per group and walks over the rows, 64 at a time: within them it
// chooses one after the other, then removes what they overlap from all later ones together.
//
// Compiled alone, without TensorFlow's headers, as prroi_pool/cc/kernels_cuda.cu is.
#include "nms_cuda.h"

#include <cuda_runtime.h>

#include <algorithm>

namespace {

using nms::Box;
using nms::Problem;

typedef unsigned long long Word;

// Boxes along each side of a tile, as many as a word has bits.
constexpr int kTile = 64;
// In the second kernel, threads side by side take words side by side, and each slice of the block
// some of the 64 rows.
constexpr int kSlices = 4;
constexpr int kRowsPerSlice = kTile / kSlices;
constexpr int kWalkThreads = kTile * kSlices;
constexpr int kWarp = 32;
constexpr int kMaxWords = kNmsCudaMaxBoxes / kTile;
// Most blocks of a launch, CUDA's own limit. Both kernels stride over what remains.
constexpr int64_t kMaxGrid = 2147483647;

__host__ __device__ inline int64_t NumWords(const Problem& problem) {
  return (problem.num_boxes + kTile - 1) / kTile;
}

// A block per tile; those left of the diagonal have nothing to do. Words are written for rows that
// can be chosen, and no other word is read.
__global__ void __launch_bounds__(kTile)
    OverlapKernel(Problem problem, const float* __restrict__ boxes,
                  const float* __restrict__ scores, Word* __restrict__ overlaps) {
  __shared__ Box columns[kTile];
  const int lane = static_cast<int>(threadIdx.x);
  const int64_t words = NumWords(problem);
  for (int64_t tile = blockIdx.x; tile < problem.num_groups * words * words; tile += gridDim.x) {
    const int64_t row_tile = tile / words % words, column_tile = tile % words;
    if (column_tile < row_tile) continue;  // The whole block: its threads share the tile.
    const int64_t first = tile / (words * words) * problem.num_boxes;
    const int64_t row = row_tile * kTile + lane, column = column_tile * kTile + lane;
    Box box = {};
    if (column < problem.num_boxes) box = nms::MakeBox(boxes + 4 * (first + column));
    __syncthreads();  // The columns of the tile before have been read.
    columns[lane] = box;
    __syncthreads();
    if (row >= problem.num_boxes || !(scores[first + row] > problem.score_threshold)) continue;
    box = nms::MakeBox(boxes + 4 * (first + row));
    Word word = 0;
    for (int k = row_tile == column_tile ? lane + 1 : 0; k < kTile; ++k) {
      if (nms::Overlaps(box, columns[k], problem.iou_threshold)) word |= Word{1} << k;
    }
    overlaps[(first + row) * words + column_tile] = word;
  }
}

// Of 64 boxes the ones to choose, at most `most`. `open` has a bit for each that may be chosen.
__device__ inline Word ChooseOfTile(Word open, const Word* overlaps, int64_t most) {
  Word chosen = 0;
  for (; open != 0 && most > 0; --most) {
    const int k = __ffsll(static_cast<long long>(open)) - 1;
    chosen |= Word{1} << k;
    open &= ~(overlaps[k] | Word{1} << k);
  }
  return chosen;
}

// A block per group. `count` and the loops over tiles are the same in all threads of a block.
__global__ void __launch_bounds__(kWalkThreads)
    WalkKernel(Problem problem, const float* __restrict__ scores,
               const Word* __restrict__ overlaps, int32_t* __restrict__ indices,
               int32_t* __restrict__ counts) {
  // What each slice has found to be removed.
  __shared__ Word removed[kSlices][kMaxWords];
  __shared__ Word within[kTile];
  __shared__ unsigned int candidates[kTile / kWarp];
  __shared__ Word chosen_of_tile;
  const int thread = static_cast<int>(threadIdx.x);
  const int slice = thread / kTile, lane = thread % kTile;
  const int64_t words = NumWords(problem);
  for (int64_t group = blockIdx.x; group < problem.num_groups; group += gridDim.x) {
    const int64_t first = group * problem.num_boxes;
    for (int64_t word = lane; word < words; word += kTile) removed[slice][word] = 0;
    int64_t count = 0;
    for (int64_t tile = 0; tile < words && count < problem.max_output; ++tile) {
      const int64_t row = tile * kTile + lane;
      if (slice == 0) {  // Whole warps.
        const bool is_candidate =
            row < problem.num_boxes && scores[first + row] > problem.score_threshold;
        const unsigned int votes = __ballot_sync(0xffffffffu, is_candidate);
        if (lane % kWarp == 0) candidates[lane / kWarp] = votes;
        within[lane] = is_candidate ? overlaps[(first + row) * words + tile] : 0;
      }
      __syncthreads();
      if (thread == 0) {
        Word open = static_cast<Word>(candidates[1]) << kWarp | candidates[0];
        for (int i = 0; i < kSlices; ++i) open &= ~removed[i][tile];
        chosen_of_tile = ChooseOfTile(open, within, problem.max_output - count);
      }
      __syncthreads();
      const Word chosen = chosen_of_tile;
      if (slice == 0 && (chosen >> lane & 1)) {
        const int before = __popcll(chosen & ((Word{1} << lane) - 1));
        indices[group * problem.max_output + count + before] = static_cast<int32_t>(row);
      }
      count += __popcll(chosen);
      for (int64_t word = tile + 1 + lane; word < words; word += kTile) {
        const Word* column = overlaps + (first + tile * kTile) * words + word;
        Word found = 0;
#pragma unroll
        for (int i = 0; i < kRowsPerSlice; ++i) {
          const int k = slice * kRowsPerSlice + i;
          if (chosen >> k & 1) found |= column[k * words];
        }
        removed[slice][word] |= found;
      }
    }
    for (int64_t i = count + thread; i < problem.max_output; i += kWalkThreads) {
      indices[group * problem.max_output + i] = 0;
    }
    if (thread == 0) counts[group] = static_cast<int32_t>(count);
    __syncthreads();  // The next group clears `removed`.
  }
}

template <typename... Parameters, typename... Arguments>
cudaError_t Launch(void (*kernel)(Parameters...), int64_t blocks, int threads, void* stream,
                   const Arguments&... arguments) {
  if (blocks == 0) return cudaSuccess;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned int>(std::min(blocks, kMaxGrid)));
  config.blockDim = dim3(threads);
  config.stream = static_cast<cudaStream_t>(stream);
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, arguments...);
  // CUDA keeps the error until it is asked for it. Here it is returned, so that a later, sound launch
  // must not report it again.
  if (error != cudaSuccess) cudaGetLastError();
  return error;
}

}  // namespace

extern "C" {

int64_t NmsCudaWorkspace(const Problem* problem) {
  return problem->num_groups * problem->num_boxes * NumWords(*problem) *
         static_cast<int64_t>(sizeof(Word));
}

int NmsCuda(const Problem* problem, const float* boxes, const float* scores, void* workspace,
            int32_t* indices, int32_t* counts, void* stream) {
  if (problem->num_boxes > kNmsCudaMaxBoxes) return cudaErrorInvalidValue;
  const int64_t words = NumWords(*problem);
  Word* overlaps = static_cast<Word*>(workspace);
  const cudaError_t error = Launch(OverlapKernel, problem->num_groups * words * words, kTile,
                                   stream, *problem, boxes, scores, overlaps);
  if (error != cudaSuccess) return error;
  return Launch(WalkKernel, problem->num_groups, kWalkThreads, stream, *problem, scores, overlaps,
                indices, counts);
}

const char* NmsCudaErrorString(int error) {
  return cudaGetErrorString(static_cast<cudaError_t>(error));
}

}  // extern "C"
