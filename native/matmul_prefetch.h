// Asks for weights before they are multiplied.
//
// The processor's own prefetching starts anew in every panel and stops at every small page, too late for a step of one
// row. So whoever reads a byte of a panel asks for one some KB further on, if need be in the next panel; with several
// tiles each asks for its share, so that memory is busy all the time.
#pragma once

#include <immintrin.h>

#include <cstddef>

namespace corral {
namespace {

constexpr size_t kAhead = 3072;
constexpr size_t kLine = 64;

// Into the second cache: the first one can ask for fewer lines at a time.
template <size_t Bytes>
inline void prefetch(const std::byte* from) {
#pragma GCC unroll 8
  for (size_t at = 0; at < Bytes; at += kLine) _mm_prefetch(reinterpret_cast<const char*>(from + at), _MM_HINT_T1);
}

// A tile's share of the codes of a segment to come, block for block.
struct Ahead {
  const std::byte* at;
  size_t step;

  // Of the tile of rows [first, first + width) of n; the segment's codes begin at `codes`.
  template <size_t BlockBytes>
  static Ahead share(const std::byte* codes, int blocks, int first, int width, int n) {
    const auto part = [n](size_t bytes, int rows) { return bytes * static_cast<size_t>(rows) / static_cast<size_t>(n); };
    return {codes + part(BlockBytes * static_cast<size_t>(blocks), first), part(BlockBytes, width)};
  }

  template <size_t BlockBytes>
  void fetch() {
    prefetch<BlockBytes>(at);
    at += step;
  }
};

}  // namespace
}  // namespace corral
