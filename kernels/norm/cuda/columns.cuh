// Sums down the columns of a matrix of `rows` x `channels` values (NHWC: pixels x channels), in two passes without
// atomics.
//
// A block is `wide` packs of V channels across and blockDim.x / wide rows high (what is left over idles), so
// neighbouring threads read neighbouring addresses whatever the number of channels. It covers `per` rows; blockIdx.x
// counts runs of rows, blockIdx.y chunks of channels.
// Each block writes one float64 partial per channel; a second kernel adds the partials in the order of the rows. The
// partition depends on the shape alone, so the result has the same bits in every run and on every device.
#pragma once
#include "core/cuda/device.cuh"

constexpr int COLUMN_THREADS = 256;

// A thread's place: its first channel, and the rows first, first + step, ... below stop.
struct Place {
  int channel, first, stop, step, tx, ty, high;
  bool inside;
};

template <int V> __device__ __forceinline__ Place place_of(int rows, int channels, int wide, int per) {
  Place p;
  p.tx = threadIdx.x % wide, p.ty = threadIdx.x / wide, p.high = blockDim.x / wide;
  p.channel = (blockIdx.y * wide + p.tx) * V;
  p.first = blockIdx.x * per + p.ty, p.stop = min(rows, int(blockIdx.x + 1) * per), p.step = p.high;
  p.inside = p.ty < p.high && p.channel < channels;
  return p;
}

// The sum over the block's rows of one value per thread; thread row 0 has it. scratch: COLUMN_THREADS doubles. All
// threads must call it.
__device__ __forceinline__ double reduce_column(double value, double* scratch, const Place& p, int wide) {
  __syncthreads();
  scratch[threadIdx.x] = value;
  int half = 1;
  while (half < p.high) half *= 2;
  for (half /= 2; half; half /= 2) {
    __syncthreads();
    if (p.ty < half && p.ty + half < p.high) scratch[threadIdx.x] += scratch[threadIdx.x + half * wide];
  }
  return scratch[threadIdx.x];
}

// One partial per block: out (blocks of rows, K, channels) = the sums of K terms. term(channel, row, sums): add the
// row's V values to sums[K][V].
template <class T, int V, int K, class Term>
__device__ __forceinline__ void sum_columns(double* out, int rows, int channels, int wide, int per, Term term) {
  __shared__ double scratch[COLUMN_THREADS];
  const Place p = place_of<V>(rows, channels, wide, per);
  Sum<T> sums[K][V];
  if (p.inside)
    for (int row = p.first; row < p.stop; row += p.step) term(p.channel, row, sums);
  for (int k = 0; k < K; ++k)
    for (int v = 0; v < V; ++v) {
      // Of an infinite sum, what rounding left over is NaN.
      const double total =
          reduce_column(isfinite(sums[k][v].high) ? sums[k][v].value() : double(sums[k][v].high), scratch, p, wide);
      if (p.inside && p.ty == 0) out[(blockIdx.x * K + k) * channels + p.channel + v] = total;
    }
}

// The second pass, for blocks of 32 channels x 8 threads: the sum of `parts` partials of `channel`, which lie `stride`
// apart. Thread row 0 has it.
__device__ __forceinline__ double sum_parts(const double* from, int parts, int stride, bool inside) {
  __shared__ double scratch[8][WARP];
  double total = 0;
  if (inside)
    for (int k = threadIdx.y; k < parts; k += 8) total += from[k * stride];
  __syncthreads();
  scratch[threadIdx.y][threadIdx.x] = total;
  __syncthreads();
  if (threadIdx.y == 0)
    for (int k = 1; k < 8; ++k) total += scratch[k][threadIdx.x];
  return total;
}
