// Softmax and all loss terms in two passes over the logits; no probability or one-hot tensor is stored.
//
// Pass 1 reads logits and labels and leaves, per block, a few sums in float64. `loss_reduce_coefficients` (one small
// block) adds them in a fixed order and turns them into the terms' values and the coefficients of pass 2, on the
// device: the host never waits. Pass 2 reads the logits again and writes dz.
// Bytes per pixel, C float logits, labels of b bytes: 4 C + b forward, 8 C + b backward.  FLOPs: about 25 C and 40 C,
// of which 3 C to 5 C exponentials.
//
// Versions: loss_sums_plain, loss_gradient_plain: a thread per pixel, which reads its own logits from memory; up to 16
//           classes.
//           loss_sums, loss_gradient: the number of classes known to the compiler; 512 pixels at a time go through
//           shared memory, so that memory is read and written in vectors of 16 bytes per lane; sums go up by warp
//           shuffles, lane k keeping number k in float64.
#include "loss/cuda/pixel.cuh"

constexpr int THREADS = 128, PIXELS = 4, TILE = THREADS * PIXELS, WARPS = THREADS / WARP;

// Blocks per multiprocessor to compile for: up to 72 registers a thread for float, 168 for double. Left to itself ptxas
// spills to let more in.
template <class T> constexpr int MIN_BLOCKS_PER_SM = sizeof(T) == 4 ? 7 : 3;

// -- plain ------------------------------------------------------------------------------------------------------------

template <class T>
__global__ void __launch_bounds__(THREADS, MIN_BLOCKS_PER_SM<T>)
    loss_sums_plain(const T* __restrict__ logits, const void* __restrict__ labels, double* __restrict__ partial,
                    int pixels, int wide, int bytes, unsigned long long* error_slot,
                    const __grid_constant__ Settings<T> s) {
  __shared__ double scratch[WARPS];
  constexpr int NUMBERS = PER_CLASS + 3 * MOST_CLASSES;
  const int first = wide - s.classes;
  T sums[NUMBERS] = {};
  for (int i = blockIdx.x * THREADS + threadIdx.x; i < pixels; i += gridDim.x * THREADS) {
    const long long label = label_at(labels, i, bytes);
    check_label(error_slot, label, wide, s.ignore, i);
    Pixel<T, 0>(s, logits + (size_t)i * wide + first, s.classes, label, first).measure(s, sums);
  }
  for (int k = 0; k < NUMBERS; ++k) {
    const double total = block_sum<double>(sums[k], scratch);
    if (threadIdx.x == 0) partial[k * gridDim.x + blockIdx.x] = total;
  }
}

template <class T>
__global__ void __launch_bounds__(THREADS, MIN_BLOCKS_PER_SM<T>)
    loss_gradient_plain(const T* __restrict__ dy, const T* __restrict__ logits, const void* __restrict__ labels,
                        const T* __restrict__ state, T* __restrict__ dz, int pixels, int wide, int bytes,
                        unsigned long long* error_slot, const __grid_constant__ Settings<T> s) {
  const int i = blockIdx.x * THREADS + threadIdx.x, first = wide - s.classes;
  if (i >= pixels) return;
  const size_t at = (size_t)i * wide;
  const long long label = label_at(labels, i, bytes);
  check_label(error_slot, label, wide, s.ignore, i);
  for (int c = 0; c < first; ++c) dz[at + c] = 0;
  Pixel<T, 0>(s, logits + at + first, s.classes, label, first).differentiate(s, state, *dy, dz + at + first);
}

// -- fast -------------------------------------------------------------------------------------------------------------

// `count` pixels of WIDE logits between memory and shared memory, where a pixel has an odd number of places: no bank is
// met twice.
template <class T, int WIDE> struct Stage {
  static constexpr int ODD = WIDE | 1, VECTOR = 16 / sizeof(T), SIZE = TILE * ODD;
  struct alignas(16) Vector { T v[VECTOR]; };
  static __device__ __forceinline__ int place(int e) { return ODD == WIDE ? e : e / WIDE * ODD + e % WIDE; }

  static __device__ void load(T* tile, const T* source, int count) {
    const int elements = count * WIDE;
    for (int e = threadIdx.x * VECTOR; e < elements; e += THREADS * VECTOR) {
      if (e + VECTOR <= elements) {
        const Vector vector = *reinterpret_cast<const Vector*>(source + e);
        if (ODD == WIDE)
          *reinterpret_cast<Vector*>(tile + e) = vector;
        else
          for (int k = 0; k < VECTOR; ++k) tile[place(e + k)] = vector.v[k];
      } else {
        for (int k = e; k < elements; ++k) tile[place(k)] = source[k];
      }
    }
  }

  static __device__ void store(const T* tile, T* target, int count) {
    const int elements = count * WIDE;
    for (int e = threadIdx.x * VECTOR; e < elements; e += THREADS * VECTOR) {
      if (e + VECTOR <= elements) {
        Vector vector;
        if (ODD == WIDE)
          vector = *reinterpret_cast<const Vector*>(tile + e);
        else
          for (int k = 0; k < VECTOR; ++k) vector.v[k] = tile[place(e + k)];
        *reinterpret_cast<Vector*>(target + e) = vector;
      } else {
        for (int k = e; k < elements; ++k) target[k] = tile[place(k)];
      }
    }
  }
};

