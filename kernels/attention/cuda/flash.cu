// Flash attention: what attention.cu computes, in tiles (arXiv 2205.14135, 2307.08691). float, d and e up to 128.
//
// A block owns OWN rows of one operand in shared memory and walks over the other one in tiles. 16 x 16 threads each
// hold a piece of s and of the result in registers, so that a number from shared memory is used several times; rows are
// padded by 16 bytes against bank conflicts. Thread (ty, tx) has the rows ty, ty + 16, ... and the columns tx, tx + 16,
// ... of s; a row of s stays within half a warp, so that its sum is a few shuffles and the tile of probabilities needs
// no barrier of the block.
// Forward: online softmax. Backward: one pass owns keys (dk, dv), one owns queries (dq), so that nothing is added by
// atomics: same bits in every run.
//
// FLOPs: forward 2 T K (d + e); backward 2 T K (5 d + 4 e), of which 2 T K (d + e) make s and dP a second time.
// Bytes: forward 4 (T (d + e) + blocks of T * K (d + e)); at T = K = 2048, d = e = 64: 4.3 GFLOP against 34 MB for a
// head, 128 FLOPs per byte.
#include "attention/cuda/attention.cuh"

constexpr int SIDE = 16, THREADS = SIDE * SIDE;

// Padded rows of D numbers, and of probabilities: 16 places more put the two rows of a warp into different halves of
// the banks.
template <int D> constexpr int PAD = D + 4;
template <int COLUMNS> constexpr int SPREAD = COLUMNS + 16;

// `rows` rows of d <= D numbers to a tile of ROWS; zeros elsewhere.
template <class T, int ROWS, int D>
__device__ __forceinline__ void load_tile(T* tile, const T* source, int rows, int d, int runs) {
  for (int at = 4 * threadIdx.x; at < ROWS * D; at += 4 * THREADS) {
    const int r = at / D, c = at % D;
    Vec4<T> value = {};
    if (r < rows) {
      const T* from = source + (size_t)r * d + c;
      if (runs && c < d) value = *reinterpret_cast<const Vec4<T>*>(from);
      if (!runs)
        for (int k = 0; k < 4; ++k)
          if (c + k < d) value.v[k] = from[k];
    }
    *reinterpret_cast<Vec4<T>*>(tile + r * PAD<D> + c) = value;
  }
}

// s[r][c] = <a row ty + 16 r, b row tx + 16 c>
template <class T, int D, int R, int C>
__device__ __forceinline__ void product(T (&s)[R][C], const T* a, const T* b, int ty, int tx) {
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) s[r][c] = 0;
#pragma unroll 4
  for (int k = 0; k < D; k += 4) {
    Vec4<T> left[R], right[C];
#pragma unroll
    for (int r = 0; r < R; ++r) left[r] = *reinterpret_cast<const Vec4<T>*>(a + (ty + SIDE * r) * PAD<D> + k);
#pragma unroll
    for (int c = 0; c < C; ++c) right[c] = *reinterpret_cast<const Vec4<T>*>(b + (tx + SIDE * c) * PAD<D> + k);
#pragma unroll
    for (int r = 0; r < R; ++r)
#pragma unroll
      for (int c = 0; c < C; ++c)
#pragma unroll
        for (int i = 0; i < 4; ++i) s[r][c] += left[r].v[i] * right[c].v[i];
  }
}

// The D / 16 columns of the result that a thread has: vectors of VECTOR neighbours.
template <int D> constexpr int VECTOR = D / SIDE < 4 ? D / SIDE : 4;
template <int D> __device__ __forceinline__ int column(int tx, int k) {
  return k / VECTOR<D> * SIDE * VECTOR<D> + tx * VECTOR<D> + k % VECTOR<D>;
}

