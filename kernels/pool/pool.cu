// Max pooling over x (N, H, W, C): forward keeps the tap each maximum came from in one byte, backward is a gather, so
// nothing is added atomically.
//
//   forward    per output and channel: its R S taps read (shared with its neighbours through L1), 4 + 1 bytes written;
//              R S comparisons
//   gather     per input and channel:  5 bytes read for each window that covers it, 4 written (8 more with `into`)
//   spread     windows that tile the map exactly: per output 5 read, 4 R S written
//
// Versions. max_pool2d_forward<.., 0, 0> takes R and S at run time (the plain one); with R, S given the taps are
// unrolled and their loads are in flight together. max_pool2d_gather serves every window; max_pool2d_spread reads dy
// and the bytes once instead of R S times.
// A thread has V channels of one pixel; blockIdx.x is a line of pixels (N P or N H), blockIdx.y a part of the line.
#include "core/cuda/device.cuh"

struct Geometry { int h, w, channels, p, q, r, s, stride_h, stride_w, dilation_h, dilation_w, top, left; };

// The larger of best and value and whose it is: the first in scan order, or the last NaN (PyTorch's rules). where < 0:
// no value yet.
template <class T> __device__ __forceinline__ void take(T& best, int& where, T value, int tap) {
  if (where < 0 || value > best || value != value) best = value, where = tap;
}

template <class T, int V, int R, int S>
__global__ void max_pool2d_forward(const T* __restrict__ x, T* __restrict__ y, unsigned char* __restrict__ offset,
                                   Geometry g) {
  const int at = blockIdx.y * blockDim.x + threadIdx.x, packs = g.channels / V;
  if (at >= g.q * packs) return;
  const int image = blockIdx.x / g.p, row = blockIdx.x % g.p, column = at / packs, channel = at % packs * V;
  const int i0 = row * g.stride_h - g.top, j0 = column * g.stride_w - g.left;
  Pack<T, V> best;
  Pack<unsigned char, V> where;
  int taps[V];
  for (int v = 0; v < V; ++v) best.v[v] = minus_infinity(), taps[v] = -1;
  const int rows = R ? R : g.r, columns = S ? S : g.s;
#pragma unroll
  for (int r = 0; r < rows; ++r) {
    const int i = i0 + r * g.dilation_h;
#pragma unroll
    for (int s = 0; s < columns; ++s) {
      const int j = j0 + s * g.dilation_w;
      if (unsigned(i) >= unsigned(g.h) || unsigned(j) >= unsigned(g.w)) continue;
      const Pack<T, V> value = load_pack<T, V>(x + ((image * g.h + i) * g.w + j) * g.channels + channel);
      for (int v = 0; v < V; ++v) take(best.v[v], taps[v], value.v[v], r * columns + s);
    }
  }
  const int to = (blockIdx.x * g.q + column) * g.channels + channel;
  for (int v = 0; v < V; ++v) where.v[v] = max(taps[v], 0);  // a window that lies outside x altogether has tap 0
  store_pack<T, V>(y + to, best);
  store_pack<unsigned char, V>(offset + to, where);
}

// dx[h, w] (+)= the sum of dy over the windows whose byte names (h, w).
template <class T, int V>
__global__ void max_pool2d_gather(const T* __restrict__ dy, const unsigned char* __restrict__ offset, T* dx, int into,
                                  Geometry g) {
  const int at = blockIdx.y * blockDim.x + threadIdx.x, packs = g.channels / V;
  if (at >= g.w * packs) return;
  const int image = blockIdx.x / g.h, row = blockIdx.x % g.h, column = at / packs, channel = at % packs * V;
  const int to = (blockIdx.x * g.w + column) * g.channels + channel;
  Pack<T, V> total = {};
  for (int r = 0; r < g.r; ++r) {
    const int i = row + g.top - r * g.dilation_h;  // the window of tap r begins here, if it is on the stride
    if (i < 0 || i % g.stride_h || i / g.stride_h >= g.p) continue;
    for (int s = 0; s < g.s; ++s) {
      const int j = column + g.left - s * g.dilation_w;
      if (j < 0 || j % g.stride_w || j / g.stride_w >= g.q) continue;
      const int from = ((image * g.p + i / g.stride_h) * g.q + j / g.stride_w) * g.channels + channel;
      const Pack<T, V> gradient = load_pack<T, V>(dy + from);
      const Pack<unsigned char, V> where = load_pack<unsigned char, V>(offset + from);
      for (int v = 0; v < V; ++v) total.v[v] += where.v[v] == r * g.s + s ? gradient.v[v] : T(0);
    }
  }
  if (into) {
    const Pack<T, V> before = load_pack<T, V>(dx + to);
    for (int v = 0; v < V; ++v) total.v[v] += before.v[v];
  }
  store_pack<T, V>(dx + to, total);
}

// Windows side by side that cover the map: each output's thread writes its whole window.
template <class T, int V>
__global__ void max_pool2d_spread(const T* __restrict__ dy, const unsigned char* __restrict__ offset, T* dx, int into,
                                  Geometry g) {
  const int at = blockIdx.y * blockDim.x + threadIdx.x, packs = g.channels / V;
  if (at >= g.q * packs) return;
  const int image = blockIdx.x / g.p, row = blockIdx.x % g.p, column = at / packs, channel = at % packs * V;
  const int from = (blockIdx.x * g.q + column) * g.channels + channel;
  const Pack<T, V> gradient = load_pack<T, V>(dy + from);
  const Pack<unsigned char, V> where = load_pack<unsigned char, V>(offset + from);
  for (int r = 0; r < g.r; ++r)
    for (int s = 0; s < g.s; ++s) {
      T* to = dx + ((image * g.h + row * g.r + r) * g.w + column * g.s + s) * g.channels + channel;
      Pack<T, V> part = {};
      if (into) part = load_pack<T, V>(to);
      for (int v = 0; v < V; ++v) part.v[v] += where.v[v] == r * g.s + s ? gradient.v[v] : T(0);
      store_pack<T, V>(to, part);
    }
}