template <class T, int WIDE, int FIRST>
__global__ void __launch_bounds__(THREADS, MIN_BLOCKS_PER_SM<T>)
    loss_sums(const T* __restrict__ logits, const void* __restrict__ labels, double* __restrict__ partial, int pixels,
              int bytes, unsigned long long* error_slot, const __grid_constant__ Settings<T> s) {
  constexpr int CLASSES = WIDE - FIRST, NUMBERS = PER_CLASS + 3 * CLASSES;
  static_assert(NUMBERS <= WARP, "a lane keeps one number");
  __shared__ alignas(16) T tile[Stage<T, WIDE>::SIZE];
  __shared__ double scratch[WARPS][NUMBERS];
  const int lane = threadIdx.x % WARP;
  double mine = 0;
  for (int start = blockIdx.x * TILE; start < pixels; start += gridDim.x * TILE) {
    const int count = min(TILE, pixels - start);
    Stage<T, WIDE>::load(tile, logits + (size_t)start * WIDE, count);
    __syncthreads();
    T sums[NUMBERS] = {};
    for (int i = threadIdx.x; i < count; i += THREADS) {
      const long long label = label_at(labels, start + i, bytes);
      check_label(error_slot, label, WIDE, s.ignore, start + i);
      Pixel<T, CLASSES>(s, tile + i * Stage<T, WIDE>::ODD + FIRST, CLASSES, label, FIRST).measure(s, sums);
    }
#pragma unroll
    for (int k = 0; k < NUMBERS; ++k) {
      const T total = warp_sum(sums[k]);  // pairwise in T over the warp, from there on in float64
      if (lane == k) mine += total;
    }
    __syncthreads();
  }
  if (lane < NUMBERS) scratch[threadIdx.x / WARP][lane] = mine;
  __syncthreads();
  if (threadIdx.x < NUMBERS) {
    double total = scratch[0][threadIdx.x];
    for (int k = 1; k < WARPS; ++k) total += scratch[k][threadIdx.x];
    partial[threadIdx.x * gridDim.x + blockIdx.x] = total;
  }
}

template <class T, int WIDE, int FIRST>
__global__ void __launch_bounds__(THREADS, MIN_BLOCKS_PER_SM<T>)
    loss_gradient(const T* __restrict__ dy, const T* __restrict__ logits, const void* __restrict__ labels,
                  const T* __restrict__ state, T* __restrict__ dz, int pixels, int bytes,
                  unsigned long long* error_slot, const __grid_constant__ Settings<T> s) {
  constexpr int CLASSES = WIDE - FIRST;
  __shared__ alignas(16) T tile[Stage<T, WIDE>::SIZE];
  const int start = blockIdx.x * TILE, count = min(TILE, pixels - start);
  Stage<T, WIDE>::load(tile, logits + (size_t)start * WIDE, count);
  __syncthreads();
  const T factor = *dy;
  for (int i = threadIdx.x; i < count; i += THREADS) {
    T* mine = tile + i * Stage<T, WIDE>::ODD;
    const long long label = label_at(labels, start + i, bytes);
    check_label(error_slot, label, WIDE, s.ignore, start + i);
    const Pixel<T, CLASSES> pixel(s, mine + FIRST, CLASSES, label, FIRST);
    for (int c = 0; c < FIRST; ++c) mine[c] = 0;
    pixel.differentiate(s, state, factor, mine + FIRST);
  }
  __syncthreads();
  Stage<T, WIDE>::store(tile, dz + (size_t)start * WIDE, count);
}

// -- between the passes -----------------------------------------------------------------------------------------------

// A region term's value, and its derivatives by I_c and P_c, the sums of p t and of p; see kernels/loss/regions.py.
// T_c: sum of t.
struct Region {
  const double *hit, *probability, *truth;
  double *by_hit, *by_probability;  // (classes), added to with the term's coefficient
  const double tiny = 1e-30;

  // 1 - (n I + smooth) / total for one class
  __device__ double overlap(int c, double w, double coefficient, double n, double total, double smooth) {
    const double both = max(total + smooth, tiny), share = (n * hit[c] + smooth) / both;
    by_hit[c] -= coefficient * w / both * (n == 2 ? 2 : 1 + share);
    by_probability[c] += coefficient * w / both * share;
    return w * (1 - share);
  }