// out[r][k] += sum_j p[row][j] v[j][column k]
template <class T, int D, int R, int COLUMNS>
__device__ __forceinline__ void accumulate(T (&out)[R][D / SIDE], const T* p, const T* v, int ty, int tx) {
#pragma unroll 2
  for (int j = 0; j < COLUMNS; j += 4) {
    Vec4<T> left[R];
#pragma unroll
    for (int r = 0; r < R; ++r) left[r] = *reinterpret_cast<const Vec4<T>*>(p + (ty + SIDE * r) * SPREAD<COLUMNS> + j);
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int k = 0; k < D / SIDE; ++k) {
        const T right = v[(j + i) * PAD<D> + column<D>(tx, k)];
#pragma unroll
        for (int r = 0; r < R; ++r) out[r][k] += left[r].v[i] * right;
      }
  }
}

// Rows of the result to memory: `rows` of them, d <= D numbers each, in vectors where rows allow it.
template <class T, int D, int R>
__device__ __forceinline__ void store_rows(T* target, const T (&value)[R][D / SIDE], const T (&factor)[R], int rows,
                                           int d, int runs, int ty, int tx) {
  struct alignas(VECTOR<D> * sizeof(T)) Vector { T v[VECTOR<D>]; };
#pragma unroll
  for (int r = 0; r < R; ++r) {
    if (ty + SIDE * r >= rows) continue;
#pragma unroll
    for (int k = 0; k < D / SIDE; k += VECTOR<D>) {
      const int c = column<D>(tx, k);
      T* to = target + (size_t)(ty + SIDE * r) * d + c;
      Vector vector;
#pragma unroll
      for (int i = 0; i < VECTOR<D>; ++i) vector.v[i] = factor[r] * value[r][k + i];
      if (runs && c < d) *reinterpret_cast<Vector*>(to) = vector;
#pragma unroll
      for (int i = 0; i < VECTOR<D>; ++i)
        if (!runs && c + i < d) to[i] = vector.v[i];
    }
  }
}

template <class T> __device__ __forceinline__ T half_warp_max(T value) {
  for (int lane = SIDE / 2; lane; lane /= 2) value = max(value, __shfl_xor_sync(ALL_LANES, value, lane));
  return value;
}

template <class T> __device__ __forceinline__ T half_warp_sum(T value) {
  for (int lane = SIDE / 2; lane; lane /= 2) value += __shfl_xor_sync(ALL_LANES, value, lane);
  return value;
}

template <class T, int D, int OWN, int OTHER>
__global__ void __launch_bounds__(THREADS)
    attention_rows(const T* __restrict__ q, const T* __restrict__ k, const T* __restrict__ v, T* __restrict__ o,
                   T* __restrict__ lse, const Shape n, const Mask mask, const T scale) {
  constexpr int R = OWN / SIDE, C = OTHER / SIDE;
  extern __shared__ float4 memory[];
  T *own = reinterpret_cast<T*>(memory), *other = own + OWN * PAD<D>, *tile_p = other + OTHER * PAD<D>;
  const int ty = threadIdx.x / SIDE, tx = threadIdx.x % SIDE, head = blockIdx.y, start = blockIdx.x * OWN;
  const size_t row = (size_t)head * n.queries + start;
  load_tile<T, OWN, D>(own, q + row * n.d, n.queries - start, n.d, n.runs);
  T out[R][D / SIDE] = {}, top[R], sum[R] = {};
  for (int r = 0; r < R; ++r) top[r] = -infinity<T>();
  for (int first = 0; first < n.keys; first += OTHER) {
    const size_t key = (size_t)head * n.keys + first;
    __syncthreads();  // v of the step before has been read
    load_tile<T, OTHER, D>(other, k + key * n.d, n.keys - first, n.d, n.runs);
    __syncthreads();
    T s[R][C];
    product<T, D>(s, own, other, ty, tx);
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const int i = start + ty + SIDE * r;
      T highest = top[r];
#pragma unroll
      for (int c = 0; c < C; ++c) {
        const int j = first + tx + SIDE * c;
        s[r][c] = i < n.queries && j < n.keys ? masked(scale * s[r][c], mask, head, i, j) : -infinity<T>();
        highest = max(highest, s[r][c]);
      }
      highest = half_warp_max(highest);
      const T shift = highest == -infinity<T>() ? T(0) : highest, rescale = exp(top[r] - shift);
      T tile_sum = 0;
#pragma unroll
      for (int c = 0; c < C; ++c) {
        const T p = exp(s[r][c] - shift);
        tile_sum += p;
        tile_p[(ty + SIDE * r) * SPREAD<OTHER> + tx + SIDE * c] = p;
      }
      sum[r] = rescale * sum[r] + half_warp_sum(tile_sum);
      top[r] = highest;
#pragma unroll
      for (int c = 0; c < D / SIDE; ++c) out[r][c] *= rescale;
    }
    __syncthreads();  // k has been read
    load_tile<T, OTHER, D>(other, v + key * n.e, n.keys - first, n.e, n.runs);
    __syncthreads();
    accumulate<T, D, R, OTHER>(out, tile_p, other, ty, tx);
  }
  T factor[R];
  for (int r = 0; r < R; ++r) {
    factor[r] = sum[r] == 0 ? T(0) : 1 / sum[r];
    if (tx == 0 && start + ty + SIDE * r < n.queries)
      lse[row + ty + SIDE * r] = sum[r] == 0 ? infinity<T>() : top[r] + log(sum[r]);
  }
  store_rows<T, D>(o + row * n.e, out, factor, n.queries - start, n.e, n.runs, ty, tx);
}

