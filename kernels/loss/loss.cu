// Softmax and all loss terms in two passes over the logits; no probability or one-hot tensor is stored.
//
// Pass 1 reads logits and labels and leaves, per block, a few sums in float64. `loss_settle` (one small block) adds them in a fixed order and turns
// them into the terms' values and the coefficients of pass 2, on the device: the host never waits. Pass 2 reads the logits again and writes dz.
// Bytes per pixel, C float logits, labels of b bytes: 4 C + b forward, 8 C + b backward.  FLOPs: about 25 C and 40 C, of which 3 C to 5 C exponentials.
//
// Versions: loss_sums_plain, loss_gradient_plain: a thread per pixel, which reads its own logits from memory; up to 16 classes.
//           loss_sums, loss_gradient: the number of classes known to the compiler; 512 pixels at a time go through shared memory, so that memory
//           is read and written in runs of 16 bytes per lane; sums go up by warp shuffles, lane k keeping number k in float64.
#include "loss/pixel.cuh"

constexpr int THREADS = 128, PIXELS = 4, TILE = THREADS * PIXELS, WARPS = THREADS / WARP;

// Blocks per multiprocessor to compile for: up to 72 registers a thread for float, 168 for double. Left to itself ptxas spills to let more in.
template <class T> constexpr int RESIDENT = sizeof(T) == 4 ? 7 : 3;

// -- plain ----------------------------------------------------------------------------------------------------------------------

template <class T>
__global__ void __launch_bounds__(THREADS, RESIDENT<T>)
loss_sums_plain(const T* __restrict__ logits, const void* __restrict__ labels, double* __restrict__ partial, int pixels, int wide, int bytes,
                unsigned long long* note, const __grid_constant__ Settings<T> s) {
  __shared__ double room[WARPS];
  constexpr int NUMBERS = PER_CLASS + 3 * MOST_CLASSES;
  const int first = wide - s.classes;
  T sums[NUMBERS] = {};
  for (int i = blockIdx.x * THREADS + threadIdx.x; i < pixels; i += gridDim.x * THREADS) {
    const long long label = label_at(labels, i, bytes);
    check_label(note, label, wide, s.ignore, i);
    Pixel<T, 0>(s, logits + (size_t)i * wide + first, s.classes, label, first).measure(s, sums);
  }
  for (int k = 0; k < NUMBERS; ++k) {
    const double total = block_sum<double>(sums[k], room);
    if (threadIdx.x == 0) partial[k * gridDim.x + blockIdx.x] = total;
  }
}

template <class T>
__global__ void __launch_bounds__(THREADS, RESIDENT<T>)
loss_gradient_plain(const T* __restrict__ dy, const T* __restrict__ logits, const void* __restrict__ labels, const T* __restrict__ state,
                    T* __restrict__ dz, int pixels, int wide, int bytes, unsigned long long* note, const __grid_constant__ Settings<T> s) {
  const int i = blockIdx.x * THREADS + threadIdx.x, first = wide - s.classes;
  if (i >= pixels) return;
  const size_t at = (size_t)i * wide;
  const long long label = label_at(labels, i, bytes);
  check_label(note, label, wide, s.ignore, i);
  for (int c = 0; c < first; ++c) dz[at + c] = 0;
  Pixel<T, 0>(s, logits + at + first, s.classes, label, first).differentiate(s, state, *dy, dz + at + first);
}

// -- fast -----------------------------------------------------------------------------------------------------------------------

