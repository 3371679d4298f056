#include <algorithm>
#include <cstdlib>
#include <functional>
#include <limits>
#include <memory>

#include "checks.h"
#include "half.h"
#include "qmatmul.h"

namespace corral::tests {
namespace {

constexpr int kMostTokens = 23;
constexpr float kUntouched = 12345.0f;

std::vector<Layout> layouts() {
  std::vector<Layout> all;
  for (Codes codes : {Codes::U2, Codes::U3, Codes::U4, Codes::T4, Codes::U5, Codes::U6, Codes::S8}) {
    for (Scales scales : {Scales::Half, Scales::HalfZero, Scales::HalfOffset, Scales::Super, Scales::SuperOffset,
                          Scales::SuperNibbles}) {
      const bool one_zero = scales == Scales::Half || scales == Scales::Super;
      const int zero = !one_zero || is_signed(codes) ? 0 : 1 << (code_bits(codes) - 1);
      const float unit = is_super(scales) ? 0.125f : 1.0f;
      const std::array<int8_t, 16> table = {-128, -127, -83, -65, -49, -35, -22, -10, 0, 13, 25, 38, 53, 69, 89, 127};
      for (int group : {16, 32}) all.push_back({codes, scales, group, zero, unit, table});
    }
  }
  return all;
}

std::string name_of(const Layout& layout) {
  return std::string(codes_name(layout.codes)) + " scales " + std::to_string(static_cast<int>(layout.scales)) +
         " group " + std::to_string(layout.group);
}

using Code = std::function<uint8_t(int col)>;

Code random_codes(Random& random) {
  return [&random](int) { return static_cast<uint8_t>(random.below(256)); };  // packing keeps the bits that count
}

template <class Value, class Make>
std::vector<Value> made(int count, const Make& make) {
  std::vector<Value> values(static_cast<size_t>(count));
  for (Value& value : values) value = static_cast<Value>(make());
  return values;
}

Matrix packed(const Layout& layout, Order order, int rows, int cols, Random& random, const Code& code) {
  Matrix matrix(rows, cols, layout, order);
  const int groups = rows * cols / layout.group;
  std::vector<uint8_t> codes;
  for (int i = 0; i < rows * cols; ++i) codes.push_back(code(i % cols));
  const auto half = [&] { return float_to_half(random.number() * 0.01f); };
  const auto scale = made<uint16_t>(groups, half), offset = made<uint16_t>(groups, half);
  const auto byte = [&] { return random.below(256); };
  const auto sub_scale = made<uint8_t>(groups, byte), sub_offset = made<uint8_t>(groups, byte);
  const auto zero = made<uint8_t>(groups, byte);
  matrix.pack(0, rows,
              {codes.data(), scale.data(), offset.data(), sub_scale.data(), sub_offset.data(), zero.data()});
  return matrix;
}

// Rows of activations as one instruction set quantises them.
class Activations {
 public:
  Activations(const MatmulKernels& kernels, const std::vector<float>& x, int cols)
      : order_(kernels.order), count_(static_cast<int>(x.size()) / cols), cols_(cols), size_(activations_bytes(cols) * x.size() / cols),
        memory_(static_cast<std::byte*>(std::aligned_alloc(64, size_))) {
    std::memset(memory_.get(), 0, size_);
    for (int n = 0; n < count_; ++n) kernels.quantize(x.data() + n * cols, cols / kBlock, rows(), n, 0);
  }

  ActivationRows rows() const { return {memory_.get(), cols_}; }
  // The same blocks, in whatever order their codes lie.
  bool operator==(const Activations& other) const {
    for (int n = 0; n < count_; ++n) {
      for (int block = 0; block < cols_ / kBlock; ++block) {
        const ActivationBlock mine = ordered(n, block), theirs = other.ordered(n, block);
        if (std::memcmp(&mine, &theirs, sizeof mine) != 0) return false;
      }
    }
    return true;
  }

 private:
  struct Free {
    void operator()(std::byte* memory) const { std::free(memory); }
  };

  ActivationBlock ordered(int n, int block) const {
    const ActivationBlock& from = rows().row(n)[block];
    ActivationBlock to = from;
    for (int i = 0; i < kBlock; ++i) to.q[column_of(order_, i / 4, i % 4)] = from.q[i];
    return to;
  }