// Owns keys: dv = p^T dy, dk = scale ds^T q.
template <class T, int D, int OWN, int OTHER>
__global__ void __launch_bounds__(THREADS)
    attention_keys(const T* __restrict__ dy, const T* __restrict__ q, const T* __restrict__ k, const T* __restrict__ v,
                   const T* __restrict__ lse, const T* __restrict__ delta, T* __restrict__ dk, T* __restrict__ dv,
                   const Shape n, const Mask mask, const T scale) {
  constexpr int R = OWN / SIDE, C = OTHER / SIDE;
  extern __shared__ float4 memory[];
  T *own_k = reinterpret_cast<T*>(memory), *own_v = own_k + OWN * PAD<D>, *other_q = own_v + OWN * PAD<D>,
    *other_dy = other_q + OTHER * PAD<D>;
  T* tile_p = other_dy + OTHER * PAD<D>;
  const int ty = threadIdx.x / SIDE, tx = threadIdx.x % SIDE, head = blockIdx.y, start = blockIdx.x * OWN;
  const size_t row = (size_t)head * n.keys + start;
  load_tile<T, OWN, D>(own_k, k + row * n.d, n.keys - start, n.d, n.runs);
  load_tile<T, OWN, D>(own_v, v + row * n.e, n.keys - start, n.e, n.runs);
  T to_k[R][D / SIDE] = {}, to_v[R][D / SIDE] = {};
  for (int first = 0; first < n.queries; first += OTHER) {
    const size_t query = (size_t)head * n.queries + first;
    __syncthreads();  // the tiles of the step before have been read
    load_tile<T, OTHER, D>(other_q, q + query * n.d, n.queries - first, n.d, n.runs);
    load_tile<T, OTHER, D>(other_dy, dy + query * n.e, n.queries - first, n.e, n.runs);
    __syncthreads();
    T s[R][C], ds[R][C];
    product<T, D>(s, own_k, other_q, ty, tx);
    product<T, D>(ds, own_v, other_dy, ty, tx);
#pragma unroll
    for (int c = 0; c < C; ++c) {
      const int i = first + tx + SIDE * c;
      const T level = i < n.queries ? lse[query + tx + SIDE * c] : T(0),
              shift = i < n.queries ? delta[query + tx + SIDE * c] : T(0);
#pragma unroll
      for (int r = 0; r < R; ++r) {
        const int j = start + ty + SIDE * r;
        const T p = i < n.queries && j < n.keys ? exp(masked(scale * s[r][c], mask, head, i, j) - level) : T(0);
        ds[r][c] = p * (ds[r][c] - shift);
        tile_p[(ty + SIDE * r) * SPREAD<OTHER> + tx + SIDE * c] = p;
      }
    }
    __syncwarp();
    accumulate<T, D, R, OTHER>(to_v, tile_p, other_dy, ty, tx);
    __syncwarp();
#pragma unroll
    for (int r = 0; r < R; ++r)
#pragma unroll
      for (int c = 0; c < C; ++c) tile_p[(ty + SIDE * r) * SPREAD<OTHER> + tx + SIDE * c] = ds[r][c];
    __syncwarp();
    accumulate<T, D, R, OTHER>(to_k, tile_p, other_q, ty, tx);
  }
  T one[R], scales[R];
  for (int r = 0; r < R; ++r) one[r] = 1, scales[r] = scale;
  store_rows<T, D>(dk + row * n.d, to_k, scales, n.keys - start, n.d, n.runs, ty, tx);
  store_rows<T, D>(dv + row * n.e, to_v, one, n.keys - start, n.e, n.runs, ty, tx);
}

