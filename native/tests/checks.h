// What the tests share: a failure is told and counted, and the run goes on.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "cpu.h"

namespace corral::tests {

void fail(const std::string& what);  // told with the name of the test that runs
void expect(bool good, const std::string& what);
// The same bits; a NaN equals any NaN.
void expect_same(const std::vector<float>& got, const std::vector<float>& expected, const std::string& what);
// |got - expected| <= tolerance * (1 + |expected|), elementwise.
void expect_close(const std::vector<float>& got, const std::vector<float>& expected, double tolerance,
                  const std::string& what);

// The same numbers on every machine.
class Random {
 public:
  explicit Random(uint32_t seed) : engine_(seed) {}
  int below(int limit) { return static_cast<int>(engine_() % static_cast<uint32_t>(limit)); }
  // Bell-shaped, about 1 in size.
  float number() {
    float sum = 0;
    for (int i = 0; i < 4; ++i) sum += static_cast<float>(below(4001) - 2000) * 0.001f;
    return sum * 0.87f;
  }
  std::vector<float> numbers(int count, float size = 1) {
    std::vector<float> values(static_cast<size_t>(count));
    for (float& value : values) value = number() * size;
    return values;
  }

 private:
  std::mt19937 engine_;
};

// Each compares the kernels of an instruction set with the scalar ones.
void test_matmul(Isa isa);
void test_float_matmul(Isa isa);
void test_attention(Isa isa);
void test_pointwise(Isa isa);

}  // namespace corral::tests
