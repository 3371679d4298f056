#include "pointwise.h"

#include <cmath>

#include "half.h"

namespace corral {
namespace {

constexpr int kLanes = 8;  // independent partial results, so that any compiler can use what vectors it has

void rms_norm(const float* x, const float* weight, float* out, int width, float eps) {
  double sum = 0;
  for (int i = 0; i < width; ++i) sum += static_cast<double>(x[i]) * x[i];
  const float factor = 1.0f / std::sqrt(static_cast<float>(sum / width) + eps);
  for (int i = 0; i < width; ++i) out[i] = x[i] * factor * weight[i];
}

void add(const float* x, const float* y, float* out, int n) {
  for (int i = 0; i < n; ++i) out[i] = x[i] + y[i];
}

void scale(const float* x, float factor, float* out, int n) {
  for (int i = 0; i < n; ++i) out[i] = x[i] * factor;
}

void silu_gate(const float* gate, const float* up, float* out, int n) {
  for (int i = 0; i < n; ++i) out[i] = gate[i] / (1.0f + std::exp(-gate[i])) * up[i];
}

void gelu_gate(const float* gate, const float* up, float* out, int n) {
  constexpr float kRoot = 0.79788456080286535588f;  // sqrt(2 / pi)
  for (int i = 0; i < n; ++i) {
    const float g = gate[i];
    out[i] = 0.5f * g * (1.0f + std::tanh(kRoot * g * (1.0f + 0.044715f * g * g))) * up[i];
  }
}

void softcap(float* x, float cap, int n) {
  for (int i = 0; i < n; ++i) x[i] = cap * std::tanh(x[i] / cap);
}

void rope_half(float* head, const float* cosine, const float* sine, int pairs) {
  for (int i = 0; i < pairs; ++i) {
    const float a = head[i], b = head[i + pairs];
    head[i] = a * cosine[i] - b * sine[i];
    head[i + pairs] = b * cosine[i] + a * sine[i];
  }
}

void rope_interleaved(float* head, const float* cosine, const float* sine, int pairs) {
  for (int i = 0; i < pairs; ++i) {
    const float a = head[2 * i], b = head[2 * i + 1];
    head[2 * i] = a * cosine[i] - b * sine[i];
    head[2 * i + 1] = b * cosine[i] + a * sine[i];
  }
}

void store_half(const float* from, uint16_t* to, int n, int stride) {
  for (int i = 0; i < n; ++i) to[static_cast<int64_t>(i) * stride] = float_to_half(from[i]);
}

float maximum(const float* x, int n) {
  float best[kLanes], poison[kLanes];
  for (int j = 0; j < kLanes; ++j) best[j] = -INFINITY, poison[j] = 0;
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int j = 0; j < kLanes; ++j) {
      best[j] = x[i + j] > best[j] ? x[i + j] : best[j];
      poison[j] += x[i + j] != x[i + j] ? 1.0f : 0.0f;
    }
  }
  for (; i < n; ++i) {
    best[0] = x[i] > best[0] ? x[i] : best[0];
    poison[0] += x[i] != x[i] ? 1.0f : 0.0f;
  }
  float result = best[0], bad = 0;
  for (int j = 0; j < kLanes; ++j) {
    result = best[j] > result ? best[j] : result;
    bad += poison[j];
  }
  return bad > 0 ? NAN : result;
}

double exp_sum(const float* x, float shift, float factor, int n) {
  double sum = 0;
  for (int i = 0; i < n; ++i) sum += std::exp((x[i] - shift) * factor);
  return sum;
}

int next_at_least(const float* x, float threshold, int start, int n) {
  int i = start;
  while (i < n && !(x[i] >= threshold)) ++i;
  return i;
}

void mask(float* x, const uint32_t* bits, int n) {
  for (int i = 0; i < n; ++i) x[i] = bits[i / 32] >> i % 32 & 1 ? x[i] : x[i] - INFINITY;
}

}  // namespace

const PointwiseKernels kScalarPointwise = {
    rms_norm,  add,              scale,      silu_gate, gelu_gate, softcap,
    rope_half, rope_interleaved, store_half, maximum,   exp_sum,   next_at_least,
    mask,
};

}  // namespace corral
