// Winograd convolution F(4x4, 3x3), float32, stride 1, dilation 1: the transforms. The products between them are
// cuBLAS's.
//
//   Y = A^T [ (G g G^T) * (B^T d B) ] A        d: 6 x 6 input tile, g: 3 x 3 filter, Y: 4 x 4 output tile, * per point
//
// Summed over channels this is 36 matrix products M[point] (tiles, K) = V[point] (tiles, C) . U[point] (C, K): 36 / 16
// = 2.25 multiplications per output and channel pair in place of 9. The price is memory: V and M are written and read,
// 2 x 36 / 16 x 4 = 18 bytes per input value and as many per output value, and accuracy: the largest error is within
// 3e-5 of the largest output (1e-6 for a direct sum). From about 64 channels on it pays.
//
//   transform_input              V = B^T d B           10 operations per input value, 4 + 9 bytes
//   transform_filter             U = G g G^T           (for the data gradient: of the flipped filter, its channels
//                                                      exchanged)
//   transform_output             Y = A^T M A           + bias, + what is there
//   transform_cotangent          Z = A dY A^T          filter gradient: dU[point] (C, K) = V[point]^T . Z[point] ...
//   transform_filter_gradient    dg = G^T dU G         ... and back to 3 x 3
//
// Versions: one, plain. Every thread transforms one tile of one channel in registers; neighbouring threads have
// neighbouring channels, so each request is one run of a pixel's channels: 4 sectors per request of a full warp (the
// least; channels a multiple of eight).
// Source: Lavin & Gray, arXiv 1509.09308; the matrices are those of transforms.py.

struct Winograd {
  int n, h, w, p, q;  // images, the size of the input and of the output
  int rows, columns;  // tiles of an image
  int top, left;      // padding of the input (negative: cropping)
  int c, c0, k, k0;   // channels of input and output: of both maps, of the first
  int add;            // bit i: the result is added to what output map i holds
};

// One-dimensional transforms: OUT results of IN values.
struct Input {  // B^T
  static constexpr int IN = 6, OUT = 6;
  static __device__ void apply(const float* d, float* t) {
    const float even = d[4] - 4 * d[2], odd = d[3] - 4 * d[1], even2 = d[4] - d[2], odd2 = 2 * (d[3] - d[1]);
    t[0] = 4 * d[0] - 5 * d[2] + d[4];
    t[1] = even + odd, t[2] = even - odd;
    t[3] = even2 + odd2, t[4] = even2 - odd2;
    t[5] = 4 * d[1] - 5 * d[3] + d[5];
  }
};

struct Filter {  // G
  static constexpr int IN = 3, OUT = 6;
  static __device__ void apply(const float* g, float* u) {
    const float outer = g[0] + g[2], wide = g[0] + 4 * g[2];
    u[0] = g[0] / 4;
    u[1] = -(outer + g[1]) / 6, u[2] = -(outer - g[1]) / 6;
    u[3] = (wide + 2 * g[1]) / 24, u[4] = (wide - 2 * g[1]) / 24;
    u[5] = g[2];
  }
};

struct Output {  // A^T
  static constexpr int IN = 6, OUT = 4;
  static __device__ void apply(const float* m, float* y) {
    const float sum = m[1] + m[2], difference = m[1] - m[2], sum2 = m[3] + m[4], difference2 = m[3] - m[4];
    y[0] = m[0] + sum + sum2;
    y[1] = difference + 2 * difference2;
    y[2] = sum + 4 * sum2;
    y[3] = difference + 8 * difference2 + m[5];
  }
};

struct Cotangent {  // A
  static constexpr int IN = 4, OUT = 6;
  static __device__ void apply(const float* y, float* z) {
    const float even = y[0] + y[2], odd = y[1] + y[3], even2 = y[0] + 4 * y[2], odd2 = 2 * y[1] + 8 * y[3];
    z[0] = y[0];
    z[1] = even + odd, z[2] = even - odd;
    z[3] = even2 + odd2, z[4] = even2 - odd2;
    z[5] = y[3];
  }
};

struct FilterGradient {  // G^T
  static constexpr int IN = 6, OUT = 3;
  static __device__ void apply(const float* u, float* g) {
    const float sum = u[1] + u[2], sum2 = u[3] + u[4];
    g[0] = u[0] / 4 - sum / 6 + sum2 / 24;
    g[1] = (u[2] - u[1]) / 6 + (u[3] - u[4]) / 12;
    g[2] = (sum2 - sum) / 6 + u[5];
  }
};

// F x F^T: along the columns, then along the rows.
template <class F>
__device__ __forceinline__ void transform(const float (&x)[F::IN][F::IN], float (&y)[F::OUT][F::OUT]) {
  float half[F::IN][F::OUT];
#pragma unroll
  for (int j = 0; j < F::IN; ++j) {
    float column[F::IN];
#pragma unroll
    for (int i = 0; i < F::IN; ++i) column[i] = x[i][j];
    F::apply(column, half[j]);
  }
#pragma unroll
  for (int i = 0; i < F::OUT; ++i) {
    float row[F::IN];
#pragma unroll
    for (int j = 0; j < F::IN; ++j) row[j] = half[j][i];
    F::apply(row, y[i]);
  }
}