  Order order_;
  int count_, cols_;
  size_t size_;
  std::unique_ptr<std::byte[], Free> memory_;
};

struct Part {
  int rows, panel_begin, panel_end;
};

// [rows][ld] of which only the panels' columns are written.
std::vector<float> product(const MatmulKernels& kernels, const Matrix& matrix, const ActivationRows& x,
                           const Part& part, size_t ld) {
  std::vector<float> out(static_cast<size_t>(part.rows) * ld, kUntouched);
  kernels.matmul_panels(matrix, x, part.rows, part.panel_begin, part.panel_end, out.data(), ld);
  return out;
}

// What `product` of a part must be, cut from the product of everything.
std::vector<float> cut(const std::vector<float>& whole, const Matrix& matrix, const Part& part, size_t ld) {
  std::vector<float> out(static_cast<size_t>(part.rows) * ld, kUntouched);
  const int begin = part.panel_begin * kPanelRows, end = std::min(part.panel_end * kPanelRows, matrix.rows());
  for (int n = 0; n < part.rows; ++n) {
    const float* from = whole.data() + static_cast<size_t>(n) * ld;
    std::copy(from + begin, from + end, out.data() + static_cast<size_t>(n) * ld + begin);
  }
  return out;
}

// Every number of rows, and single rows and panels of it, against the scalar kernels.
void compare(const MatmulKernels& kernels, const Matrix& matrix, const std::vector<float>& x, const std::string& what) {
  const MatmulKernels& scalar = corral::kernels(Isa::Scalar);
  const int count = static_cast<int>(x.size()) / matrix.cols(), panels = matrix.panels();
  const Activations expected_rows(scalar, x, matrix.cols()), rows(kernels, x, matrix.cols());
  expect(rows == expected_rows, what + ": other activations");
  const size_t ld = static_cast<size_t>(matrix.rows()) + 3;
  const std::vector<float> expected = product(scalar, matrix, expected_rows.rows(), {count, 0, panels}, ld);
  const auto check = [&](const Part& part, const std::string& which) {
    expect_same(product(kernels, matrix, rows.rows(), part, ld), cut(expected, matrix, part, ld), what + which);
  };
  for (int n = 1; n <= count; ++n) check({n, 0, panels}, ", rows " + std::to_string(n));
  for (int begin = 0; begin < panels; ++begin) {
    for (int end = begin + 1; end <= panels; ++end) {
      check({std::min(count, 3), begin, end}, ", panels " + std::to_string(begin) + " to " + std::to_string(end));
    }
  }
}

// All the codes of a row at an extreme, and activations of which each is quantised to 127 or -127.
void test_extremes(const MatmulKernels& kernels, const Layout& layout, Random& random) {
  constexpr int kCols = 256;
  std::vector<float> x;
  for (int pattern = 0; pattern < 5; ++pattern) {
    for (int col = 0; col < kCols; ++col) {
      const bool minus[] = {false, true, col % 2 == 0, col % kBlock < kBlock / 2, random.below(2) == 0};
      x.push_back(minus[pattern] ? -1.0f : 1.0f);
    }
  }
  const std::vector<uint8_t> extremes =
      layout.codes == Codes::S8 ? std::vector<uint8_t>{0x80, 0x81, 0x7f} : std::vector<uint8_t>{0, 0xff};
  for (uint8_t extreme : extremes) {
    const Matrix matrix = packed(layout, kernels.order, 16, kCols, random, [&](int) { return extreme; });
    compare(kernels, matrix, x, name_of(layout) + ", extreme code " + std::to_string(extreme));
  }
  // Codes with the sign of the last pattern's activations, or against it.
  for (int with : {0, 1}) {
    const Matrix matrix = packed(layout, kernels.order, 8, kCols, random, [&](int col) {
      return static_cast<uint8_t>((x[static_cast<size_t>(4 * kCols + col)] > 0) == (with == 1) ? 0x7f : 0x80);
    });
    compare(kernels, matrix, x, name_of(layout) + ", signed codes");
  }
}

void test_quantize(const MatmulKernels& kernels, Random& random) {
  constexpr int kCols = 40 * kBlock;
  std::vector<float> x;
  for (float size : {1e-40f, 1e-30f, 1e-25f, 1e-3f, 1.0f, 1e4f, 1e30f, 1e38f}) {
    const std::vector<float> row = random.numbers(kCols, size);
    x.insert(x.end(), row.begin(), row.end());
  }
  for (int col = 0; col < kCols; ++col) x.push_back(static_cast<float>(col % 255 - 127));
  for (int col = 0; col < kCols; ++col) x.push_back(std::ldexp(random.number(), random.below(30) - 15));
  x[kBlock + 1] = std::numeric_limits<float>::quiet_NaN();
  x[3 * kBlock + 31] = std::numeric_limits<float>::infinity();
  x[5 * kBlock + 16] = -std::numeric_limits<float>::infinity();
  std::fill_n(x.begin() + 4 * kCols, 2 * kBlock, 0.0f);
  const MatmulKernels& scalar = corral::kernels(Isa::Scalar);
  expect(Activations(kernels, x, kCols) == Activations(scalar, x, kCols), "other activations");
}

// A row that is not finite spoils its own results and no other row's.
void test_poison(const MatmulKernels& kernels, const Layout& layout, Random& random) {
  constexpr int kCols = 256;
  const Matrix matrix = packed(layout, kernels.order, 13, kCols, random, random_codes(random));
  std::vector<float> x = random.numbers(5 * kCols);
  const auto multiply = [&] {
    return product(kernels, matrix, Activations(kernels, x, kCols).rows(), {5, 0, 2}, 13);
  };
  std::vector<float> expected = multiply();
  x[2 * kCols + 77] = std::numeric_limits<float>::infinity();
  const std::vector<float> out = multiply();
  for (size_t i = 2 * 13; i < 3 * 13; ++i) {
    expect(!std::isfinite(out[i]), name_of(layout) + ": finite in spite of its row");
    expected[i] = out[i];
  }
  expect_same(out, expected, name_of(layout) + " beside a row that is not finite");
}

std::vector<float> float_product(const MatmulKernels& kernels, const Matrix& matrix, const std::vector<float>& x,
                                 const Part& part, size_t ld) {
  std::vector<float> out(static_cast<size_t>(part.rows) * ld, kUntouched);
  kernels.matmul_panels_float(matrix, x.data(), static_cast<size_t>(matrix.cols()), part.rows, part.panel_begin,
                              part.panel_end, out.data(), ld);
  return out;
}

}  // namespace

void test_matmul(Isa isa) {
  const MatmulKernels& kernels = corral::kernels(isa);
  Random random(1);
  test_quantize(kernels, random);
  for (const Layout& layout : layouts()) {
    constexpr int kWide = 72 * kBlock;  // more than a segment of blocks, and whole super-blocks
    const Matrix matrix = packed(layout, kernels.order, 37, 512, random, random_codes(random));
    compare(kernels, matrix, random.numbers(kMostTokens * 512), name_of(layout));
    const Matrix wide = packed(layout, kernels.order, 21, kWide, random, random_codes(random));
    compare(kernels, wide, random.numbers(10 * kWide), name_of(layout) + ", wide");
    test_extremes(kernels, layout, random);
    test_poison(kernels, layout, random);
    if (is_super(layout.scales)) continue;
    for (int cols : {32, 96, 65 * kBlock}) {
      const Matrix odd = packed(layout, kernels.order, 9, cols, random, random_codes(random));
      compare(kernels, odd, random.numbers(5 * cols), name_of(layout) + ", columns " + std::to_string(cols));
    }
  }
}

void test_float_matmul(Isa isa) {
  const MatmulKernels& kernels = corral::kernels(isa);
  Random random(2);
  constexpr int kRows = 21;
  for (Codes codes : {Codes::F32, Codes::F16, Codes::BF16}) {
    for (int cols : {1, 2, 3, 4, 67, 256}) {
      Matrix matrix(kRows, cols, {codes}, Order::Quads);
      matrix.pack_floats(0, kRows, random.numbers(kRows * cols).data());
      const std::vector<float> x = random.numbers(kMostTokens * cols);
      const size_t ld = kRows + 3;
      const Part all{kMostTokens, 0, matrix.panels()};
      const std::vector<float> expected = float_product(corral::kernels(Isa::Scalar), matrix, x, all, ld);
      const std::string what = "codes " + std::to_string(static_cast<int>(codes)) + ", columns " + std::to_string(cols);
      const auto check = [&](const Part& part) {
        expect_same(float_product(kernels, matrix, x, part, ld), cut(expected, matrix, part, ld), what);
      };
      for (int n = 1; n <= kMostTokens; ++n) check({n, 0, matrix.panels()});
      check({4, 1, 2});
      check({5, 2, 3});
    }
  }
}

}  // namespace corral::tests
