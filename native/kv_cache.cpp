#include "kv_cache.h"

#include <sys/mman.h>

#include <algorithm>
#include <new>
#include <vector>

#include "huge_pages.h"

namespace corral {

KVMemory::KVMemory(int num_blocks, std::span<KVCache> layers) {
  std::vector<int64_t> offsets, taken{0};  // of each layer; by the layers of each group so far
  for (const KVCache& layer : layers) {
    const auto group = static_cast<size_t>(layer.group);
    taken.resize(std::max(taken.size(), group + 1));
    offsets.push_back(taken[group]);
    taken[group] += layer.kv_heads * 2 * layer.half();
  }
  const int64_t stride = *std::max_element(taken.begin(), taken.end());
  // Room to begin at a huge page's boundary.
  const size_t bytes = static_cast<size_t>(num_blocks * stride) * sizeof(uint16_t) + kHugePage;
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  memory_ = {memory, Unmap{bytes}};
  // Blocks of a sequence lie far apart: with small pages every one of them misses the TLB.
  advise_huge_pages(memory, bytes);
  auto* place = reinterpret_cast<uint16_t*>((reinterpret_cast<uintptr_t>(memory) + kHugePage - 1) & ~(kHugePage - 1));
  for (size_t i = 0; i < layers.size(); ++i) {
    layers[i].memory_ = place + offsets[i];
    layers[i].block_stride_ = stride;
  }
}

void KVMemory::Unmap::operator()(void* memory) const { munmap(memory, bytes); }

}  // namespace corral
