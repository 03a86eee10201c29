// Batch norm over x (rows, channels), rows = N H W: statistics, forward with optional residual and ReLU, backward; and
// plain sums over rows.
//
//   moments    mean and biased variance, float64        4 bytes read per float; 26 FLOPs (the exact sums of
//                                                       core/cuda/device.cuh; 4 in float64)
//   forward    y = act((x - mean) scale + bias + r)     4 read (8 with residual), 4 written (and 1 of mask with
//                                                       residual and ReLU); 5 FLOPs
//   backward   sums of g and g (x - mean)               8 read (9); 20 FLOPs
//              dx = scale (g - dbias / M - ...)         8 read (9), 4 written (8 with residual); 8 FLOPs
//
// Versions, plain to fast. *_plain: a block per channel, one value per access, Welford's update with a division per
// value; 32 lanes touch 32 rows, that is up to 32 sectors per request where 4 are enough. moments / forward /
// gradient_sums / gradient: columns.cuh's layout, 16-byte accesses, the channel's constants in registers; moments are
// sums of x - (the map's first row), turned into (count, mean, M2) once per thread and merged by Chan, Golub &
// LeVeque's formula within the block, then over the blocks.
// The ReLU's mask is made again from x; only with a residual it is stored, a byte per value.
#include "norm/cuda/columns.cuh"

// -- statistics -------------------------------------------------------------------------------------------------------

struct Moments { double count, mean, m2; };

// The moments of two sets together.  (Chan, Golub & LeVeque 1979)
__device__ __forceinline__ Moments merged(const Moments& a, const Moments& b) {
  if (b.count == 0) return a;
  if (a.count == 0) return b;
  const double n = a.count + b.count, d = b.mean - a.mean;
  return {n, a.mean + d * (b.count / n), a.m2 + b.m2 + d * d * (a.count * b.count / n)};
}

// x - k exactly, as rounded difference and error.
__device__ __forceinline__ float difference(float x, float k, float& error) {
  const float d = x - k, part = d - x;
  error = (x - (d - part)) - (k + part);
  return d;
}
__device__ __forceinline__ double difference(double x, double k, double& error) {
  error = 0;
  return x - k;
}
__device__ __forceinline__ void add_error(Sum<float>& sum, float error) { sum.low += error; }
__device__ __forceinline__ void add_error(Sum<double>& sum, double) {}

template <class T>
__global__ void batch_norm_moments_plain(const T* x, double* mean, double* variance, int rows, int channels) {
  __shared__ Moments scratch[COLUMN_THREADS];
  Moments mine = {0, 0, 0};
  for (int row = threadIdx.x; row < rows; row += blockDim.x) {
    const double value = double(x[row * channels + blockIdx.x]) - double(x[blockIdx.x]), d = value - mine.mean;
    mine.count += 1;
    mine.mean += d / mine.count;
    mine.m2 += d * (value - mine.mean);
  }
  scratch[threadIdx.x] = mine;
  for (int half = blockDim.x / 2; half; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) scratch[threadIdx.x] = merged(scratch[threadIdx.x], scratch[threadIdx.x + half]);
  }
  if (threadIdx.x == 0)
    mean[blockIdx.x] = double(x[blockIdx.x]) + scratch[0].mean, variance[blockIdx.x] = scratch[0].m2 / rows;
}

