// What all kernels share: types, 16-byte vectors, reductions within a warp and a block.
//
// Reductions are in a fixed order (a butterfly within the warp, then warp by warp), so results are the same bits in every run.
#pragma once

constexpr int WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;

template <class T> struct alignas(16) Vec4 { T v[4]; };

template <class T> __device__ __forceinline__ T warp_sum(T value) {
  for (int lane = WARP / 2; lane; lane /= 2) value += __shfl_xor_sync(ALL_LANES, value, lane);
  return value;
}

template <class T> __device__ __forceinline__ T warp_max(T value) {
  for (int lane = WARP / 2; lane; lane /= 2) value = max(value, __shfl_xor_sync(ALL_LANES, value, lane));
  return value;
}

// The sum over the block's threads (whole warps, at most 1024), the same value in every thread. room: one T per warp in shared memory.
// A barrier comes first, so that `room` may be reused at once.
template <class T> __device__ T block_sum(T value, T* room) {
  const int warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
  value = warp_sum(value);
  __syncthreads();
  if (threadIdx.x % WARP == 0) room[warp] = value;
  __syncthreads();
  T total = room[0];
  for (int k = 1; k < warps; ++k) total += room[k];
  return total;
}

__device__ __forceinline__ float sigmoid(float x) {
  const float e = expf(-fabsf(x));
  return (x >= 0 ? 1.0f : e) / (1.0f + e);
}

__device__ __forceinline__ double sigmoid(double x) {
  const double e = exp(-fabs(x));
  return (x >= 0 ? 1.0 : e) / (1.0 + e);
}
