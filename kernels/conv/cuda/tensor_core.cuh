// What the tensor-core convolutions share: operand types, tiles in shared memory, copies into them, the main loop.
//
// A block multiplies A (BM, depth) by B (depth, BN) in chunks of DEPTH, both read from shared memory, sums in registers
// as float32.
// Two stages: while chunk i is multiplied, chunk i + 1 is on its way. What needs no conversion travels by cp.async:
// tf32 (the multiplier does not look at the low 13 bits) and arrays of 16-bit numbers. float32 that becomes bf16 or f16
// goes through registers, where it is rounded to nearest.
// Tiles are rows of 16-byte vectors, permuted within the row so that neither the copies nor the fragment loads meet in
// a bank: every warp access to shared memory takes as many wavefronts as its bytes need (ceilings: 1 per 4-byte load, 4
// per ldmatrix.x4).
#pragma once
#include "core/cuda/device.cuh"

constexpr int DEPTH = 32;

// K: depth of one mma; BYTES of an operand in shared memory; Stored: a number of the arrays in global memory (16-bit
// ones as their bits).
struct Tf32 {
  using Stored = float;
  static constexpr int BYTES = 4, K = 8;
};
struct Bf16 {
  using Stored = float;
  static constexpr int BYTES = 2, K = 16;
};
struct F16 {
  using Stored = float;
  static constexpr int BYTES = 2, K = 16;
};
struct Bf16Array : Bf16 { using Stored = unsigned short; };
struct F16Array : F16 { using Stored = unsigned short; };
template <class T> using Stored = typename T::Stored;
template <class T> constexpr bool LOAD_32BIT = T::BYTES == 4;  // fragments are loaded by 4-byte words, not by ldmatrix
template <class T> constexpr bool STORED_NARROW = sizeof(Stored<T>) == 2;
template <class T> constexpr int VECTOR = 16 / T::BYTES;  // operands in 16 bytes
// V neighbours are copied as they are: nothing is converted, and cp.async moves 4 bytes at least.
template <class T, int V> constexpr bool ASYNC = sizeof(Stored<T>) == T::BYTES && V * T::BYTES >= 4;

// M x N outputs per block, WM x WN per warp, in fragments of 16 x 8.
template <int M, int N, int WM, int WN> struct Tile {
  static constexpr int BM = M, BN = N, MT = WM / 16, NT = WN / 8, WARPS_N = N / WN, THREADS = M / WM * WARPS_N * WARP;
  __device__ static int m0() { return threadIdx.x / WARP / WARPS_N * WM; }
  __device__ static int n0() { return threadIdx.x / WARP % WARPS_N * WN; }
  template <class T> static constexpr int STAGE = (M + N) * DEPTH * T::BYTES;
};
using Wide = Tile<128, 128, 64, 32>;    // few fragment loads per product
using Wide16 = Tile<128, 128, 32, 32>;  // float32 to 16-bit types: twice the threads, for chunks wait in registers
using Middle = Tile<128, 64, 32, 32>;
using Small = Tile<64, 32, 32, 16>;
// Blocks per multiprocessor at least: up to 128 registers a thread.
template <class Tile> constexpr int MIN_BLOCKS_PER_SM = 512 / Tile::THREADS;

// ---- instructions

__device__ __forceinline__ unsigned shared_address(const void* p) { return (unsigned)__cvta_generic_to_shared(p); }

#if __CUDA_ARCH__ >= 800
template <int BYTES> __device__ __forceinline__ void cp_async(void* to, const void* from, bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(to)), "l"(from), "n"(BYTES),
               "r"(valid ? BYTES : 0)
               : "memory");
}
template <> __device__ __forceinline__ void cp_async<16>(void* to, const void* from, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(valid ? 16 : 0)
               : "memory");
}
__device__ __forceinline__ void cp_async_arrived() { asm volatile("cp.async.wait_all;" ::: "memory"); }

