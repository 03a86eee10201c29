// What the attention kernels share: the maximum over a block; how dot-product attention finds its mask, and its sizes.
#pragma once
#include "core/cuda/device.cuh"

// Where s(head, i, j) finds its mask: kind 0 none, 1 boolean (false: left out), 2 added. Strides in elements, 0 along
// broadcast axes.
struct Mask {
  const void* data;
  int kind, heads, strides[4];  // strides of (N, heads, T, K)
};

struct Shape {
  int queries, keys, d, e, runs;  // runs: may rows be read 16 bytes at a time
};

template <class T> __device__ __forceinline__ T infinity() {
  return static_cast<T>(__longlong_as_double(0x7ff0000000000000ll));
}

template <class T> __device__ __forceinline__ T masked(T s, const Mask& mask, int head, int i, int j) {
  if (mask.kind == 0) return s;
  const long long at = (long long)(head / mask.heads) * mask.strides[0] + head % mask.heads * mask.strides[1] +
                       (long long)i * mask.strides[2] + (long long)j * mask.strides[3];
  if (mask.kind == 1) return static_cast<const bool*>(mask.data)[at] ? s : -infinity<T>();
  return s + static_cast<const T*>(mask.data)[at];
}

// The largest value of the block's threads (whole warps), as block_sum in core/cuda/device.cuh.
template <class T> __device__ T block_max(T value, T* scratch) {
  value = warp_max(value);
  __syncthreads();
  if (threadIdx.x % WARP == 0) scratch[threadIdx.x / WARP] = value;
  __syncthreads();
  T top = scratch[0];
  for (int k = 1; k < blockDim.x / WARP; ++k) top = max(top, scratch[k]);
  return top;
}
