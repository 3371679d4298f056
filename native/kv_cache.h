// Keys and values of all layers in blocks of 16 positions, half precision.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

namespace corral {

constexpr int kKvBlock = 16;  // positions of a block

// One layer's part of every block of its pool: for each kv head keys [Dk][16], then values [16][Dv]. Sixteen scores
// come from broadcasts of a query, with no sums across lanes, and what one head of a block holds lies together.
class KVCache {
 public:
  // Heads, sizes of a head's key and value, the window, and the numbers of group and pool.
  KVCache(int heads, int key, int value, int last, int group_number, int pool_number)
      : kv_heads(heads), key_size(key), value_size(value), window(last), group(group_number), pool(pool_number) {}

  uint16_t* keys(int64_t block, int head) { return memory_ + block * block_stride_ + head * head_halves(); }
  uint16_t* values(int64_t block, int head) { return keys(block, head) + int64_t{kKvBlock} * key_size; }
  // From a block to the next, with the group's other layers in between.
  int64_t block_stride() const { return block_stride_; }

  const int kv_heads, key_size, value_size;
  const int window;  // last positions that a query sees; 0 = all
  const int group;   // whose block tables say where positions lie
  const int pool;    // which the group's blocks come from

 private:
  friend class KVMemory;
  int64_t head_halves() const { return int64_t{kKvBlock} * (key_size + value_size); }

  uint16_t* memory_ = nullptr;
  int64_t block_stride_ = 0;
};

// The memory of all layers, for each pool [block][layer of a group]: a block belongs to one group at a time, and the
// layers of all groups of its pool have their places in it. It becomes resident as blocks are first written, a huge
// page at a time where the system has them; what a block holds beyond the positions written is never read as a live
// value.
class KVMemory {
 public:
  KVMemory() = default;
  // Gives each layer its place, with so many blocks in each pool; throws std::bad_alloc.
  KVMemory(std::span<const int> num_blocks, std::span<KVCache> layers);

 private:
  struct Unmap {
    size_t bytes;
    void operator()(void* memory) const;
  };
  uint16_t* map_pool(int64_t halves);

  std::vector<std::unique_ptr<void, Unmap>> pools_;
};

}  // namespace corral
