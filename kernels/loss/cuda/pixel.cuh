// One pixel's share of every loss term and of its gradient. The formulas are kernels/loss/reference.py's, rearranged so
// that float loses no digits: 1 - p_y is the sum of the other probabilities, log p_y = -log1p(others / e_y), and the
// margin's fifth powers are scaled by the strongest wrong class.
#pragma once
#include "core/cuda/device.cuh"
#include "core/cuda/labels.cuh"

constexpr int MOST_CLASSES = 16;
constexpr int FOCAL = 1, MARGIN = 2, ENTROPY = 4, REGIONS = ~7;  // bits of Settings::terms
// Focal, margin, cross-entropy; regions: Dice, IoU, Tversky, focal Tversky, generalized Dice, MCC.
constexpr int TERMS = 9;
// Sums: focal, false negative, false positive, entropy, then per class sum p t, sum p, sum t.
constexpr int PER_CLASS = 4;

// A LossSpec, passed by value (kernels/loss/cuda/__init__.py fills it).
template <class T> struct Settings {
  T gamma, power, smoothing, smooth, share, alpha, beta, tversky_power;
  T coefficient[TERMS];
  T weights[MOST_CLASSES];
  int terms, reduction, present, classes;  // reduction: 0 mean, 1 sum, 2 weighted
  long long ignore;
};

// Labels are read in the integer type they have: `bytes` of it, negative for a signed one.
__device__ __forceinline__ long long label_at(const void* labels, int i, int bytes) {
  switch (bytes) {
    case 1: return static_cast<const unsigned char*>(labels)[i];
    case -1: return static_cast<const signed char*>(labels)[i];
    case 2: return static_cast<const unsigned short*>(labels)[i];
    case -2: return static_cast<const short*>(labels)[i];
    case 4: return static_cast<const unsigned*>(labels)[i];
    case -4: return static_cast<const int*>(labels)[i];
    default: return static_cast<const long long*>(labels)[i];
  }
}

