// Convolution as a matrix product whose left matrix is never formed (implicit GEMM), float32, NHWC.
//
//   Y (pixels, K) = patches(x) (pixels, R S C) . W (R S C, K)        pixels = N P Q
//
// FLOPs 2 N P Q K R S C. Bytes, each array once: 4 (N H W C + R S C K + N P Q K), so a 3x3 layer with C = K does 2.25 C
// FLOP per byte.
// What global memory and the L2 really deliver: a block of BM x BN outputs reads BM + BN floats per term and does 2 BM
// BN FLOP with them: 32 FLOP per byte for 128 x 128, 16 for 64 x 64; the R S readings of a pixel hit the L1.
//
// Versions, from plain to fast:
//   1. naive.cu: one thread per output, no reuse.
//   2. Block tiles in shared memory, register tiles of TM x TN: per 4 terms a thread reads TM + TN 16-byte vectors for
//      4 TM TN FMAs.
//   3. cp.async double buffering: step i + 1 travels while step i is multiplied. One barrier per step serves both ends:
//      it publishes the step that has arrived, and it tells that everybody has left the buffer which the next copy
//      overwrites.
//   4. Sums in two levels: every 32 terms the running sums are folded into totals, which keeps float32 as exact as a
//      blocked library product.
//   5. Split sums (`splits` > 1) where the map is too small to fill the device, or the sum longer than 8192 terms:
//      every split writes its partial sums, `reduce_splits` adds them in a fixed order. No atomics: the same bits in
//      every run.
//
// Computed for sm_80: 128 x 128 takes 232 registers, one block and 8 warps per multiprocessor, each with 64 independent
// sums in flight, and 4 FMAs per float read from shared memory; 64 x 64 takes 128 registers, 4 blocks and 16 warps, and
// 2.7 FMAs per float. No version spills.
//
// Both tiles come without a bank conflict: the left one lies as it comes, channels along the rows (a transposing copy
// would need 4-byte pieces), under a swizzle; threads read four terms of a row at once. The lanes of a warp are 4 rows
// x 8 columns of register tiles.
//   shared memory: 4 wavefronts per 16-byte request (the least)      global loads: at most 16 sectors per 16-byte
//                                                                    request (the least)
//
// One kernel serves more than the forward convolution (geometry.cuh): the data gradient is the same walk with negative
// steps over the filter with its channels exchanged; with stride s it falls into s x s phases (grid z), none of which
// multiplies by an inserted zero. Transposed convolution is the same again. A filter whose taps or channels are not in
// that order is brought into it by `arrange_filter`.
#include "conv/cuda/geometry.cuh"
#include "conv/cuda/tiles.cuh"

// The part of patches(x) that one thread copies: PASSES rows of the tile (output pixels), the same STEP floats of each.
template <int BM, int THREADS, int STEP> struct Patches {
  static constexpr int ACROSS = DEPTH / STEP, ROWS = THREADS / ACROSS, PASSES = BM / ROWS;
  // First tap of each row: its image row, column, and pixel number (which may be outside).
  int h0[PASSES], w0[PASSES], base[PASSES];
  int t, u, c;  // this thread's place in the sum: filter row, filter column, channel

  __device__ void start(const Problem& p, const Axis& rows, const Axis& columns, int m0, int pixels, int term) {
#pragma unroll
    for (int i = 0; i < PASSES; ++i) {
      const int m = m0 + threadIdx.x / ACROSS + i * ROWS, rest = m / columns.outs;
      const int y = rest % rows.outs, n = rest / rows.outs;
      h0[i] = rows.in0 + rows.in_step * y;
      w0[i] = columns.in0 + columns.in_step * (m % columns.outs);
      base[i] = (n * p.in_h + h0[i]) * p.in_w + w0[i];
      if (m >= pixels) h0[i] = -(1 << 30);  // far outside: zeros
    }
    term += threadIdx.x % ACROSS * STEP;
    const int tap = term / p.c;
    c = term % p.c, u = tap % columns.taps, t = tap / columns.taps;
  }

  // Copies this thread's pieces of the next DEPTH terms and moves on.
  __device__ void copy(float* tile, const float* x0, const float* x1, const Problem& p, const Axis& rows,
                       const Axis& columns) {
    const bool second = c >= p.c0;
    const float* x = second ? x1 : x0;
    const int pitch = second ? p.c - p.c0 : p.c0, channel = second ? c - p.c0 : c, column = threadIdx.x % ACROSS * STEP;
    const int dh = rows.tap_step * t, dw = columns.tap_step * u;
#pragma unroll
    for (int i = 0; i < PASSES; ++i) {
      const bool inside =
          t < rows.taps && unsigned(h0[i] + dh) < unsigned(p.in_h) && unsigned(w0[i] + dw) < unsigned(p.in_w);
      const int pixel = base[i] + dh * p.in_w + dw, row = threadIdx.x / ACROSS + i * ROWS;
      copy_async<STEP>(tile + swizzled(row, column / 4) + column % 4, x + (inside ? pixel * pitch + channel : 0),
                       inside);
    }
    for (c += DEPTH; c >= p.c; c -= p.c)
      if (++u == columns.taps) u = 0, ++t;
  }
};

