// Predicted labels and confusion matrices per image.
//
// predicted_labels   reads C logits of b bytes, writes 1 byte per pixel; C comparisons.
// confusion          reads two labels per pixel, 2 bytes; one integer atomic in shared memory. Counts are integers: any
//                    order gives the same ones.
//
// Versions: confusion_plain: a thread per pixel adds to the counts in memory.
//           confusion: a block per strip of an image counts in shared memory, each warp in a copy of its own
//           (neighbouring pixels have equal labels, so that one copy would be a queue), and adds what it has at the
//           end.
#include "core/cuda/device.cuh"
#include "core/cuda/labels.cuh"

constexpr int THREADS = 256, WARPS = THREADS / WARP;

// The first of the largest logits; a NaN counts as the largest.
template <class T>
__global__ void __launch_bounds__(THREADS)
    predicted_labels(const T* __restrict__ logits, unsigned char* __restrict__ labels, int pixels, int classes,
                     int first) {
  const int i = blockIdx.x * THREADS + threadIdx.x;
  if (i >= pixels) return;
  const T* z = logits + (size_t)i * classes;
  int best = first;
  T top = z[first];
  for (int c = first + 1; c < classes; ++c)
    if (z[c] > top || (z[c] != z[c] && top == top)) top = z[c], best = c;
  labels[i] = best;
}

extern "C" __global__ void __launch_bounds__(THREADS)
    confusion_plain(const unsigned char* __restrict__ truth, const unsigned char* __restrict__ prediction,
                    unsigned long long* __restrict__ counts, int pixels, int classes,
                    unsigned long long* truth_error_slot, unsigned long long* prediction_error_slot) {
  const int i = blockIdx.x * THREADS + threadIdx.x, image = blockIdx.y;
  if (i >= pixels) return;
  const size_t at = (size_t)image * pixels + i;
  check_label(truth_error_slot, truth[at], classes, NO_LABEL, at);
  check_label(prediction_error_slot, prediction[at], classes, NO_LABEL, at);
  if (truth[at] < classes && prediction[at] < classes)
    atomicAdd(counts + (image * classes + truth[at]) * classes + prediction[at], 1ull);
}

// counts (N, classes, classes), zero before. Dynamic shared memory: a copy of the matrix per warp.
extern "C" __global__ void __launch_bounds__(THREADS)
    confusion(const unsigned char* __restrict__ truth, const unsigned char* __restrict__ prediction,
              unsigned long long* __restrict__ counts, int pixels, int classes, unsigned long long* truth_error_slot,
              unsigned long long* prediction_error_slot) {
  extern __shared__ unsigned copies[];
  const int cells = classes * classes, image = blockIdx.y;
  for (int k = threadIdx.x; k < WARPS * cells; k += THREADS) copies[k] = 0;
  __syncthreads();
  unsigned* mine = copies + threadIdx.x / WARP * cells;
  for (int i = blockIdx.x * THREADS + threadIdx.x; i < pixels; i += gridDim.x * THREADS) {
    const size_t at = (size_t)image * pixels + i;
    check_label(truth_error_slot, truth[at], classes, NO_LABEL, at);
    check_label(prediction_error_slot, prediction[at], classes, NO_LABEL, at);
    if (truth[at] < classes && prediction[at] < classes) atomicAdd(mine + truth[at] * classes + prediction[at], 1u);
  }
  __syncthreads();
  for (int k = threadIdx.x; k < cells; k += THREADS) {
    unsigned total = 0;
    for (int warp = 0; warp < WARPS; ++warp) total += copies[warp * cells + k];
    if (total) atomicAdd(counts + (size_t)image * cells + k, static_cast<unsigned long long>(total));
  }
}
