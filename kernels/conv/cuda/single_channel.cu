// Forward convolution of one input channel (the first layer of a network), float32.
//
//   y[n,p,q,k] = b[k] + sum_{r,s} x[n, p sh - top + r dh, q sw - left + s dw] w[r,s,k]
//   x (N, H, W, 1), w (R, S, 1, K), y (N, P, Q, K)
//
// Per output pixel: 2 R S K FLOPs, 4 K bytes written, 4 / (sh sw) read. For 3x3: 4.5 FLOP per byte, so the stores are
// the limit, and the matrix form of implicit_gemm.cu would spend its time on padding 9 terms to 16 and on gathering
// single floats.
//
// Versions: naive.cu; here: a block makes BLOCK_OUTPUTS outputs of one image row. Their input (R rows) and the filter
// lie in shared memory; a thread makes four channels of THREAD_OUTPUTS pixels at a time: per tap one 16-byte read of
// the filter and THREAD_OUTPUTS broadcasts serve 4 THREAD_OUTPUTS FMAs. Neighbouring threads have neighbouring
// channels: stores are whole runs of a pixel's channels. K must be a multiple of four, at most 256, y aligned to 16
// bytes.
//   global stores: 16 sectors per 16-byte request of a full warp (the least)      shared reads: no bank conflicts
//                                                                                 (channels side by side, broadcasts)
#include "conv/cuda/tiles.cuh"

constexpr int BLOCK_OUTPUTS = 64, THREAD_OUTPUTS = 4;  // outputs of a block, and of a thread at a time

struct Conv { int h, w, p, q, k, r, s, sh, sw, dh, dw, top, left; };

// grid: (blocks of BLOCK_OUTPUTS columns, P, N), 256 threads; dynamic shared memory: (R S + 1) K + R ((BLOCK_OUTPUTS -
// 1) sw + (S - 1) dw + 1) floats.
extern "C" __global__ void __launch_bounds__(256)
    single_channel_forward(const float* x, const float* w, const float* bias, float* y, const Conv v) {
  extern __shared__ float4 shared[];
  float* filter = reinterpret_cast<float*>(shared);  // (R S, K), then the bias
  float* rows = filter + (v.r * v.s + 1) * v.k;      // (R, width)
  const int q0 = blockIdx.x * BLOCK_OUTPUTS, width = (BLOCK_OUTPUTS - 1) * v.sw + (v.s - 1) * v.dw + 1;
  const int first_row = blockIdx.y * v.sh - v.top, first_column = q0 * v.sw - v.left;

  for (int i = threadIdx.x; i < v.r * v.s * v.k; i += blockDim.x) filter[i] = w[i];
  for (int i = threadIdx.x; i < v.k; i += blockDim.x) filter[v.r * v.s * v.k + i] = bias ? bias[i] : 0.0f;
  for (int i = threadIdx.x; i < v.r * width; i += blockDim.x) {
    const int h = first_row + i / width * v.dh, column = first_column + i % width;
    const bool inside = unsigned(h) < unsigned(v.h) && unsigned(column) < unsigned(v.w);
    rows[i] = inside ? x[(blockIdx.z * v.h + h) * v.w + column] : 0.0f;
  }
  __syncthreads();

  const int across = v.k / 4, groups = blockDim.x / across, k = threadIdx.x % across * 4, group = threadIdx.x / across;
  if (group >= groups) return;  // the last threads when K / 4 does not divide the block; no barrier follows
  for (int base = group; base < BLOCK_OUTPUTS; base += groups * THREAD_OUTPUTS) {
    float sums[THREAD_OUTPUTS][4];
#pragma unroll
    for (int j = 0; j < THREAD_OUTPUTS; ++j) load<4>(sums[j], filter + v.r * v.s * v.k + k);
    for (int r = 0; r < v.r; ++r)
      for (int s = 0; s < v.s; ++s) {
        float tap[4];
        load<4>(tap, filter + (r * v.s + s) * v.k + k);
#pragma unroll
        for (int j = 0; j < THREAD_OUTPUTS; ++j) {
          const float value = rows[r * width + min(base + groups * j, BLOCK_OUTPUTS - 1) * v.sw + s * v.dw];
#pragma unroll
          for (int e = 0; e < 4; ++e) sums[j][e] = fmaf(value, tap[e], sums[j][e]);
        }
      }
#pragma unroll
    for (int j = 0; j < THREAD_OUTPUTS; ++j) {
      const int i = base + groups * j;
      if (i >= BLOCK_OUTPUTS || q0 + i >= v.q) break;
      store<4>(y + ((blockIdx.z * v.p + blockIdx.y) * v.q + q0 + i) * v.k + k, sums[j]);
    }
  }
}
