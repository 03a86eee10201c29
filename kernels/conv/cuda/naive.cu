// Convolution, one thread per result: the three formulas of reference.py as they stand.
//
//   conv_forward           y[n,p,q,k]  = b[k] + sum_{r,s,c}  x[n, p sh - top + r dh, q sw - left + s dw, c] w[r,s,c,k]
//   conv_backward_data     dx[n,h,w,c] = sum of dy[n,p,q,k] w[r,s,c,k] over all r, s, k with
//                          p sh - top + r dh = h, q sw - left + s dw = w
//   conv_backward_filter   dw[r,s,c,k] = sum_{n,p,q}  x[n, p sh - top + r dh, ..., c] dy[n,p,q,k]
//
// FLOPs of each: 2 N P Q K R S C / groups. Bytes: nothing is kept on the chip, so every product loads 8 bytes (float)
// and the caches must help: 0.25 FLOP per byte asked for. This is the version to read first, the second oracle for the
// fast ones (implicit_gemm.cu, backward_filter.cu, depthwise.cu, single_channel.cu, winograd.cu), and what serves
// float64, groups that are not depthwise, and strides above 4.
//
// Neighbouring threads have neighbouring k (or c): stores and the loads of w (or x) are coalesced, the other operand is
// a broadcast. The data gradient gathers instead of scattering: every dx is summed by one thread in a fixed order, so
// no atomics are needed and the bits never change.

struct Conv {
  int n, h, w, c, p, q, k, r, s, sh, sw, dh, dw, top, left, groups;
  int c0;   // channels of x's first map; the second one has c - c0
  int add;  // bit i: the result is added to what map i holds
};

template <class T>
__global__ void conv_forward(const T* x0, const T* x1, const T* w, const T* bias, T* y, const Conv v) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= v.n * v.p * v.q * v.k) return;
  const int k = i % v.k, q = i / v.k % v.q, p = i / v.k / v.q % v.p, n = i / v.k / v.q / v.p;
  const int cg = v.c / v.groups, first = k / (v.k / v.groups) * cg;  // the group's channels
  T sum = 0;
  for (int r = 0; r < v.r; ++r) {
    const int h = p * v.sh - v.top + r * v.dh;
    if (h < 0 || h >= v.h) continue;
    for (int s = 0; s < v.s; ++s) {
      const int col = q * v.sw - v.left + s * v.dw;
      if (col < 0 || col >= v.w) continue;
      const int pixel = (n * v.h + h) * v.w + col;
      for (int c = 0; c < cg; ++c) {
        const int channel = first + c;
        const T value = channel < v.c0 ? x0[pixel * v.c0 + channel] : x1[pixel * (v.c - v.c0) + channel - v.c0];
        sum += value * w[((r * v.s + s) * cg + c) * v.k + k];
      }
    }
  }
  y[i] = bias ? sum + bias[k] : sum;
}

template <class T>
__global__ void conv_backward_data(const T* dy, const T* w, const T* bias, T* dx0, T* dx1, const Conv v) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= v.n * v.h * v.w * v.c) return;
  const int c = i % v.c, pixel = i / v.c, col = pixel % v.w, h = pixel / v.w % v.h, n = pixel / v.w / v.h;
  const int cg = v.c / v.groups, kg = v.k / v.groups, first = c / cg * kg;  // the group's output channels
  T sum = 0;
  for (int r = 0; r < v.r; ++r) {
    const int a = h + v.top - r * v.dh, p = a / v.sh;
    if (a < 0 || p * v.sh != a || p >= v.p) continue;
    for (int s = 0; s < v.s; ++s) {
      const int b = col + v.left - s * v.dw, q = b / v.sw;
      if (b < 0 || q * v.sw != b || q >= v.q) continue;
      const T* dy_pixel = dy + ((n * v.p + p) * v.q + q) * v.k + first;
      const T* taps = w + ((r * v.s + s) * cg + c % cg) * v.k + first;
      for (int k = 0; k < kg; ++k) sum += dy_pixel[k] * taps[k];
    }
  }
  if (bias) sum += bias[c];
  const bool second = c >= v.c0;
  T* dx = second ? dx1 + pixel * (v.c - v.c0) + c - v.c0 : dx0 + pixel * v.c0 + c;
  *dx = v.add >> second & 1 ? *dx + sum : sum;
}

// The sum runs over all pixels: it is kept in float64.
template <class T> __global__ void conv_backward_filter(const T* x0, const T* x1, const T* dy, T* dw, const Conv v) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x, cg = v.c / v.groups;
  if (i >= v.r * v.s * cg * v.k) return;
  const int k = i % v.k, c = i / v.k % cg, s = i / v.k / cg % v.s, r = i / v.k / cg / v.s;
  const int channel = k / (v.k / v.groups) * cg + c;
  const bool second = channel >= v.c0;
  const T* x = second ? x1 + channel - v.c0 : x0 + channel;
  const int pitch = second ? v.c - v.c0 : v.c0;
  double sum = 0;
  for (int n = 0; n < v.n; ++n)
    for (int p = 0; p < v.p; ++p) {
      const int h = p * v.sh - v.top + r * v.dh;
      if (h < 0 || h >= v.h) continue;
      for (int q = 0; q < v.q; ++q) {
        const int col = q * v.sw - v.left + s * v.dw;
        if (col >= 0 && col < v.w)
          sum += double(x[((n * v.h + h) * v.w + col) * pitch]) * double(dy[((n * v.p + p) * v.q + q) * v.k + k]);
      }
    }
  dw[i] = T(sum);
}
