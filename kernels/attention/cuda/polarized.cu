// The two branches of polarized self-attention over N images x (L, C), forward and backward; h = C / 2 or so.
// kernels/attention/reference.py has the maths.
//
// One block per image does everything up to y (or dx), in shared memory: the image, 128 KB at L = 128, C = 256, is read
// again from the L2 cache where it is needed twice. FLOPs forward 4 L C + 4 C h (channel), 4 L C + 4 C h (spatial);
// bytes 8 L C, and 4 C h of weights, which all blocks share.
// Backward leaves per image a row of small vectors in `rows`; `reduce_images` turns them into the gradients of all
// parameters, in the order of the images.
// Launches: 1 forward, 2 backward.  With a block per image a batch of 16 does not fill a large GPU: the maps at this
// place of the network are so small (2 MB in all) that a second launch would cost more than it spreads.
//
// Versions: this one; the plain form is the reference, whose matrix products CuPy runs.
#include "attention/cuda/attention.cuh"

constexpr int THREADS = 512, WARPS = THREADS / WARP;

template <class T> struct ReductionScratch {
  double columns[WARPS][WARP], sum[WARPS];
  T top[WARPS];
};

// out[l] = sum_c f(l, c): a warp per row.
template <class T, class F> __device__ __forceinline__ void sum_rows(int rows, int columns, T* out, F f) {
  const int lane = threadIdx.x % WARP;
  for (int l = threadIdx.x / WARP; l < rows; l += WARPS) {
    T total = 0;
    for (int c = lane; c < columns; c += WARP) total += f(l, c);
    total = warp_sum(total);
    if (lane == 0) out[l] = total;
  }
  __syncthreads();
}

// out[c] = sum_l f(l, c): 32 columns at a time; each warp has every 16th row and adds runs of 64 in T, what is longer
// in float64.
template <class T, class F>
__device__ __forceinline__ void sum_columns(int rows, int columns, T* out, ReductionScratch<T>& scratch, F f) {
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  for (int first = 0; first < columns; first += WARP) {
    const int c = first + lane;
    double total = 0;
    T run = 0;
    if (c < columns)
      for (int l = warp, k = 1; l < rows; l += WARPS, ++k) {
        run += f(l, c);
        if (k % 64 == 0) total += run, run = 0;
      }
    scratch.columns[warp][lane] = total + run;
    __syncthreads();
    if (warp == 0 && c < columns) {
      double sum = scratch.columns[0][lane];
      for (int k = 1; k < WARPS; ++k) sum += scratch.columns[k][lane];
      out[c] = sum;
    }
    __syncthreads();
  }
}

// sum_k f(k), the same in every thread
template <class T, class F> __device__ __forceinline__ T sum_over(int n, ReductionScratch<T>& scratch, F f) {
  double total = 0;
  for (int k = threadIdx.x; k < n; k += THREADS) total += f(k);
  return block_sum(total, scratch.sum);
}

template <class F> __device__ __forceinline__ void for_each(int n, F f) {
  for (int k = threadIdx.x; k < n; k += THREADS) f(k);
  __syncthreads();
}

template <class T> __device__ __forceinline__ void softmax(T* a, int n, ReductionScratch<T>& scratch) {
  T top = a[0];
  for (int k = threadIdx.x; k < n; k += THREADS) top = max(top, a[k]);
  top = block_max(top, scratch.top);
  for_each(n, [&](int k) { a[k] = exp(a[k] - top); });
  const T total = sum_over<T>(n, scratch, [&](int k) { return a[k]; });
  for_each(n, [&](int k) { a[k] /= total; });
}

// y (dy - <dy, y>), in place of dy
template <class T>
__device__ __forceinline__ void softmax_gradient(T* dy, const T* y, int n, ReductionScratch<T>& scratch) {
  const T mean = sum_over<T>(n, scratch, [&](int k) { return dy[k] * y[k]; });
  for_each(n, [&](int k) { dy[k] = y[k] * (dy[k] - mean); });
}

