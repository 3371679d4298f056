// The blocks of a model file's quantised tensors, packed without a detour over Python's arrays.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "matrix.h"

namespace corral {

// Where one block's parts go, laid out as CodedRows has them.
struct BlockParts {
  uint8_t* codes;
  uint16_t* scale;
  uint16_t* offset;
  uint8_t* sub_scale;
  uint8_t* sub_offset;
};

// A tensor type, as weights/formats.py describes it.
struct BlockType {
  std::string_view name;
  Codes codes;
  Scales scales;
  int group, zero;
  int cols;      // of a block
  size_t bytes;  // of a block
  void (*decode)(const uint8_t* block, const BlockParts& to);
};

const BlockType* block_type_by_name(std::string_view name);  // null: these blocks are not known here

// A matrix of `rows` rows of blocks, one after the other, read once. Throws where the columns are not whole blocks.
Matrix pack_file_blocks(const BlockType& type, const uint8_t* from, int rows, int cols, Order order);

}  // namespace corral