// out (blocks of rows, 2, channels): mean and M2 of x - shift over the block's rows, where shift is the map's first
// row: all means are then small against the spread, and merging them loses nothing.
template <class T, int V>
__global__ void batch_norm_moments(const T* x, double* out, int rows, int channels, int wide, int per) {
  __shared__ double means[COLUMN_THREADS], squares[COLUMN_THREADS];
  __shared__ int counts[COLUMN_THREADS];
  const Place p = place_of<V>(rows, channels, wide, per);
  Sum<T> first[V], second[V];
  Pack<T, V> shift = {};
  int count = 0;
  if (p.inside) shift = load_pack<T, V>(x + p.channel);
  if (p.inside)
    for (int row = p.first; row < p.stop; row += p.step, ++count) {
      const Pack<T, V> pack = load_pack<T, V>(x + row * channels + p.channel);
      for (int v = 0; v < V; ++v) {
        T error;
        const T d = difference(pack.v[v], shift.v[v], error);
        first[v].add(d), add_error(first[v], error);
        second[v].add_product(d, d), add_error(second[v], 2 * d * error);
      }
    }
  for (int v = 0; v < V; ++v) {
    const double n = max(count, 1), sum = first[v].value();
    __syncthreads();
    counts[threadIdx.x] = count;
    means[threadIdx.x] = sum / n;
    squares[threadIdx.x] = second[v].value() - sum * (sum / n);
    int half = 1;
    while (half < p.high) half *= 2;
    for (half /= 2; half; half /= 2) {
      __syncthreads();
      const int other = threadIdx.x + half * wide;
      if (p.ty < half && p.ty + half < p.high) {
        const Moments m = merged({double(counts[threadIdx.x]), means[threadIdx.x], squares[threadIdx.x]},
                                 {double(counts[other]), means[other], squares[other]});
        counts[threadIdx.x] = m.count, means[threadIdx.x] = m.mean, squares[threadIdx.x] = m.m2;
      }
    }
    if (p.inside && p.ty == 0) {
      double* to = out + blockIdx.x * 2 * channels + p.channel + v;
      to[0] = means[threadIdx.x], to[channels] = squares[threadIdx.x];
    }
  }
}

// Blocks of 32 channels x 8: merges the partials of `parts` blocks of `per` rows each (the last one may have fewer).
template <class T>
__global__ void batch_norm_moments_finish(const T* shift, const double* from, double* mean, double* variance, int rows,
                                          int channels, int per, int parts) {
  __shared__ Moments scratch[8][WARP];
  const int channel = blockIdx.x * WARP + threadIdx.x;
  Moments mine = {0, 0, 0};
  if (channel < channels)
    for (int k = threadIdx.y; k < parts; k += 8) {
      const double* part = from + k * 2 * channels + channel;
      mine = merged(mine, {double(min(per, rows - k * per)), part[0], part[channels]});
    }
  scratch[threadIdx.y][threadIdx.x] = mine;
  __syncthreads();
  if (threadIdx.y || channel >= channels) return;
  for (int k = 1; k < 8; ++k) mine = merged(mine, scratch[k][threadIdx.x]);
  mean[channel] = double(shift[channel]) + mine.mean, variance[channel] = (mine.m2 < 0 ? 0.0 : mine.m2) / rows;
}

// running = (1 - momentum) running + momentum value, with the unbiased variance; thread per channel.
template <class T>
__global__ void batch_norm_running(T* running_mean, T* running_var, const double* mean, const double* variance,
                                   double momentum, double unbias, int channels) {
  const int c = blockIdx.x * blockDim.x + threadIdx.x;
  if (c >= channels) return;
  running_mean[c] = T(1 - momentum) * running_mean[c] + T(momentum) * T(mean[c]);
  running_var[c] = T(1 - momentum) * running_var[c] + T(momentum) * T(variance[c] * unbias);
}

extern "C" __global__ void batch_norm_inverse(const double* variance, double* inverse, double eps, int channels) {
  const int c = blockIdx.x * blockDim.x + threadIdx.x;
  if (c < channels) inverse[c] = 1 / sqrt(variance[c] + eps);
}

// -- forward ----------------------------------------------------------------------------------------------------------

// (x - mean) scale + bias. Forward and backward must round it alike, for its sign decides about the gradient.
__device__ __forceinline__ float normalised(float x, float mean, float scale, float bias) {
  return fmaf(x - mean, scale, bias);
}
__device__ __forceinline__ double normalised(double x, double mean, double scale, double bias) {
  return fma(x - mean, scale, bias);
}

template <class T>
__global__ void batch_norm_forward_plain(const T* x, const T* weight, const T* bias, const double* mean,
                                         const double* inverse, const T* residual, T* y, unsigned char* mask, int rows,
                                         int channels, int relu) {
  for (int row = threadIdx.x; row < rows; row += blockDim.x) {
    const int c = blockIdx.x, i = row * channels + c;
    T value = normalised(x[i], T(mean[c]), T(weight[c] * inverse[c]), bias[c]);
    if (residual) value += residual[i];
    if (mask) mask[i] = !(value <= 0);
    y[i] = relu && value <= 0 ? T(0) : value;
  }
}

