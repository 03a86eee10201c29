// Augmentation of a batch in one launch: affine gather of image (bilinear) and mask (nearest), then contrast,
// brightness and gamma.
//
// Per pixel, float images and uint8 masks: 10 bytes read and written once, and 16 + 1 more from the caches; about 40
// FLOPs, 8 of them in float64 (where a pixel comes from decides its label, so the map is exact). A block owns a strip
// of one tile; the tile's mean is made by every block of the tile again, from the caches and in the same order, which
// is cheaper than a launch of its own, and only where contrast changes.
//
// Versions: augment_plain: a thread per tile does everything, as the definition reads.   augment: a thread per pixel.
#include "core/cuda/device.cuh"

constexpr int THREADS = 256, WARPS = THREADS / WARP;

// ... 2 1 | 0 1 ... n-1 | n-2 ...
__device__ __forceinline__ int mirror(int i, int n) {
  if (i >= 0 && i < n) return i;
  if (n == 1) return 0;
  i = abs(i) % (2 * n - 2);
  return i < n ? i : 2 * n - 2 - i;
}

// The pixel (x, y) of the output: image value before the photometric part, and label. m: two rows of three.
template <class T>
__device__ __forceinline__ T affine_sample(const T* image, const unsigned char* mask, const double* m, int x, int y,
                                           int h, int w, int outside, unsigned char& label) {
  const double u = m[0] * x + m[1] * y + m[2], v = m[3] * x + m[4] * y + m[5];
  const double left = floor(u), top = floor(v);
  const T fx = static_cast<T>(u - left), fy = static_cast<T>(v - top);
  const int x0 = mirror(static_cast<int>(left), w), x1 = mirror(static_cast<int>(left) + 1, w);
  const T* upper = image + mirror(static_cast<int>(top), h) * w;
  const T* lower = image + mirror(static_cast<int>(top) + 1, h) * w;
  const int xn = static_cast<int>(floor(u + 0.5)), yn = static_cast<int>(floor(v + 0.5));
  const bool inside = xn >= 0 && xn < w && yn >= 0 && yn < h;
  label = outside >= 0 && !inside ? static_cast<unsigned char>(outside) : mask[mirror(yn, h) * w + mirror(xn, w)];
  return (upper[x0] * (1 - fx) + upper[x1] * fx) * (1 - fy) + (lower[x0] * (1 - fx) + lower[x1] * fx) * fy;
}

// clip(contrast value + addition, 0, 1)^gamma
template <class T> __device__ __forceinline__ T photometric(T value, T contrast, T addition, T gamma) {
  value = contrast * value + addition;
  value = value < 0 ? T(0) : value > 1 ? T(1) : value;  // not-a-number passes
  return gamma == 1 ? value : pow(value, gamma);
}

template <class T>
__global__ void augment_plain(const T* __restrict__ images, const unsigned char* __restrict__ masks,
                              const double* __restrict__ matrices, const T* __restrict__ contrasts,
                              const T* __restrict__ brightnesses, const T* __restrict__ gammas, T* __restrict__ out,
                              unsigned char* __restrict__ labels, int n, int h, int w, int outside) {
  const int tile = blockIdx.x * blockDim.x + threadIdx.x;
  if (tile >= n) return;
  const T* image = images + tile * h * w;
  double mean = 0;
  for (int i = 0; i < h * w; ++i) mean += image[i];
  mean /= h * w;
  const T contrast = contrasts[tile], addition = (1 - contrast) * static_cast<T>(mean) + brightnesses[tile];
  for (int i = 0; i < h * w; ++i) {
    const T value = affine_sample(image, masks + tile * h * w, matrices + 6 * tile, i % w, i / w, h, w, outside,
                                  labels[tile * h * w + i]);
    out[tile * h * w + i] = photometric(value, contrast, addition, gammas[tile]);
  }
}

// blockIdx.x: a strip of the tile blockIdx.y.
template <class T>
__global__ void __launch_bounds__(THREADS)
    augment(const T* __restrict__ images, const unsigned char* __restrict__ masks, const double* __restrict__ matrices,
            const T* __restrict__ contrasts, const T* __restrict__ brightnesses, const T* __restrict__ gammas,
            T* __restrict__ out, unsigned char* __restrict__ labels, int h, int w, int outside) {
  __shared__ double scratch[WARPS];
  __shared__ double map[6];
  const int tile = blockIdx.y, pixels = h * w, first = tile * pixels;
  const T contrast = contrasts[tile], brightness = brightnesses[tile], gamma = gammas[tile];
  if (threadIdx.x < 6) map[threadIdx.x] = matrices[6 * tile + threadIdx.x];
  __syncthreads();
  T addition = brightness;
  if (contrast != 1) {  // the same for the whole block
    double total = 0;
    for (int i = threadIdx.x; i < pixels; i += THREADS) total += images[first + i];
    addition = (1 - contrast) * static_cast<T>(block_sum(total, scratch) / pixels) + brightness;
  }
  for (int i = blockIdx.x * THREADS + threadIdx.x; i < pixels; i += gridDim.x * THREADS) {
    unsigned char label;
    const T value = affine_sample(images + first, masks + first, map, i % w, i / w, h, w, outside, label);
    out[first + i] = photometric(value, contrast, addition, gamma);
    labels[first + i] = label;
  }
}