#define MMA(TYPES, SHAPE)                                                                                              \
  asm volatile("mma.sync.aligned." SHAPE ".row.col.f32." TYPES                                                         \
               ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                                  \
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                                        \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
__device__ __forceinline__ void mma(Tf32, float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  MMA("tf32.tf32", "m16n8k8");
}
__device__ __forceinline__ void mma(Bf16, float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  MMA("bf16.bf16", "m16n8k16");
}
__device__ __forceinline__ void mma(F16, float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  MMA("f16.f16", "m16n8k16");
}
#undef MMA

// Two floats as one register of two 16-bit numbers, rounded to nearest even; `low` is the one at the lower address.
__device__ __forceinline__ unsigned packed(Bf16, float low, float high) {
  unsigned both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}
__device__ __forceinline__ unsigned packed(F16, float low, float high) {
  unsigned both;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}

// Four 8 x 8 matrices of 16-bit numbers (or 8 x 4 of 32-bit numbers): lane l gives the address of row l % 8 of matrix l
// / 8.
__device__ __forceinline__ void ldmatrix(unsigned (&r)[4], const char* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
__device__ __forceinline__ void ldmatrix_transposed(unsigned (&r)[4], const char* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
#else  // never launched there (tensor_core.py asks for 8.0); the module still compiles
template <int BYTES> __device__ void cp_async(void*, const void*, bool) { __trap(); }
__device__ inline void cp_async_arrived() { __trap(); }
template <class T> __device__ void mma(T, float (&)[4], const unsigned (&)[4], const unsigned (&)[2]) { __trap(); }
template <class T> __device__ unsigned packed(T, float, float) {
  __trap();
  return 0;
}
__device__ inline void ldmatrix(unsigned (&)[4], const char*) { __trap(); }
__device__ inline void ldmatrix_transposed(unsigned (&)[4], const char*) { __trap(); }
#endif

// A number of the arrays as float32, and back, rounded to nearest.
__device__ __forceinline__ float to_float(Tf32, float x) { return x; }
__device__ __forceinline__ float to_float(Bf16, float x) { return x; }
__device__ __forceinline__ float to_float(F16, float x) { return x; }
__device__ __forceinline__ float to_float(Bf16, unsigned short x) { return __uint_as_float((unsigned)x << 16); }
__device__ __forceinline__ float to_float(F16, unsigned short x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
  return y;
}
template <class T> __device__ __forceinline__ Stored<T> from_float(float x) {
  if constexpr (STORED_NARROW<T>)
    return (unsigned short)packed(T{}, x, 0.0f);
  else
    return x;
}

// The operand as the multiplier sees it, as float32.
__device__ __forceinline__ float rounded(Tf32, float x) { return __uint_as_float(__float_as_uint(x) & 0xffffe000u); }
__device__ __forceinline__ float rounded(Bf16 t, float x) { return __uint_as_float(packed(t, x, 0.0f) << 16); }
__device__ __forceinline__ float rounded(F16 t, float x) { return to_float(t, (unsigned short)packed(t, x, 0.0f)); }

// ---- tiles in shared memory

// Byte offset of element (row, col) of a tile whose rows hold COLS elements. Vectors of 16 bytes are permuted within a
// row: by the row number modulo 8 (rows of 64 bytes: every other row) for ldmatrix, which reads the same vector of 8
// rows at once; by twice the row number modulo 4 where BY_ELEMENT, for 4-byte loads of 8 neighbours in each of 4 rows.
template <class T, int COLS, bool BY_ELEMENT> __device__ __forceinline__ int place(int row, int col) {
  constexpr int VECTORS = COLS / VECTOR<T>;
  static_assert(VECTORS >= 4, "a row has at least 64 bytes");
  const int swizzle = BY_ELEMENT ? row % 4 * 2 : VECTORS >= 8 ? row % 8 : row / 2 % 4;
  return ((row * VECTORS + (col / VECTOR<T> ^ swizzle)) * VECTOR<T> + col % VECTOR<T>)*T::BYTES;
}

// Copies a tile (ROWS, COLS) from global memory, V neighbours at a time; each thread stays in its column.
// source(row): where the thread's element of that row begins, or nullptr for zeros.
template <class T, int ROWS, int COLS, bool BY_ELEMENT, int V, int THREADS> struct Copy {
  static constexpr int LANES = COLS / V, STEP = THREADS / LANES, COUNT = ROWS / STEP;
  static_assert(THREADS % LANES == 0 && ROWS % STEP == 0, "the threads cover the tile");
  Stored<T> staged[ASYNC<T, V> ? 1 : COUNT * V];

  __device__ static int column() { return threadIdx.x % LANES * V; }
  __device__ static int row(int i) { return threadIdx.x / LANES + i * STEP; }

  template <class Source>
  __device__ __forceinline__ void begin(char* tile, const Stored<T>* somewhere, const Source& source) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      const Stored<T>* from = source(row(i));
      if constexpr (ASYNC<T, V>) {
        cp_async<V * T::BYTES>(tile + place<T, COLS, BY_ELEMENT>(row(i), column()), from ? from : somewhere, from);
      } else if constexpr (V == 4) {
        const float4 v = from ? __ldg((const float4*)from) : make_float4(0, 0, 0, 0);
        staged[4 * i] = v.x, staged[4 * i + 1] = v.y, staged[4 * i + 2] = v.z, staged[4 * i + 3] = v.w;
      } else {
        staged[i] = from ? __ldg(from) : Stored<T>(0);
      }
    }
  }

  __device__ __forceinline__ void store_staged(char* tile) {
    if constexpr (!ASYNC<T, V>) {
#pragma unroll
      for (int i = 0; i < COUNT; ++i) {
        char* to = tile + place<T, COLS, BY_ELEMENT>(row(i), column());
        if constexpr (V == 4) {
          *(uint2*)to = make_uint2(packed(T{}, staged[4 * i], staged[4 * i + 1]),
                                   packed(T{}, staged[4 * i + 2], staged[4 * i + 3]));
        } else if constexpr (STORED_NARROW<T>) {
          *(unsigned short*)to = staged[i];
        } else {
          *(unsigned short*)to = (unsigned short)packed(T{}, staged[i], 0.0f);
        }
      }
    }
  }
};

// A fragment of A, 16 x K at (m, k). Register i of lane 4 g + t holds row g + 8 (i % 2) and, for tf32, column t + 4 (i
// / 2); for 16-bit types columns 2 t, 2 t + 1, each + 8 (i / 2). BY_DEPTH: the tile is (DEPTH, BM), else (BM, DEPTH).
template <class T, class Tile, bool BY_DEPTH>
__device__ __forceinline__ void load_a(unsigned (&a)[4], const char* tile, int m, int k) {
  const int lane = threadIdx.x % WARP;
  if constexpr (!BY_DEPTH) {
    ldmatrix(a, tile + place<T, DEPTH, false>(m + lane % 16, k + lane / 16 * VECTOR<T>));
  } else if constexpr (LOAD_32BIT<T>) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      a[i] = *(const unsigned*)(tile + place<T, Tile::BM, true>(k + lane % 4 + i / 2 * 4, m + lane / 4 + i % 2 * 8));
  } else {
    ldmatrix_transposed(a, tile + place<T, Tile::BM, false>(k + lane / 16 * 8 + lane % 8, m + lane / 8 % 2 * 8));
  }
}

