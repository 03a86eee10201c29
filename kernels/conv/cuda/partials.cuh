// The second pass of sums that were cut into shares, in a fixed order and in float64: the same bits in every run.
#pragma once

// dw[i] = partials[0][i] + partials[1][i] + ...; one thread per i. Bytes: 4 (splits + 1) per result, coalesced.
extern "C" __global__ void add_partials(const float* partials, float* dw, int splits, int size) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= size) return;
  double sum = 0;
  for (int split = 0; split < splits; ++split) sum += partials[size_t(split) * size + i];
  dw[i] = float(sum);
}