// The part of W that one thread copies: rows are terms, K floats apart.
template <int BN, int THREADS, int STEP>
__device__ __forceinline__ void copy_filter(float* tile, const float* w, int term, int terms, int n0, int k) {
  constexpr int ACROSS = BN / STEP, ROWS = THREADS / ACROSS;
  const int column = threadIdx.x % ACROSS * STEP, n = n0 + column;
#pragma unroll
  for (int i = 0; i < DEPTH / ROWS; ++i) {
    const int row = threadIdx.x / ACROSS + i * ROWS;
    const bool inside = term + row < terms && n < k;
    copy_async<STEP>(tile + row * BN + column, w + (inside ? (term + row) * k + n : 0), inside);
  }
}

// sums += (rows of a) . (columns of b) over one step. a: this warp's rows of the left tile; b: its columns of the right
// one.
template <int TM, int TN, int BN>
__device__ __forceinline__ void multiply(float (&sums)[TM][TN], const float* a, const float* b, int lane_row,
                                         int lane_column) {
#pragma unroll
  for (int chunk = 0; chunk < DEPTH / 4; ++chunk) {
    float left[TM][4];
#pragma unroll
    for (int i = 0; i < TM; ++i) load<4>(left[i], a + swizzled(lane_row + 4 * i, chunk));
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      float right[TN];
#pragma unroll
      for (int j = 0; j < TN; j += 4) load<4>(right + j, b + (4 * chunk + e) * BN + 4 * lane_column + 8 * j);
#pragma unroll
      for (int i = 0; i < TM; ++i)
#pragma unroll
        for (int j = 0; j < TN; ++j) sums[i][j] = fmaf(left[i][e], right[j], sums[i][j]);
    }
  }
}

// COUNT neighbouring outputs of one pixel, from `column` on: + bias, + what is there, to the map that owns the column;
// STEP floats at a time (the maps may meet anywhere unless all their channels are multiples of four).
template <int STEP, int COUNT>
__device__ __forceinline__ void put(const float* sums, const float* bias, float* y0, float* y1, float* partial,
                                    int pixel, int column, const Problem& p) {
#pragma unroll
  for (int e = 0; e < COUNT; e += STEP) {
    const int k = column + e;
    if (k >= p.k) return;
    const bool second = k >= p.k0, add = !partial && p.add >> second & 1;
    float* to = partial  ? partial + pixel * p.k + k
                : second ? y1 + pixel * (p.k - p.k0) + k - p.k0
                         : y0 + pixel * p.k0 + k;
    float out[STEP], addend[STEP];
#pragma unroll
    for (int f = 0; f < STEP; ++f) out[f] = sums[e + f];
    if (bias && !partial) {
      load<STEP>(addend, bias + k);
#pragma unroll
      for (int f = 0; f < STEP; ++f) out[f] += addend[f];
    }
    if (add) {
      load<STEP>(addend, to);
#pragma unroll
      for (int f = 0; f < STEP; ++f) out[f] += addend[f];
    }
    store<STEP>(to, out);
  }
}

