#include "weight_memory.h"

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <utility>

#include "huge_pages.h"

namespace corral {
namespace {

constexpr size_t kAlignment = 64;
constexpr size_t kChunk = size_t{256} << 20;  // of address space: what is not written costs nothing

size_t round_up(size_t size, size_t unit) { return (size + unit - 1) / unit * unit; }

std::shared_ptr<std::byte> new_chunk(size_t size) {
  return {static_cast<std::byte*>(allocate_huge_pages(size)), [](std::byte* old) { std::free(old); }};
}

struct OpenChunk {
  std::mutex mutex;
  std::weak_ptr<std::byte> memory;  // its matrices alone keep it
  size_t used = 0, size = 0;
};

}  // namespace

std::shared_ptr<std::byte> allocate_weights(size_t bytes) {
  static OpenChunk open;
  const std::lock_guard lock(open.mutex);
  std::shared_ptr<std::byte> chunk = open.memory.lock();
  bytes = round_up(bytes, kAlignment);
  if (!chunk || open.size - open.used < bytes) {
    open.size = std::max(kChunk, round_up(bytes, kHugePage));
    open.used = 0;
    open.memory = chunk = new_chunk(open.size);
  }
  std::byte* begin = chunk.get() + open.used;
  open.used += bytes;
  return {std::move(chunk), begin};
}

}  // namespace corral
