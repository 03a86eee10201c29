// Convolution on tensor cores: y (N, p, q, k) = patches(x) (N p q, r s c) @ w (r s c, k) + b, an implicit matrix
// product: patches are never stored.
//
// FLOPs: 2 N p q k r s c. Bytes at least: 4 (x + w + y), of 16-bit arrays 2; each block reads BM (r s c) of x, mostly
// from L2, and (r s c) BN of w.
// Per FLOP a block moves 1 / BM + 1 / BN words from L2 into shared memory: 1/64 for Wide.
// The data gradient is the same kernel: on the flipped filter for stride 1, one launch per phase of the stride
// otherwise (tensor_core.py).
//
// From plain to fast:
//   plain<T>               one thread per number of y; says what the others compute
//   forward<T, Tile, V>    tensor cores; copies of 16 bytes where channels come in runs of them (V = 4; 8 of 16-bit
//                          arrays), else one by one (V = 1)
//
// Ceilings (trace): 16-byte copies at most 16 sectors per request (4 rows of 128 bytes), stores 8 per request of 8
// bytes a lane; shared memory without conflicts.
#include "conv/cuda/tensor_core.cuh"

template <class T>
__global__ void plain(const Stored<T>* x0, const Stored<T>* x1, const Stored<T>* w, const Stored<T>* bias, Stored<T>* y,
                      Geometry g, int add) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= g.pixels * g.k) return;
  const int m = i / g.k, k = i % g.k, n = m / (g.p * g.q), p = m / g.q % g.p, q = m % g.q;
  float sum = 0;
  for (int r = 0; r < g.r; ++r)
    for (int s = 0; s < g.s; ++s) {
      const int h = p * g.sh - g.top + r * g.dh, v = q * g.sw - g.left + s * g.dw;
      if (h < 0 || h >= g.h || v < 0 || v >= g.w) continue;
      const int at = (n * g.h + h) * g.w + v;
      for (int c = 0; c < g.c0 + g.c1; ++c) {
        const Stored<T> a = c < g.c0 ? x0[at * g.c0 + c] : x1[at * g.c1 + c - g.c0];
        sum += rounded(T{}, to_float(T{}, a)) *
               rounded(T{}, to_float(T{}, w[((r * g.s + s) * (g.c0 + g.c1) + c) * g.k + k]));
      }
    }
  Stored<T>* to = y + ((n * g.oh + p * g.osh + g.oi) * g.ow + q * g.osw + g.oj) * g.k + k;
  *to = from_float<T>(sum + (bias ? to_float(T{}, bias[k]) : 0.0f) + (add ? to_float(T{}, *to) : 0.0f));
}

template <class T, class Tile, int V> struct ForwardFeed {
  static constexpr bool BY_DEPTH = false, ASYNCHRONOUS = ASYNC<T, V>;
  Patches<Stored<T>> a;
  Rows<Stored<T>> b;
  Copy<T, Tile::BM, DEPTH, false, V, Tile::THREADS> copy_a;
  Copy<T, DEPTH, Tile::BN, LOAD_32BIT<T>, V, Tile::THREADS> copy_b;

  __device__ __forceinline__ void begin(int chunk, char* stage) {
    if (chunk) a.move(DEPTH), b.move(DEPTH);
    copy_a.begin(stage, a.x0, a);
    copy_b.begin(stage + Tile::BM * DEPTH * T::BYTES, a.x0, b);
  }
  __device__ __forceinline__ void store_staged(char* stage) {
    copy_a.store_staged(stage);
    copy_b.store_staged(stage + Tile::BM * DEPTH * T::BYTES);
  }
};

// Writes a block's sums: rows are the pixels whose places in y are in `places` (-1: none).
template <class T, class Tile, int V>
__device__ __forceinline__ void store(const float (&sum)[Tile::MT][Tile::NT][4], const int* places, int n,
                                      const float* bias, float* y, int k, bool add) {
  const int lane = threadIdx.x % WARP;
#pragma unroll
  for (int i = 0; i < Tile::MT; ++i)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int at = places[Tile::m0() + 16 * i + 8 * half + lane / 4];
#pragma unroll
      for (int j = 0; j < Tile::NT; ++j) {
        const int col = n + Tile::n0() + 8 * j + lane % 4 * 2;
        float* to = y + at * k + col;
        float2 v = make_float2(sum[i][j][2 * half], sum[i][j][2 * half + 1]);
        if (at < 0 || col >= k) continue;
        const bool both = V == 4 || col + 1 < k;
        if (bias) v.x += bias[col], v.y += both ? bias[col + 1] : 0.0f;
        if constexpr (V == 4) {
          if (add) v.x += ((float2*)to)->x, v.y += ((float2*)to)->y;
          *(float2*)to = v;
        } else {
          to[0] = add ? to[0] + v.x : v.x;
          if (both) to[1] = add ? to[1] + v.y : v.y;
        }
      }
    }
}

