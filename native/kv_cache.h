// One layer's keys and values in blocks of 16 positions, half precision.
#pragma once

#include <cstddef>
#include <cstdint>

namespace corral {

constexpr int kKvBlock = 16;  // positions of a block

// Keys lie [block][kv head][D][16]: sixteen scores come from broadcasts of a query, with no sums across lanes.
// Values lie [block][kv head][16][D]. Memory becomes resident as blocks are first written; what a block holds
// beyond the positions written is never read as a live value.
class KVCache {
 public:
  KVCache(int num_blocks, int kv_heads, int head_dim, int window);
  ~KVCache();
  KVCache(KVCache&& other) noexcept;
  KVCache(const KVCache&) = delete;
  KVCache& operator=(const KVCache&) = delete;
  KVCache& operator=(KVCache&&) = delete;

  uint16_t* keys(int64_t block, int head) { return keys_ + block * block_stride() + head * head_stride(); }
  uint16_t* values(int64_t block, int head) { return keys(block, head) + values_offset_; }
  int64_t head_stride() const { return int64_t{kKvBlock} * head_dim; }
  int64_t block_stride() const { return head_stride() * kv_heads; }

  const int kv_heads, head_dim;
  const int window;  // last positions that a query sees; 0 = all

 private:
  size_t bytes_;
  int64_t values_offset_;
  uint16_t* keys_;
};

}  // namespace corral
