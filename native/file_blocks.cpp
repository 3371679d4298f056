// Layouts: weights/formats.py, whose decoders say what every one of these must give.
#include "file_blocks.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <vector>

namespace corral {
namespace {

uint16_t half_at(const uint8_t* from) {
  uint16_t half;
  std::memcpy(&half, from, sizeof half);
  return half;
}

// `count` bytes' low nibbles, then their high ones.
void split_nibbles(const uint8_t* from, int count, uint8_t* codes) {
  for (int i = 0; i < count; ++i) {
    codes[i] = from[i] & 15;
    codes[i + count] = static_cast<uint8_t>(from[i] >> 4);
  }
}

// The bits of a byte, each as bit 4 of one of eight codes.
void add_fifth_bits(uint8_t bits, uint8_t* codes) {
  constexpr uint64_t kEach = 0x0101010101010101u;
  const uint64_t chosen = (bits * kEach) & 0x8040201008040201u;
  uint64_t word;
  std::memcpy(&word, codes, sizeof word);
  word |= ((chosen + 0x7f * kEach) & 0x80 * kEach) >> 3;
  std::memcpy(codes, &word, sizeof word);
}

template <bool HasOffset, bool HasFifth>
void decode_flat(const uint8_t* block, const BlockParts& to) {
  *to.scale = half_at(block);
  if (HasOffset) *to.offset = half_at(block + 2);
  block += HasOffset ? 4 : 2;
  split_nibbles(block + (HasFifth ? 4 : 0), 16, to.codes);
  for (int i = 0; HasFifth && i < 4; ++i) add_fifth_bits(block[i], to.codes + 8 * i);
}

void decode_q8_0(const uint8_t* block, const BlockParts& to) {
  *to.scale = half_at(block);
  std::memcpy(to.codes, block + 2, 32);
}

// Eight 6-bit scales and minimums in 12 bytes: four of each, whose upper 2 bits belong to the last four, whose low
// 4 bits follow.
void decode_sub_scales(const uint8_t* from, const BlockParts& to) {
  for (int i = 0; i < 4; ++i) {
    to.sub_scale[i] = from[i] & 63;
    to.sub_offset[i] = from[4 + i] & 63;
    to.sub_scale[4 + i] = static_cast<uint8_t>((from[8 + i] & 15) | (from[i] >> 2 & 48));
    to.sub_offset[4 + i] = static_cast<uint8_t>(from[8 + i] >> 4 | (from[4 + i] >> 2 & 48));
  }
}

template <bool HasFifth>
void decode_k(const uint8_t* block, const BlockParts& to) {
  *to.scale = half_at(block);
  *to.offset = half_at(block + 2);
  decode_sub_scales(block + 4, to);
  const uint8_t* fifth = block + 16;
  const uint8_t* nibbles = fifth + (HasFifth ? 32 : 0);
  for (int part = 0; part < 8; part += 2) {
    uint8_t* codes = to.codes + 32 * part;
    split_nibbles(nibbles + 16 * part, 32, codes);
    for (int i = 0; HasFifth && i < 32; ++i) {
      codes[i] |= static_cast<uint8_t>((fifth[i] >> part & 1) << 4);
      codes[i + 32] |= static_cast<uint8_t>((fifth[i] >> part & 2) << 3);
    }
  }
}

void decode_q6_k(const uint8_t* block, const BlockParts& to) {
  const uint8_t *low = block, *high = block + 128;
  for (uint8_t* codes = to.codes; codes < to.codes + kSuper; codes += 128, low += 64, high += 32) {
    split_nibbles(low, 64, codes);
    for (int part = 0; part < 4; ++part) {
      for (int i = 0; i < 32; ++i) codes[32 * part + i] |= static_cast<uint8_t>((high[i] >> 2 * part & 3) << 4);
    }
  }
  std::memcpy(to.sub_scale, block + 192, 16);
  *to.scale = half_at(block + 208);
}

// Sixteen 6-bit scales, less 32, in 12 bytes: the low nibbles of 8 bytes, their high nibbles, and for each of these 16
// two bits of the last 4 bytes.
void decode_signed_scales(const uint8_t* from, uint8_t* to) {
  for (int i = 0; i < 16; ++i) {
    const int low = from[i % 8] >> i / 8 * 4 & 15, high = from[8 + i % 4] >> i / 4 * 2 & 3;
    to[i] = static_cast<uint8_t>((low | high << 4) - 32);
  }
}

void decode_q3_k(const uint8_t* block, const BlockParts& to) {
  const uint8_t *third = block, *pairs = block + 32;
  for (int part = 0; part < 8; ++part) {
    uint8_t* codes = to.codes + 32 * part;
    for (int i = 0; i < 32; ++i) {
      const int low = pairs[part / 4 * 32 + i] >> part % 4 * 2 & 3;
      codes[i] = static_cast<uint8_t>(low | (third[i] >> part & 1) << 2);
    }
  }
  decode_signed_scales(block + 96, to.sub_scale);
  *to.scale = half_at(block + 108);
}

void decode_iq4_xs(const uint8_t* block, const BlockParts& to) {
  *to.scale = half_at(block);
  const uint16_t high = half_at(block + 2);
  for (int i = 0; i < 8; ++i) {
    const int low = block[4 + i / 2] >> i % 2 * 4 & 15;
    to.sub_scale[i] = static_cast<uint8_t>((low | (high >> 2 * i & 3) << 4) - 32);
    split_nibbles(block + 8 + 16 * i, 16, to.codes + 32 * i);
  }
}

constexpr BlockType kTypes[] = {
    {"Q4_0", 32, 32, 18, decode_flat<false, false>}, {"Q4_1", 32, 32, 20, decode_flat<true, false>},
    {"Q5_0", 32, 32, 22, decode_flat<false, true>},  {"Q5_1", 32, 32, 24, decode_flat<true, true>},
    {"Q8_0", 32, 32, 34, decode_q8_0},               {"Q4_K", 32, 256, 144, decode_k<false>},
    {"Q5_K", 32, 256, 176, decode_k<true>},          {"Q6_K", 16, 256, 210, decode_q6_k},
    {"Q3_K", 16, 256, 110, decode_q3_k},             {"IQ4_NL", 32, 32, 18, decode_flat<false, false>},
    {"IQ4_XS", 32, 256, 136, decode_iq4_xs},
};

// The codes and scales of a panel's rows: small enough to stay in the first caches.
class DecodedPanel {
 public:
  DecodedPanel(const BlockType& type, int cols)
      : type_(type), cols_(static_cast<size_t>(cols)), groups_(cols_ / static_cast<size_t>(type.group)),
        blocks_(cols_ / static_cast<size_t>(type.cols)), codes_(kPanelRows * cols_), sub_scale_(kPanelRows * groups_),
        sub_offset_(kPanelRows * groups_), scale_(kPanelRows * blocks_), offset_(kPanelRows * blocks_) {}