template <class T, int V>
__global__ void batch_norm_forward(const T* x, const T* weight, const T* bias, const double* mean,
                                   const double* inverse, const T* residual, T* y, unsigned char* mask, int rows,
                                   int channels, int relu, int wide, int per) {
  const Place p = place_of<V>(rows, channels, wide, per);
  if (!p.inside) return;
  T m[V], scale[V], b[V];
  for (int v = 0; v < V; ++v) {
    const int c = p.channel + v;
    m[v] = T(mean[c]), scale[v] = T(weight[c] * inverse[c]), b[v] = bias[c];
  }
  for (int row = p.first; row < p.stop; row += p.step) {
    const int i = row * channels + p.channel;
    Pack<T, V> pack = load_pack<T, V>(x + i), other = {};
    Pack<unsigned char, V> open;
    if (residual) other = load_pack<T, V>(residual + i);
    for (int v = 0; v < V; ++v) {
      const T value = normalised(pack.v[v], m[v], scale[v], b[v]) + other.v[v];
      open.v[v] = !(value <= 0);
      pack.v[v] = relu && value <= 0 ? T(0) : value;  // not-a-number passes
    }
    store_pack<T, V>(y + i, pack);
    if (mask) store_pack<unsigned char, V>(mask + i, open);
  }
}

// -- backward ---------------------------------------------------------------------------------------------------------

enum Relu { NONE, COMPUTED, STORED };

// dy where the ReLU was open.
template <class T, int V>
__device__ __forceinline__ Pack<T, V> open_gradient(const T* dy, const Pack<T, V>& x, const unsigned char* mask, int i,
                                                    int relu, const T (&mean)[V], const T (&scale)[V],
                                                    const T (&bias)[V]) {
  Pack<T, V> g = load_pack<T, V>(dy + i);
  if (relu == STORED) {
    const Pack<unsigned char, V> open = load_pack<unsigned char, V>(mask + i);
    for (int v = 0; v < V; ++v) g.v[v] = open.v[v] ? g.v[v] : T(0);
  }
  if (relu == COMPUTED)
    for (int v = 0; v < V; ++v) g.v[v] = normalised(x.v[v], mean[v], scale[v], bias[v]) <= 0 ? T(0) : g.v[v];
  return g;
}

template <class T>
__global__ void batch_norm_backward_plain(const T* dy, const T* x, const unsigned char* mask, const T* weight,
                                          const T* bias, const double* mean, const double* inverse, T* dx, T* dresidual,
                                          T* dweight, T* dbias, int rows, int channels, int relu, int training) {
  __shared__ double scratch[COLUMN_THREADS / WARP];
  const int c = blockIdx.x;
  const T m[1] = {T(mean[c])}, scale[1] = {T(weight[c] * inverse[c])}, b[1] = {bias[c]};
  double sum = 0, product = 0;
  for (int row = threadIdx.x; row < rows; row += blockDim.x) {
    const int i = row * channels + c;
    const Pack<T, 1> value = {x[i]}, g = open_gradient<T, 1>(dy, value, mask, i, relu, m, scale, b);
    sum += g.v[0], product += double(g.v[0]) * (value.v[0] - m[0]);
  }
  sum = block_sum(sum, scratch), product = block_sum(product, scratch) * inverse[c];
  if (threadIdx.x == 0) dbias[c] = T(sum), dweight[c] = T(product);
  const T constant = training ? T(sum / rows) : T(0), slope = training ? T(inverse[c] * product / rows) : T(0);
  for (int row = threadIdx.x; row < rows; row += blockDim.x) {
    const int i = row * channels + c;
    const Pack<T, 1> value = {x[i]}, g = open_gradient<T, 1>(dy, value, mask, i, relu, m, scale, b);
    dx[i] = scale[0] * (g.v[0] - (training ? constant + (value.v[0] - m[0]) * slope : T(0)));  // no 0 times infinity
    if (dresidual) dresidual[i] = g.v[0];
  }
}

