// SPDX-License-Identifier: Apache-2.0
// As much of CUDA as the kernels here need, for g++: they run on the CPU, unchanged.
//
// Blocks run one after the other, in an order drawn anew for each launch. A block's threads are
// fibers that switch at barriers and warp votes only; whose turn is next is drawn from all that
// need not wait. So a missing barrier makes the result depend on EmulationSetSeed. A barrier or
// vote that some threads of a block or warp do not reach ends the launch with
// cudaErrorLaunchFailure, where a GPU would hang or worse.
#ifndef CUDA_EMULATION_CUDA_RUNTIME_H_
#define CUDA_EMULATION_CUDA_RUNTIME_H_

#include <stdint.h>
#include <string.h>
#include <ucontext.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#define __global__
#define __device__
#define __host__
// One block at a time: a function's static variable is shared by the threads of a block alone.
#define __shared__ static
#define __launch_bounds__(...)
#define __grid_constant__

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorLaunchFailure = 719,
};

using cudaStream_t = void*;

struct dim3 {
  unsigned int x, y, z;
  constexpr dim3(unsigned int x = 1, unsigned int y = 1, unsigned int z = 1) : x(x), y(y), z(z) {}
};

struct alignas(16) uint4 {
  unsigned int x, y, z, w;
};

struct cudaLaunchConfig_t {
  dim3 gridDim;
  dim3 blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

constexpr int kWarpSize = 32;
constexpr size_t kStackBytes = 64 * 1024;

enum class State { kReady, kAtBarrier, kAtVote, kDone };

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  State state = State::kDone;
  bool vote = false;
  unsigned int votes = 0;
};

inline std::mt19937 generator{1};
inline std::vector<std::unique_ptr<Fiber>> fibers;
inline ucontext_t scheduler;
inline Fiber* running = nullptr;
inline std::function<void()> body;
inline cudaError_t last_error = cudaSuccess;
inline int64_t max_grid = 0;

inline void RunBody() {
  body();
  running->state = State::kDone;
}

// Gives the turn back to the scheduler.
inline void Wait(State state) {
  Fiber* self = running;
  self->state = state;
  swapcontext(&self->context, &scheduler);
}

inline void StartFiber(int index) {
  if (index == static_cast<int>(fibers.size())) fibers.push_back(std::make_unique<Fiber>());
  Fiber& fiber = *fibers[index];
  fiber.state = State::kReady;
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.get();
  fiber.context.uc_stack.ss_size = kStackBytes;
  fiber.context.uc_link = &scheduler;
  makecontext(&fiber.context, RunBody, 0);
}

inline bool All(int first, int last, State state) {
  return std::all_of(fibers.begin() + first, fibers.begin() + last,
                     [&](const auto& fiber) { return fiber->state == state; });
}

// Lets the threads [first, last) go on.
inline void Release(int first, int last, std::vector<int>* ready) {
  for (int i = first; i < last; ++i) {
    if (fibers[i]->state == State::kDone) continue;
    fibers[i]->state = State::kReady;
    ready->push_back(i);
  }
}

// Ends the vote of a warp whose threads are all at it.
inline void EndVote(int first, std::vector<int>* ready) {
  unsigned int votes = 0;
  for (int i = 0; i < kWarpSize; ++i) {
    votes |= static_cast<unsigned int>(fibers[first + i]->vote) << i;
  }
  for (int i = 0; i < kWarpSize; ++i) fibers[first + i]->votes = votes;
  Release(first, first + kWarpSize, ready);
}

inline cudaError_t RunBlock(int threads) {
  for (int i = 0; i < threads; ++i) StartFiber(i);
  std::vector<int> ready;
  Release(0, threads, &ready);
  while (!ready.empty()) {
    std::swap(ready[generator() % ready.size()], ready.back());
    const int thread = ready.back();
    ready.pop_back();
    threadIdx = dim3(thread, 0, 0);
    running = fibers[thread].get();
    swapcontext(&scheduler, &running->context);
    const int warp = thread / kWarpSize * kWarpSize;
    if (warp + kWarpSize <= threads && All(warp, warp + kWarpSize, State::kAtVote)) {
      EndVote(warp, &ready);
    }
    if (ready.empty() && All(0, threads, State::kAtBarrier)) Release(0, threads, &ready);
  }
  return All(0, threads, State::kDone) ? cudaSuccess : cudaErrorLaunchFailure;
}

inline cudaError_t Launch(const cudaLaunchConfig_t& config, std::function<void()> kernel) {
  const int64_t threads = int64_t{config.blockDim.x} * config.blockDim.y * config.blockDim.z;
  if (threads < 1 || threads > 1024 || config.gridDim.x < 1 || config.gridDim.x > 2147483647u) {
    return cudaErrorInvalidConfiguration;
  }
  body = std::move(kernel);
  blockDim = config.blockDim;
  gridDim = config.gridDim;
  if (max_grid > 0) gridDim.x = static_cast<unsigned int>(std::min<int64_t>(gridDim.x, max_grid));
  std::vector<unsigned int> blocks(gridDim.x);
  std::iota(blocks.begin(), blocks.end(), 0u);
  std::shuffle(blocks.begin(), blocks.end(), generator);
  for (const unsigned int block : blocks) {
    blockIdx = dim3(block, 0, 0);
    const cudaError_t error = RunBlock(static_cast<int>(threads));
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace emulation

inline void __syncthreads() { emulation::Wait(emulation::State::kAtBarrier); }

inline unsigned int __ballot_sync(unsigned int mask, bool vote) {
  if (mask != 0xffffffffu) return 0;  // Not emulated; the tests would see it.
  emulation::running->vote = vote;
  emulation::Wait(emulation::State::kAtVote);
  return emulation::running->votes;
}

inline int __ffs(int value) { return __builtin_ffs(value); }
inline int __ffsll(long long value) { return __builtin_ffsll(value); }
inline int __popcll(unsigned long long value) { return __builtin_popcountll(value); }

// A vector access that is not aligned is an error on a GPU: the sanitized build sees it.
inline void __stcs(uint4* to, uint4 value) { *to = value; }

inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  emulation::last_error = emulation::Launch(*config, [&] { kernel(arguments...); });
  return emulation::last_error;
}

inline cudaError_t cudaGetLastError() {
  const cudaError_t error = emulation::last_error;
  emulation::last_error = cudaSuccess;
  return error;
}

inline const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorLaunchFailure:
      return "unspecified launch failure";
  }
  return "unrecognized error code";
}

// For the tests, by ctypes.
extern "C" {

// Of the order of blocks and of the threads in them.
__attribute__((used)) inline void EmulationSetSeed(unsigned int seed) {
  emulation::generator.seed(seed);
}

// Launches get no more blocks than this, whatever they ask for; 0 for what they ask for.
__attribute__((used)) inline void EmulationSetMaxGrid(int64_t blocks) {
  emulation::max_grid = blocks;
}

}  // extern "C"

#endif  // CUDA_EMULATION_CUDA_RUNTIME_H_
