#include "kv_cache.h"

#include <sys/mman.h>

#include <new>

namespace corral {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

}  // namespace

KVMemory::KVMemory(int num_blocks, std::span<KVCache> layers) {
  int64_t stride = 0;
  for (const KVCache& layer : layers) stride += layer.kv_heads * 2 * layer.half();
  // Room to begin at a huge page's boundary.
  const size_t bytes = static_cast<size_t>(num_blocks * stride) * sizeof(uint16_t) + kHugePage;
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  memory_ = {memory, Unmap{bytes}};
  // Blocks of a sequence lie far apart: with small pages every one of them misses the TLB.
  madvise(memory, bytes, MADV_HUGEPAGE);
  auto* place = reinterpret_cast<uint16_t*>((reinterpret_cast<uintptr_t>(memory) + kHugePage - 1) & ~(kHugePage - 1));
  for (KVCache& layer : layers) {
    layer.memory_ = place;
    layer.block_stride_ = stride;
    place += layer.kv_heads * 2 * layer.half();
  }
}

void KVMemory::Unmap::operator()(void* memory) const { munmap(memory, bytes); }

}  // namespace corral
