// The optimiser over flat vectors of P parameters.
//
// adamw        one pass: reads p, g, m, v, average, writes p, m, v, average: 36 bytes and about 20 FLOPs per parameter
// in float. The weight decay
//              is one number per LINE parameters.
// squares      the squared gradient norm: 4 bytes, 2 FLOPs per parameter; a partial sum per block, which
// `squares_finish` adds in a fixed order.
// gather       gradients of many tensors into one vector, 8 bytes per parameter, one launch for up to 160 tensors.
//
// Versions: adamw_plain, squares_plain: a number per thread.   adamw, squares: 16 bytes per lane and array.
// The clip factor is read from device memory: the host never waits for the norm.
#include "core/cuda/device.cuh"

constexpr int THREADS = 256, WARPS = THREADS / WARP, LINE = 16;  // LINE as in kernels/optimizer/reference.py

// What a step needs besides the vectors, passed by value (kernels/optimizer/cuda.py fills it).
template <class T> struct Step {
  // 1 - b1, 1 - b2, lr / (1 - b1^t), (1 - b2^t)^-1/2, eps, lr, 1 - d
  T first, second, rate, root, eps, learning_rate, kept;
};

template <class T> __device__ __forceinline__ void update(const Step<T>& s, T& p, T g, T& m, T& v, T decay) {
  m += s.first * (g - m);
  v += s.second * (g * g - v);
  p -= s.learning_rate * decay * p;
  p -= s.rate * m / (sqrt(v) * s.root + s.eps);
}

template <class T>
__global__ void __launch_bounds__(THREADS)
    adamw_plain(T* __restrict__ p, const T* __restrict__ g, T* __restrict__ m, T* __restrict__ v,
                const T* __restrict__ decay, T* __restrict__ average, const T* __restrict__ clip, int count,
                const Step<T> s) {
  const int i = blockIdx.x * THREADS + threadIdx.x;
  if (i >= count) return;
  update(s, p[i], g[i] * *clip, m[i], v[i], decay[i / LINE]);
  if (average) average[i] += s.kept * (p[i] - average[i]);
}

template <class T> constexpr int VECTOR = 16 / sizeof(T);
template <class T> struct alignas(16) Vector { T v[VECTOR<T>]; };

// count: of vectors of 16 bytes.
template <class T>
__global__ void __launch_bounds__(THREADS)
    adamw(Vector<T>* __restrict__ p, const Vector<T>* __restrict__ g, Vector<T>* __restrict__ m,
          Vector<T>* __restrict__ v, const T* __restrict__ decay, Vector<T>* __restrict__ average,
          const T* __restrict__ clip, int count, const Step<T> s) {
  const int i = blockIdx.x * THREADS + threadIdx.x;
  if (i >= count) return;
  const T factor = *clip;
  Vector<T> weight = p[i], mean = m[i], square = v[i];
  const Vector<T> gradient = g[i];
  const T weight_decay = decay[i / (LINE / VECTOR<T>)];
#pragma unroll
  for (int k = 0; k < VECTOR<T>; ++k)
    update(s, weight.v[k], gradient.v[k] * factor, mean.v[k], square.v[k], weight_decay);
  p[i] = weight, m[i] = mean, v[i] = square;
  if (average) {
    Vector<T> old = average[i];
#pragma unroll
    for (int k = 0; k < VECTOR<T>; ++k) old.v[k] += s.kept * (weight.v[k] - old.v[k]);
    average[i] = old;
  }
}

// -- the norm ---------------------------------------------------------------------------------------------------------

template <class T>
__global__ void __launch_bounds__(THREADS)
    squares_plain(const T* __restrict__ g, double* __restrict__ partial, int count) {
  __shared__ double scratch[WARPS];
  double total = 0;
  for (int i = blockIdx.x * THREADS + threadIdx.x; i < count; i += gridDim.x * THREADS)
    total += static_cast<double>(g[i]) * g[i];
  total = block_sum(total, scratch);
  if (threadIdx.x == 0) partial[blockIdx.x] = total;
}

// Squares of floats are exact in float64.
template <class T>
__global__ void __launch_bounds__(THREADS)
    squares(const Vector<T>* __restrict__ g, double* __restrict__ partial, int count) {
  __shared__ double scratch[WARPS];
  double total = 0;
  for (int i = blockIdx.x * THREADS + threadIdx.x; i < count; i += gridDim.x * THREADS) {
    const Vector<T> vector = g[i];
    double sum = 0;
#pragma unroll
    for (int k = 0; k < VECTOR<T>; ++k)
      sum = fma(static_cast<double>(vector.v[k]), static_cast<double>(vector.v[k]), sum);
    total += sum;
  }
  total = block_sum(total, scratch);
  if (threadIdx.x == 0) partial[blockIdx.x] = total;
}

// One block: total = the sum of the partial sums, always in the same order.
extern "C" __global__ void __launch_bounds__(THREADS)
    squares_finish(const double* __restrict__ partial, double* __restrict__ total, int parts) {
  __shared__ double scratch[WARPS];
  double sum = 0;
  for (int i = threadIdx.x; i < parts; i += THREADS) sum += partial[i];
  sum = block_sum(sum, scratch);
  if (threadIdx.x == 0) *total = sum;
}

// factor = min(1, largest / sqrt(squared)); 1 where the norm is 0, not-a-number where it is. One thread.
template <class T> __global__ void clip(const double* __restrict__ squared, T* __restrict__ factor, double largest) {
  const double norm = sqrt(*squared);
  *factor = norm == 0 || largest / norm > 1 ? 1.0 : largest / norm;
}

// -- many tensors into one vector -------------------------------------------------------------------------------------

constexpr int TABLE = 160;  // a kernel's arguments may take 4 KB

template <class T> struct Table {
  const T* from[TABLE];  // null: zeros
  int at[TABLE], size[TABLE];
};

// blockIdx.y: the tensor; the blocks of x share its numbers.
template <class T> __global__ void __launch_bounds__(THREADS) gather(T* __restrict__ out, const Table<T> table) {
  const T* from = table.from[blockIdx.y];
  T* to = out + table.at[blockIdx.y];
  for (int i = blockIdx.x * THREADS + threadIdx.x; i < table.size[blockIdx.y]; i += gridDim.x * THREADS)
    to[i] = from ? from[i] : T(0);
}