  // w (1 - K)^power
  template <class T>
  __device__ double tversky(int c, double w, double coefficient, double power, const Settings<T>& s) {
    const double a = s.alpha, b = s.beta, wrong = a * (probability[c] - hit[c]) + b * (truth[c] - hit[c]);
    const double total = max(wrong + hit[c] + s.smooth, tiny), k = (hit[c] + s.smooth) / total,
                 miss = max(wrong / total, 0.0);
    const double slope = coefficient * w * (power == 1 ? 1 : power * pow(max(miss, 1e-6), power - 1)) / total;
    by_hit[c] -= slope * (1 - (1 - a - b) * k);
    by_probability[c] += slope * a * k;
    return w * (power == 1 ? miss : pow(miss, power));
  }

  // 1 - G; w: the classes' shares
  __device__ double generalized(int classes, const double* w, double coefficient) {
    double total = tiny, both = tiny;
    for (int c = 0; c < classes; ++c) {
      const double size = max(truth[c], 1.0), v = w[c] / (size * size);
      total += v * (probability[c] + truth[c]);
      both += 2 * v * hit[c];
    }
    const double g = both / total;
    for (int c = 0; c < classes; ++c) {
      const double size = max(truth[c], 1.0), v = coefficient * w[c] / (size * size) / total;
      by_hit[c] -= 2 * v;
      by_probability[c] += v * g;
    }
    return 1 - g;
  }

  // W (1 - C) for one class that some, but not all of `count` pixels have
  __device__ double matthews(int c, double w, double coefficient, double count) {
    const double i = hit[c] / count, q = probability[c] / count, r = truth[c] / count, spread = max(q * (1 - q), 1e-12);
    const double root = sqrt(spread * r * (1 - r)), correlation = (i - q * r) / root;
    by_hit[c] -= coefficient * w / (count * root);
    by_probability[c] += coefficient * w / count * (r / root + correlation * (1 - 2 * q) / (2 * spread));
    return w * (1 - correlation);
  }
};

// One block. partial (numbers, parts) with `most` places per class. out: the value, the TERMS terms, then the margin's
// f_n and f_p.
// state: what Pixel::differentiate reads.
template <class T>
__global__ void __launch_bounds__(256, 2)
    loss_reduce_coefficients(const double* __restrict__ partial, T* __restrict__ out, T* __restrict__ state, int parts,
                             int most, const __grid_constant__ Settings<T> s) {
  __shared__ double sums[PER_CLASS + 3 * MOST_CLASSES], shares[3][MOST_CLASSES];
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
  double valid = 0, label_weight = 0, weight = 0, some_weight = 0;
  for (int c = 0; c < s.classes; ++c) valid += truth[c];
  for (int c = 0; c < s.classes; ++c) {
    label_weight += s.weights[c] * truth[c];
    if (!s.present || truth[c] > 0) weight += s.weights[c];
    if (truth[c] > 0 && truth[c] < valid) some_weight += s.weights[c];
  }
  const double count = max(valid, 1.0);
  label_weight = max(label_weight, tiny), weight = max(weight, tiny), some_weight = max(some_weight, tiny);
  const double norm = s.reduction == 0 ? count : s.reduction == 1 ? 1 : label_weight, share = s.share;
  const double fn = sums[1] / norm, fp = sums[2] / norm;
  double terms[TERMS] = {-sums[0] / count, (1 - share) * fn + share * fp, -sums[3] / label_weight};

  double *w = shares[0], *by_hit = shares[1], *by_probability = shares[2];
  Region region{hit, probability, truth, by_hit, by_probability};
  for (int c = 0; c < s.classes; ++c)
    w[c] = s.present && !(truth[c] > 0) ? 0.0 : s.weights[c] / weight, by_hit[c] = by_probability[c] = 0;
  const T* k = s.coefficient;
  for (int c = 0; c < s.classes; ++c) {
    const double area = probability[c] + truth[c];
    terms[3] += region.overlap(c, w[c], k[3], 2, area, s.smooth);
    terms[4] += region.overlap(c, w[c], k[4], 1, area - hit[c], s.smooth);
    terms[5] += region.tversky(c, w[c], k[5], 1, s);
    terms[6] += region.tversky(c, w[c], k[6], s.tversky_power, s);
    if (truth[c] > 0 && truth[c] < valid) terms[8] += region.matthews(c, s.weights[c] / some_weight, k[8], count);
  }
  terms[7] = region.generalized(s.classes, w, k[7]);
  for (int c = 0; c < s.classes; ++c) state[PER_CLASS + c] = by_hit[c], state[PER_CLASS + most + c] = by_probability[c];
  state[0] = k[0] / count;
  state[1] = k[1] * (1 - share) / norm;
  state[2] = k[1] * share / norm;
  state[3] = k[2] / label_weight;
  double value = 0;
  for (int i = 0; i < TERMS; ++i) {
    out[1 + i] = terms[i];
    if (s.terms >> i & 1) value += k[i] * terms[i];
  }
  out[0] = value, out[1 + TERMS] = fn, out[2 + TERMS] = fp;
}
