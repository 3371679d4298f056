// A weight matrix as the kernels read it: panels of 8 rows, each contiguous.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>

namespace corral {

constexpr int kPanelRows = 8;
constexpr int kBlock = 32;   // columns of one block
constexpr int kSuper = 256;  // columns of one super-block

// How a weight's code is stored. F32, F16 and BF16 hold the weights themselves.
enum class Codes { U4, U5, U6, S8, F32, F16, BF16 };

// How codes become weights, for the columns of one group:
enum class Scales {
  None,         // float codes
  Half,         // scale * (code - zero)
  HalfOffset,   // scale * code + offset
  Super,        // super scale * sub scale * (code - zero), a super scale for 256 columns
  SuperOffset,  // super scale * sub scale * code - super offset * sub offset
};

// Which columns of a half block of 16 share a 32-bit lane, as an instruction set's products want it.
enum class Order {
  Quads,  // lane j has columns 4j to 4j + 3, whose products are summed at once
  Pairs,  // 2j, 2j + 1 of the first 8 columns, then of the second 8: two sums, of two groups of activations
};

// The column in its block of a byte of lane `lane` of 8.
constexpr int column_of(Order order, int lane, int byte) {
  if (order == Order::Quads) return 4 * lane + byte;
  return 16 * (lane / 4) + 8 * (byte / 2) + 2 * (lane % 4) + byte % 2;
}

// Where a column of a block is found: the inverse of column_of.
struct LaneByte {
  int lane, byte;
};
constexpr LaneByte lane_byte_of(Order order, int col) {
  if (order == Order::Quads) return {col / 4, col % 4};
  return {4 * (col / 16) + col % 8 / 2, 2 * (col % 16 / 8) + col % 2};
}

bool is_float(Codes codes);
bool has_offset(Scales scales);
bool is_super(Scales scales);
std::optional<Codes> codes_by_name(std::string_view name);  // "u4" ... "s8", "f32", "f16", "bf16"
std::string_view codes_name(Codes codes);
std::optional<Scales> scales_by_name(std::string_view name);  // "half", "half_offset", "super", "super_offset"

// What pack() is given: some rows, row after row, as weights/qtensor.py's Groups has them.
struct CodedRows {
  const uint8_t* codes;       // [rows, cols]; int8 bits for S8
  const uint16_t* scale;      // half bits [rows, cols / group], or [rows, cols / 256] with super-blocks
  const uint16_t* offset;     // the same shape, for HalfOffset and SuperOffset
  const int8_t* sub_scale;    // [rows, cols / group], for Super and SuperOffset
  const uint8_t* sub_offset;  // the same shape, for SuperOffset
};

// Within a panel the scales of all blocks come first, then the codes: the order in which kernels read them. A block's
// codes are 32-bit lanes of 4 columns (Order) of one row, 8 rows to a vector, 8 vectors g = 0..7, in planes:
//   U4  4 vectors: vector g in the low nibbles, vector g + 4 in the high ones        128 bytes
//   U5  U4, then bit 4 of all codes: bit g of a byte belongs to vector g             160 bytes
//   U6  U4, then bits 4-5: bits 2g, 2g+1 of vector 0 (g < 4) or of vector 1 (g - 4)  192 bytes
//   S8  8 vectors                                                                    256 bytes
//   floats: column after column, 8 rows each
// A block's scales are 8 halves a group, then 8 offsets a group; with super-blocks 8 super scales, 8 super offsets,
// then for each of the 8 blocks 8 sub scales a group and 8 sub offsets a group.
class Matrix {
 public:
  // Throws std::invalid_argument where the kinds and sizes do not go together. Contents are undefined until packed.
  Matrix(int rows, int cols, Codes codes, Scales scales, int group, int zero, Order order);

  int rows() const { return rows_; }
  int cols() const { return cols_; }
  int padded_rows() const { return panels() * kPanelRows; }
  int panels() const { return (rows_ + kPanelRows - 1) / kPanelRows; }
  int blocks() const { return cols_ / kBlock; }
  Codes codes() const { return codes_; }
  Scales scales() const { return scales_; }
  int group() const { return group_; }
  int zero() const { return zero_; }
  Order order() const { return order_; }
  bool quantised() const { return !is_float(codes_); }
  size_t bytes() const { return panel_bytes_ * static_cast<size_t>(panels()); }

  const std::byte* panel(int index) const { return data_.get() + panel_bytes_ * static_cast<size_t>(index); }
  const std::byte* panel_scales(int index) const { return panel(index); }
  const std::byte* panel_codes(int index) const { return panel(index) + codes_at_; }
  size_t block_code_bytes() const { return block_code_bytes_; }
  size_t scale_bytes() const { return scale_bytes_; }  // scales of one block, or of one super-block

  // Packs rows [first_row, first_row + n_rows): first_row a multiple of 8, and so n_rows unless it reaches the end.
  // Padding rows become zero. Different ranges may be packed by different threads at the same time.
  void pack(int first_row, int n_rows, const CodedRows& from);
  void pack_floats(int first_row, int n_rows, const float* from);  // F16 and BF16 round to nearest even

  // out = row `row` as float32 [cols], by the very operations of Groups.dequantize.
  void dequantize_row(int row, float* out) const;

 private:
  struct GroupScale {
    float scale, offset;
  };

  void check_range(int first_row, int n_rows) const;
  void pack_panel(int index, int rows, const CodedRows& from);
  void pack_scales(std::byte* to, int rows, const CodedRows& from);
  void pack_super_scales(std::byte* to, int rows, const CodedRows& from);
  int code_at(const std::byte* block, int lane, int col) const;
  GroupScale group_scale(const std::byte* scales, int lane, int group) const;
  void dequantize_floats(const std::byte* panel, int lane, float* out) const;

  int rows_, cols_;
  Codes codes_;
  Scales scales_;
  int group_, zero_;
  Order order_;
  size_t block_code_bytes_, scale_bytes_, codes_at_, panel_bytes_;
  std::shared_ptr<std::byte> data_;
};

}  // namespace corral