// -- channel branch ---------------------------------------------------------------------------------------------------

template <class T> struct Channel {
  const T *wq, *wv, *bv, *wz, *bz, *gain, *offset;
  T eps;
  int pixels, channels, inner;
};

// Fills a (L), pooled (C), u (h), xhat (C), s (C); returns 1 / sigma of the layer norm.
template <class T>
__device__ T channel_gates(const T* x, const Channel<T>& w, T* a, T* pooled, T* u, T* xhat, T* s,
                           ReductionScratch<T>& scratch) {
  const int L = w.pixels, C = w.channels, h = w.inner;
  sum_rows<T>(L, C, a, [&](int l, int c) { return x[l * C + c] * w.wq[c]; });
  softmax(a, L, scratch);
  sum_columns<T>(L, C, pooled, scratch, [&](int l, int c) { return a[l] * x[l * C + c]; });
  sum_columns<T>(C, h, u, scratch, [&](int c, int j) { return pooled[c] * w.wv[c * h + j]; });
  for_each(h, [&](int j) { u[j] += w.bv[j]; });
  sum_columns<T>(h, C, xhat, scratch, [&](int j, int c) { return u[j] * w.wz[j * C + c]; });
  for_each(C, [&](int c) { xhat[c] += w.bz[c]; });
  const T mean = sum_over<T>(C, scratch, [&](int c) { return xhat[c]; }) / C;
  const T variance = sum_over<T>(C, scratch, [&](int c) { return (xhat[c] - mean) * (xhat[c] - mean); }) / C;
  const T inverse = 1 / sqrt(variance + w.eps);
  __syncthreads();
  for_each(C, [&](int c) {
    xhat[c] = (xhat[c] - mean) * inverse;
    s[c] = sigmoid(xhat[c] * w.gain[c] + w.offset[c]);
  });
  return inverse;
}

// Dynamic shared memory: L + 3 C + h numbers.
template <class T>
__global__ void __launch_bounds__(THREADS)
    channel_forward(const T* __restrict__ images, T* __restrict__ y, const Channel<T> w) {
  extern __shared__ float4 memory[];
  __shared__ ReductionScratch<T> scratch;
  const int L = w.pixels, C = w.channels;
  T *a = reinterpret_cast<T*>(memory), *pooled = a + L, *xhat = pooled + C, *s = xhat + C, *u = s + C;
  const size_t first = (size_t)blockIdx.x * L * C;
  const T* x = images + first;
  channel_gates(x, w, a, pooled, u, xhat, s, scratch);
  for (int k = threadIdx.x; k < L * C; k += THREADS) y[first + k] = x[k] * s[k % C];
}

