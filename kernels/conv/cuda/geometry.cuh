// One description for convolution, data gradient and transposed convolution: along each axis they are the same affine
// walk.
#pragma once

// Output i < outs lies at out0 + out_step i and sums tap t < taps times the input at in0 + in_step i + tap_step t.
//   forward          one axis: out0 0, out_step 1, in0 -top, in_step stride, tap_step dilation
//   data gradient    one axis per phase a < stride: outputs a, a + stride, ... see only every so-many-th tap, and walk
//                    the input backwards
// Tap t of the walk is tap tap0 + tap_stride t of the filter; `before` counts the taps of earlier phases.
struct Axis { int out0, out_step, outs, in0, in_step, tap_step, taps, tap0, tap_stride, before; };

constexpr int PHASES = 4;  // per axis, at most

struct Problem {
  Axis rows[PHASES], columns[PHASES];
  int n, in_h, in_w, out_h, out_w;
  int c, c0;  // input channels: of both maps, of the first
  int k, k0;  // output channels likewise
  int s;      // columns of the filter
  int phase_rows, phase_columns, splits;
  int add;  // bit i: the result is added to what output map i holds
};

// axes[i]; parameters cannot be indexed by a variable without a copy to local memory, hence the chain of selections.
__device__ __forceinline__ Axis pick(const Axis* axes, int i) {
  Axis axis = axes[0];
#pragma unroll
  for (int a = 1; a < PHASES; ++a)
    if (a == i) axis = axes[a];
  return axis;
}
