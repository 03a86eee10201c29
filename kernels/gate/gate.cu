// Sigmoid gates and blends: y = s x + (1 - s) other, s = sigmoid(z); a gate is a blend with nothing (other = null, y =
// s x).
//
//   forward     4 bytes read, 4 written per float (8 read with `other`, or with a z per channel); 2 FLOPs, and a
//               sigmoid per gate
//   backward    8 read, 4 written (12 and 8 of a blend); 5 FLOPs; one pass gives dx, dother and dz
//
// z has one channel (`single`) or as many as x. Instances <float, 1> and <double, 1> are the plain ones; <float, 4>
// moves 16 bytes per access.
// Forward: a thread per pack of V channels. Backward: a group of lanes per pixel, which adds up dz by shuffles in a
// fixed order.
#include "core/cuda/device.cuh"

template <class T, int V> struct Gates { T s[V]; };

template <class T, int V> __device__ __forceinline__ Gates<T, V> gates_of(const T* z, int pixel, int pack, int single) {
  Gates<T, V> gates;
  if (single) {
    const T s = sigmoid(z[pixel]);
    for (int v = 0; v < V; ++v) gates.s[v] = s;
  } else {
    const Pack<T, V> values = load_pack<T, V>(z + pack * V);
    for (int v = 0; v < V; ++v) gates.s[v] = sigmoid(values.v[v]);
  }
  return gates;
}

template <class T, int V>
__global__ void blend_forward(const T* __restrict__ x, const T* __restrict__ other, const T* __restrict__ z,
                              T* __restrict__ y, int count, int packs, int single) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const Gates<T, V> gates = gates_of<T, V>(z, i / packs, i, single);
  Pack<T, V> pack = load_pack<T, V>(x + i * V);
  for (int v = 0; v < V; ++v) pack.v[v] *= gates.s[v];
  if (other) {
    const Pack<T, V> second = load_pack<T, V>(other + i * V);
    for (int v = 0; v < V; ++v) pack.v[v] += (1 - gates.s[v]) * second.v[v];
  }
  store_pack<T, V>(y + i * V, pack);
}

// dx = s dy, dother = (1 - s) dy, dz = <dy, x - other> s (1 - s), summed over the channels that a gate serves.
template <class T, int V>
__global__ void blend_backward(const T* __restrict__ dy, const T* __restrict__ x, const T* __restrict__ other,
                               const T* __restrict__ z, T* __restrict__ dx, T* __restrict__ dother, T* __restrict__ dz,
                               int pixels, int packs, int group, int single) {
  const int thread = blockIdx.x * blockDim.x + threadIdx.x, pixel = thread / group, lane = thread % group;
  const bool inside = pixel < pixels;
  T sum = 0;
  for (int k = lane; inside && k < packs; k += group) {
    const int pack = pixel * packs + k, i = pack * V;
    const Gates<T, V> gates = gates_of<T, V>(z, pixel, pack, single);
    const Pack<T, V> gradient = load_pack<T, V>(dy + i);
    Pack<T, V> first = load_pack<T, V>(x + i), second;
    if (other) {
      second = load_pack<T, V>(other + i);
      for (int v = 0; v < V; ++v) first.v[v] -= second.v[v], second.v[v] = (1 - gates.s[v]) * gradient.v[v];
      store_pack<T, V>(dother + i, second);
    }
    for (int v = 0; v < V; ++v) {
      const T product = gradient.v[v] * first.v[v];
      sum += product;
      first.v[v] = gates.s[v] * gradient.v[v];
      second.v[v] = product * gates.s[v] * (1 - gates.s[v]);
    }
    store_pack<T, V>(dx + i, first);
    if (!single) store_pack<T, V>(dz + i, second);
  }
  if (!single) return;
  sum = group_sum(sum, group);
  if (inside && lane == 0) {
    const T s = sigmoid(z[pixel]);
    dz[pixel] = sum * s * (1 - s);
  }
}