// The same for 16-bit arrays. Two columns would be 4 bytes a lane and half a sector a row; so neighbouring lanes
// exchange columns of two fragments j, j + 1: the even lane gets four columns of the first, the odd one four of the
// second, and stores are 8 bytes a lane as above.
template <class T, class Tile, int V>
__device__ __forceinline__ void store(const float (&sum)[Tile::MT][Tile::NT][4], const int* places, int n,
                                      const unsigned short* bias, unsigned short* y, int k, bool add) {
  const int lane = threadIdx.x % WARP, odd = lane % 2;
#pragma unroll
  for (int i = 0; i < Tile::MT; ++i)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int at = places[Tile::m0() + 16 * i + 8 * half + lane / 4];
#pragma unroll
      for (int j = 0; j < Tile::NT; j += 2) {
        const int col = n + Tile::n0() + 8 * (j + odd) + lane % 4 / 2 * 4;
        unsigned short* to = y + at * k + col;
        float v[4];
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float first = sum[i][j][2 * half + e], second = sum[i][j + 1][2 * half + e];
          const float got = __shfl_xor_sync(ALL_LANES, odd ? first : second, 1);
          v[e] = odd ? got : first, v[2 + e] = odd ? second : got;
        }
        if (at < 0 || col >= k) continue;
        alignas(8) unsigned short old[4] = {};
        if (add && V == 8) *(uint2*)old = *(const uint2*)to;
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          if (V == 1 && col + e >= k) break;
          if (add && V == 1) old[e] = to[e];
          v[e] += (bias ? to_float(T{}, bias[col + e]) : 0.0f) + (add ? to_float(T{}, old[e]) : 0.0f);
          if (V == 1) to[e] = from_float<T>(v[e]);
        }
        if (V == 8) *(uint2*)to = make_uint2(packed(T{}, v[0], v[1]), packed(T{}, v[2], v[3]));
      }
    }
}

template <class T, class Tile, int V>
__global__ void __launch_bounds__(Tile::THREADS, MIN_BLOCKS_PER_SM<Tile>)
    forward(const Stored<T>* x0, const Stored<T>* x1, const Stored<T>* w, const Stored<T>* bias, Stored<T>* y,
            Geometry g, int add) {
  extern __shared__ __align__(128) char stages[];
  Pixel* pixels = (Pixel*)(stages + 2 * Tile::template STAGE<T>);
  int* places = (int*)(pixels + Tile::BM);
  const int across = (g.k + Tile::BN - 1) / Tile::BN, m = blockIdx.x / across * Tile::BM,
            n = blockIdx.x % across * Tile::BN;
  const int depth = g.r * g.s * (g.c0 + g.c1);
  for (int i = threadIdx.x; i < Tile::BM; i += Tile::THREADS) {
    const int at = m + i, image = at / (g.p * g.q), p = at / g.q % g.p, q = at % g.q;
    pixels[i] = pixel_of(g, at, g.pixels);
    places[i] = at < g.pixels ? (image * g.oh + p * g.osh + g.oi) * g.ow + q * g.osw + g.oj : -1;
  }
  __syncthreads();
  using Feed = ForwardFeed<T, Tile, V>;
  const int col = n + decltype(Feed::copy_b)::column();
  Feed feed{{g, x0, x1, pixels, decltype(Feed::copy_a)::column()}, {w + col, depth, g.k, col < g.k}};
  float sum[Tile::MT][Tile::NT][4] = {};
  main_loop<T, Tile>(feed, (depth + DEPTH - 1) / DEPTH, stages, sum);
  store<T, Tile, V>(sum, places, n, bias, y, g.k, add);
}