// rows (N, 5 C + 2 h): pooled, u, do, du, dgain, doffset, dwq. Dynamic shared memory: 2 L + 6 C + 2 h numbers.
template <class T>
__global__ void __launch_bounds__(THREADS)
    channel_backward(const T* __restrict__ cotangents, const T* __restrict__ images, T* __restrict__ dx,
                     T* __restrict__ rows, const Channel<T> w) {
  extern __shared__ float4 memory[];
  __shared__ ReductionScratch<T> scratch;
  const int L = w.pixels, C = w.channels, h = w.inner;
  T *a = reinterpret_cast<T*>(memory), *dl = a + L, *pooled = dl + L, *xhat = pooled + C, *s = xhat + C, *g = s + C,
    *to_o = g + C, *to_pooled = to_o + C;
  T *u = to_pooled + C, *du = u + h, *row = rows + (size_t)blockIdx.x * (5 * C + 2 * h);
  const size_t first = (size_t)blockIdx.x * L * C;
  const T *x = images + first, *dy = cotangents + first;
  const T inverse = channel_gates(x, w, a, pooled, u, xhat, s, scratch);

  sum_columns<T>(L, C, g, scratch, [&](int l, int c) { return dy[l * C + c] * x[l * C + c]; });
  for_each(C, [&](int c) { g[c] *= s[c] * (1 - s[c]); });
  const T mean = sum_over<T>(C, scratch, [&](int c) { return g[c] * w.gain[c]; }) / C;
  const T along = sum_over<T>(C, scratch, [&](int c) { return g[c] * w.gain[c] * xhat[c]; }) / C;
  for_each(C, [&](int c) { to_o[c] = inverse * (g[c] * w.gain[c] - mean - xhat[c] * along); });
  sum_rows<T>(h, C, du, [&](int j, int c) { return w.wz[j * C + c] * to_o[c]; });
  sum_rows<T>(C, h, to_pooled, [&](int c, int j) { return w.wv[c * h + j] * du[j]; });
  sum_rows<T>(L, C, dl, [&](int l, int c) { return x[l * C + c] * to_pooled[c]; });
  softmax_gradient(dl, a, L, scratch);

  for_each(C, [&](int c) {
    row[c] = pooled[c], row[C + h + c] = to_o[c];
    row[2 * C + 2 * h + c] = g[c] * xhat[c], row[3 * C + 2 * h + c] = g[c];
  });
  for_each(h, [&](int j) { row[C + j] = u[j], row[2 * C + h + j] = du[j]; });
  sum_columns<T>(L, C, row + 4 * C + 2 * h, scratch, [&](int l, int c) { return dl[l] * x[l * C + c]; });
  for (int k = threadIdx.x; k < L * C; k += THREADS) {
    const int l = k / C, c = k % C;
    dx[first + k] = dy[k] * s[c] + a[l] * to_pooled[c] + dl[l] * w.wq[c];
  }
}

// -- spatial branch ---------------------------------------------------------------------------------------------------

template <class T> struct Spatial {
  const T *wq, *bq, *wv, *bv;
  int pixels, channels, inner;
};

// Fills mean (C), b (h), direction (C) = wv b; returns <b, bv>.
template <class T>
__device__ T pixel_direction(const T* x, const Spatial<T>& w, T* mean, T* b, T* direction,
                             ReductionScratch<T>& scratch) {
  const int L = w.pixels, C = w.channels, h = w.inner;
  sum_columns<T>(L, C, mean, scratch, [&](int l, int c) { return x[l * C + c]; });
  for_each(C, [&](int c) { mean[c] /= L; });
  sum_columns<T>(C, h, b, scratch, [&](int c, int j) { return mean[c] * w.wq[c * h + j]; });
  for_each(h, [&](int j) { b[j] += w.bq[j]; });
  softmax(b, h, scratch);
  sum_rows<T>(C, h, direction, [&](int c, int j) { return w.wv[c * h + j] * b[j]; });
  return sum_over<T>(h, scratch, [&](int j) { return b[j] * w.bv[j]; });
}

// Dynamic shared memory: 2 C + h + L numbers.
template <class T>
__global__ void __launch_bounds__(THREADS)
    spatial_forward(const T* __restrict__ images, T* __restrict__ y, const Spatial<T> w) {
  extern __shared__ float4 memory[];
  __shared__ ReductionScratch<T> scratch;
  const int L = w.pixels, C = w.channels;
  T *mean = reinterpret_cast<T*>(memory), *direction = mean + C, *s = direction + C, *b = s + L;
  const size_t first = (size_t)blockIdx.x * L * C;
  const T* x = images + first;
  const T shift = pixel_direction(x, w, mean, b, direction, scratch);
  sum_rows<T>(L, C, s, [&](int l, int c) { return x[l * C + c] * direction[c]; });
  for_each(L, [&](int l) { s[l] = sigmoid(s[l] + shift); });
  for (int k = threadIdx.x; k < L * C; k += THREADS) y[first + k] = x[k] * s[k / C];
}