// grid: (blocks of pixels, blocks of output channels, phases x splits). STEP 4: all channel counts are multiples of
// four and all arrays aligned to 16 bytes; STEP 1: any. partials: (splits, out pixels, K) when splits > 1, else null.
template <int BM, int BN, int WARPS_M, int WARPS_N, int STEP>
__global__ void __launch_bounds__(32 * WARPS_M * WARPS_N)
    convolve(const float* x0, const float* x1, const float* w, const float* bias, float* y0, float* y1, float* partials,
             const Problem p) {
  constexpr int THREADS = 32 * WARPS_M * WARPS_N, TM = BM / WARPS_M / 4, TN = BN / WARPS_N / 8;
  __shared__ alignas(16) float a[2][BM * DEPTH], b[2][DEPTH * BN];

  const int phases = p.phase_rows * p.phase_columns, phase = blockIdx.z % phases, split = blockIdx.z / phases;
  const Axis rows = pick(p.rows, phase / p.phase_columns), columns = pick(p.columns, phase % p.phase_columns);
  const int pixels = p.n * rows.outs * columns.outs, m0 = blockIdx.x * BM, n0 = blockIdx.y * BN;
  if (m0 >= pixels) return;  // phases differ in size

  w += (rows.before * p.s + rows.taps * columns.before) * p.c * p.k;
  const int terms = rows.taps * columns.taps * p.c, steps = (terms + DEPTH - 1) / DEPTH;
  const int each = (steps + p.splits - 1) / p.splits, begin = split * each, end = min(steps, begin + each);

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, lane_row = lane / 8, lane_column = lane % 8;
  const int row0 = warp / WARPS_N * (4 * TM), column0 = warp % WARPS_N * (8 * TN);
  float totals[TM][TN] = {}, sums[TM][TN] = {};

  if (begin < end) {  // a phase may have no tap: its outputs are the bias alone
    Patches<BM, THREADS, STEP> patches;
    patches.start(p, rows, columns, m0, pixels, begin * DEPTH);
    patches.copy(a[0], x0, x1, p, rows, columns);
    copy_filter<BN, THREADS, STEP>(b[0], w, begin * DEPTH, terms, n0, p.k);
    for (int step = begin; step < end; ++step) {
      const int now = (step - begin) & 1;
      copies_done();
      __syncthreads();
      if (step + 1 < end) {
        patches.copy(a[now ^ 1], x0, x1, p, rows, columns);
        copy_filter<BN, THREADS, STEP>(b[now ^ 1], w, (step + 1) * DEPTH, terms, n0, p.k);
      }
      multiply<TM, TN, BN>(sums, a[now] + row0 * DEPTH, b[now] + column0, lane_row, lane_column);
      if ((step - begin) % FOLD == FOLD - 1) fold(totals, sums);
    }
    fold(totals, sums);
  }

  float* partial = p.splits > 1 ? partials + size_t(split) * (p.n * p.out_h * p.out_w * p.k) : nullptr;
#pragma unroll
  for (int i = 0; i < TM; ++i) {
    const int m = m0 + row0 + lane_row + 4 * i, rest = m / columns.outs;
    if (m >= pixels) break;
    const int h = rows.out0 + rows.out_step * (rest % rows.outs),
              col = columns.out0 + columns.out_step * (m % columns.outs);
    const int pixel = (rest / rows.outs * p.out_h + h) * p.out_w + col;
#pragma unroll
    for (int j = 0; j < TN; j += 4)
      put<STEP, 4>(totals[i] + j, bias, y0, y1, partial, pixel, n0 + column0 + 4 * lane_column + 8 * j, p);
  }
}

// The second pass of split sums: y = bias + partials[0] + partials[1] + ... (+ y), one thread per output. Bytes: 4
// (splits + 1) per output.
extern "C" __global__ void reduce_splits(const float* partials, const float* bias, float* y0, float* y1,
                                         const Problem p) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x, size = p.n * p.out_h * p.out_w * p.k;
  if (i >= size) return;
  float sum = 0;
  for (int split = 0; split < p.splits; ++split) sum += partials[size_t(split) * size + i];
  put<1, 1>(&sum, bias, y0, y1, nullptr, i / p.k, i % p.k, p);
}

// The filter in the order in which `convolve` walks it: out[tap][i][j] = w[r][s][i][j] with phases outermost; i runs
// along the sum, j over outputs.
// si, sj: distances in w; where si is 1 (data gradient) this transposes, through a tile with a padded row so that both
// sides are coalesced.
// grid: (blocks of 32 j, blocks of 32 i, R S), 32 x 8 threads.
extern "C" __global__ void arrange_filter(const float* w, float* out, int si, int sj, const Problem p) {
  __shared__ float tile[32][33];
  const int r = blockIdx.z / p.s, s = blockIdx.z % p.s, i0 = blockIdx.y * 32, j0 = blockIdx.x * 32;
  int to = 0;
#pragma unroll
  for (int a = 0; a < PHASES; ++a)
#pragma unroll
    for (int b = 0; b < PHASES; ++b) {
      const Axis &rows = p.rows[a], &columns = p.columns[b];
      const int t = (r - rows.tap0) / rows.tap_stride, u = (s - columns.tap0) / columns.tap_stride;
      if (a < p.phase_rows && b < p.phase_columns && r >= rows.tap0 && s >= columns.tap0 && t < rows.taps &&
          u < columns.taps && t * rows.tap_stride == r - rows.tap0 && u * columns.tap_stride == s - columns.tap0)
        to = rows.before * p.s + rows.taps * columns.before + t * columns.taps + u;
    }
  const float* from = w + blockIdx.z * p.c * p.k;
  const bool transposed = si == 1;
  for (int y = threadIdx.y; y < 32; y += 8) {
    const int di = transposed ? threadIdx.x : y, dj = transposed ? y : threadIdx.x;
    if (i0 + di < p.c && j0 + dj < p.k) tile[di][dj] = from[(i0 + di) * si + (j0 + dj) * sj];
  }
  __syncthreads();
  for (int y = threadIdx.y; y < 32; y += 8)
    if (i0 + y < p.c && j0 + threadIdx.x < p.k)
      out[(to * p.c + i0 + y) * p.k + j0 + threadIdx.x] = tile[y][threadIdx.x];
}
