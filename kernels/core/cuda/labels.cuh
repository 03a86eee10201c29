// Wrong labels, recorded for the host (kernels/core/labels.py): an atomic on pinned host memory, which only a wrong
// label costs.
#pragma once

constexpr long long NO_LABEL = -9223372036854775807ll - 1;  // the ignored label where none is ignored

// A label that is not 0 to count - 1 nor the ignored one: its place in the upper half, its value in the lower one, cut
// to 32 bits; the first place stays.
__device__ __forceinline__ void check_label(unsigned long long* error_slot, long long label, int count,
                                            long long ignored, int place) {
  if (static_cast<unsigned long long>(label) < count || (label == ignored && ignored != NO_LABEL)) return;
  const int value = static_cast<int>(min(max(label, -2147483648ll), 2147483647ll));
  atomicMin(error_slot, static_cast<unsigned long long>(place) << 32 | static_cast<unsigned>(value));
}
