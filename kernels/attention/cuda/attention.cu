// Scaled dot-product attention over N heads independent problems: q (T, d), k (K, d), v (K, e) -> o (T, e), L = log sum
// exp of each row of s = scale q k^T + mask. No T x K matrix is ever in memory.
//
// FLOPs: forward 2 T K (d + e); backward 2 T K (5 d + 4 e), since the passes for dq and for dk, dv each make s and dP
// again.
// Bytes here, per row: its own d numbers and all K (d + e) of the other side: fine for small problems.
//
// Versions: here the plain one, a block per row of q (per key for dk and dv) with the row of s in shared memory; any
// type, d and e.
//           flash.cu: tiles, an online softmax, registers.
#include "attention/cuda/attention.cuh"

constexpr int PLAIN = 128;

// Blocks per multiprocessor to compile for, where ptxas would spill to let more in.
template <class T> constexpr int MIN_BLOCKS_PER_SM = sizeof(T) == 4 ? 12 : 8;

template <class T> __device__ __forceinline__ T dot(const T* a, const T* b, int d) {
  T total = 0;
  for (int c = 0; c < d; ++c) total += a[c] * b[c];
  return total;
}

template <class T>
__global__ void __launch_bounds__(PLAIN)
    attention_rows_plain(const T* __restrict__ q, const T* __restrict__ k, const T* __restrict__ v, T* __restrict__ o,
                         T* __restrict__ lse, const Shape n, const Mask mask, const T scale) {
  extern __shared__ float4 memory[];
  __shared__ T scratch[PLAIN / WARP];
  T* p = reinterpret_cast<T*>(memory);
  const int head = blockIdx.y, i = blockIdx.x;
  const size_t row = (size_t)head * n.queries + i, first = (size_t)head * n.keys;
  T top = -infinity<T>(), sum = 0;
  for (int j = threadIdx.x; j < n.keys; j += PLAIN) {
    p[j] = masked(scale * dot(q + row * n.d, k + (first + j) * n.d, n.d), mask, head, i, j);
    top = max(top, p[j]);
  }
  top = block_max(top, scratch);
  if (top == -infinity<T>()) top = 0;  // nothing to look at: p = 0 everywhere
  for (int j = threadIdx.x; j < n.keys; j += PLAIN) sum += p[j] = exp(p[j] - top);
  sum = block_sum(sum, scratch);
  for (int c = threadIdx.x; c < n.e; c += PLAIN) {
    T total = 0;
    for (int j = 0; j < n.keys; ++j) total += p[j] * v[(first + j) * n.e + c];
    o[row * n.e + c] = sum == 0 ? T(0) : total / sum;
  }
  if (threadIdx.x == 0) lse[row] = sum == 0 ? infinity<T>() : top + log(sum);
}

// delta_i = <do_i, o_i>: a warp per row.
template <class T>
__global__ void __launch_bounds__(PLAIN)
    attention_delta(const T* __restrict__ dy, const T* __restrict__ o, T* __restrict__ delta, int rows, int e) {
  const int row = (blockIdx.x * PLAIN + threadIdx.x) / WARP;
  if (row >= rows) return;
  T total = 0;
  for (int c = threadIdx.x % WARP; c < e; c += WARP) total += dy[(size_t)row * e + c] * o[(size_t)row * e + c];
  total = warp_sum(total);
  if (threadIdx.x % WARP == 0) delta[row] = total;
}

// p and ds / scale of one pair
template <class T>
__device__ __forceinline__ void pair_of(const T* q, const T* k, const T* v, const T* dy, T lse, T delta, const Shape& n,
                                        const Mask& mask, T scale, int head, int i, int j, T& p, T& ds) {
  p = exp(masked(scale * dot(q, k, n.d), mask, head, i, j) - lse);
  ds = p * (dot(dy, v, n.e) - delta);
}

template <class T>
__global__ void __launch_bounds__(PLAIN, MIN_BLOCKS_PER_SM<T>)
    attention_queries_plain(const T* __restrict__ dy, const T* __restrict__ q, const T* __restrict__ k,
                            const T* __restrict__ v, const T* __restrict__ lse, const T* __restrict__ delta,
                            T* __restrict__ dq, const Shape n, const Mask mask, const T scale) {
  extern __shared__ float4 memory[];
  T* ds = reinterpret_cast<T*>(memory);
  const int head = blockIdx.y, i = blockIdx.x;
  const size_t row = (size_t)head * n.queries + i, first = (size_t)head * n.keys;
  for (int j = threadIdx.x; j < n.keys; j += PLAIN) {
    T p;
    pair_of(q + row * n.d, k + (first + j) * n.d, v + (first + j) * n.e, dy + row * n.e, lse[row], delta[row], n, mask,
            scale, head, i, j, p, ds[j]);
  }
  __syncthreads();
  for (int c = threadIdx.x; c < n.d; c += PLAIN) {
    T total = 0;
    for (int j = 0; j < n.keys; ++j) total += ds[j] * k[(first + j) * n.d + c];
    dq[row * n.d + c] = scale * total;
  }
}

template <class T>
__global__ void __launch_bounds__(PLAIN, MIN_BLOCKS_PER_SM<T>)
    attention_keys_plain(const T* __restrict__ dy, const T* __restrict__ q, const T* __restrict__ k,
                         const T* __restrict__ v, const T* __restrict__ lse, const T* __restrict__ delta,
                         T* __restrict__ dk, T* __restrict__ dv, const Shape n, const Mask mask, const T scale) {
  extern __shared__ float4 memory[];
  T *p = reinterpret_cast<T*>(memory), *ds = p + n.queries;
  const int head = blockIdx.y, j = blockIdx.x;
  const size_t row = (size_t)head * n.keys + j, first = (size_t)head * n.queries;
  for (int i = threadIdx.x; i < n.queries; i += PLAIN)
    pair_of(q + (first + i) * n.d, k + row * n.d, v + row * n.e, dy + (first + i) * n.e, lse[first + i],
            delta[first + i], n, mask, scale, head, i, j, p[i], ds[i]);
  __syncthreads();
  for (int c = threadIdx.x; c < max(n.d, n.e); c += PLAIN) {
    T to_k = 0, to_v = 0;
    for (int i = 0; i < n.queries; ++i) {
      if (c < n.d) to_k += ds[i] * q[(first + i) * n.d + c];
      if (c < n.e) to_v += p[i] * dy[(first + i) * n.e + c];
    }
    if (c < n.d) dk[row * n.d + c] = scale * to_k;
    if (c < n.e) dv[row * n.e + c] = to_v;
  }
}
