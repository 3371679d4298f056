// Attention of whole steps: bench_attention [isa] [threads] [users] [context] [rows]; every user adds `rows` positions
// to a context of that length. Per model: ms a step of all layers, Gmac/s of the team, and GB/s of keys and values.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "batch_attention.h"
#include "kernels.h"

namespace {

using namespace corral;

constexpr struct {
  const char* name;
  int layers, heads, kv_heads, head_dim;
} kModels[] = {{"smollm2", 30, 9, 3, 64}, {"gemma3", 18, 4, 1, 256}, {"llama8b/8", 4, 32, 8, 128}};

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

int main(int argc, char** argv) {
  const auto number = [&](int i, int otherwise) { return argc > i ? std::atoi(argv[i]) : otherwise; };
  const Kernels kernels = choose_kernels(argc > 1 ? argv[1] : "auto");
  const int users = number(3, 20), context = number(4, 640), rows = number(5, 1);
  Team team(number(2, 1));
  BatchAttention attention(team, kernels.attend);
  const int table = (context + rows + kKvBlock - 1) / kKvBlock, num_blocks = users * table;
  std::mt19937 random(1);
  std::vector<int32_t> positions, starts{0}, slots, blocks(static_cast<size_t>(num_blocks));
  for (int i = 0; i < num_blocks; ++i) {  // as users grow side by side
    blocks[static_cast<size_t>(i)] = i % table * users + i / table;
  }
  for (int user = 0; user < users; ++user) {
    for (int row = 0; row < rows; ++row) positions.push_back(context + row);
    starts.push_back(static_cast<int32_t>(positions.size()));
    slots.push_back(user);
  }
  const Batch batch{.tokens = positions, .positions = positions, .starts = starts, .slots = slots, .tables = blocks,
                    .groups = 1, .all_slots = users, .table = table, .rows = {}, .sampling = {}, .inputs = {}};
  for (const auto& model : kModels) {
    std::vector<KVCache> caches;
    caches.reserve(model.layers);
    for (int i = 0; i < model.layers; ++i) caches.emplace_back(model.kv_heads, model.head_dim, model.head_dim, 0, 0, 0);
    const KVMemory memory({&num_blocks, 1}, caches);
    for (KVCache& cache : caches) {
      for (int block = 0; block < num_blocks; ++block) {
        for (int head = 0; head < model.kv_heads; ++head) {
          for (int64_t i = 0; i < int64_t{kKvBlock} * model.head_dim; ++i) {  // numbers of 1/4 to 1/2, either sign
            cache.keys(block, head)[i] = static_cast<uint16_t>(0x3400 | (random() & 0x83ff));
            cache.values(block, head)[i] = static_cast<uint16_t>(0x3400 | (random() & 0x83ff));
          }
        }
      }
    }
    const int width = model.heads * model.head_dim;
    const Attention op{{0}, {0}, {0}, model.heads, 0.125f, 0.0f};
    std::vector<float> q(positions.size() * static_cast<size_t>(width), 0.125f), out(q.size());
    std::vector<double> times;
    const double end = now() + 0.4;
    while (times.size() < 5 || now() < end) {
      const double begin = now();
      attention.start(batch);
      const auto stride = static_cast<size_t>(width);
      const AttentionRows both{q.data(), stride, out.data(), stride};
      for (KVCache& cache : caches) attention.run(op, cache, false, both);
      times.push_back(now() - begin);
    }
    std::sort(times.begin(), times.end());
    const double seconds = times[times.size() / 4];
    const double seen = users * rows * (context + (rows + 1) / 2.0) * model.layers;
    std::printf("%-10s %8.3f ms a step  %6.1f Gmac/s  %5.1f GB/s\n", model.name, seconds * 1e3,
                2 * seen * width / seconds / 1e9, 4 * seen / rows * model.kv_heads * model.head_dim / seconds / 1e9);
  }
}
