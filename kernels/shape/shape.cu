// Moving channels between one wide map (pixels, sum of sizes) and up to 8 narrow ones, and sums in place.
//
//   move_channels    4 bytes read, 4 written per float, no arithmetic. One launch for all maps: a thread per unit of
//                    the wide map, so the wide side is one stream, and each narrow map is read (or written) in runs.
//                    A unit is 16 bytes where sizes and addresses allow, else 8 or 4.
//   accumulate       8 read, 4 written, 1 FLOP
#include "core/cuda/device.cuh"

constexpr int MOST_MAPS = 8;

struct Maps {
  unsigned long long map[MOST_MAPS];
  int start[MOST_MAPS + 1];  // of each map within the wide one, in units; beyond the last map: the width
};

template <class U, bool TOGETHER> __global__ void move_channels(Maps maps, U* wide, int count, int width) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const int pixel = i / width, unit = i % width;
  unsigned long long map = maps.map[0];
  int start = 0, size = maps.start[1];
#pragma unroll  // with an index known to the compiler the table stays in constant memory
  for (int k = 1; k < MOST_MAPS; ++k)
    if (unit >= maps.start[k]) map = maps.map[k], start = maps.start[k], size = maps.start[k + 1] - start;
  U* narrow = reinterpret_cast<U*>(map) + pixel * size + unit - start;
  if (TOGETHER)
    wide[i] = *narrow;
  else
    *narrow = wide[i];
}

template <class T> __global__ void accumulate(T* total, const T* addend, int n) {
  constexpr int V = 16 / sizeof(T);
  const int i = (blockIdx.x * blockDim.x + threadIdx.x) * V;
  if (i + V <= n) {
    Pack<T, V> sum = load_pack<T, V>(total + i);
    const Pack<T, V> other = load_pack<T, V>(addend + i);
    for (int v = 0; v < V; ++v) sum.v[v] += other.v[v];
    store_pack<T, V>(total + i, sum);
  } else {
    for (int k = i; k < n; ++k) total[k] += addend[k];
  }
}
