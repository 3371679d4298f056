#include "pointwise.h"

#include <arm_neon.h>

#include <cmath>

#include "exp_neon.h"
#include "half.h"

// Vectors for whole fours, then the scalar formula (kScalarPointwise) for what is left of a row.

namespace corral {
namespace {

constexpr int kLanes = 4;

// to += x * x
void add_squares(float32x4_t x, float64x2_t& low, float64x2_t& high) {
  const float64x2_t a = vcvt_f64_f32(vget_low_f32(x)), b = vcvt_high_f64_f32(x);
  low = vfmaq_f64(low, a, a);
  high = vfmaq_f64(high, b, b);
}

void rms_norm(const float* x, const float* weight, float* out, int width, float eps) {
  float64x2_t sum[4] = {vdupq_n_f64(0), vdupq_n_f64(0), vdupq_n_f64(0), vdupq_n_f64(0)};
  int i = 0;
  for (; i + 2 * kLanes <= width; i += 2 * kLanes) {
    add_squares(vld1q_f32(x + i), sum[0], sum[1]);
    add_squares(vld1q_f32(x + i + kLanes), sum[2], sum[3]);
  }
  double total = vaddvq_f64(vaddq_f64(vaddq_f64(sum[0], sum[1]), vaddq_f64(sum[2], sum[3])));
  for (; i < width; ++i) total += static_cast<double>(x[i]) * x[i];
  const float factor = 1.0f / std::sqrt(static_cast<float>(total / width) + eps);
  for (i = 0; i + kLanes <= width; i += kLanes) {
    vst1q_f32(out + i, vmulq_f32(vmulq_n_f32(vld1q_f32(x + i), factor), vld1q_f32(weight + i)));
  }
  for (; i < width; ++i) out[i] = x[i] * factor * weight[i];
}

void add(const float* x, const float* y, float* out, int n) {
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) vst1q_f32(out + i, vaddq_f32(vld1q_f32(x + i), vld1q_f32(y + i)));
  for (; i < n; ++i) out[i] = x[i] + y[i];
}

void scale(const float* x, float factor, float* out, int n) {
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) vst1q_f32(out + i, vmulq_n_f32(vld1q_f32(x + i), factor));
  for (; i < n; ++i) out[i] = x[i] * factor;
}

// g / (1 + exp(-z)) * up
float32x4_t sigmoid_gate(float32x4_t g, float32x4_t z, float32x4_t up) {
  const float32x4_t e = exp_neon(vnegq_f32(z));
  return vmulq_f32(vdivq_f32(g, vaddq_f32(vdupq_n_f32(1.0f), e)), up);
}

void silu_gate(const float* gate, const float* up, float* out, int n) {
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const float32x4_t g = vld1q_f32(gate + i);
    vst1q_f32(out + i, sigmoid_gate(g, g, vld1q_f32(up + i)));
  }
  kScalarPointwise.silu_gate(gate + i, up + i, out + i, n - i);
}

void gelu_gate(const float* gate, const float* up, float* out, int n) {
  // 0.5 (1 + tanh(u)) = 1 / (1 + exp(-2u))
  constexpr float kLinear = 2 * 0.79788456080286535588f, kCubic = kLinear * 0.044715f;
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const float32x4_t g = vld1q_f32(gate + i);
    const float32x4_t z = vmulq_f32(g, vfmaq_n_f32(vdupq_n_f32(kLinear), vmulq_f32(g, g), kCubic));
    vst1q_f32(out + i, sigmoid_gate(g, z, vld1q_f32(up + i)));
  }
  kScalarPointwise.gelu_gate(gate + i, up + i, out + i, n - i);
}

// A pair (a, b) turned by an angle.
float32x4x2_t turned(float32x4_t a, float32x4_t b, float32x4_t cosine, float32x4_t sine) {
  return {{vfmsq_f32(vmulq_f32(a, cosine), b, sine), vfmaq_f32(vmulq_f32(b, cosine), a, sine)}};
}

void softcap(float* x, float cap, int n) {
  const float32x4_t one = vdupq_n_f32(1.0f), two = vdupq_n_f32(2.0f);
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) {  // tanh(z) = 1 - 2 / (1 + exp(2z))
    const float32x4_t z = vdivq_f32(vld1q_f32(x + i), vdupq_n_f32(cap));
    const float32x4_t e = exp_neon(vmulq_f32(z, two));
    const float32x4_t tanh = vsubq_f32(one, vdivq_f32(two, vaddq_f32(one, e)));
    vst1q_f32(x + i, vbslq_f32(vceqq_f32(z, z), vmulq_n_f32(tanh, cap), z));  // NaN stays
  }
  kScalarPointwise.softcap(x + i, cap, n - i);
}

