#include "kv_cache.h"

#include <sys/mman.h>

#include <new>

namespace corral {

KVCache::KVCache(int num_blocks, int heads, int dim, int last)
    : kv_heads(heads), head_dim(dim), window(last) {
  values_offset_ = num_blocks * block_stride();
  bytes_ = static_cast<size_t>(2 * values_offset_) * sizeof(uint16_t);
  void* memory = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  // Huge pages would make whole megabytes resident for one block.
  madvise(memory, bytes_, MADV_NOHUGEPAGE);
  keys_ = static_cast<uint16_t*>(memory);
}

KVCache::KVCache(KVCache&& other) noexcept
    : kv_heads(other.kv_heads), head_dim(other.head_dim), window(other.window), bytes_(other.bytes_),
      values_offset_(other.values_offset_), keys_(other.keys_) {
  other.keys_ = nullptr;
}

KVCache::~KVCache() {
  if (keys_ != nullptr) munmap(keys_, bytes_);
}

}  // namespace corral