// Blocks per multiprocessor to compile for; 0: as ptxas likes, which spills floats for four, where a batch does not
// even fill one.
template <class T> constexpr int MIN_BLOCKS_PER_SM = sizeof(T) == 4 ? 2 : 0;

// rows (N, 2 C + 3 h): mean, b, dc, dl, total b. Dynamic shared memory: 4 C + 2 h + 2 L numbers.
template <class T>
__global__ void __launch_bounds__(THREADS, MIN_BLOCKS_PER_SM<T>)
    spatial_backward(const T* __restrict__ cotangents, const T* __restrict__ images, T* __restrict__ dx,
                     T* __restrict__ rows, const Spatial<T> w) {
  extern __shared__ float4 memory[];
  __shared__ ReductionScratch<T> scratch;
  const int L = w.pixels, C = w.channels, h = w.inner;
  T *mean = reinterpret_cast<T*>(memory), *direction = mean + C, *dc = direction + C, *pull = dc + C, *s = pull + C,
    *to_s = s + L;
  T *b = to_s + L, *dl = b + h, *row = rows + (size_t)blockIdx.x * (2 * C + 3 * h);
  const size_t first = (size_t)blockIdx.x * L * C;
  const T *x = images + first, *dy = cotangents + first;
  const T shift = pixel_direction(x, w, mean, b, direction, scratch);
  sum_rows<T>(L, C, s, [&](int l, int c) { return x[l * C + c] * direction[c]; });
  sum_rows<T>(L, C, to_s, [&](int l, int c) { return x[l * C + c] * dy[l * C + c]; });
  for_each(L, [&](int l) {
    s[l] = sigmoid(s[l] + shift);
    to_s[l] *= s[l] * (1 - s[l]);
  });
  const T total = sum_over<T>(L, scratch, [&](int l) { return to_s[l]; });
  sum_columns<T>(L, C, dc, scratch, [&](int l, int c) { return to_s[l] * x[l * C + c]; });
  sum_columns<T>(C, h, dl, scratch, [&](int c, int j) { return dc[c] * w.wv[c * h + j]; });
  for_each(h, [&](int j) { dl[j] += total * w.bv[j]; });
  softmax_gradient(dl, b, h, scratch);
  sum_rows<T>(C, h, pull, [&](int c, int j) { return w.wq[c * h + j] * dl[j]; });

  for_each(C, [&](int c) { row[c] = mean[c], row[C + h + c] = dc[c]; });
  for_each(h, [&](int j) { row[C + j] = b[j], row[2 * C + h + j] = dl[j], row[2 * C + 2 * h + j] = total * b[j]; });
  for (int k = threadIdx.x; k < L * C; k += THREADS) {
    const int l = k / C, c = k % C;
    dx[first + k] = s[l] * dy[k] + to_s[l] * direction[c] + pull[c] / L;
  }
}

// -- gradients of the parameters --------------------------------------------------------------------------------------

struct Outer {
  int left, right, heights, widths;  // places of two vectors in a row, and their lengths
};

// rows (N, width). out: sum_n left right^T of two pairs of vectors, then sum_n of the whole row. A thread per number.
template <class T>
__global__ void __launch_bounds__(256)
    reduce_images(const T* __restrict__ rows, T* __restrict__ out, int n, int width, const Outer one, const Outer two) {
  const int k = blockIdx.x * blockDim.x + threadIdx.x, ones = one.heights * one.widths, twos = two.heights * two.widths;
  if (k >= ones + twos + width) return;
  double total = 0;
  if (k < ones + twos) {
    const Outer& pair = k < ones ? one : two;
    const int at = k < ones ? k : k - ones;
    const T *left = rows + pair.left + at / pair.widths, *right = rows + pair.right + at % pair.widths;
    for (int i = 0; i < n; ++i) total += static_cast<double>(left[i * width]) * right[i * width];
  } else {
    for (int i = 0; i < n; ++i) total += rows[i * width + k - ones - twos];
  }
  out[k] = total;
}