  void decode_row(const uint8_t* from, size_t row) {
    const size_t groups = groups_ / blocks_;
    for (size_t block = row * blocks_; block < (row + 1) * blocks_; ++block, from += type_.bytes) {
      type_.decode(from, {codes_.data() + block * static_cast<size_t>(type_.cols), &scale_[block], &offset_[block],
                          &sub_scale_[block * groups], &sub_offset_[block * groups]});
    }
  }

  CodedRows rows() const {
    return {codes_.data(), scale_.data(), offset_.data(), sub_scale_.data(), sub_offset_.data(), nullptr};
  }

 private:
  const BlockType& type_;
  size_t cols_, groups_, blocks_;
  std::vector<uint8_t> codes_, sub_scale_, sub_offset_;
  std::vector<uint16_t> scale_, offset_;
};

}  // namespace

std::span<const BlockType> block_types() { return kTypes; }

const BlockType* block_type_by_name(std::string_view name) {
  const auto* found = std::find_if(std::begin(kTypes), std::end(kTypes), [&](const auto& type) { return type.name == name; });
  return found == std::end(kTypes) ? nullptr : found;
}

void pack_file_blocks(Matrix& matrix, const BlockType& type, const uint8_t* from, size_t stride) {
  if (matrix.group() != type.group || is_super(matrix.scales()) != (type.cols == kSuper)) {
    throw std::invalid_argument("a matrix with other groups than its blocks");
  }
  DecodedPanel panel(type, matrix.cols());
  for (int first = 0; first < matrix.rows(); first += kPanelRows) {
    const int count = std::min(kPanelRows, matrix.rows() - first);
    for (int row = 0; row < count; ++row, from += stride) panel.decode_row(from, static_cast<size_t>(row));
    matrix.pack(first, count, panel.rows());
  }
}

}  // namespace corral
