// bench_native [isa] [types ...]: Gmac/s of one core with weights in its cache, the fastest tenth of many runs in the
// thread's own time, since other processes run beside it; then GB/s of all cores at one row with weights in memory.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "qmatmul.h"
#include "team.h"
#include "weight_memory.h"

namespace {

using namespace corral;

struct Kind {
  const char* name;
  Layout layout;
};
constexpr Kind kKinds[] = {
    {"q2_k", {Codes::U2, Scales::SuperNibbles, 16}},
    {"q3_k", {Codes::U3, Scales::Super, 16, 4}},
    {"q4_0", {Codes::U4, Scales::Half, 32, 8}},
    {"q4_1", {Codes::U4, Scales::HalfOffset, 32}},
    {"q4_k", {Codes::U4, Scales::SuperOffset, 32}},
    {"iq4_nl", {Codes::T4, Scales::Half, 32}},
    {"iq4_xs", {Codes::T4, Scales::Super, 32}},
    {"q5_0", {Codes::U5, Scales::Half, 32, 16}},
    {"q6_k", {Codes::U6, Scales::Super, 16, 32}},
    {"q8_0", {Codes::S8, Scales::Half, 32}},
    {"f16", {Codes::F16}},
    {"f32", {Codes::F32}},
};
constexpr struct {
  int cols, rows;
} kShapes[] = {{576, 1536}, {1536, 576}, {640, 2048}, {2048, 640}, {576, 49152}, {2048, 8192}, {8192, 2048}};
constexpr int kRows[] = {1, 2, 3, 4, 5, 6, 7, 8, 10, 20, 64};
constexpr size_t kStreamBytes = size_t{600} << 20;  // more than caches hold
constexpr int kStreamPanels = 32;                   // that a thread takes at a time

// Time of this thread alone, so that a busy machine counts little.
double now() {
  timespec time;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

Matrix random_matrix(const Kind& kind, Order order, int rows, int cols, std::mt19937& random) {
  Matrix matrix(rows, cols, kind.layout, order);
  const size_t size = static_cast<size_t>(cols) * kPanelRows;
  std::vector<uint8_t> codes(size), sub(size, 5);
  std::vector<uint16_t> scale(size, 0x2000);
  std::vector<float> floats(size, 0.5f);
  for (uint8_t& code : codes) code = static_cast<uint8_t>(random());
  for (int row = 0; row < rows; row += kPanelRows) {
    if (!matrix.quantised()) {
      matrix.pack_floats(row, kPanelRows, floats.data());
    } else {
      matrix.pack(row, kPanelRows, {codes.data(), scale.data(), scale.data(), sub.data(), sub.data(), sub.data()});
    }
  }
  return matrix;
}

struct Input {
  std::vector<float> x;
  std::byte* memory;  // freed by main
  int cols;
};

Input random_input(const MatmulKernels& kernels, int rows, int cols, std::mt19937& random) {
  Input input{std::vector<float>(static_cast<size_t>(rows) * static_cast<size_t>(cols)), nullptr, cols};
  std::normal_distribution<float> normal;
  for (float& x : input.x) x = normal(random);
  if (cols % kBlock) return input;
  input.memory = static_cast<std::byte*>(std::aligned_alloc(64, activations_bytes(cols) * static_cast<size_t>(rows)));
  const ActivationRows to{input.memory, cols};
  for (int n = 0; n < rows; ++n) kernels.quantize(&input.x[static_cast<size_t>(n) * static_cast<size_t>(cols)], cols / kBlock, to, n, 0);
  return input;
}

double typical_seconds(const MatmulKernels& kernels, const Matrix& matrix, const Input& x, int n,
                       std::vector<float>& out) {
  std::vector<double> times;
  const double end = now() + 0.2;
  const auto ld = static_cast<size_t>(matrix.rows());
  while (times.size() < 10 || now() < end) {
    const double begin = now();
    if (matrix.quantised()) {
      kernels.matmul_panels(matrix, {x.memory, x.cols}, n, 0, matrix.panels(), out.data(), ld);
    } else {
      kernels.matmul_panels_float(matrix, x.x.data(), static_cast<size_t>(x.cols), n, 0, matrix.panels(), out.data(), ld);
    }
    times.push_back(now() - begin);
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 10];
}

// GB/s of all cores that read `bytes` bytes in parts by read(part), the best of three times.
template <class Read>
double read_rate(size_t bytes, int parts, const Read& read) {
  Team team(static_cast<int>(std::thread::hardware_concurrency()));
  double best = 0;
  for (int round = 0; round < 3; ++round) {
    const auto begin = std::chrono::steady_clock::now();
    team.run(parts, [&](int part, int) { read(part); });
    const std::chrono::duration<double> time = std::chrono::steady_clock::now() - begin;
    best = std::max(best, static_cast<double>(bytes) / time.count() / 1e9);
  }
  return best;
}

// Of a matrix of many rows times one row of activations.
double stream_rate(const MatmulKernels& kernels, const Kind& kind, const Input& x, std::mt19937& random) {
  const Matrix panel(kPanelRows, x.cols, kind.layout, kernels.order);
  const int panels = static_cast<int>(kStreamBytes / panel.bytes());
  const Matrix matrix = random_matrix(kind, kernels.order, panels * kPanelRows, x.cols, random);
  std::vector<float> out(static_cast<size_t>(matrix.rows()));
  return read_rate(matrix.bytes(), (panels + kStreamPanels - 1) / kStreamPanels, [&](int part) {
    const int begin = part * kStreamPanels, end = std::min(begin + kStreamPanels, panels);
    if (matrix.quantised()) {
      kernels.matmul_panels(matrix, {x.memory, x.cols}, 1, begin, end, out.data(), out.size());
    } else {
      kernels.matmul_panels_float(matrix, x.x.data(), static_cast<size_t>(x.cols), 1, begin, end, out.data(), out.size());
    }
  });
}

// Of plain reading.
double memory_rate() {
  constexpr int kPart = 1 << 15;
  const std::shared_ptr<std::byte> memory = allocate_weights(kStreamBytes);
  auto* words = reinterpret_cast<uint64_t*>(memory.get());
  std::fill_n(words, kStreamBytes / sizeof(uint64_t), 1);
  std::atomic<uint64_t> total = 0;
  return read_rate(kStreamBytes, static_cast<int>(kStreamBytes / sizeof(uint64_t) / kPart), [&](int part) {
    const uint64_t* from = words + static_cast<size_t>(part) * kPart;
    uint64_t sums[8] = {};
    for (int i = 0; i < kPart; i += 8) {
      for (int k = 0; k < 8; ++k) sums[k] += from[i + k];
    }
    for (uint64_t sum : sums) total += sum;
  });
}

}  // namespace

int main(int argc, char** argv) {
  const std::optional<Isa> isa = isa_by_name(argc > 1 ? argv[1] : isa_name(best_isa()));
  if (!isa || !supported(*isa)) return std::fprintf(stderr, "no such kernels\n"), 1;
  const MatmulKernels& chosen = kernels(*isa);
  std::mt19937 random(1);
  std::printf("%-6s %-11s", "Gmac/s", "cols x rows");
  for (int n : kRows) std::printf("  n=%-4d", n);
  std::printf(" GB/s at n=1, from memory (%.1f by plain reads)\n", memory_rate());
  for (const Kind& kind : kKinds) {
    bool wanted = argc <= 2;
    for (int i = 2; i < argc; ++i) wanted |= std::string(argv[i]) == kind.name;
    if (!wanted) continue;
    for (const auto& shape : kShapes) {
      if (is_super(kind.layout.scales) && shape.cols % kSuper) continue;
      const Matrix matrix = random_matrix(kind, chosen.order, shape.rows, shape.cols, random);
      const Input x = random_input(chosen, 64, shape.cols, random);
      std::vector<float> out(size_t{64} * static_cast<size_t>(shape.rows));
      std::printf("%-6s %4dx%-6d", kind.name, shape.cols, shape.rows);
      double first = 0;
      for (int n : kRows) {
        const double seconds = typical_seconds(chosen, matrix, x, n, out);
        if (n == 1) first = seconds;
        std::printf(" %6.1f ", static_cast<double>(shape.cols) * shape.rows * n / seconds / 1e9);
      }
      std::printf("  %5.1f", static_cast<double>(matrix.bytes()) / first / 1e9);
      std::printf("  %5.1f\n", stream_rate(chosen, kind, x, random));
      std::free(x.memory);
    }
  }
}
