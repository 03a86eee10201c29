// Filter gradient of a convolution as a matrix product over pixels (implicit GEMM), float32, NHWC.
//
//   dW (R S C, K) = patches(x)^T (R S C, pixels) . dY (pixels, K)        pixels = N P Q
//
// FLOPs 2 N P Q K R S C. Bytes, each array once: 4 (N H W C + N P Q K + R S C K). The result is small and the sum long:
// 131072 pixels for a full resolution batch of 16. Blocks over the result alone could not fill a device, so the pixels
// are split (`splits`): every block sums its share, at most 8192 pixels in float32 (in two levels, tiles.cuh), and
// `add_partials` adds the shares in a fixed order in float64. Extra bytes: 8 R S C K splits.
//
// Versions: naive.cu (one thread per tap and channel pair); here: block tiles BM (taps x input channels) x BN (output
// channels) in shared memory, DEPTH pixels per step, cp.async double buffering with one barrier per step as in
// implicit_gemm.cu, register tiles of TM x TN.
//
// Both tiles have pixels down and channels across, as they come from memory: copies are runs of 16 bytes (STEP 4) and
// register tiles are read as 16-byte vectors, both without bank conflicts. A thread copies the same tap and channels in
// every step, so the walk over the filter costs nothing, and it walks the pixels with additions alone: the place in (n,
// p, q) moves on by a constant whose carries are known.
//   shared memory: 4 wavefronts per 16-byte request (the least)      global loads: at most 16 sectors per 16-byte
//                                                                    request (the least)
#include "conv/cuda/partials.cuh"
#include "conv/cuda/tiles.cuh"

// c0: channels of x's first map; the second has c - c0.
struct Conv { int n, h, w, c, p, q, k, r, s, sh, sw, dh, dw, top, left, c0, splits; };

// A pixel of the output, moved by fixed steps.
struct Place {
  int n, p, q;
  __device__ Place(int pixel, const Conv& v) : n(pixel / v.q / v.p), p(pixel / v.q % v.p), q(pixel % v.q) {}
  __device__ void advance(const Place& step, const Conv& v) {
    q += step.q, p += step.p, n += step.n;
    if (q >= v.q) q -= v.q, ++p;
    if (p >= v.p) p -= v.p, ++n;
  }
};

// grid: (blocks of taps x channels, blocks of output channels, splits). out: (splits, R S C, K). STEP as in
// implicit_gemm.cu.
template <int BM, int BN, int WARPS_M, int WARPS_N, int STEP>
__global__ void __launch_bounds__(32 * WARPS_M * WARPS_N)
    filter_gradient(const float* x0, const float* x1, const float* dy, float* out, const Conv v) {
  constexpr int THREADS = 32 * WARPS_M * WARPS_N, TM = BM / WARPS_M / 4, TN = BN / WARPS_N / 8;
  constexpr int ACROSS_A = BM / STEP, ROWS_A = THREADS / ACROSS_A, ACROSS_B = BN / STEP, ROWS_B = THREADS / ACROSS_B;
  static_assert(DEPTH % ROWS_A == 0 && DEPTH % ROWS_B == 0,
                "a step is copied in whole passes, so that each thread's place advances by DEPTH pixels");
  __shared__ alignas(16) float a[2][DEPTH * BM], b[2][DEPTH * BN];

  const int pixels = v.n * v.p * v.q, results = v.r * v.s * v.c, m0 = blockIdx.x * BM, n0 = blockIdx.y * BN;
  const int steps = (pixels + DEPTH - 1) / DEPTH, each = (steps + v.splits - 1) / v.splits * DEPTH;
  const int begin = blockIdx.z * each, end = min(pixels, begin + each);

  // What this thread copies: `channel` of map x under tap (dh, dw), pixels row_a, row_a + ROWS_A, ...; and dy's
  // channels k of pixels row_b, ...
  const int column_a = threadIdx.x % ACROSS_A * STEP, row_a = threadIdx.x / ACROSS_A, m = m0 + column_a, tap = m / v.c;
  const int column_b = threadIdx.x % ACROSS_B * STEP, row_b = threadIdx.x / ACROSS_B, k = n0 + column_b;
  const bool second = m % v.c >= v.c0;
  const int pitch = second ? v.c - v.c0 : v.c0, channel = m % v.c - (second ? v.c0 : 0);
  const int dh = tap / v.s * v.dh - v.top, dw = tap % v.s * v.dw - v.left;
  const float* x = second ? x1 : x0;
  Place place(begin + row_a, v);
  const Place stride(ROWS_A, v);

  auto copy = [&](int buffer, int first) {
#pragma unroll
    for (int i = 0; i < DEPTH / ROWS_A; ++i, place.advance(stride, v)) {
      const int row = row_a + i * ROWS_A, h = place.p * v.sh + dh, w = place.q * v.sw + dw;
      const bool inside =
          first + row < end && m < results && unsigned(h) < unsigned(v.h) && unsigned(w) < unsigned(v.w);
      copy_async<STEP>(a[buffer] + row * BM + column_a,
                       x + (inside ? ((place.n * v.h + h) * v.w + w) * pitch + channel : 0), inside);
    }
#pragma unroll
    for (int i = 0; i < DEPTH / ROWS_B; ++i) {
      const int row = row_b + i * ROWS_B;
      const bool inside = first + row < end && k < v.k;
      copy_async<STEP>(b[buffer] + row * BN + column_b, dy + (inside ? (first + row) * v.k + k : 0), inside);
    }
  };

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int row0 = warp / WARPS_N * (4 * TM) + lane / 8 * 4, column0 = warp % WARPS_N * (8 * TN) + lane % 8 * 4;
  float totals[TM][TN] = {}, sums[TM][TN] = {};
  if (begin < end) copy(0, begin);
  for (int first = begin, step = 0; first < end; first += DEPTH, ++step) {
    const int now = step & 1;
    copies_done();
    __syncthreads();
    if (first + DEPTH < end) copy(now ^ 1, first + DEPTH);
#pragma unroll
    for (int e = 0; e < DEPTH; ++e) {
      float left[TM], right[TN];
#pragma unroll
      for (int i = 0; i < TM; i += 4) load<4>(left + i, a[now] + e * BM + row0 + 4 * i);
#pragma unroll
      for (int j = 0; j < TN; j += 4) load<4>(right + j, b[now] + e * BN + column0 + 8 * j);
#pragma unroll
      for (int i = 0; i < TM; ++i)
#pragma unroll
        for (int j = 0; j < TN; ++j) sums[i][j] = fmaf(left[i], right[j], sums[i][j]);
    }
    if (step % FOLD == FOLD - 1) fold(totals, sums);
  }
  fold(totals, sums);

  out += size_t(blockIdx.z) * (results * v.k);
#pragma unroll
  for (int i = 0; i < TM; ++i) {
    const int row = m0 + row0 + i / 4 * 16 + i % 4;  // four neighbours, then 16 on: see `left`
    if (row >= results) continue;
#pragma unroll
    for (int j = 0; j < TN; j += STEP) {
      const int column = n0 + column0 + j / 4 * 32 + j % 4;
      if (column < v.k) store<STEP>(out + row * v.k + column, totals[i] + j);
    }
  }
}