// `count` pixels of WIDE logits between memory and shared memory, where a pixel has an odd number of places: no bank is met twice.
template <class T, int WIDE> struct Stage {
  static constexpr int ODD = WIDE | 1, RUN = 16 / sizeof(T), SIZE = TILE * ODD;
  struct alignas(16) Vector { T v[RUN]; };
  static __device__ __forceinline__ int place(int e) { return ODD == WIDE ? e : e / WIDE * ODD + e % WIDE; }

  static __device__ void load(T* tile, const T* source, int count) {
    const int elements = count * WIDE;
    for (int e = threadIdx.x * RUN; e < elements; e += THREADS * RUN) {
      if (e + RUN <= elements) {
        const Vector vector = *reinterpret_cast<const Vector*>(source + e);
        if (ODD == WIDE) *reinterpret_cast<Vector*>(tile + e) = vector;
        else for (int k = 0; k < RUN; ++k) tile[place(e + k)] = vector.v[k];
      } else {
        for (int k = e; k < elements; ++k) tile[place(k)] = source[k];
      }
    }
  }

  static __device__ void store(const T* tile, T* target, int count) {
    const int elements = count * WIDE;
    for (int e = threadIdx.x * RUN; e < elements; e += THREADS * RUN) {
      if (e + RUN <= elements) {
        Vector vector;
        if (ODD == WIDE) vector = *reinterpret_cast<const Vector*>(tile + e);
        else for (int k = 0; k < RUN; ++k) vector.v[k] = tile[place(e + k)];
        *reinterpret_cast<Vector*>(target + e) = vector;
      } else {
        for (int k = e; k < elements; ++k) target[k] = tile[place(k)];
      }
    }
  }
};

template <class T, int WIDE, int FIRST>
__global__ void __launch_bounds__(THREADS, RESIDENT<T>)
loss_sums(const T* __restrict__ logits, const void* __restrict__ labels, double* __restrict__ partial, int pixels, int bytes,
          unsigned long long* note, const __grid_constant__ Settings<T> s) {
  constexpr int CLASSES = WIDE - FIRST, NUMBERS = PER_CLASS + 3 * CLASSES;
  static_assert(NUMBERS <= WARP, "a lane keeps one number");
  __shared__ alignas(16) T tile[Stage<T, WIDE>::SIZE];
  __shared__ double room[WARPS][NUMBERS];
  const int lane = threadIdx.x % WARP;
  double mine = 0;
  for (int start = blockIdx.x * TILE; start < pixels; start += gridDim.x * TILE) {
    const int count = min(TILE, pixels - start);
    Stage<T, WIDE>::load(tile, logits + (size_t)start * WIDE, count);
    __syncthreads();
    T sums[NUMBERS] = {};
    for (int i = threadIdx.x; i < count; i += THREADS) {
      const long long label = label_at(labels, start + i, bytes);
      check_label(note, label, WIDE, s.ignore, start + i);
      Pixel<T, CLASSES>(s, tile + i * Stage<T, WIDE>::ODD + FIRST, CLASSES, label, FIRST).measure(s, sums);
    }
#pragma unroll
    for (int k = 0; k < NUMBERS; ++k) {
      const T total = warp_sum(sums[k]);  // pairwise in T over the warp, from there on in float64
      if (lane == k) mine += total;
    }
    __syncthreads();
  }
  if (lane < NUMBERS) room[threadIdx.x / WARP][lane] = mine;
  __syncthreads();
  if (threadIdx.x < NUMBERS) {
    double total = room[0][threadIdx.x];
    for (int k = 1; k < WARPS; ++k) total += room[k][threadIdx.x];
    partial[threadIdx.x * gridDim.x + blockIdx.x] = total;
  }
}

