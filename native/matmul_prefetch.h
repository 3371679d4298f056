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

  template <size_t BlockBytes>
  void fetch() {
    prefetch<BlockBytes>(at);
    at += step;
  }
};

// Shares out a segment of blocks among the tiles of n rows.
template <size_t BlockBytes>
class Shares {
 public:
  Shares(const std::byte* codes, int blocks, int n)
      : codes_(codes), blocks_(static_cast<size_t>(blocks)), row_((BlockBytes << kFraction) / static_cast<size_t>(n)) {}

  // That of the tile of rows [first, first + width).
  Ahead of(int first, int width) const {
    const auto rows = [this](int count) { return row_ * static_cast<size_t>(count); };
    return {codes_ + (rows(first) * blocks_ >> kFraction), rows(width) >> kFraction};
  }

 private:
  static constexpr int kFraction = 8;  // bits: a division for each tile would take as long as a block
  const std::byte* codes_;
  size_t blocks_, row_;  // bytes of a block that fall to one row
};

}  // namespace
}  // namespace corral
