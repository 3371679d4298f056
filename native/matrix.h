// A weight matrix as the kernels read it: panels of 8 rows, each contiguous.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>
#include <type_traits>

namespace corral {

constexpr int kPanelRows = 8;
constexpr int kBlock = 32;   // columns of one block
constexpr int kSuper = 256;  // columns of one super-block

// How a weight's code is stored: Un as n bits without a sign, T4 as 4 bits that number the entries of a table, S8 as a
// signed byte. F32, F16 and BF16 hold the weights themselves.
enum class Codes { U2, U3, U4, T4, U5, U6, S8, F32, F16, BF16 };

constexpr int code_bits(Codes codes) {
  constexpr int kBits[] = {2, 3, 4, 4, 5, 6, 8, 32, 16, 16};
  return kBits[static_cast<int>(codes)];
}
// Of a block of 8 rows.
constexpr size_t block_bytes(Codes codes) { return static_cast<size_t>(kBlock * kPanelRows / 8 * code_bits(codes)); }
constexpr bool is_float(Codes codes) { return codes >= Codes::F32; }
constexpr bool is_signed(Codes codes) { return codes == Codes::T4 || codes == Codes::S8; }

// body(constant<codes>) for the codes of a quantised matrix.
template <class Body>
inline auto with_codes(Codes codes, const Body& body) {
  switch (codes) {
    case Codes::U2: return body(std::integral_constant<Codes, Codes::U2>());
    case Codes::U3: return body(std::integral_constant<Codes, Codes::U3>());
    case Codes::U4: return body(std::integral_constant<Codes, Codes::U4>());
    case Codes::T4: return body(std::integral_constant<Codes, Codes::T4>());
    case Codes::U5: return body(std::integral_constant<Codes, Codes::U5>());
    case Codes::U6: return body(std::integral_constant<Codes, Codes::U6>());
    default: return body(std::integral_constant<Codes, Codes::S8>());
  }
}

// How codes become weights, for the columns of one group. A super scale or offset is multiplied by the layout's unit.
enum class Scales {
  None,          // float codes
  Half,          // scale * (code - zero)
  HalfZero,      // scale * (code - the group's zero)
  HalfOffset,    // scale * code + offset
  Super,         // super scale * sub scale * (code - zero), a super scale for 256 columns
  SuperOffset,   // super scale * sub scale * code - super offset * sub offset
  SuperNibbles,  // the same, with a sub scale and a sub offset of 4 bits each in one byte
};

constexpr bool has_offset(Scales scales) {
  return scales == Scales::HalfOffset || scales == Scales::SuperOffset || scales == Scales::SuperNibbles;
}
constexpr bool is_super(Scales scales) { return scales >= Scales::Super; }

// What all weights of a matrix have in common.
struct Layout {
  Codes codes;
  Scales scales = Scales::None;
  int group = 0;  // columns: 16 or 32
  int zero = 0;   // where there are neither zeros of groups nor offsets
  float unit = 1;
  std::array<int8_t, 16> table = {};  // of T4
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

std::optional<Codes> codes_by_name(std::string_view name);  // "u2" ... "s8", "f32", "f16", "bf16"
std::string_view codes_name(Codes codes);
std::optional<Scales> scales_by_name(std::string_view name);  // "none", "half", "half_zero" ... "super_nibbles"

// What pack() is given: some rows, row after row, as weights/groups.py has them.
struct CodedRows {
  const uint8_t* codes;       // [rows, cols]; int8 bits for S8
  const uint16_t* scale;      // half bits [rows, cols / group], or [rows, cols / 256] with super-blocks
  const uint16_t* offset;     // the same shape, for HalfOffset, SuperOffset and SuperNibbles
  const uint8_t* sub_scale;   // [rows, cols / group], with super-blocks: int8 bits, or low and high nibbles
  const uint8_t* sub_offset;  // the same shape, for SuperOffset
  const uint8_t* zero;        // the same shape, int8 bits, for HalfZero
};

// Within a panel the scales of all blocks come first, then the codes: the order in which kernels read them. A block's
// codes are 32-bit lanes of 4 columns (Order) of one row, 8 rows to a vector, 8 vectors g = 0..7. Codes of less than a
// byte are in planes, as many of these as their bits add up to, their low bits first:
//   4 bits  4 vectors: vector g in the low nibbles, vector g + 4 in the high ones
//   2 bits  2 vectors: bits 2g, 2g+1 of the first (g < 4) or of the second (g - 4)
//   1 bit   1 vector: bit g of a byte belongs to vector g
// S8 has 8 vectors; floats are column after column, 8 rows each.
// A block's scales are 8 halves a group, then 8 offsets or zeros a group; with super-blocks 8 super scales, 8 super
// offsets, then for each of the 8 blocks 8 sub scales a group and 8 sub offsets a group.
//
// A stack has a matrix of these rows and columns for each expert. Its memory is one, what is read and packed are the
// matrices that expert() views.
class Matrix {
 public:
  // Throws std::invalid_argument where the kinds and sizes do not go together. Contents are undefined until packed.
  Matrix(int rows, int cols, const Layout& layout, Order order, int experts = 1);

