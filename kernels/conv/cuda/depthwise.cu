// Depthwise convolution (groups = C = K: every channel has its own R x S filter), float32, NHWC.
//
//   depthwise          y[n,p,q,c] = b[c] + sum_{t,u} x[n, row(p, t), column(q, u), c] w[t,u,c]
//                      along the walks of geometry.cuh: forward, and with negative steps the data gradient; no channel
//                      is exchanged, so the filter is read as it lies
//   depthwise_filter   dw[r,s,c]  = sum_{n,p,q} x[n, p sh - top + r dh, q sw - left + s dw, c] dy[n,p,q,c]
//
// FLOPs 2 R S per output, bytes 4 (x) + 4 (y): 2.25 FLOP per byte for 3x3. Pure bandwidth: no shared memory, the L1
// serves the R S readings.
//
// Versions: naive.cu (with groups); here: neighbouring threads have neighbouring channels, four each (STEP 4) or one,
// so every request is one run of a pixel's channels; a thread makes THREAD_OUTPUTS neighbouring outputs, for which it
// reads each tap of the filter once.
//   global loads and stores: at most 16 sectors per 16-byte request of a full warp (the least)
#include "conv/cuda/geometry.cuh"
#include "conv/cuda/partials.cuh"
#include "conv/cuda/tiles.cuh"

constexpr int THREAD_OUTPUTS = 4;  // neighbouring outputs of a thread
constexpr int TAPS = 9;            // filter taps whose gradient a thread sums at a time
constexpr int STRANDS = 8;         // warps of a block of the filter gradient, each with its own pixels

// One thread per STEP channels of THREAD_OUTPUTS outputs of a row; grid (blocks, phases). add: the result is added to
// y.
template <int STEP>
__global__ void __launch_bounds__(256)
    depthwise(const float* x, const float* w, const float* bias, float* y, const Problem p) {
  const Axis rows = pick(p.rows, blockIdx.y / p.phase_columns), columns = pick(p.columns, blockIdx.y % p.phase_columns);
  const int across = p.c / STEP, runs = (columns.outs + THREAD_OUTPUTS - 1) / THREAD_OUTPUTS,
            i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= p.n * rows.outs * runs * across) return;
  const int c = i % across * STEP, first = i / across % runs * THREAD_OUTPUTS, row = i / across / runs % rows.outs,
            n = i / across / runs / rows.outs;
  const int h0 = rows.in0 + rows.in_step * row, w0 = columns.in0 + columns.in_step * first;
  float sums[THREAD_OUTPUTS][STEP] = {};
  for (int t = 0; t < rows.taps; ++t) {
    const int h = h0 + rows.tap_step * t;
    if (unsigned(h) >= unsigned(p.in_h)) continue;
    for (int u = 0; u < columns.taps; ++u) {
      float tap[STEP], value[STEP];
      load<STEP>(tap, w + ((rows.tap0 + rows.tap_stride * t) * p.s + columns.tap0 + columns.tap_stride * u) * p.c + c);
#pragma unroll
      for (int j = 0; j < THREAD_OUTPUTS; ++j) {
        const int column = w0 + columns.in_step * j + columns.tap_step * u;
        if (unsigned(column) >= unsigned(p.in_w)) continue;
        load<STEP>(value, x + ((n * p.in_h + h) * p.in_w + column) * p.c + c);
#pragma unroll
        for (int e = 0; e < STEP; ++e) sums[j][e] = fmaf(value[e], tap[e], sums[j][e]);
      }
    }
  }
#pragma unroll
  for (int j = 0; j < THREAD_OUTPUTS; ++j) {
    if (first + j >= columns.outs) return;
    const int out_row = rows.out0 + rows.out_step * row, out_column = columns.out0 + columns.out_step * (first + j);
    float* to = y + ((n * p.out_h + out_row) * p.out_w + out_column) * p.c + c;
    float addend[STEP];
    if (bias) {
      load<STEP>(addend, bias + c);
#pragma unroll
      for (int e = 0; e < STEP; ++e) sums[j][e] += addend[e];
    }
    if (p.add) {
      load<STEP>(addend, to);
#pragma unroll
      for (int e = 0; e < STEP; ++e) sums[j][e] += addend[e];
    }
    store<STEP>(to, sums[j]);
  }
}

struct Conv { int n, h, w, c, p, q, r, s, sh, sw, dh, dw, top, left, splits; };

// One block: 32 channels (lanes), TAPS taps, and the pixels of one split, dealt to its STRANDS warps in turn. dy is
// read once for all TAPS taps.
// The strands meet in shared memory, in a fixed order and in float64. grid: (blocks of 32 channels, blocks of TAPS
// taps, splits).
// out: (splits, R S, C).
extern "C" __global__ void __launch_bounds__(32 * STRANDS)
    depthwise_filter(const float* x, const float* dy, float* out, const Conv v) {
  __shared__ float strands[STRANDS][TAPS][32];
  const int lane = threadIdx.x % 32, strand = threadIdx.x / 32, c = blockIdx.x * 32 + lane, tap0 = blockIdx.y * TAPS,
            taps = v.r * v.s;
  const int pixels = v.n * v.p * v.q, each = (pixels + v.splits - 1) / v.splits, begin = blockIdx.z * each,
            end = min(pixels, begin + each);
  int dh[TAPS], dw[TAPS];
  float sums[TAPS] = {};
#pragma unroll
  for (int t = 0; t < TAPS; ++t) dh[t] = (tap0 + t) / v.s * v.dh - v.top, dw[t] = (tap0 + t) % v.s * v.dw - v.left;
  if (c < v.c)
    for (int i = begin + strand; i < end; i += STRANDS) {
      const float cotangent = dy[i * v.c + c];
      const int h0 = i / v.q % v.p * v.sh, w0 = i % v.q * v.sw, image = i / v.q / v.p * v.h;
#pragma unroll
      for (int t = 0; t < TAPS; ++t) {
        const int h = h0 + dh[t], w = w0 + dw[t];
        if (tap0 + t < taps && unsigned(h) < unsigned(v.h) && unsigned(w) < unsigned(v.w))
          sums[t] = fmaf(x[((image + h) * v.w + w) * v.c + c], cotangent, sums[t]);
      }
    }
#pragma unroll
  for (int t = 0; t < TAPS; ++t) strands[strand][t][lane] = sums[t];
  __syncthreads();
  for (int t = strand; t < TAPS; t += STRANDS)
    if (tap0 + t < taps && c < v.c) {
      double sum = 0;
      for (int k = 0; k < STRANDS; ++k) sum += strands[k][t][lane];
      out[(size_t(blockIdx.z) * taps + tap0 + t) * v.c + c] = float(sum);
    }
}