// CLASSES: their number, 0 where only the host knows it. A known number unrolls every loop, so that the arrays are
// registers; others lie in local memory.
template <class T, int CLASSES> struct Pixel {
  static constexpr int MOST = CLASSES ? CLASSES : MOST_CLASSES, UNROLL = CLASSES ? CLASSES : 1;
  T z[MOST], p[MOST];
  T top, sum, py, wy, zy, miss, log_py;
  int classes, y;  // y: the label, -1 where the pixel does not count

  __device__ __forceinline__ int count() const { return CLASSES ? CLASSES : classes; }

  // logits: the pixel's own, the first of which is that of class `first`.
  __device__ __forceinline__ Pixel(const Settings<T>& s, const T* logits, int classes, long long label, int first)
      : classes(classes) {
    const int n = count();
    y = label >= first && label < first + n && label != s.ignore ? static_cast<int>(label) - first : -1;
    top = logits[0];
#pragma unroll UNROLL
    for (int c = 0; c < n; ++c) top = max(top, z[c] = logits[c]);
    T right = 0, others = 0;
    wy = zy = 0;
#pragma unroll UNROLL
    for (int c = 0; c < n; ++c) {
      p[c] = exp(z[c] - top);
      if (c == y)
        right = p[c], wy = s.weights[c], zy = z[c];
      else
        others += p[c];
    }
    sum = right + others;
#pragma unroll UNROLL
    for (int c = 0; c < n; ++c) p[c] /= sum;
    py = right / sum;
    miss = others / sum;
    log_py = others < right ? -log1p(others / right) : zy - top - log(sum);
  }

  // s log p, 0 where s = 0 and p = 0
  static __device__ __forceinline__ T times_log(T s, T log_p) {
    return s == 0 && log_p == minus_infinity() ? T(0) : s * log_p;
  }

  // w_y (1 - p_y)^gamma
  __device__ __forceinline__ T focal_weight(const Settings<T>& s) const {
    return wy * (s.gamma == 2 ? miss * miss : pow(miss, s.gamma));
  }

  // g = ||p_wrong||_power, f_p; r = p_wrong^power normalised over the wrong classes, q over all.
  __device__ __forceinline__ void margin(const Settings<T>& s, T& g, T& fp, T (&r)[MOST], T (&q)[MOST]) const {
    const int n = count();
    T worst = y == 0 ? z[1] : z[0];
#pragma unroll UNROLL
    for (int c = 1; c < n; ++c)
      if (c != y) worst = max(worst, z[c]);
    if (worst == minus_infinity()) worst = top;  // every wrong class has probability 0: g = 0, and so is r
    T total = 0;
#pragma unroll UNROLL
    for (int c = 0; c < n; ++c) total += r[c] = c == y ? T(0) : exp(s.power * (z[c] - worst));
    g = exp(worst - top + log(total) / s.power) / sum;
    const T rescale = exp(s.power * (worst - top)), right = exp(s.power * (zy - top)),
            everything = total * rescale + right;
    fp = 0;
#pragma unroll UNROLL
    for (int c = 0; c < n; ++c) {
      q[c] = (c == y ? right : r[c] * rescale) / everything;
      r[c] /= total == 0 ? T(1) : total;
      if (c != y) fp += s.weights[c] * q[c];
    }
  }

  // sum_c s_c log p_c with the smoothed targets s = w ((1 - e) t + e / n)
  __device__ __forceinline__ T entropy(const Settings<T>& s) const {
    const int n = count();
    T total = times_log((1 - s.smoothing) * wy, log_py);
    if (s.smoothing > 0) {
      const T shift = top + log(sum), share = s.smoothing / n;
#pragma unroll UNROLL
      for (int c = 0; c < n; ++c) total += times_log(share * s.weights[c], z[c] - shift);
    }
    return total;
  }

  // Pass 1: add to sums[PER_CLASS + 3 * MOST].
  __device__ __forceinline__ void measure(const Settings<T>& s, T* sums) const {
    if (y < 0) return;
    const int n = count();
    if (s.terms & FOCAL) sums[0] += times_log(focal_weight(s), log_py);
    if (s.terms & MARGIN) {
      T g, fp, r[MOST], q[MOST];
      margin(s, g, fp, r, q);
      sums[1] += wy * (g - py);
      sums[2] += fp;
    }
    if (s.terms & ENTROPY) sums[3] += entropy(s);
#pragma unroll UNROLL
    for (int c = 0; c < n; ++c) {
      sums[PER_CLASS + c] += c == y ? p[c] : T(0);
      sums[PER_CLASS + MOST + c] += p[c];
      sums[PER_CLASS + 2 * MOST + c] += c == y ? T(1) : T(0);
    }
  }

  // Pass 2: dz (n), given factor * state, state = coefficients of focal, f_n, f_p, entropy, then A and B per class
  // (MOST each).
  __device__ __forceinline__ void differentiate(const Settings<T>& s, const T* state, T factor, T* dz) const {
    const int n = count();
    T d[MOST];
#pragma unroll UNROLL
    for (int c = 0; c < n; ++c) d[c] = 0;
    if (y >= 0) {
      if (s.terms & FOCAL) {
        const T k = miss > T(1e-30) && log_py != minus_infinity() ? -log_py / miss : T(1),
                scale = state[0] * focal_weight(s) * (1 + s.gamma * py * k);
#pragma unroll UNROLL
        for (int c = 0; c < n; ++c) d[c] += scale * (c == y ? -miss : p[c]);
      }
      if (s.terms & MARGIN) {
        T g, fp, r[MOST], q[MOST];
        margin(s, g, fp, r, q);
        const T fn = state[1] * wy, scale = state[2] * s.power;
#pragma unroll UNROLL
        for (int c = 0; c < n; ++c) {
          d[c] += fn * (g * r[c] - (c == y ? py : T(0)) - (g - py) * p[c]);
          d[c] += scale * q[c] * ((c == y ? T(0) : s.weights[c]) - fp);
        }
      }
      if (s.terms & ENTROPY) {
        const T base = s.smoothing / n;
        T total = (1 - s.smoothing) * wy;
#pragma unroll UNROLL
        for (int c = 0; c < n; ++c) total += base * s.weights[c];
#pragma unroll UNROLL
        for (int c = 0; c < n; ++c) {
          const T target = base * s.weights[c] + (c == y ? (1 - s.smoothing) * wy : T(0));
          d[c] += state[3] * (p[c] * total - target);
        }
      }
      if (s.terms & REGIONS) {
        T mean = 0;
#pragma unroll UNROLL
        for (int c = 0; c < n; ++c) mean += p[c] * slope(state, c);
#pragma unroll UNROLL
        for (int c = 0; c < n; ++c) d[c] += p[c] * (slope(state, c) - mean);
      }
    }
#pragma unroll UNROLL
    for (int c = 0; c < n; ++c) dz[c] = y < 0 ? T(0) : factor * d[c];
  }

  // dvalue/dp_c of the region terms
  __device__ __forceinline__ T slope(const T* state, int c) const {
    return state[PER_CLASS + MOST + c] + (c == y ? state[PER_CLASS + c] : T(0));
  }
};
