// What the tiled kernels share: copies from global to shared memory that do not wait, and the swizzle of a tile whose
// rows run along the sum.
#pragma once

constexpr int DEPTH = 16;  // terms of the sum per step: a step's tiles are BM x DEPTH and DEPTH x BN floats
constexpr int FOLD = 2;    // steps after which the running sums are added to the totals

// Starts a copy of FLOATS (1 or 4) floats into shared memory; `inside` false writes zeros and reads nothing. With four,
// both addresses must be multiples of 16 bytes. From sm_80 on the data passes by the registers and the thread goes on
// at once; older devices load and store.
template <int FLOATS> __device__ __forceinline__ void copy_async(float* to, const float* from, bool inside) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(static_cast<unsigned>(__cvta_generic_to_shared(to))),
      "l"(from), "n"(4 * FLOATS), "r"(inside ? 4 * FLOATS : 0)
      : "memory");
#else
  if constexpr (FLOATS == 4)
    *reinterpret_cast<float4*>(to) = inside ? *reinterpret_cast<const float4*>(from) : float4{0, 0, 0, 0};
  else
    *to = inside ? *from : 0.0f;
#endif
}

// Waits for this thread's copies; a barrier must follow before other threads read them.
__device__ __forceinline__ void copies_done() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

// Where the four floats `chunk` (0..3) of `row` lie in a tile of rows of DEPTH floats. Two rows share the 32 banks;
// exchanging chunks from one pair of rows to the next spreads a column of chunks over all banks, so that neither the
// copies (along rows) nor the reads (down columns) collide.
__device__ __forceinline__ int swizzled(int row, int chunk) { return row * DEPTH + 4 * (chunk ^ (row >> 1 & 3)); }

// totals += sums, sums = 0. A running float32 sum of n terms is off by about sqrt(n / 2) roundings; sums of 32 terms,
// added up, by sqrt(16) and a little (measured for 3x3 over 64 channels with pieces of 64: 0.26 times the error of one
// running sum). Price: as many registers again and 3 % more additions.
template <int TM, int TN> __device__ __forceinline__ void fold(float (&totals)[TM][TN], float (&sums)[TM][TN]) {
#pragma unroll
  for (int i = 0; i < TM; ++i)
#pragma unroll
    for (int j = 0; j < TN; ++j) totals[i][j] += sums[i][j], sums[i][j] = 0;
}

// FLOATS (4 or 1) floats between memory and registers.
template <int FLOATS> __device__ __forceinline__ void load(float* to, const float* from) {
  if constexpr (FLOATS == 4) {
    const float4 v = *reinterpret_cast<const float4*>(from);
    to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
  } else {
    *to = *from;
  }
}

template <int FLOATS> __device__ __forceinline__ void store(float* to, const float* from) {
  if constexpr (FLOATS == 4)
    *reinterpret_cast<float4*>(to) = float4{from[0], from[1], from[2], from[3]};
  else
    *to = *from;
}
