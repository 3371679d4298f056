// What happens to one row at a time: norm, gate, rope, add, and scans over a row of logits.
#pragma once

#include <cstdint>

namespace corral {

// One table an instruction set. The order of every sum depends on the length alone.
struct PointwiseKernels {
  // out = x / sqrt(mean(x^2) + eps) * weight, all [width]; out may be x.
  void (*rms_norm)(const float* x, const float* weight, float* out, int width, float eps);
  // out = x + y, all [n]; out may be x or y.
  void (*add)(const float* x, const float* y, float* out, int n);
  // out = x * scale, [n]; out may be x.
  void (*scale)(const float* x, float scale, float* out, int n);
  // out = silu(gate) * up, all [n]; out may be gate.
  void (*silu_gate)(const float* gate, const float* up, float* out, int n);
  // out = gelu(gate) * up by the tanh formula.
  void (*gelu_gate)(const float* gate, const float* up, float* out, int n);
  // x = cap * tanh(x / cap), [n].
  void (*softcap)(float* x, float cap, int n);
  // Rotates pairs (i, i + pairs) of one head by the angles whose cosines and sines are given, [pairs] each.
  void (*rope_half)(float* head, const float* cosine, const float* sine, int pairs);
  // Rotates pairs (2i, 2i + 1).
  void (*rope_interleaved)(float* head, const float* cosine, const float* sine, int pairs);
  // to[i * stride] = half(from[i]), i < n.
  void (*store_half)(const float* from, uint16_t* to, int n, int stride);
  // The largest of x [n]; NaN if any is NaN.
  float (*maximum)(const float* x, int n);
  // Sum of exp((x[i] - shift) * scale) over [n].
  double (*exp_sum)(const float* x, float shift, float scale, int n);
  // The least i >= start with x[i] >= threshold, or n.
  int (*next_at_least)(const float* x, float threshold, int start, int n);
  // x[i] -= infinity where bit i of `bits` (bit i % 32 of word i / 32) is 0, i < n: a NaN and an infinity are noticed still.
  void (*mask)(float* x, const uint32_t* bits, int n);
};

extern const PointwiseKernels kScalarPointwise;
#if defined(__x86_64__)
extern const PointwiseKernels kAvx2Pointwise;
#elif defined(__aarch64__)
extern const PointwiseKernels kNeonPointwise;
#endif

}  // namespace corral
