#include "matrix.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <iterator>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "half.h"
#include "weight_memory.h"

static_assert(std::endian::native == std::endian::little, "panels are written as little-endian 32-bit lanes");

namespace corral {
namespace {

constexpr std::string_view kCodes[] = {"u2", "u3", "u4", "t4", "u5", "u6", "s8", "f32", "f16", "bf16"};
constexpr std::string_view kScales[] = {"none",  "half",         "half_zero",    "half_offset",
                                        "super", "super_offset", "super_nibbles"};
constexpr size_t kAlignment = 64;
constexpr size_t kVector = 32;  // bytes: 4 columns of 8 rows

template <class Kind, size_t N>
std::optional<Kind> by_name(const std::string_view (&names)[N], std::string_view name) {
  const auto* found = std::find(std::begin(names), std::end(names), name);
  if (found == std::end(names)) return std::nullopt;
  return static_cast<Kind>(found - std::begin(names));
}

void require(bool condition, const char* what) {
  if (!condition) throw std::invalid_argument(std::string("wrong matrix: ") + what);
}

size_t aligned(size_t size) { return (size + kAlignment - 1) / kAlignment * kAlignment; }
size_t float_bytes(Codes codes) { return static_cast<size_t>(code_bits(codes)) / 8; }

// Bytes of the sub scales and offsets of one group of 8 rows.
size_t sub_bytes_of(Scales scales) { return scales == Scales::SuperOffset ? 2 * kPanelRows : kPanelRows; }

// Bytes of the scales of one block, or of one super-block.
size_t scale_bytes_of(Scales scales, int group) {
  const size_t groups = kBlock / static_cast<size_t>(group);
  const size_t supers = has_offset(scales) ? 2 : 1;
  if (is_super(scales)) return supers * 2 * kPanelRows + groups * kSuper / kBlock * sub_bytes_of(scales);
  const size_t group_bytes[] = {2, 3, 4};  // Half, HalfZero, HalfOffset
  return groups * kPanelRows * group_bytes[static_cast<int>(scales) - static_cast<int>(Scales::Half)];
}

uint16_t float_to_bf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>(bits >> 16 | 0x40u);  // stays a NaN
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

uint32_t load_pair(const uint8_t* from) {
  uint16_t pair;
  std::memcpy(&pair, from, sizeof pair);
  return pair;
}

void store_lane(std::byte* to, uint32_t lane) { std::memcpy(to, &lane, sizeof lane); }

uint16_t load_bits(const std::byte* from) {
  uint16_t bits;
  std::memcpy(&bits, from, sizeof bits);
  return bits;
}

float load_half(const std::byte* from) { return half_to_float(load_bits(from)); }

// Lane g of columns that lie one after the other: its bytes 0, 1 and 2, 3 are neighbours in any order.
template <Order kOrder>
uint32_t lane_of(const uint8_t* columns, int g) {
  return load_pair(columns + column_of(kOrder, g, 0)) | load_pair(columns + column_of(kOrder, g, 2)) << 16;
}

// One row's 32 codes as 8 lanes go into the row's lane of every plane of a block.
template <Codes C, Order kOrder>
void pack_row_block(const uint8_t* row, std::byte* to) {
  constexpr int kBits = code_bits(C), kLow = kBits & 4;
  if constexpr (C == Codes::S8) {
    for (int g = 0; g < 8; ++g) store_lane(to + g * kVector, lane_of<kOrder>(row, g));
    return;
  }
  if constexpr (kBits & 4) {
    uint8_t low[kBlock / 2];  // lanes g + 4 have the columns of lanes g, but 16 on
    for (int i = 0; i < kBlock / 2; ++i) low[i] = static_cast<uint8_t>((row[i] & 15) | row[i + 16] << 4);
    for (int g = 0; g < 4; ++g) store_lane(to + g * kVector, lane_of<kOrder>(low, g));
  }
  if constexpr (kBits & 2) {
    uint32_t pairs[2] = {0, 0};
    for (int g = 0; g < 8; ++g) pairs[g / 4] |= (lane_of<kOrder>(row, g) >> kLow & 0x03030303u) << 2 * (g % 4);
    for (int half = 0; half < 2; ++half) store_lane(to + (kLow + half) * kVector, pairs[half]);
  }
  if constexpr (kBits & 1) {
    uint32_t single = 0;
    for (int g = 0; g < 8; ++g) single |= (lane_of<kOrder>(row, g) >> (kBits - 1) & 0x01010101u) << g;
    store_lane(to + (kBits - 1) * kVector, single);
  }
}

auto pack_row_block_of(Codes codes, Order order) {
  return with_codes(codes, [&]<Codes C>(std::integral_constant<Codes, C>) {
    return order == Order::Quads ? pack_row_block<C, Order::Quads> : pack_row_block<C, Order::Pairs>;
  });
}

// Up to 8 rows of floats, `stride` bytes apart, become columns of 8; rows that are not there become zero.
template <class Bits>
void transpose(const std::byte* from, size_t stride, int rows, int cols, std::byte* to) {
  constexpr int kTile = 8;
  for (int col = 0; col < cols; col += kTile) {
    const int count = std::min(kTile, cols - col);
    Bits tile[kPanelRows][kTile] = {}, column[kPanelRows];
    for (int row = 0; row < rows; ++row) {
      const std::byte* at = from + stride * static_cast<size_t>(row) + sizeof(Bits) * static_cast<size_t>(col);
      std::memcpy(tile[row], at, sizeof(Bits) * static_cast<size_t>(count));
    }
    for (int i = 0; i < count; ++i, to += sizeof column) {
      for (int row = 0; row < kPanelRows; ++row) column[row] = tile[row][i];
      std::memcpy(to, column, sizeof column);
    }
  }
}

// [rows][columns of the matrix's scales] -> [column][8 rows]; rows that are not there become zero.
template <class Scale>
std::byte* interleave(std::byte* to, const Scale* from, size_t stride, int columns, int rows) {
  for (int column = 0; column < columns; ++column) {
    Scale lanes[kPanelRows] = {};
    for (int row = 0; row < rows; ++row) lanes[row] = from[static_cast<size_t>(row) * stride + static_cast<size_t>(column)];
    std::memcpy(to, lanes, sizeof lanes);
    to += sizeof lanes;
  }
  return to;
}

}  // namespace

std::optional<Codes> codes_by_name(std::string_view name) { return by_name<Codes>(kCodes, name); }
std::string_view codes_name(Codes codes) { return kCodes[static_cast<int>(codes)]; }
std::optional<Scales> scales_by_name(std::string_view name) { return by_name<Scales>(kScales, name); }

Matrix::Matrix(int rows, int cols, const Layout& layout, Order order, int experts)
    : rows_(rows), cols_(cols), experts_(experts), layout_(layout), order_(order) {
  require(rows > 0 && cols > 0 && rows <= INT32_MAX - kPanelRows, "rows and columns must be positive");
  require(experts > 0, "experts must be positive");
  require(is_float(codes()) == (scales() == Scales::None), "float codes have no scales, all others do");
  size_t codes_size = static_cast<size_t>(cols) * kPanelRows * static_cast<size_t>(code_bits(codes())) / 8;
  if (quantised()) {
    const int unit_cols = is_super(scales()) ? kSuper : kBlock;
    require(group() == 16 || group() == 32, "a group is 16 or 32 columns");
    require(cols % unit_cols == 0, "columns must fill whole blocks");
    const bool one_zero = scales() == Scales::Half || scales() == Scales::Super;
    require(zero() >= -128 && zero() <= 128 && (zero() == 0 || one_zero), "the zero point");
    require(unit() == 1 || is_super(scales()), "a unit is for super scales");
    scale_bytes_ = scale_bytes_of(scales(), group());
    codes_at_ = aligned(scale_bytes_ * static_cast<size_t>(cols / unit_cols));
  }
  panel_bytes_ = codes_at_ + aligned(codes_size);
  if (static_cast<size_t>(panels()) > SIZE_MAX / 2 / static_cast<size_t>(experts) / panel_bytes_) throw std::bad_alloc();
  data_ = allocate_weights(bytes());
}

Matrix Matrix::expert(int index) const {
  require(index >= 0 && index < experts_, "no such expert");
  Matrix one = *this;
  one.experts_ = 1;
  one.data_ = {data_, data_.get() + matrix_bytes() * static_cast<size_t>(index)};
  return one;
}

void Matrix::check_range(int first_row, int n_rows) const {
  require(experts_ == 1, "a stack is packed expert by expert");
  require(first_row >= 0 && n_rows >= 0 && first_row <= rows_ - n_rows, "no such rows");
  require(first_row % kPanelRows == 0, "packing begins at a multiple of 8 rows");
  require(n_rows % kPanelRows == 0 || first_row + n_rows == rows_, "packing ends at a multiple of 8 rows");
}

void Matrix::pack(int first_row, int n_rows, const CodedRows& from) {
  require(quantised(), "codes for a float matrix");
  check_range(first_row, n_rows);
  require(from.codes && from.scale && (!has_offset(scales()) || from.offset), "missing codes, scales or offsets");
  require(!is_super(scales()) || from.sub_scale, "missing sub scales");
  require(scales() != Scales::SuperOffset || from.sub_offset, "missing sub offsets");
  require(scales() != Scales::HalfZero || from.zero, "missing zeros");
  const size_t cols = static_cast<size_t>(cols_);
  const size_t groups = cols / static_cast<size_t>(group());
  const size_t scales = is_super(this->scales()) ? cols / kSuper : groups;
  const auto step = [](auto* array, size_t count) { return array ? array + count : array; };
  CodedRows rest = from;
  for (int row = 0; row < n_rows; row += kPanelRows) {
    pack_panel((first_row + row) / kPanelRows, std::min(kPanelRows, n_rows - row), rest);
    rest.codes += kPanelRows * cols;
    rest.scale += kPanelRows * scales;
    rest.offset = step(rest.offset, kPanelRows * scales);
    rest.sub_scale = step(rest.sub_scale, kPanelRows * groups);
    rest.sub_offset = step(rest.sub_offset, kPanelRows * groups);
    rest.zero = step(rest.zero, kPanelRows * groups);
  }
}

void Matrix::pack_panel(int index, int rows, const CodedRows& from) {
  std::byte* panel = data_.get() + panel_bytes_ * static_cast<size_t>(index);
  if (rows < kPanelRows) std::memset(panel, 0, panel_bytes_);
  const size_t block_size = block_code_bytes();
  const auto pack_block = pack_row_block_of(codes(), order_);
  for (int row = 0; row < rows; ++row) {
    const uint8_t* codes = from.codes + static_cast<size_t>(row) * static_cast<size_t>(cols_);
    std::byte* to = panel + codes_at_ + 4 * row;
    for (int b = 0; b < blocks(); ++b, codes += kBlock, to += block_size) pack_block(codes, to);
  }
  is_super(scales()) ? pack_super_scales(panel, rows, from) : pack_scales(panel, rows, from);
}

void Matrix::pack_scales(std::byte* to, int rows, const CodedRows& from) {
  const int groups = kBlock / group();
  const size_t stride = static_cast<size_t>(cols_ / group());
  for (int column = 0; column < cols_ / group(); column += groups) {
    to = interleave(to, from.scale + column, stride, groups, rows);
    if (scales() == Scales::HalfOffset) to = interleave(to, from.offset + column, stride, groups, rows);
    if (scales() == Scales::HalfZero) to = interleave(to, from.zero + column, stride, groups, rows);
  }
}

void Matrix::pack_super_scales(std::byte* to, int rows, const CodedRows& from) {
  const int groups = kBlock / group();
  const size_t supers = static_cast<size_t>(cols_ / kSuper);
  const size_t stride = static_cast<size_t>(cols_ / group());
  for (size_t super = 0; super < supers; ++super) {
    to = interleave(to, from.scale + super, supers, 1, rows);
    if (has_offset(scales())) to = interleave(to, from.offset + super, supers, 1, rows);
    for (int block = 0; block < kSuper / kBlock; ++block) {
      const size_t column = super * (kSuper / static_cast<size_t>(group())) + static_cast<size_t>(block * groups);
      to = interleave(to, from.sub_scale + column, stride, groups, rows);
      if (scales() == Scales::SuperOffset) to = interleave(to, from.sub_offset + column, stride, groups, rows);
    }
  }
}

void Matrix::pack_floats(int first_row, int n_rows, const float* from) {
  const size_t row_bytes = static_cast<size_t>(cols_) * float_bytes(codes());
  if (codes() == Codes::F32) return pack_raw_floats(first_row, n_rows, reinterpret_cast<const std::byte*>(from), row_bytes);
  std::vector<uint16_t> rounded(static_cast<size_t>(cols_) * static_cast<size_t>(n_rows));
  const auto round = codes() == Codes::F16 ? float_to_half : float_to_bf16;
  std::transform(from, from + rounded.size(), rounded.begin(), round);
  pack_raw_floats(first_row, n_rows, reinterpret_cast<const std::byte*>(rounded.data()), row_bytes);
}

void Matrix::pack_raw_floats(int first_row, int n_rows, const std::byte* from, size_t stride) {
  require(!quantised(), "floats for a quantised matrix");
  check_range(first_row, n_rows);
  for (int row = 0; row < n_rows; row += kPanelRows, from += kPanelRows * stride) {
    std::byte* panel = data_.get() + panel_bytes_ * static_cast<size_t>((first_row + row) / kPanelRows);
    const int rows = std::min(kPanelRows, n_rows - row);
    codes() == Codes::F32 ? transpose<uint32_t>(from, stride, rows, cols_, panel)
                          : transpose<uint16_t>(from, stride, rows, cols_, panel);
  }
}

int Matrix::value_at(const std::byte* block, int lane, int col) const {
  const auto [g, byte] = lane_byte_of(order_, col);
  const std::byte* at = block + 4 * lane + byte;
  const int bits = code_bits(codes());
  if (bits == 8) return static_cast<int8_t>(at[g * kVector]);
  int code = 0, shift = 0;
  const auto add = [&](int count, size_t vector, int first) {
    code |= (static_cast<int>(at[vector * kVector]) >> first & ((1 << count) - 1)) << shift;
    shift += count;
  };
  if (bits & 4) add(4, static_cast<size_t>(g % 4), 4 * (g / 4));
  if (bits & 2) add(2, static_cast<size_t>(shift + g / 4), 2 * (g % 4));
  if (bits & 1) add(1, static_cast<size_t>(shift), g);
  return codes() == Codes::T4 ? table()[code] : code;
}

Matrix::GroupScale Matrix::group_scale(int panel, int lane, int group) const {
  if (is_super(scales())) return super_group_scale(panel, lane, group);
  const int groups = kBlock / this->group(), at = group % groups;
  const std::byte* scale = panel_scales(panel) + scale_bytes_ * static_cast<size_t>(group / groups);
  const std::byte* second = scale + 2 * kPanelRows * groups;
  GroupScale by{load_half(scale + 16 * at + 2 * lane), 0, zero()};
  if (scales() == Scales::HalfOffset) by.offset = load_half(second + 16 * at + 2 * lane);
  if (scales() == Scales::HalfZero) by.zero = static_cast<int8_t>(second[kPanelRows * at + lane]);
  return by;
}

Matrix::GroupScale Matrix::super_group_scale(int panel, int lane, int group) const {
  const int groups = kBlock / this->group(), supers = kSuper / this->group(), block = group % supers / groups;
  const std::byte* super = panel_scales(panel) + scale_bytes_ * static_cast<size_t>(group / supers);
  const std::byte* sub = super + (has_offset(scales()) ? 32 : 16) +
                         sub_bytes_of(scales()) * static_cast<size_t>(block * groups) + group % groups * kPanelRows + lane;
  const float scale = load_half(super + 2 * lane) * unit();
  const int sub_scale = static_cast<int8_t>(*sub);
  if (!has_offset(scales())) return {scale * static_cast<float>(sub_scale), 0, zero()};
  const float offset = load_half(super + 2 * (kPanelRows + lane)) * unit();
  const int nibbles = static_cast<uint8_t>(*sub);
  if (scales() == Scales::SuperNibbles) {
    return {scale * static_cast<float>(nibbles & 15), -offset * static_cast<float>(nibbles >> 4), 0};
  }
  const int sub_offset = static_cast<uint8_t>(sub[groups * kPanelRows]);
  return {scale * static_cast<float>(sub_scale), -offset * static_cast<float>(sub_offset), 0};
}

void Matrix::dequantize_row(int row, float* out) const {
  require(row >= 0 && row < rows_, "no such row");
  const int panel = row / kPanelRows, lane = row % kPanelRows;
  if (!quantised()) return dequantize_floats(this->panel(panel), lane, out);
  for (int group = 0; group < cols_ / this->group(); ++group) {
    const GroupScale by = group_scale(panel, lane, group);
    for (int col = group * this->group(); col < (group + 1) * this->group(); ++col) {
      const std::byte* block = panel_codes(panel) + block_code_bytes() * static_cast<size_t>(col / kBlock);
      const float weight = static_cast<float>(value_at(block, lane, col % kBlock) - by.zero) * by.scale;
      out[col] = has_offset(scales()) ? weight + by.offset : weight;
    }
  }
}

void Matrix::dequantize_floats(const std::byte* panel, int lane, float* out) const {
  const size_t size = float_bytes(codes());
  const std::byte* from = panel + size * static_cast<size_t>(lane);
  for (int col = 0; col < cols_; ++col, from += size * kPanelRows) {
    if (codes() == Codes::F32) std::memcpy(out + col, from, 4);
    if (codes() == Codes::F16) out[col] = load_half(from);
    if (codes() == Codes::BF16) out[col] = std::bit_cast<float>(static_cast<uint32_t>(load_bits(from)) << 16);
  }
}

}  // namespace corral