template <class T, int WIDE, int FIRST>
__global__ void __launch_bounds__(THREADS, RESIDENT<T>)
loss_gradient(const T* __restrict__ dy, const T* __restrict__ logits, const void* __restrict__ labels, const T* __restrict__ state,
              T* __restrict__ dz, int pixels, int bytes, unsigned long long* note, const __grid_constant__ Settings<T> s) {
  constexpr int CLASSES = WIDE - FIRST;
  __shared__ alignas(16) T tile[Stage<T, WIDE>::SIZE];
  const int start = blockIdx.x * TILE, count = min(TILE, pixels - start);
  Stage<T, WIDE>::load(tile, logits + (size_t)start * WIDE, count);
  __syncthreads();
  const T factor = *dy;
  for (int i = threadIdx.x; i < count; i += THREADS) {
    T* mine = tile + i * Stage<T, WIDE>::ODD;
    const long long label = label_at(labels, start + i, bytes);
    check_label(note, label, WIDE, s.ignore, start + i);
    const Pixel<T, CLASSES> pixel(s, mine + FIRST, CLASSES, label, FIRST);
    for (int c = 0; c < FIRST; ++c) mine[c] = 0;
    pixel.differentiate(s, state, factor, mine + FIRST);
  }
  __syncthreads();
  Stage<T, WIDE>::store(tile, dz + (size_t)start * WIDE, count);
}

// -- between the passes ---------------------------------------------------------------------------------------------------------

// One block. partial (numbers, parts) with `most` places per class. out: the value, then focal, margin, its f_n and f_p, Dice, IoU, cross-entropy.
// state: what Pixel::differentiate reads.
template <class T>
__global__ void __launch_bounds__(256, 2)
loss_settle(const double* __restrict__ partial, T* __restrict__ out, T* __restrict__ state, int parts, int most,
            const __grid_constant__ Settings<T> s) {
  __shared__ double sums[PER_CLASS + 3 * MOST_CLASSES];
  const int lane = threadIdx.x % WARP, numbers = PER_CLASS + 3 * most;
  for (int k = threadIdx.x / WARP; k < numbers; k += blockDim.x / WARP) {
    double total = 0;
    for (int b = lane; b < parts; b += WARP) total += partial[k * parts + b];
    total = warp_sum(total);
    if (lane == 0) sums[k] = total;
  }
  __syncthreads();
  if (threadIdx.x) return;

  const double *hit = sums + PER_CLASS, *probability = hit + most, *truth = probability + most, tiny = 1e-30;
  double count = 0, label_weight = 0, weight = 0;
  for (int c = 0; c < s.classes; ++c) {
    count += truth[c];
    label_weight += s.weights[c] * truth[c];
    if (!s.present || truth[c] > 0) weight += s.weights[c];
  }
  count = max(count, 1.0), label_weight = max(label_weight, tiny), weight = max(weight, tiny);
  const double norm = s.reduction == 0 ? count : s.reduction == 1 ? 1 : label_weight;
  const double focal = -sums[0] / count, fn = sums[1] / norm, fp = sums[2] / norm, share = s.share, entropy = -sums[3] / label_weight;
  const double margin = (1 - share) * fn + share * fp;
  double dice = 0, iou = 0;
  for (int c = 0; c < s.classes; ++c) {
    const double w = s.present && !(truth[c] > 0) ? 0.0 : s.weights[c] / weight, area = probability[c] + truth[c] + s.smooth;
    const double both = max(area, tiny), either = max(area - hit[c], tiny);
    const double d = (2 * hit[c] + s.smooth) / both, j = (hit[c] + s.smooth) / either;
    dice += w * (1 - d);
    iou += w * (1 - j);
    const double by_dice = s.coefficient[2] * w / both, by_iou = s.coefficient[3] * w / either;
    state[PER_CLASS + c] = -2 * by_dice - (1 + j) * by_iou;
    state[PER_CLASS + most + c] = d * by_dice + j * by_iou;
  }
  state[0] = s.coefficient[0] / count;
  state[1] = s.coefficient[1] * (1 - share) / norm;
  state[2] = s.coefficient[1] * share / norm;
  state[3] = s.coefficient[4] / label_weight;
  const double parts_of[7] = {focal, margin, fn, fp, dice, iou, entropy};
  for (int k = 0; k < 7; ++k) out[1 + k] = parts_of[k];
  const double terms[5] = {focal, margin, dice, iou, entropy};
  double value = 0;
  for (int k = 0; k < 5; ++k)
    if (s.terms >> k & 1) value += s.coefficient[k] * terms[k];
  out[0] = value;
}