// Two fragments of B, K x 8 at (k, n) and (k, n + 8), from a tile (DEPTH, BN). Register i of lane 4 g + t holds column
// g and the rows of A's columns.
template <class T, class Tile>
__device__ __forceinline__ void load_b(unsigned (&b)[2][2], const char* tile, int k, int n) {
  const int lane = threadIdx.x % WARP;
  if constexpr (LOAD_32BIT<T>) {
#pragma unroll
    for (int j = 0; j < 2; ++j)
      for (int i = 0; i < 2; ++i)
        b[j][i] = *(const unsigned*)(tile + place<T, Tile::BN, true>(k + lane % 4 + i * 4, n + lane / 4 + j * 8));
  } else {
    unsigned r[4];
    ldmatrix_transposed(r, tile + place<T, Tile::BN, false>(k + lane % 16, n + lane / 16 * 8));
    b[0][0] = r[0], b[0][1] = r[1], b[1][0] = r[2], b[1][1] = r[3];
  }
}

template <class T, class Tile, bool BY_DEPTH>
__device__ __forceinline__ void multiply(const char* stage, float (&sum)[Tile::MT][Tile::NT][4]) {
#pragma unroll
  for (int k = 0; k < DEPTH; k += T::K) {
    unsigned a[Tile::MT][4], b[Tile::NT / 2][2][2];
#pragma unroll
    for (int i = 0; i < Tile::MT; ++i) load_a<T, Tile, BY_DEPTH>(a[i], stage, Tile::m0() + 16 * i, k);
#pragma unroll
    for (int j = 0; j < Tile::NT / 2; ++j)
      load_b<T, Tile>(b[j], stage + Tile::BM * DEPTH * T::BYTES, k, Tile::n0() + 16 * j);
#pragma unroll
    for (int i = 0; i < Tile::MT; ++i)
#pragma unroll
      for (int j = 0; j < Tile::NT; ++j) mma(T{}, sum[i][j], a[i], b[j / 2][j % 2]);
  }
}

