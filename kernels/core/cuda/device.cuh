// What all kernels share: types, 16-byte vectors, reductions within a warp and a block.
//
// Reductions are in a fixed order (a butterfly within the warp, then warp by warp), so results are the same bits in
// every run.
#pragma once

constexpr int WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;

template <class T> struct alignas(16) Vec4 { T v[4]; };

template <class T> __device__ __forceinline__ T warp_sum(T value) {
  for (int lane = WARP / 2; lane; lane /= 2) value += __shfl_xor_sync(ALL_LANES, value, lane);
  return value;
}

template <class T> __device__ __forceinline__ T warp_max(T value) {
  for (int lane = WARP / 2; lane; lane /= 2) value = max(value, __shfl_xor_sync(ALL_LANES, value, lane));
  return value;
}

// The sum over the block's threads (whole warps, at most 1024), the same value in every thread. scratch: one T per warp
// in shared memory.
// A barrier comes first, so that `scratch` may be reused at once.
template <class T> __device__ T block_sum(T value, T* scratch) {
  const int warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
  value = warp_sum(value);
  __syncthreads();
  if (threadIdx.x % WARP == 0) scratch[warp] = value;
  __syncthreads();
  T total = scratch[0];
  for (int k = 1; k < warps; ++k) total += scratch[k];
  return total;
}

__device__ __forceinline__ float sigmoid(float x) {
  const float e = expf(-fabsf(x));
  return (x >= 0 ? 1.0f : e) / (1.0f + e);
}

__device__ __forceinline__ double sigmoid(double x) {
  const double e = exp(-fabs(x));
  return (x >= 0 ? 1.0 : e) / (1.0 + e);
}

// -- packs: V values that are moved by one access of up to 16 bytes ---------------------------------------------------

template <class T, int V> struct alignas(V * sizeof(T)) Pack { T v[V]; };

template <class T, int V> __device__ __forceinline__ Pack<T, V> load_pack(const T* from) {
  return *reinterpret_cast<const Pack<T, V>*>(from);
}

template <class T, int V> __device__ __forceinline__ void store_pack(T* to, const Pack<T, V>& pack) {
  *reinterpret_cast<Pack<T, V>*>(to) = pack;
}

__device__ __forceinline__ float minus_infinity() { return __int_as_float(0xff800000); }

// -- reductions within groups of 1, 2, 4 ... 32 neighbouring lanes; all lanes of the warp must call them --------------

template <class T> __device__ __forceinline__ T group_sum(T value, int group) {
  for (int lane = group / 2; lane; lane /= 2) value += __shfl_xor_sync(ALL_LANES, value, lane);
  return value;
}

template <class T> __device__ __forceinline__ T group_max(T value, int group) {
  for (int lane = group / 2; lane; lane /= 2) value = max(value, __shfl_xor_sync(ALL_LANES, value, lane));
  return value;
}

// -- sums that keep float64's accuracy in float registers -------------------------------------------------------------
//
// A float32 sum is kept as high + low: each addition's rounding error is computed exactly (Knuth's two-sum) and
// gathered in `low`. That is six float operations where float64 would be one, but most GPUs do 32 or 64 float
// operations in the time of a double one.

template <class T> struct Sum;

template <> struct Sum<float> {
  float high = 0, low = 0;
  __device__ __forceinline__ void add(float x) {
    const float s = high + x, part = s - high;
    low += (high - (s - part)) + (x - part);
    high = s;
  }
  __device__ __forceinline__ void add_product(float a, float b) {
    const float p = __fmul_rn(a, b);
    low += fmaf(a, b, -p);
    add(p);
  }
  __device__ __forceinline__ double value() const { return double(high) + double(low); }
};

template <> struct Sum<double> {
  double high = 0;
  __device__ __forceinline__ void add(double x) { high += x; }
  __device__ __forceinline__ void add_product(double a, double b) { high = fma(a, b, high); }
  __device__ __forceinline__ double value() const { return high; }
};

// -- Philox 4x32-10: the same bits as kernels/core/random.py ----------------------------------------------------------

struct Words { unsigned v[4]; };

// The four words of block `index` of the stream (seed, offset), both given as low and high words.
__device__ __forceinline__ Words philox(unsigned long long index, unsigned seed0, unsigned seed1, unsigned offset0,
                                        unsigned offset1) {
  unsigned c0 = unsigned(index), c1 = unsigned(index >> 32), c2 = offset0, c3 = offset1;
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const unsigned high0 = __umulhi(0xD2511F53u, c0), low0 = 0xD2511F53u * c0;
    const unsigned high1 = __umulhi(0xCD9E8D57u, c2), low1 = 0xCD9E8D57u * c2;
    c0 = high1 ^ c1 ^ seed0, c1 = low1, c2 = high0 ^ c3 ^ seed1, c3 = low0;
    seed0 += 0x9E3779B9u, seed1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}
