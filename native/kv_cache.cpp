#include "kv_cache.h"

#include <sys/mman.h>

#include <algorithm>
#include <map>
#include <new>

#include "huge_pages.h"

namespace corral {

KVMemory::KVMemory(std::span<const int> num_blocks, std::span<KVCache> layers) {
  std::map<int, int64_t> taken;  // halves of a block, by the layers of each group so far
  std::vector<int64_t> offsets, strides(num_blocks.size());
  for (const KVCache& layer : layers) {
    int64_t& end = taken[layer.group];
    offsets.push_back(end);
    end += layer.kv_heads * layer.head_halves();
    int64_t& stride = strides[static_cast<size_t>(layer.pool)];
    stride = std::max(stride, end);
  }
  std::vector<uint16_t*> places;
  for (size_t pool = 0; pool < strides.size(); ++pool) places.push_back(map_pool(num_blocks[pool] * strides[pool]));
  for (size_t i = 0; i < layers.size(); ++i) {
    const auto pool = static_cast<size_t>(layers[i].pool);
    layers[i].memory_ = places[pool] + offsets[i];
    layers[i].block_stride_ = strides[pool];
  }
}

uint16_t* KVMemory::map_pool(int64_t halves) {
  // Room to begin at a huge page's boundary.
  const size_t bytes = static_cast<size_t>(halves) * sizeof(uint16_t) + kHugePage;
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  pools_.push_back({memory, Unmap{bytes}});
  // Blocks of a sequence lie far apart: with small pages every one of them misses the TLB.
  advise_huge_pages(memory, bytes);
  return reinterpret_cast<uint16_t*>((reinterpret_cast<uintptr_t>(memory) + kHugePage - 1) & ~(kHugePage - 1));
}

void KVMemory::Unmap::operator()(void* memory) const { munmap(memory, bytes); }

}  // namespace corral
