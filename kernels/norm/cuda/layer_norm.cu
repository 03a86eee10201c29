// Layer norm over the last axis of x (rows, channels): y = xhat weight + bias, xhat = (x - mean) inverse, inverse = 1 /
// sqrt(var + eps).
//
//   forward    4 bytes read, 4 written per float; 8 FLOPs          backward   8 read, 4 written for dx and 8 read for
//                                                                             the sums; 20 FLOPs
//
// A warp per row. It walks the row once for the mean, once for the variance and once for the result; after the first
// walk the row is in L1.
// The warp's sums are butterflies, so all lanes know them without shared memory. dweight and dbias are column sums:
// columns.cuh.
#include "norm/cuda/columns.cuh"

__device__ __forceinline__ int row_of_warp() { return (blockIdx.x * blockDim.x + threadIdx.x) / WARP; }

template <class T, int V>
__device__ __forceinline__ void row_statistics(const T* x, int channels, double eps, T& mean, T& inverse) {
  const int lane = threadIdx.x % WARP;
  T sum = 0, square = 0;
  for (int c = lane * V; c < channels; c += WARP * V) {
    const Pack<T, V> pack = load_pack<T, V>(x + c);
    for (int v = 0; v < V; ++v) sum += pack.v[v];
  }
  mean = warp_sum(sum) / channels;
  for (int c = lane * V; c < channels; c += WARP * V) {
    const Pack<T, V> pack = load_pack<T, V>(x + c);
    for (int v = 0; v < V; ++v) square += (pack.v[v] - mean) * (pack.v[v] - mean);
  }
  inverse = T(1) / sqrt(warp_sum(square) / channels + T(eps));
}

template <class T, int V>
__global__ void layer_norm_forward(const T* x, const T* weight, const T* bias, T* y, double eps, int rows,
                                   int channels) {
  const int row = row_of_warp();
  if (row >= rows) return;
  T mean, inverse;
  row_statistics<T, V>(x + row * channels, channels, eps, mean, inverse);
  for (int c = (threadIdx.x % WARP) * V; c < channels; c += WARP * V) {
    Pack<T, V> pack = load_pack<T, V>(x + row * channels + c);
    const Pack<T, V> w = load_pack<T, V>(weight + c), b = load_pack<T, V>(bias + c);
    for (int v = 0; v < V; ++v) pack.v[v] = (pack.v[v] - mean) * inverse * w.v[v] + b.v[v];
    store_pack<T, V>(y + row * channels + c, pack);
  }
}

// dx = inverse (g - mean(g) - xhat mean(g xhat)), g = dy weight; statistics (2, rows): the rows' means and inverses,
// for the sums.
template <class T, int V>
__global__ void layer_norm_gradient(const T* dy, const T* x, const T* weight, T* dx, T* statistics, double eps,
                                    int rows, int channels) {
  const int row = row_of_warp(), lane = threadIdx.x % WARP;
  if (row >= rows) return;
  dy += row * channels, x += row * channels, dx += row * channels;
  T mean, inverse, sum = 0, product = 0;
  row_statistics<T, V>(x, channels, eps, mean, inverse);
  if (lane == 0) statistics[row] = mean, statistics[rows + row] = inverse;
  for (int c = lane * V; c < channels; c += WARP * V) {
    const Pack<T, V> gradient = load_pack<T, V>(dy + c), w = load_pack<T, V>(weight + c), pack = load_pack<T, V>(x + c);
    for (int v = 0; v < V; ++v) {
      const T g = gradient.v[v] * w.v[v];
      sum += g, product += g * ((pack.v[v] - mean) * inverse);
    }
  }
  sum = warp_sum(sum) / channels, product = warp_sum(product) / channels;
  for (int c = lane * V; c < channels; c += WARP * V) {
    const Pack<T, V> gradient = load_pack<T, V>(dy + c), w = load_pack<T, V>(weight + c);
    Pack<T, V> pack = load_pack<T, V>(x + c);
    for (int v = 0; v < V; ++v)
      pack.v[v] = inverse * (gradient.v[v] * w.v[v] - sum - (pack.v[v] - mean) * inverse * product);
    store_pack<T, V>(dx + c, pack);
  }
}

// out (blocks of rows, 2, channels): sums of dy and of dy xhat.
template <class T, int V>
__global__ void layer_norm_gradient_sums(const T* dy, const T* x, const T* statistics, double* out, int rows,
                                         int channels, int wide, int per) {
  sum_columns<T, V, 2>(out, rows, channels, wide, per, [&](int channel, int row, Sum<T>(&sums)[2][V]) {
    const Pack<T, V> gradient = load_pack<T, V>(dy + row * channels + channel),
                     pack = load_pack<T, V>(x + row * channels + channel);
    const T mean = statistics[row], inverse = statistics[rows + row];
    for (int v = 0; v < V; ++v)
      sums[0][v].add(gradient.v[v]), sums[1][v].add_product(gradient.v[v], (pack.v[v] - mean) * inverse);
  });
}

template <class T>
__global__ void layer_norm_gradient_finish(const double* from, T* dweight, T* dbias, int channels, int parts) {
  const int channel = blockIdx.x * WARP + threadIdx.x;
  const bool inside = channel < channels;
  const double sum = sum_parts(from + channel, parts, 2 * channels, inside);
  const double product = sum_parts(from + channels + channel, parts, 2 * channels, inside);
  if (threadIdx.y == 0 && inside) dbias[channel] = T(sum), dweight[channel] = T(product);
}
