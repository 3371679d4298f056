#include <algorithm>
#include <limits>

#include "checks.h"
#include "half.h"
#include "kernels.h"

namespace corral::tests {
namespace {

using Floats = std::vector<float>;
constexpr int kWidths[] = {1, 2, 3, 4, 5, 7, 8, 9, 12, 15, 16, 17, 23, 31, 32, 33, 63, 64, 100, 577};

struct Pair {
  const PointwiseKernels& kernels;
  const PointwiseKernels& scalar;

  // The same call of both tables; `run` returns what it wrote.
  template <class Run>
  void compare(double tolerance, const std::string& what, const Run& run) const {
    const Floats got = run(kernels), expected = run(scalar);
    tolerance == 0 ? expect_same(got, expected, what) : expect_close(got, expected, tolerance, what);
  }
};

void test_rows(const Pair& pair, int n, float size, Random& random) {
  const Floats x = random.numbers(n, size), y = random.numbers(n, size);
  const std::string of = " of " + std::to_string(n);
  const auto out = [n] { return Floats(static_cast<size_t>(n)); };
  pair.compare(2e-6, "rms_norm" + of, [&](const PointwiseKernels& kernels) {
    Floats to = x;
    kernels.rms_norm(to.data(), y.data(), to.data(), n, 1e-5f);
    return to;
  });
  pair.compare(0, "add" + of, [&](const PointwiseKernels& kernels) {
    Floats to = x;
    kernels.add(to.data(), y.data(), to.data(), n);
    return to;
  });
  pair.compare(0, "scale" + of, [&](const PointwiseKernels& kernels) {
    Floats to = out();
    kernels.scale(x.data(), 0.3f, to.data(), n);
    return to;
  });
  pair.compare(2e-6, "silu_gate" + of, [&](const PointwiseKernels& kernels) {
    Floats to = x;
    kernels.silu_gate(to.data(), y.data(), to.data(), n);
    return to;
  });
  pair.compare(2e-6 * size, "gelu_gate" + of, [&](const PointwiseKernels& kernels) {
    Floats to = out();
    kernels.gelu_gate(x.data(), y.data(), to.data(), n);
    return to;
  });
}

void test_rope(const Pair& pair, int pairs, Random& random) {
  const Floats head = random.numbers(2 * pairs);
  Floats cosine, sine;
  for (float angle : random.numbers(pairs, 3)) cosine.push_back(std::cos(angle)), sine.push_back(std::sin(angle));
  for (const auto& rope : {&PointwiseKernels::rope_half, &PointwiseKernels::rope_interleaved}) {
    pair.compare(1e-6, "rope of " + std::to_string(pairs), [&](const PointwiseKernels& kernels) {
      Floats to = head;
      (kernels.*rope)(to.data(), cosine.data(), sine.data(), pairs);
      return to;
    });
  }
}

void test_softcap(const Pair& pair, int n, Random& random) {
  Floats x = random.numbers(n, 40);
  for (const int i : {0, n / 2}) x[static_cast<size_t>(i)] = std::numeric_limits<float>::infinity();
  pair.compare(1e-5, "softcap of " + std::to_string(n), [&](const PointwiseKernels& kernels) {
    Floats to = x;
    kernels.softcap(to.data(), 30, n);
    return to;
  });
  x.assign(x.size(), std::numeric_limits<float>::quiet_NaN());
  pair.kernels.softcap(x.data(), 30, n);
  for (const float capped : x) expect(std::isnan(capped), "softcap of NaN is NaN");
}

void test_store_half(const Pair& pair, int n, int stride, float size, Random& random) {
  const Floats x = random.numbers(n, size);
  pair.compare(0, "store_half of " + std::to_string(n), [&](const PointwiseKernels& kernels) {
    std::vector<uint16_t> to(static_cast<size_t>(n * stride), 7);
    kernels.store_half(x.data(), to.data(), n, stride);
    return Floats(to.begin(), to.end());
  });
}

// What sampling asks of a row of logits.
void test_scans(const Pair& pair, int n, Random& random) {
  Floats x = random.numbers(n, 8);
  const std::string of = " of " + std::to_string(n);
  const float best = pair.scalar.maximum(x.data(), n);
  expect(best == *std::max_element(x.begin(), x.end()), "the scalar maximum" + of);
  pair.compare(0, "maximum" + of, [&](const PointwiseKernels& kernels) { return Floats{kernels.maximum(x.data(), n)}; });
  pair.compare(2e-6, "exp_sum" + of, [&](const PointwiseKernels& kernels) {
    return Floats{static_cast<float>(kernels.exp_sum(x.data(), best, 0.7f, n))};
  });
  for (const float threshold : {best, 0.0f, std::nextafter(best, 100.0f), -100.0f}) {
    pair.compare(0, "next_at_least" + of, [&](const PointwiseKernels& kernels) {
      Floats found;
      for (int start = 0; start <= n; ++start) {
        found.push_back(static_cast<float>(kernels.next_at_least(x.data(), threshold, start, n)));
      }
      return found;
    });
  }
  std::vector<uint32_t> bits(static_cast<size_t>(n + 31) / 32);
  for (int i = 0; i < n; ++i) bits[static_cast<size_t>(i / 32)] |= uint32_t{x[static_cast<size_t>(i)] > 0} << i % 32;
  pair.compare(0, "mask" + of, [&](const PointwiseKernels& kernels) {
    Floats masked = x;
    kernels.mask(masked.data(), bits.data(), n);
    return masked;
  });
  for (float& poisoned : x) {
    const float was = poisoned;
    poisoned = std::numeric_limits<float>::quiet_NaN();
    expect(std::isnan(pair.kernels.maximum(x.data(), n)), "maximum of a NaN and more" + of);
    poisoned = was;
  }
}

void test_extremes(const Pair& pair) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const Floats x = {-1e4f, -100, -88, -20, -0.0f, 0, 20, 88, 100, 1e4f, 1e-30f, -1e-30f};
  const Floats one(x.size(), 1.0f);
  const int n = static_cast<int>(x.size());
  for (const auto& gate : {&PointwiseKernels::silu_gate, &PointwiseKernels::gelu_gate}) {
    pair.compare(2e-6, "gate of extremes", [&](const PointwiseKernels& kernels) {
      Floats to = one;
      (kernels.*gate)(x.data(), one.data(), to.data(), n);
      return to;
    });
  }
  const Floats nothing(16, -kInfinity);
  expect(pair.kernels.exp_sum(nothing.data(), 0, 1, 16) == 0, "exp_sum of -inf");
  const Floats banned = {0, -kInfinity, -1, -kInfinity, -kInfinity, -2, -kInfinity, -200};
  pair.compare(2e-6, "exp_sum beside -inf", [&](const PointwiseKernels& kernels) {
    return Floats{static_cast<float>(kernels.exp_sum(banned.data(), 0, 1, 8)),
                  static_cast<float>(kernels.exp_sum(banned.data() + 3, 0, 1, 2)),
                  kernels.maximum(banned.data(), 8)};
  });
}

}  // namespace

void test_pointwise(Isa isa) {
  const Pair pair{*choose_kernels(std::string(isa_name(isa))).pointwise, *choose_kernels("scalar").pointwise};
  Random random(3);
  for (int n : kWidths) {
    for (float size : {0.01f, 1.0f, 10.0f}) test_rows(pair, n, size, random);
    for (float size : {1e-8f, 1e-5f, 1.0f, 1e4f, 1e5f}) {
      test_store_half(pair, n, 1, size, random);
      test_store_half(pair, n, 16, size, random);
    }
    test_rope(pair, n, random);
    test_softcap(pair, n, random);
    test_scans(pair, n, random);
  }
  test_extremes(pair);
}

}  // namespace corral::tests
