// Activations, dropout, softmax: forward and backward.
//
//   activation_forward    4 bytes read, 4 written per float; 1 (ReLU) to about 30 (GELU) FLOPs
//   activation_backward   8 read, 4 written
//   dropout               4 read, 4 written; 10 Philox rounds of about 6 integer operations for 4 values
//   softmax_forward       4 read (three walks, two of them from L1), 4 written; softmax_backward 8 read, 4 written
//
// All are bound by memory; the formulas are those of kernels/pointwise/reference.py. Versions: activation_plain, a
// thread per value; the others move 16 bytes per access, and the last thread does what is left value by value.
#include "core/cuda/device.cuh"

// One struct per activation: y = forward(x, slope), dx = backward(dy, a, slope), where a is what reference.py says: the
// input x or the output y.
struct Relu {
  template <class T> static __device__ T forward(T x, T) { return x <= 0 ? T(0) : x; }  // not-a-number passes
  template <class T> static __device__ T backward(T dy, T y, T) { return y <= 0 ? T(0) : dy; }
};
struct LeakyRelu {
  template <class T> static __device__ T forward(T x, T slope) { return x > 0 ? x : slope * x; }
  template <class T> static __device__ T backward(T dy, T x, T slope) { return x > 0 ? dy : slope * dy; }
};
struct Sigmoid {
  template <class T> static __device__ T forward(T x, T) { return sigmoid(x); }
  template <class T> static __device__ T backward(T dy, T y, T) { return dy * y * (1 - y); }
};
struct Tanh {
  template <class T> static __device__ T forward(T x, T) { return tanh(x); }
  template <class T> static __device__ T backward(T dy, T y, T) { return dy * (1 - y * y); }
};
struct Silu {
  template <class T> static __device__ T forward(T x, T) { return x * sigmoid(x); }
  template <class T> static __device__ T backward(T dy, T x, T) {
    const T s = sigmoid(x);
    return dy * s * (1 + x * (1 - s));
  }
};
struct Gelu {
  template <class T> static __device__ T phi(T x) { return T(0.5) + T(0.5) * erf(x * T(0.70710678118654752)); }
  template <class T> static __device__ T forward(T x, T) { return x * phi(x); }
  template <class T> static __device__ T backward(T dy, T x, T) {
    return dy * (phi(x) + x * (exp(T(-0.5) * x * x) * T(0.39894228040143268)));
  }
};

template <class T> constexpr int VALUES = 16 / sizeof(T);  // of one access

template <class Op, class T> __global__ void activation_plain(const T* x, T* y, T slope, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = Op::forward(x[i], slope);
}

template <class Op, class T>
__global__ void activation_forward(const T* __restrict__ x, T* __restrict__ y, T slope, int n) {
  constexpr int V = VALUES<T>;
  const int i = (blockIdx.x * blockDim.x + threadIdx.x) * V;
  if (i + V <= n) {
    Pack<T, V> pack = load_pack<T, V>(x + i);
    for (int v = 0; v < V; ++v) pack.v[v] = Op::forward(pack.v[v], slope);
    store_pack<T, V>(y + i, pack);
  } else {
    for (int k = i; k < n; ++k) y[k] = Op::forward(x[k], slope);
  }
}

template <class Op, class T>
__global__ void activation_backward(const T* __restrict__ dy, const T* __restrict__ a, T* __restrict__ dx, T slope,
                                    int n) {
  constexpr int V = VALUES<T>;
  const int i = (blockIdx.x * blockDim.x + threadIdx.x) * V;
  if (i + V <= n) {
    Pack<T, V> pack = load_pack<T, V>(dy + i);
    const Pack<T, V> other = load_pack<T, V>(a + i);
    for (int v = 0; v < V; ++v) pack.v[v] = Op::backward(pack.v[v], other.v[v], slope);
    store_pack<T, V>(dx + i, pack);
  } else {
    for (int k = i; k < n; ++k) dx[k] = Op::backward(dy[k], a[k], slope);
  }
}

// y = x scale where (word >> 8) >= threshold, else 0 x: NaN where x is NaN or infinite. A thread makes one Philox
// block: four words for four values.
template <class T>
__global__ void dropout(const T* x, T* y, T scale, unsigned threshold, unsigned seed0, unsigned seed1, unsigned offset0,
                        unsigned offset1, int n) {
  const int block = blockIdx.x * blockDim.x + threadIdx.x, i = 4 * block;
  if (i >= n) return;
  const Words words = philox(block, seed0, seed1, offset0, offset1);
  if (i + 4 <= n) {
    constexpr int V = VALUES<T>;
    for (int part = 0; part < 4; part += V) {
      Pack<T, V> pack = load_pack<T, V>(x + i + part);
      for (int v = 0; v < V; ++v) pack.v[v] *= words.v[part + v] >> 8 >= threshold ? scale : T(0);
      store_pack<T, V>(y + i + part, pack);
    }
  } else {
#pragma unroll
    for (int lane = 0; lane < 4; ++lane)
      if (i + lane < n) y[i + lane] = x[i + lane] * (words.v[lane] >> 8 >= threshold ? scale : T(0));
  }
}

// -- softmax along the middle axis of (outer, length, inner): a group of lanes per row of `length` values, `inner`
// apart ---------------

struct Row {
  int base, lane;
  bool inside;
};

__device__ __forceinline__ Row row_of(int rows, int length, int inner, int group) {
  const int thread = blockIdx.x * blockDim.x + threadIdx.x, row = thread / group;
  return {row / inner * length * inner + row % inner, thread % group, row < rows};
}

template <class T>
__global__ void softmax_forward(const T* x, T* y, int log_of_it, int rows, int length, int inner, int group) {
  const Row r = row_of(rows, length, inner, group);
  const int stop = r.inside ? length : 0;
  T top = minus_infinity(), sum = 0;
  for (int k = r.lane; k < stop; k += group) top = max(top, x[r.base + k * inner]);
  top = group_max(top, group);
  for (int k = r.lane; k < stop; k += group) sum += exp(x[r.base + k * inner] - top);
  sum = group_sum(sum, group);
  const T shift = log_of_it ? log(sum) : T(0);
  for (int k = r.lane; k < stop; k += group) {
    const T value = x[r.base + k * inner] - top;
    y[r.base + k * inner] = log_of_it ? value - shift : exp(value) / sum;
  }
}

// dx = y (dy - sum(dy y)), or of the logarithm dy - e^y sum(dy).
template <class T>
__global__ void softmax_backward(const T* dy, const T* y, T* dx, int log_of_it, int rows, int length, int inner,
                                 int group) {
  const Row r = row_of(rows, length, inner, group);
  const int stop = r.inside ? length : 0;
  T sum = 0;
  for (int k = r.lane; k < stop; k += group)
    sum += log_of_it ? dy[r.base + k * inner] : dy[r.base + k * inner] * y[r.base + k * inner];
  sum = group_sum(sum, group);
  for (int k = r.lane; k < stop; k += group) {
    const int i = r.base + k * inner;
    dx[i] = log_of_it ? dy[i] - exp(y[i]) * sum : y[i] * (dy[i] - sum);
  }
}
