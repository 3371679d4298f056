#include <cmath>

#include "exp_avx2.h"
#include "half.h"
#include "pointwise.h"

// Vectors for whole eights, then the scalar formula (kScalarPointwise) for what is left of a row.

namespace corral {
namespace {

__m256 load(const float* p) { return _mm256_loadu_ps(p); }
void store(float* p, __m256 v) { _mm256_storeu_ps(p, v); }

void rms_norm(const float* x, const float* weight, float* out, int width, float eps) {
  __m256d sum[4] = {_mm256_setzero_pd(), _mm256_setzero_pd(), _mm256_setzero_pd(), _mm256_setzero_pd()};
  int i = 0;
  for (; i + 16 <= width; i += 16) {
    for (int j = 0; j < 4; ++j) {
      const __m256d v = _mm256_cvtps_pd(_mm_loadu_ps(x + i + 4 * j));
      sum[j] = _mm256_fmadd_pd(v, v, sum[j]);
    }
  }
  const __m256d all = _mm256_add_pd(_mm256_add_pd(sum[0], sum[1]), _mm256_add_pd(sum[2], sum[3]));
  alignas(32) double lanes[4];
  _mm256_store_pd(lanes, all);
  double total = (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]);
  for (; i < width; ++i) total += static_cast<double>(x[i]) * x[i];
  const float factor = 1.0f / std::sqrt(static_cast<float>(total / width) + eps);
  const __m256 factors = _mm256_set1_ps(factor);
  for (i = 0; i + 8 <= width; i += 8) {
    store(out + i, _mm256_mul_ps(_mm256_mul_ps(load(x + i), factors), load(weight + i)));
  }
  for (; i < width; ++i) out[i] = x[i] * factor * weight[i];
}

void add(const float* x, const float* y, float* out, int n) {
  int i = 0;
  for (; i + 8 <= n; i += 8) store(out + i, _mm256_add_ps(load(x + i), load(y + i)));
  for (; i < n; ++i) out[i] = x[i] + y[i];
}

void scale(const float* x, float factor, float* out, int n) {
  int i = 0;
  for (; i + 8 <= n; i += 8) store(out + i, _mm256_mul_ps(load(x + i), _mm256_set1_ps(factor)));
  for (; i < n; ++i) out[i] = x[i] * factor;
}

// g / (1 + exp(-z)) * up
__m256 sigmoid_gate(__m256 g, __m256 z, __m256 up) {
  const __m256 e = exp_avx2(_mm256_xor_ps(z, _mm256_set1_ps(-0.0f)));
  return _mm256_mul_ps(_mm256_div_ps(g, _mm256_add_ps(_mm256_set1_ps(1.0f), e)), up);
}

void silu_gate(const float* gate, const float* up, float* out, int n) {
  int i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m256 g = load(gate + i);
    store(out + i, sigmoid_gate(g, g, load(up + i)));
  }
  kScalarPointwise.silu_gate(gate + i, up + i, out + i, n - i);
}

void gelu_gate(const float* gate, const float* up, float* out, int n) {
  // 0.5 (1 + tanh(u)) = 1 / (1 + exp(-2u))
  const __m256 linear = _mm256_set1_ps(2 * 0.79788456080286535588f);
  const __m256 cubic = _mm256_set1_ps(2 * 0.79788456080286535588f * 0.044715f);
  int i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m256 g = load(gate + i);
    const __m256 z = _mm256_mul_ps(g, _mm256_fmadd_ps(cubic, _mm256_mul_ps(g, g), linear));
    store(out + i, sigmoid_gate(g, z, load(up + i)));
  }
  kScalarPointwise.gelu_gate(gate + i, up + i, out + i, n - i);
}

void softcap(float* x, float cap, int n) {
  const __m256 caps = _mm256_set1_ps(cap), one = _mm256_set1_ps(1.0f), two = _mm256_set1_ps(2.0f);
  int i = 0;
  for (; i + 8 <= n; i += 8) {  // tanh(z) = 1 - 2 / (1 + exp(2z))
    const __m256 z = _mm256_div_ps(load(x + i), caps);
    const __m256 e = exp_avx2(_mm256_mul_ps(z, two));
    const __m256 tanh = _mm256_sub_ps(one, _mm256_div_ps(two, _mm256_add_ps(one, e)));
    const __m256 capped = _mm256_mul_ps(caps, tanh);
    store(x + i, _mm256_blendv_ps(capped, z, _mm256_cmp_ps(z, z, _CMP_UNORD_Q)));  // NaN stays
  }
  kScalarPointwise.softcap(x + i, cap, n - i);
}

void rope_half(float* head, const float* cosine, const float* sine, int pairs) {
  int i = 0;
  for (; i + 8 <= pairs; i += 8) {
    const __m256 a = load(head + i), b = load(head + i + pairs), c = load(cosine + i), s = load(sine + i);
    store(head + i, _mm256_fnmadd_ps(b, s, _mm256_mul_ps(a, c)));
    store(head + i + pairs, _mm256_fmadd_ps(a, s, _mm256_mul_ps(b, c)));
  }
  for (; i < pairs; ++i) {
    const float a = head[i], b = head[i + pairs];
    head[i] = a * cosine[i] - b * sine[i];
    head[i + pairs] = b * cosine[i] + a * sine[i];
  }
}

