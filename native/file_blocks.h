// The blocks of a model file's tensors, for the types that most files have, packed without a detour over Python's arrays:
// one and a half to three times as fast.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
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

// A tensor type: its blocks as weights/formats.py decodes them, and so what its matrices' layouts must be.
struct BlockType {
  std::string_view name;
  int group;
  int cols;      // of a block; 256 are a super-block
  size_t bytes;  // of a block
  void (*decode)(const uint8_t* block, const BlockParts& to);
};

std::span<const BlockType> block_types();
const BlockType* block_type_by_name(std::string_view name);  // null: these blocks are not known here

// Fills a matrix from its rows of blocks, `stride` bytes from row to row, read once. Throws where the matrix does not
// have the type's groups.
void pack_file_blocks(Matrix& matrix, const BlockType& type, const uint8_t* from, size_t stride);

}  // namespace corral