// One thread per tile and channel; v: (36, tiles, C).
extern "C" __global__ void __launch_bounds__(256)
    transform_input(const float* x0, const float* x1, float* v, const Winograd g) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x, size = g.n * g.rows * g.columns * g.c;
  if (i >= size) return;
  const int c = i % g.c, tile = i / g.c, column = tile % g.columns * 4 - g.left,
            row = tile / g.columns % g.rows * 4 - g.top;
  const bool second = c >= g.c0;
  const int pitch = second ? g.c - g.c0 : g.c0, image = tile / g.columns / g.rows * g.h;
  const float* x = second ? x1 + c - g.c0 : x0 + c;
  float d[6][6], t[6][6];
#pragma unroll
  for (int a = 0; a < 6; ++a)
#pragma unroll
    for (int b = 0; b < 6; ++b) {
      const bool inside = unsigned(row + a) < unsigned(g.h) && unsigned(column + b) < unsigned(g.w);
      d[a][b] = inside ? x[((image + row + a) * g.w + column + b) * pitch] : 0.0f;
    }
  transform<Input>(d, t);
#pragma unroll
  for (int a = 0; a < 36; ++a) v[a * size + i] = t[a / 6][a % 6];
}

// One thread per (i, j), i along the sum, j over outputs; u: (36, sums, outputs). w: (3, 3, C, K). Forward: (i, j) =
// (c, k). flipped: (i, j) = (k, c) and the taps from the end; neighbouring j are then K floats apart, but the eight i
// of a block share their sectors. grid: (outputs / 32, sums / 8), 32 x 8.
extern "C" __global__ void transform_filter(const float* w, float* u, int sums, int outputs, int flipped) {
  const int j = blockIdx.x * 32 + threadIdx.x, i = blockIdx.y * 8 + threadIdx.y, size = sums * outputs;
  if (i >= sums || j >= outputs) return;
  const float* from = w + (flipped ? j * sums + i : i * outputs + j);
  float g[3][3], t[6][6];
#pragma unroll
  for (int a = 0; a < 9; ++a) g[a / 3][a % 3] = from[(flipped ? 8 - a : a) * size];
  transform<Filter>(g, t);
#pragma unroll
  for (int a = 0; a < 36; ++a) u[a * size + i * outputs + j] = t[a / 6][a % 6];
}

// One thread per tile and output channel; m: (36, tiles, K). Tiles may stick out at the bottom and on the right.
extern "C" __global__ void __launch_bounds__(256)
    transform_output(const float* m, const float* bias, float* y0, float* y1, const Winograd g) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x, size = g.n * g.rows * g.columns * g.k;
  if (i >= size) return;
  const int k = i % g.k, tile = i / g.k, column = tile % g.columns * 4, row = tile / g.columns % g.rows * 4;
  const bool second = k >= g.k0, add = g.add >> second & 1;
  const int pitch = second ? g.k - g.k0 : g.k0, image = tile / g.columns / g.rows * g.p;
  float* y = second ? y1 + k - g.k0 : y0 + k;
  const float start = bias ? bias[k] : 0.0f;
  float t[6][6], out[4][4];
#pragma unroll
  for (int a = 0; a < 36; ++a) t[a / 6][a % 6] = m[a * size + i];
  transform<Output>(t, out);
#pragma unroll
  for (int a = 0; a < 4; ++a)
#pragma unroll
    for (int b = 0; b < 4; ++b)
      if (row + a < g.p && column + b < g.q) {
        float* to = y + ((image + row + a) * g.q + column + b) * pitch;
        *to = out[a][b] + start + (add ? *to : 0.0f);
      }
}

// One thread per tile and output channel; dy: (N, P, Q, K), zero beyond its edge; z: (36, tiles, K).
extern "C" __global__ void __launch_bounds__(256) transform_cotangent(const float* dy, float* z, const Winograd g) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x, size = g.n * g.rows * g.columns * g.k;
  if (i >= size) return;
  const int k = i % g.k, tile = i / g.k, column = tile % g.columns * 4, row = tile / g.columns % g.rows * 4,
            image = tile / g.columns / g.rows * g.p;
  float d[4][4], t[6][6];
#pragma unroll
  for (int a = 0; a < 4; ++a)
#pragma unroll
    for (int b = 0; b < 4; ++b)
      d[a][b] = row + a < g.p && column + b < g.q ? dy[((image + row + a) * g.q + column + b) * g.k + k] : 0.0f;
  transform<Cotangent>(d, t);
#pragma unroll
  for (int a = 0; a < 36; ++a) z[a * size + i] = t[a / 6][a % 6];
}

// One thread per channel pair; u: (36, C, K), dw: (3, 3, C, K); size = C K.
extern "C" __global__ void transform_filter_gradient(const float* u, float* dw, int size) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= size) return;
  float t[6][6], g[3][3];
#pragma unroll
  for (int a = 0; a < 36; ++a) t[a / 6][a % 6] = u[a * size + i];
  transform<FilterGradient>(t, g);
#pragma unroll
  for (int a = 0; a < 9; ++a) dw[a * size + i] = g[a / 3][a % 3];
}
