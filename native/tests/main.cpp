// Runs every test for every instruction set that this processor has.
#include <cstdio>

#include "checks.h"

namespace corral::tests {
namespace {

constexpr int kMostTold = 20;
std::string running;
int failures = 0;

constexpr struct {
  const char* name;
  void (*run)(Isa isa);
} kTests[] = {
    {"matmul", test_matmul},
    {"float matmul", test_float_matmul},
    {"attention", test_attention},
    {"pointwise", test_pointwise},
};

}  // namespace

void fail(const std::string& what) {
  if (++failures <= kMostTold) std::printf("FAILED %s: %s\n", running.c_str(), what.c_str());
}

void expect(bool good, const std::string& what) {
  if (!good) fail(what);
}

void expect_same(const std::vector<float>& got, const std::vector<float>& expected, const std::string& what) {
  for (size_t i = 0; i < expected.size(); ++i) {
    if (std::memcmp(&got[i], &expected[i], sizeof(float)) == 0) continue;
    if (std::isnan(got[i]) && std::isnan(expected[i])) continue;
    return fail(what + ": [" + std::to_string(i) + "] is " + std::to_string(got[i]) + ", not " +
                std::to_string(expected[i]));
  }
}

void expect_close(const std::vector<float>& got, const std::vector<float>& expected, double tolerance,
                  const std::string& what) {
  for (size_t i = 0; i < expected.size(); ++i) {
    if (got[i] == expected[i]) continue;
    const double limit = tolerance * (1 + std::fabs(expected[i]));
    if (std::fabs(static_cast<double>(got[i]) - expected[i]) <= limit) continue;  // false for a NaN
    return fail(what + ": [" + std::to_string(i) + "] is " + std::to_string(got[i]) + ", not " +
                std::to_string(expected[i]));
  }
}

}  // namespace corral::tests

int main() {
  using namespace corral;
  using namespace corral::tests;
  for (Isa isa : kIsas) {
    if (!supported(isa)) continue;
    for (const auto& test : kTests) {
      running = std::string(isa_name(isa)) + " " + test.name;
      const int before = failures;
      test.run(isa);
      std::printf("%s %s\n", running.c_str(), failures == before ? "ok" : "FAILED");
    }
  }
  return failures != 0;
}
