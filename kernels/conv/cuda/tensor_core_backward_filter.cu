// Filter gradient on tensor cores: dw (r s c, k) = patches(x)^T (r s c, N p q) @ dy (N p q, k), a matrix product whose
// depth is the pixels.
//
// FLOPs: 2 N p q k r s c. Bytes at least: 4 (x + dy + dw), of 16-bit arrays 2, and 8 `parts` r s c k for the partial
// sums.
// The pixels are cut into `parts` runs by the shape alone, one block per run and tile of dw; the second kernel adds the
// runs in order, in float64, so that the result has the same bits every time. A float32 sum is never longer than one
// run.
//
//   filter<T, Tile, V>   part (parts, r s c, k): tensor cores, tiles (pixels, r s c) and (pixels, k) as they lie in
//                        memory
//   add_parts            dw = the sum over parts
//
// Ceilings (trace): 16-byte copies at most 16 sectors per request, stores 8 per request of 8 bytes a lane; shared
// memory without conflicts.
#include "conv/cuda/tensor_core.cuh"

template <class T, class Tile, int V> struct FilterFeed {
  static constexpr bool BY_DEPTH = true, ASYNCHRONOUS = ASYNC<T, V>;
  Patches<Stored<T>> a;
  Rows<Stored<T>> b;
  Pixel* table;  // (2, DEPTH): the pixels of this chunk and of the next
  int start, end;
  Copy<T, DEPTH, Tile::BM, LOAD_32BIT<T>, V, Tile::THREADS> copy_a;
  Copy<T, DEPTH, Tile::BN, LOAD_32BIT<T>, V, Tile::THREADS> copy_b;

  __device__ __forceinline__ void write_table(int chunk) {
    if (threadIdx.x < DEPTH)
      table[chunk % 2 * DEPTH + threadIdx.x] = pixel_of(a.g, start + chunk * DEPTH + threadIdx.x, end);
  }
  __device__ __forceinline__ void begin(int chunk, char* stage) {
    if (chunk) b.move(DEPTH);
    a.pixels = table + chunk % 2 * DEPTH;
    copy_a.begin(stage, a.x0, a);
    copy_b.begin(stage + Tile::BM * DEPTH * T::BYTES, a.x0, b);
    write_table(chunk + 1);  // last read before the barrier that we are behind, next read behind the one to come
  }
  __device__ __forceinline__ void store_staged(char* stage) {
    copy_a.store_staged(stage);
    copy_b.store_staged(stage + Tile::BM * DEPTH * T::BYTES);
  }
};

template <class T, class Tile, int V>
__global__ void __launch_bounds__(Tile::THREADS, MIN_BLOCKS_PER_SM<Tile>)
    filter(const Stored<T>* x0, const Stored<T>* x1, const Stored<T>* dy, float* part, Geometry g, int run) {
  extern __shared__ __align__(128) char stages[];
  Pixel* table = (Pixel*)(stages + 2 * Tile::template STAGE<T>);
  const int depth = g.r * g.s * (g.c0 + g.c1), lane = threadIdx.x % WARP;
  const int across = (g.k + Tile::BN - 1) / Tile::BN, m = blockIdx.x / across * Tile::BM,
            n = blockIdx.x % across * Tile::BN;
  const int start = blockIdx.y * run, end = min(start + run, g.pixels);
  using Feed = FilterFeed<T, Tile, V>;
  const int col = n + decltype(Feed::copy_b)::column();
  Feed feed{{g, x0, x1, table, m + decltype(Feed::copy_a)::column()},
            {dy + start * g.k + col, end - start, g.k, col < g.k},
            table,
            start,
            end};
  feed.write_table(0);
  __syncthreads();
  float sum[Tile::MT][Tile::NT][4] = {};
  main_loop<T, Tile>(feed, (end - start + DEPTH - 1) / DEPTH, stages, sum);
  part += blockIdx.y * depth * g.k;
#pragma unroll
  for (int i = 0; i < Tile::MT; ++i)
#pragma unroll
    for (int j = 0; j < Tile::NT; ++j)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = m + Tile::m0() + 16 * i + 8 * half + lane / 4, at = n + Tile::n0() + 8 * j + lane % 4 * 2;
        if (row >= depth || at >= g.k) continue;
        float* to = part + row * g.k + at;
        if constexpr (V > 1) {
          *(float2*)to = make_float2(sum[i][j][2 * half], sum[i][j][2 * half + 1]);
        } else {
          to[0] = sum[i][j][2 * half];
          if (at + 1 < g.k) to[1] = sum[i][j][2 * half + 1];
        }
      }
}

// part (parts, count) -> dw (count,)
extern "C" __global__ void add_parts(const float* part, float* dw, int parts, int count) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= count) return;
  double sum = 0;
  for (int k = 0; k < parts; ++k) sum += part[k * count + i];
  dw[i] = (float)sum;
}