  int experts() const { return experts_; }
  Matrix expert(int index) const;  // shares the stack's memory
  int rows() const { return rows_; }
  int cols() const { return cols_; }
  int padded_rows() const { return panels() * kPanelRows; }
  int panels() const { return (rows_ + kPanelRows - 1) / kPanelRows; }
  int blocks() const { return cols_ / kBlock; }
  Codes codes() const { return layout_.codes; }
  Scales scales() const { return layout_.scales; }
  int group() const { return layout_.group; }
  int zero() const { return layout_.zero; }
  float unit() const { return layout_.unit; }
  const int8_t* table() const { return layout_.table.data(); }
  Order order() const { return order_; }
  bool quantised() const { return !is_float(codes()); }
  size_t bytes() const { return matrix_bytes() * static_cast<size_t>(experts_); }

  const std::byte* panel(int index) const { return data_.get() + panel_bytes_ * static_cast<size_t>(index); }
  const std::byte* panel_scales(int index) const { return panel(index); }
  const std::byte* panel_codes(int index) const { return panel(index) + codes_at_; }
  size_t block_code_bytes() const { return block_bytes(codes()); }
  size_t scale_bytes() const { return scale_bytes_; }  // scales of one block, or of one super-block

  // Packs rows [first_row, first_row + n_rows): first_row a multiple of 8, and so n_rows unless it reaches the end.
  // Padding rows become zero. Different ranges may be packed by different threads at the same time.
  void pack(int first_row, int n_rows, const CodedRows& from);
  void pack_floats(int first_row, int n_rows, const float* from);  // F16 and BF16 round to nearest even
  // The same from the matrix's own kind of floats, `stride` bytes from row to row.
  void pack_raw_floats(int first_row, int n_rows, const std::byte* from, size_t stride);

  // out = row `row` as float32 [cols], by the very operations of Groups.dequantize.
  void dequantize_row(int row, float* out) const;

  // The numbers of a group of columns, in a lane of a panel.
  struct GroupScale {
    float scale, offset;  // 0 without offsets
    int zero;
  };
  GroupScale group_scale(int panel, int lane, int group) const;
  // The whole number that a code stands for; `block` points to a block's codes.
  int value_at(const std::byte* block, int lane, int col) const;

 private:
  size_t matrix_bytes() const { return panel_bytes_ * static_cast<size_t>(panels()); }
  void check_range(int first_row, int n_rows) const;
  void pack_panel(int index, int rows, const CodedRows& from);
  void pack_scales(std::byte* to, int rows, const CodedRows& from);
  void pack_super_scales(std::byte* to, int rows, const CodedRows& from);
  GroupScale super_group_scale(int panel, int lane, int group) const;
  void dequantize_floats(const std::byte* panel, int lane, float* out) const;

  int rows_, cols_, experts_;
  Layout layout_;
  Order order_;
  size_t scale_bytes_ = 0, codes_at_ = 0, panel_bytes_;
  std::shared_ptr<std::byte> data_;
};

}  // namespace corral
