// Y = A X B^T with banded matrices: pooling by means and linear interpolation, and with the transposed matrices their
// gradients.
//
// A matrix is given as bands: row p weighs the `band` inputs from first[p] on with weights[p][0 ... band - 1] (0 where
// the row is shorter).
//
//   resample_axis     one matrix along one axis of (outer, n, inner): 4 band bytes read (neighbours share them through
//                     L1), 4 written; 2 band FLOPs
//   resample_plane    both at once: no map between the two is written and read; 2 band_a band_b FLOPs, so for small
//                     bands only
//
// Versions: resample_axis twice is the plain one and the right one for wide bands (means over rows); resample_plane is
// the fast one for interpolation.
// A thread makes one pack of V channels; the sum's order is that of the matrix. Every output is gathered: no atomics in
// the gradients either.
#include "core/cuda/device.cuh"

template <class T, int V>
__global__ void resample_axis(const T* __restrict__ x, const int* __restrict__ first, const T* __restrict__ weights,
                              T* __restrict__ y, int count, int n, int p, int packs, int band) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const int line = i / packs, pack = i % packs, outer = line / p, row = line % p;
  const T* from = x + ((outer * n + first[row]) * packs + pack) * V;
  Pack<T, V> total = {};
  for (int k = 0; k < band; ++k) {
    const Pack<T, V> value = load_pack<T, V>(from + k * packs * V);
    for (int v = 0; v < V; ++v) total.v[v] += weights[row * band + k] * value.v[v];
  }
  store_pack<T, V>(y + i * V, total);
}

template <class T, int V>
__global__ void resample_plane(const T* __restrict__ x, const int* __restrict__ first_a, const T* __restrict__ a,
                               const int* __restrict__ first_b, const T* __restrict__ b, T* __restrict__ y, int count,
                               int h, int w, int p, int q, int packs, int band_a, int band_b) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const int pixel = i / packs, pack = i % packs, column = pixel % q, line = pixel / q, row = line % p, image = line / p;
  Pack<T, V> total = {};
  for (int r = 0; r < band_a; ++r) {
    const T* from = x + (((image * h + first_a[row] + r) * w + first_b[column]) * packs + pack) * V;
    Pack<T, V> part = {};
    for (int s = 0; s < band_b; ++s) {
      const Pack<T, V> value = load_pack<T, V>(from + s * packs * V);
      for (int v = 0; v < V; ++v) part.v[v] += b[column * band_b + s] * value.v[v];
    }
    for (int v = 0; v < V; ++v) total.v[v] += a[row * band_a + r] * part.v[v];
  }
  store_pack<T, V>(y + i * V, total);
}