// Owns queries: dq = scale ds k.
// Blocks per multiprocessor to compile for (0: as ptxas likes; with D = 128 it spills for a third).
template <int D> constexpr int MIN_BLOCKS_PER_SM = D == 128 ? 2 : 0;

template <class T, int D, int OWN, int OTHER>
__global__ void __launch_bounds__(THREADS, MIN_BLOCKS_PER_SM<D>)
    attention_queries(const T* __restrict__ dy, const T* __restrict__ q, const T* __restrict__ k,
                      const T* __restrict__ v, const T* __restrict__ lse, const T* __restrict__ delta,
                      T* __restrict__ dq, const Shape n, const Mask mask, const T scale) {
  constexpr int R = OWN / SIDE, C = OTHER / SIDE;
  extern __shared__ float4 memory[];
  T *own_q = reinterpret_cast<T*>(memory), *own_dy = own_q + OWN * PAD<D>, *other_k = own_dy + OWN * PAD<D>,
    *other_v = other_k + OTHER * PAD<D>;
  T* tile_p = other_v + OTHER * PAD<D>;
  const int ty = threadIdx.x / SIDE, tx = threadIdx.x % SIDE, head = blockIdx.y, start = blockIdx.x * OWN;
  const size_t row = (size_t)head * n.queries + start;
  load_tile<T, OWN, D>(own_q, q + row * n.d, n.queries - start, n.d, n.runs);
  load_tile<T, OWN, D>(own_dy, dy + row * n.e, n.queries - start, n.e, n.runs);
  T out[R][D / SIDE] = {}, level[R], shift[R], scales[R];
  for (int r = 0; r < R; ++r) {
    const bool inside = start + ty + SIDE * r < n.queries;
    level[r] = inside ? lse[row + ty + SIDE * r] : T(0), shift[r] = inside ? delta[row + ty + SIDE * r] : T(0),
    scales[r] = scale;
  }
  for (int first = 0; first < n.keys; first += OTHER) {
    const size_t key = (size_t)head * n.keys + first;
    __syncthreads();  // the tiles of the step before have been read
    load_tile<T, OTHER, D>(other_k, k + key * n.d, n.keys - first, n.d, n.runs);
    load_tile<T, OTHER, D>(other_v, v + key * n.e, n.keys - first, n.e, n.runs);
    __syncthreads();
    T s[R][C], ds[R][C];
    product<T, D>(s, own_q, other_k, ty, tx);
    product<T, D>(ds, own_dy, other_v, ty, tx);
#pragma unroll
    for (int r = 0; r < R; ++r)
#pragma unroll
      for (int c = 0; c < C; ++c) {
        const int i = start + ty + SIDE * r, j = first + tx + SIDE * c;
        const T p = i < n.queries && j < n.keys ? exp(masked(scale * s[r][c], mask, head, i, j) - level[r]) : T(0);
        tile_p[(ty + SIDE * r) * SPREAD<OTHER> + tx + SIDE * c] = p * (ds[r][c] - shift[r]);
      }
    __syncwarp();
    accumulate<T, D, R, OTHER>(out, tile_p, other_k, ty, tx);
  }
  store_rows<T, D>(dq + row * n.d, out, scales, n.queries - start, n.d, n.runs, ty, tx);
}