// sum += A B over `chunks` chunks. feed.begin(chunk, stage) starts its copies, feed.store_staged(stage) stores what
// waits in registers (chunks come in order).
// The barrier of round i says two things: chunk i is there, and nobody reads chunk i - 1 any more, whose stage the next
// copies take.
template <class T, class Tile, class Feed>
__device__ void main_loop(Feed& feed, int chunks, char* shared, float (&sum)[Tile::MT][Tile::NT][4]) {
  feed.begin(0, shared);
  feed.store_staged(shared);
  for (int i = 0; i < chunks; ++i) {
    char* next = shared + (i + 1) % 2 * Tile::template STAGE<T>;
    if constexpr (Feed::ASYNCHRONOUS) cp_async_arrived();
    __syncthreads();
    if (i + 1 < chunks) feed.begin(i + 1, next);
    multiply<T, Tile, Feed::BY_DEPTH>(shared + i % 2 * Tile::template STAGE<T>, sum);
    if (i + 1 < chunks) feed.store_staged(next);
  }
}

// ---- reading a convolution as a matrix

// x0 (N, h, w, c0) and x1 (N, h, w, c1) side by side (c1 may be 0); windows (r, s); pixels = N p q; pixel (p, q) of the
// result is row p osh + oi, column q osw + oj of y (N, oh, ow, k).
struct Geometry { int h, w, c0, c1, p, q, pixels, k, r, s, sh, sw, top, left, dh, dw, oh, ow, osh, osw, oi, oj; };

// Where the window of an output pixel begins: `at` = its pixel number in x (may lie outside), hw = row and column in 16
// bits each.
struct Pixel { int at, hw; };

__device__ __forceinline__ Pixel pixel_of(const Geometry& g, int m, int end) {
  if (m >= end) return {0, (int)0x80000000};  // row -32768 is outside whatever is added to it
  const int n = m / (g.p * g.q), rest = m - n * g.p * g.q, p = rest / g.q, h = p * g.sh - g.top,
            w = (rest - p * g.q) * g.sw - g.left;
  return {(n * g.h + h) * g.w + w, (int)((unsigned)h << 16 | (unsigned)(w & 0xffff))};
}

// The matrix of patches, one column of it: tap (th, tw) = (r dh, s dw) and channel c. Rows are pixels from a table in
// shared memory.
template <class S> struct Patches {
  const Geometry& g;
  const S *x0, *x1;
  const Pixel* pixels;
  int th, tw, c;

  __device__ Patches(const Geometry& g, const S* x0, const S* x1, const Pixel* pixels, int column)
      : g(g), x0(x0), x1(x1), pixels(pixels), th(0), tw(0), c(0) {
    const int channels = g.c0 + g.c1, tap = column / channels, row = tap / g.s;
    c = column - tap * channels, th = row * g.dh, tw = (tap - row * g.s) * g.dw;
  }

  __device__ __forceinline__ void move(int columns) {  // no division: DEPTH steps pass few taps
    for (c += columns; c >= g.c0 + g.c1; c -= g.c0 + g.c1)
      if ((tw += g.dw) == g.s * g.dw) tw = 0, th += g.dh;
  }

  __device__ __forceinline__ const S* operator()(int row) const {
    const Pixel pixel = pixels[row];
    const int h = (pixel.hw >> 16) + th, w = (short)pixel.hw + tw;
    if (th >= g.r * g.dh || (unsigned)h >= (unsigned)g.h || (unsigned)w >= (unsigned)g.w) return nullptr;
    const int at = pixel.at + th * g.w + tw;
    return c < g.c0 ? x0 + at * g.c0 + c : x1 + at * g.c1 + c - g.c0;
  }
};

// A plain matrix (rows, columns) from some row on, one column of it.
template <class S> struct Rows {
  const S* from;
  int rows, stride;
  bool inside;

  __device__ __forceinline__ void move(int by) { from += by * stride, rows -= by; }
  __device__ __forceinline__ const S* operator()(int row) const {
    return inside && row < rows ? from + row * stride : nullptr;
  }
};
