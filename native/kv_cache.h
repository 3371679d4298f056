// Keys and values of all layers in blocks of 16 positions, half precision.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

namespace corral {

constexpr int kKvBlock = 16;  // positions of a block

// One layer's part of every block: for each kv head keys [D][16], then values [16][D]. Sixteen scores come from
// broadcasts of a query, with no sums across lanes, and what one head of a block holds lies together.
class KVCache {
 public:
  KVCache(int heads, int dim, int last, int number) : kv_heads(heads), head_dim(dim), window(last), group(number) {}

  uint16_t* keys(int64_t block, int head) { return memory_ + block * block_stride_ + head * 2 * half(); }
  uint16_t* values(int64_t block, int head) { return keys(block, head) + half(); }
  // From a block to the next, with the group's other layers in between.
  int64_t block_stride() const { return block_stride_; }

  const int kv_heads, head_dim;
  const int window;  // last positions that a query sees; 0 = all
  const int group;   // whose block tables say where positions lie

 private:
  friend class KVMemory;
  int64_t half() const { return int64_t{kKvBlock} * head_dim; }

  uint16_t* memory_ = nullptr;
  int64_t block_stride_ = 0;
};

// The memory of all layers, [block][layer of a group]: a block belongs to one group at a time, and all groups' layers
// have their places in it. It becomes resident as blocks are first written, a huge page at a time where the system has
// them; what a block holds beyond the positions written is never read as a live value.
class KVMemory {
 public:
  KVMemory() = default;
  // Gives each layer its place; throws std::bad_alloc.
  KVMemory(int num_blocks, std::span<KVCache> layers);

 private:
  struct Unmap {
    size_t bytes;
    void operator()(void* memory) const;
  };
  std::unique_ptr<void, Unmap> memory_{nullptr, Unmap{0}};
};

}  // namespace corral