void rope_half(float* head, const float* cosine, const float* sine, int pairs) {
  int i = 0;
  for (; i + kLanes <= pairs; i += kLanes) {
    const float32x4x2_t to = turned(vld1q_f32(head + i), vld1q_f32(head + i + pairs), vld1q_f32(cosine + i),
                                    vld1q_f32(sine + i));
    vst1q_f32(head + i, to.val[0]);
    vst1q_f32(head + i + pairs, to.val[1]);
  }
  for (; i < pairs; ++i) {
    const float a = head[i], b = head[i + pairs];
    head[i] = a * cosine[i] - b * sine[i];
    head[i + pairs] = b * cosine[i] + a * sine[i];
  }
}

void rope_interleaved(float* head, const float* cosine, const float* sine, int pairs) {
  int i = 0;
  for (; i + kLanes <= pairs; i += kLanes) {
    const float32x4x2_t x = vld2q_f32(head + 2 * i);
    vst2q_f32(head + 2 * i, turned(x.val[0], x.val[1], vld1q_f32(cosine + i), vld1q_f32(sine + i)));
  }
  kScalarPointwise.rope_interleaved(head + 2 * i, cosine + i, sine + i, pairs - i);
}

void store_half(const float* from, uint16_t* to, int n, int stride) {
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const uint16x4_t halves = vreinterpret_u16_f16(vcvt_f16_f32(vld1q_f32(from + i)));
    if (stride == 1) {
      vst1_u16(to + i, halves);
      continue;
    }
    uint16_t lanes[kLanes];
    vst1_u16(lanes, halves);
    for (int j = 0; j < kLanes; ++j) to[static_cast<int64_t>(i + j) * stride] = lanes[j];
  }
  for (; i < n; ++i) to[static_cast<int64_t>(i) * stride] = float_to_half(from[i]);
}

float maximum(const float* x, int n) {
  float32x4_t best[2] = {vdupq_n_f32(-INFINITY), vdupq_n_f32(-INFINITY)};
  int i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    best[0] = vmaxq_f32(best[0], vld1q_f32(x + i));  // a NaN wins
    best[1] = vmaxq_f32(best[1], vld1q_f32(x + i + kLanes));
  }
  float result = vmaxvq_f32(vmaxq_f32(best[0], best[1]));
  for (; i < n; ++i) result = x[i] > result || std::isnan(x[i]) ? x[i] : result;
  return result;
}

double exp_sum(const float* x, float shift, float factor, int n) {
  float64x2_t low = vdupq_n_f64(0), high = vdupq_n_f64(0);
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const float32x4_t e = exp_neon(vmulq_n_f32(vsubq_f32(vld1q_f32(x + i), vdupq_n_f32(shift)), factor));
    low = vaddq_f64(low, vcvt_f64_f32(vget_low_f32(e)));
    high = vaddq_f64(high, vcvt_high_f64_f32(e));
  }
  double sum = vaddvq_f64(vaddq_f64(low, high));
  for (; i < n; ++i) sum += std::exp((x[i] - shift) * factor);
  return sum;
}

int next_at_least(const float* x, float threshold, int start, int n) {
  const float32x4_t thresholds = vdupq_n_f32(threshold);
  int i = start;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    const uint32x4_t low = vcgeq_f32(vld1q_f32(x + i), thresholds);
    const uint32x4_t high = vcgeq_f32(vld1q_f32(x + i + kLanes), thresholds);
    if (vmaxvq_u32(vorrq_u32(low, high)) != 0) break;
  }
  while (i < n && !(x[i] >= threshold)) ++i;
  return i;
}

void mask(float* x, const uint32_t* bits, int n) {  // simple enough for the compiler to take four at a time
  for (int i = 0; i < n; ++i) x[i] = bits[i / 32] >> i % 32 & 1 ? x[i] : x[i] - INFINITY;
}

}  // namespace

extern const PointwiseKernels kNeonPointwise = {
    rms_norm,  add,              scale,      silu_gate, gelu_gate, softcap,
    rope_half, rope_interleaved, store_half, maximum,   exp_sum,   next_at_least,
    mask,
};

}  // namespace corral