// out (blocks of rows, 2, channels): sums of g and of g (x - mean).
template <class T, int V>
__global__ void batch_norm_gradient_sums(const T* dy, const T* x, const unsigned char* mask, const T* weight,
                                         const T* bias, const double* mean, const double* inverse, int relu,
                                         double* out, int rows, int channels, int wide, int per) {
  const int first = (blockIdx.y * wide + threadIdx.x % wide) * V;
  T m[V] = {}, scale[V] = {}, b[V] = {};
  for (int v = 0; v < V; ++v)
    if (first + v < channels)
      m[v] = T(mean[first + v]), scale[v] = T(weight[first + v] * inverse[first + v]), b[v] = bias[first + v];
  sum_columns<T, V, 2>(out, rows, channels, wide, per, [&](int channel, int row, Sum<T>(&sums)[2][V]) {
    const int i = row * channels + channel;
    const Pack<T, V> pack = load_pack<T, V>(x + i), g = open_gradient<T, V>(dy, pack, mask, i, relu, m, scale, b);
    for (int v = 0; v < V; ++v) sums[0][v].add(g.v[v]), sums[1][v].add_product(g.v[v], pack.v[v] - m[v]);
  });
}

// totals (2, channels) = dbias, dweight in float64 for `gradient`; dweight, dbias in x's type for the caller. Blocks of
// 32 x 8.
template <class T>
__global__ void batch_norm_gradient_finish(const double* from, const double* inverse, double* totals, T* dweight,
                                           T* dbias, int channels, int parts) {
  const int channel = blockIdx.x * WARP + threadIdx.x;
  const bool inside = channel < channels;
  const double sum = sum_parts(from + channel, parts, 2 * channels, inside);
  const double product = sum_parts(from + channels + channel, parts, 2 * channels, inside);
  if (threadIdx.y || !inside) return;
  totals[channel] = sum, totals[channels + channel] = product * inverse[channel];
  dbias[channel] = T(sum), dweight[channel] = T(product * inverse[channel]);
}

// dx = scale (g - (dbias + xhat dweight) / M) in training, scale g in evaluation; dresidual = g, when given.
template <class T, int V>
__global__ void batch_norm_gradient(const T* dy, const T* x, const unsigned char* mask, const T* weight, const T* bias,
                                    const double* mean, const double* inverse, const double* totals, T* dx,
                                    T* dresidual, int rows, int channels, int relu, int training, int wide, int per) {
  const Place p = place_of<V>(rows, channels, wide, per);
  if (!p.inside) return;
  T m[V], scale[V], b[V], slope[V], constant[V];
  for (int v = 0; v < V; ++v) {
    const int c = p.channel + v;
    m[v] = T(mean[c]), scale[v] = T(weight[c] * inverse[c]), b[v] = bias[c];
    constant[v] = training ? T(totals[c] / rows) : T(0);
    slope[v] = training ? T(inverse[c] * totals[channels + c] / rows) : T(0);
  }
  for (int row = p.first; row < p.stop; row += p.step) {
    const int i = row * channels + p.channel;
    Pack<T, V> pack = load_pack<T, V>(x + i);
    const Pack<T, V> g = open_gradient<T, V>(dy, pack, mask, i, relu, m, scale, b);
    for (int v = 0; v < V; ++v)
      pack.v[v] = scale[v] * (g.v[v] - (training ? constant[v] + (pack.v[v] - m[v]) * slope[v] : T(0)));
    store_pack<T, V>(dx + i, pack);
    if (dresidual) store_pack<T, V>(dresidual + i, g);
  }
}

// -- sums over rows ---------------------------------------------------------------------------------------------------

template <class T, int V> __global__ void sum_rows(const T* x, double* out, int rows, int channels, int wide, int per) {
  sum_columns<T, V, 1>(out, rows, channels, wide, per, [&](int channel, int row, Sum<T>(&sums)[1][V]) {
    const Pack<T, V> pack = load_pack<T, V>(x + row * channels + channel);
    for (int v = 0; v < V; ++v) sums[0][v].add(pack.v[v]);
  });
}

extern "C" __global__ void sum_rows_finish(const double* from, double* total, int channels, int parts) {
  const int channel = blockIdx.x * WARP + threadIdx.x;
  const double sum = sum_parts(from + channel, parts, channels, channel < channels);
  if (threadIdx.y == 0 && channel < channels) total[channel] = sum;
}