void rope_interleaved(float* head, const float* cosine, const float* sine, int pairs) {
  int i = 0;
  for (; i + 4 <= pairs; i += 4) {
    const __m256 x = load(head + 2 * i);
    const __m128 c4 = _mm_loadu_ps(cosine + i), s4 = _mm_loadu_ps(sine + i);
    const __m256 c = _mm256_set_m128(_mm_unpackhi_ps(c4, c4), _mm_unpacklo_ps(c4, c4));
    const __m256 s = _mm256_set_m128(_mm_unpackhi_ps(s4, s4), _mm_unpacklo_ps(s4, s4));
    const __m256 swapped = _mm256_permute_ps(x, 0xb1);
    store(head + 2 * i, _mm256_addsub_ps(_mm256_mul_ps(x, c), _mm256_mul_ps(swapped, s)));
  }
  kScalarPointwise.rope_interleaved(head + 2 * i, cosine + i, sine + i, pairs - i);
}

void store_half(const float* from, uint16_t* to, int n, int stride) {
  int i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m128i halves = _mm256_cvtps_ph(load(from + i), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    if (stride == 1) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), halves);
      continue;
    }
    alignas(16) uint16_t lanes[8];
    _mm_store_si128(reinterpret_cast<__m128i*>(lanes), halves);
    for (int j = 0; j < 8; ++j) to[static_cast<int64_t>(i + j) * stride] = lanes[j];
  }
  for (; i < n; ++i) to[static_cast<int64_t>(i) * stride] = float_to_half(from[i]);
}

float maximum(const float* x, int n) {
  __m256 best[2] = {_mm256_set1_ps(-INFINITY), _mm256_set1_ps(-INFINITY)};
  __m256 poison = _mm256_setzero_ps();
  int i = 0;
  for (; i + 16 <= n; i += 16) {
    const __m256 a = load(x + i), b = load(x + i + 8);
    poison = _mm256_or_ps(poison, _mm256_cmp_ps(a, b, _CMP_UNORD_Q));
    best[0] = _mm256_max_ps(best[0], a);
    best[1] = _mm256_max_ps(best[1], b);
  }
  float result = max_lane(_mm256_max_ps(best[0], best[1]));
  bool bad = _mm256_movemask_ps(poison) != 0;
  for (; i < n; ++i) {
    bad |= x[i] != x[i];
    result = x[i] > result ? x[i] : result;
  }
  return bad ? NAN : result;
}

double exp_sum(const float* x, float shift, float factor, int n) {
  const __m256 shifts = _mm256_set1_ps(shift), factors = _mm256_set1_ps(factor);
  __m256d low = _mm256_setzero_pd(), high = _mm256_setzero_pd();
  int i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m256 e = exp_avx2(_mm256_mul_ps(_mm256_sub_ps(load(x + i), shifts), factors));
    low = _mm256_add_pd(low, _mm256_cvtps_pd(_mm256_castps256_ps128(e)));
    high = _mm256_add_pd(high, _mm256_cvtps_pd(_mm256_extractf128_ps(e, 1)));
  }
  alignas(32) double lanes[4];
  _mm256_store_pd(lanes, _mm256_add_pd(low, high));
  double sum = (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]);
  for (; i < n; ++i) sum += std::exp((x[i] - shift) * factor);
  return sum;
}

int next_at_least(const float* x, float threshold, int start, int n) {
  const __m256 thresholds = _mm256_set1_ps(threshold);
  int i = start;
  for (; i + 8 <= n; i += 8) {
    const int hits = _mm256_movemask_ps(_mm256_cmp_ps(load(x + i), thresholds, _CMP_GE_OQ));
    if (hits != 0) return i + __builtin_ctz(static_cast<unsigned>(hits));
  }
  while (i < n && !(x[i] >= threshold)) ++i;
  return i;
}

void mask(float* x, const uint32_t* bits, int n) {
  const __m256i shifts = _mm256_setr_epi32(31, 30, 29, 28, 27, 26, 25, 24);  // bit j of a byte to lane j's sign
  const __m256 infinity = _mm256_set1_ps(INFINITY);
  int i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m256i eight = _mm256_set1_epi32(static_cast<int>(bits[i / 32] >> i % 32));
    const __m256 allowed = _mm256_castsi256_ps(_mm256_sllv_epi32(eight, shifts));
    const __m256 values = load(x + i);
    _mm256_storeu_ps(x + i, _mm256_blendv_ps(_mm256_sub_ps(values, infinity), values, allowed));
  }
  for (; i < n; ++i) x[i] = bits[i / 32] >> i % 32 & 1 ? x[i] : x[i] - INFINITY;
}

}  // namespace

extern const PointwiseKernels kAvx2Pointwise = {
    rms_norm,  add,              scale,      silu_gate, gelu_gate, softcap,
    rope_half, rope_interleaved, store_half, maximum,   exp_sum,   next_at_least,
    mask,
};

}  // namespace corral
