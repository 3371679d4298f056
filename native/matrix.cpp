#include "matrix.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <iterator>
#include <new>
#include <stdexcept>
#include <string>

#include "half.h"
#include "weight_memory.h"

static_assert(std::endian::native == std::endian::little, "panels are written as little-endian 32-bit lanes");

namespace corral {
namespace {

constexpr std::string_view kCodes[] = {"u4", "u5", "u6", "s8", "f32", "f16", "bf16"};
constexpr std::string_view kScales[] = {"none", "half", "half_offset", "super", "super_offset"};
constexpr size_t kCodeBytes[] = {128, 160, 192, 256};  // of a block
constexpr size_t kFloatBytes[] = {4, 2, 2};            // of a weight: F32, F16, BF16
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
size_t float_bytes(Codes codes) { return kFloatBytes[static_cast<int>(codes) - static_cast<int>(Codes::F32)]; }

// Bytes of the scales of one block, or of one super-block.
size_t scale_bytes_of(Scales scales, int group) {
  const size_t groups = kBlock / static_cast<size_t>(group);
  const size_t arrays = has_offset(scales) ? 2 : 1;
  if (is_super(scales)) return arrays * kPanelRows * (2 + groups * kSuper / kBlock);
  return arrays * groups * kPanelRows * 2;
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

uint16_t load_half(const std::byte* from) {
  uint16_t bits;
  std::memcpy(&bits, from, sizeof bits);
  return bits;
}

// Lane g of columns that lie one after the other: its bytes 0, 1 and 2, 3 are neighbours in any order.
template <Order kOrder>
uint32_t lane_of(const uint8_t* columns, int g) {
  return load_pair(columns + column_of(kOrder, g, 0)) | load_pair(columns + column_of(kOrder, g, 2)) << 16;
}

// One row's 32 codes as 8 lanes go into the row's lane of every plane of a block.
template <Order kOrder>
void pack_row_block(Codes codes, const uint8_t* row, std::byte* to) {
  if (codes == Codes::S8) {
    for (int g = 0; g < 8; ++g) store_lane(to + g * kVector, lane_of<kOrder>(row, g));
    return;
  }
  uint8_t low[kBlock / 2];  // lanes g + 4 have the columns of lanes g, but 16 on
  for (int i = 0; i < kBlock / 2; ++i) low[i] = static_cast<uint8_t>((row[i] & 15) | row[i + 16] << 4);
  for (int g = 0; g < 4; ++g) store_lane(to + g * kVector, lane_of<kOrder>(low, g));
  uint32_t high[2] = {0, 0};
  if (codes == Codes::U5) {
    for (int g = 0; g < 8; ++g) high[0] |= (lane_of<kOrder>(row, g) >> 4 & 0x01010101u) << g;
    store_lane(to + 4 * kVector, high[0]);
  } else if (codes == Codes::U6) {
    for (int g = 0; g < 8; ++g) high[g / 4] |= (lane_of<kOrder>(row, g) >> 4 & 0x03030303u) << 2 * (g % 4);
    store_lane(to + 4 * kVector, high[0]);
    store_lane(to + 5 * kVector, high[1]);
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

bool is_float(Codes codes) { return codes >= Codes::F32; }
bool has_offset(Scales scales) { return scales == Scales::HalfOffset || scales == Scales::SuperOffset; }
bool is_super(Scales scales) { return scales == Scales::Super || scales == Scales::SuperOffset; }
std::optional<Codes> codes_by_name(std::string_view name) { return by_name<Codes>(kCodes, name); }
std::string_view codes_name(Codes codes) { return kCodes[static_cast<int>(codes)]; }
std::optional<Scales> scales_by_name(std::string_view name) { return by_name<Scales>(kScales, name); }

Matrix::Matrix(int rows, int cols, Codes codes, Scales scales, int group, int zero, Order order)
    : rows_(rows), cols_(cols), codes_(codes), scales_(scales), group_(group), zero_(zero), order_(order) {
  require(rows > 0 && cols > 0 && rows <= INT32_MAX - kPanelRows, "rows and columns must be positive");
  require(is_float(codes) == (scales == Scales::None), "float codes have no scales, all others do");
  size_t codes_size;
  if (is_float(codes)) {
    block_code_bytes_ = scale_bytes_ = codes_at_ = 0;
    codes_size = static_cast<size_t>(cols) * kPanelRows * float_bytes(codes);
  } else {
    require(group == 16 || group == 32, "a group is 16 or 32 columns");
    require(cols % (is_super(scales) ? kSuper : kBlock) == 0, "columns must fill whole blocks");
    require(zero >= 0 && zero <= 127 && (zero == 0 || !has_offset(scales)), "the zero point");
    block_code_bytes_ = kCodeBytes[static_cast<int>(codes)];
    scale_bytes_ = scale_bytes_of(scales, group);
    codes_at_ = aligned(scale_bytes_ * static_cast<size_t>(cols / (is_super(scales) ? kSuper : kBlock)));
    codes_size = block_code_bytes_ * static_cast<size_t>(blocks());
  }
  panel_bytes_ = codes_at_ + aligned(codes_size);
  if (static_cast<size_t>(panels()) > SIZE_MAX / 2 / panel_bytes_) throw std::bad_alloc();
  data_ = allocate_weights(bytes());
}

void Matrix::check_range(int first_row, int n_rows) const {
  require(first_row >= 0 && n_rows >= 0 && first_row <= rows_ - n_rows, "no such rows");
  require(first_row % kPanelRows == 0, "packing begins at a multiple of 8 rows");
  require(n_rows % kPanelRows == 0 || first_row + n_rows == rows_, "packing ends at a multiple of 8 rows");
}

void Matrix::pack(int first_row, int n_rows, const CodedRows& from) {
  require(quantised(), "codes for a float matrix");
  check_range(first_row, n_rows);
  require(from.codes && from.scale && (!has_offset(scales_) || from.offset), "missing codes, scales or offsets");
  require(!is_super(scales_) || (from.sub_scale && (!has_offset(scales_) || from.sub_offset)), "missing sub scales");
  const size_t cols = static_cast<size_t>(cols_);
  const size_t groups = cols / static_cast<size_t>(group_);
  const size_t scales = is_super(scales_) ? cols / kSuper : groups;
  const auto step = [](auto* array, size_t count) { return array ? array + count : array; };
  CodedRows rest = from;
  for (int row = 0; row < n_rows; row += kPanelRows) {
    pack_panel((first_row + row) / kPanelRows, std::min(kPanelRows, n_rows - row), rest);
    rest.codes += kPanelRows * cols;
    rest.scale += kPanelRows * scales;
    rest.offset = step(rest.offset, kPanelRows * scales);
    rest.sub_scale = step(rest.sub_scale, kPanelRows * groups);
    rest.sub_offset = step(rest.sub_offset, kPanelRows * groups);
  }
}

void Matrix::pack_panel(int index, int rows, const CodedRows& from) {
  std::byte* panel = data_.get() + panel_bytes_ * static_cast<size_t>(index);
  if (rows < kPanelRows) std::memset(panel, 0, panel_bytes_);
  const auto pack_block = order_ == Order::Quads ? pack_row_block<Order::Quads> : pack_row_block<Order::Pairs>;
  for (int row = 0; row < rows; ++row) {
    const uint8_t* codes = from.codes + static_cast<size_t>(row) * static_cast<size_t>(cols_);
    std::byte* to = panel + codes_at_ + 4 * row;
    for (int b = 0; b < blocks(); ++b, codes += kBlock, to += block_code_bytes_) pack_block(codes_, codes, to);
  }
  is_super(scales_) ? pack_super_scales(panel, rows, from) : pack_scales(panel, rows, from);
}

void Matrix::pack_scales(std::byte* to, int rows, const CodedRows& from) {
  const int groups = kBlock / group_;
  const size_t stride = static_cast<size_t>(cols_ / group_);
  for (int column = 0; column < cols_ / group_; column += groups) {
    to = interleave(to, from.scale + column, stride, groups, rows);
    if (has_offset(scales_)) to = interleave(to, from.offset + column, stride, groups, rows);
  }
}

void Matrix::pack_super_scales(std::byte* to, int rows, const CodedRows& from) {
  const int groups = kBlock / group_;
  const size_t supers = static_cast<size_t>(cols_ / kSuper);
  const size_t stride = static_cast<size_t>(cols_ / group_);
  for (size_t super = 0; super < supers; ++super) {
    to = interleave(to, from.scale + super, supers, 1, rows);
    if (has_offset(scales_)) to = interleave(to, from.offset + super, supers, 1, rows);
    for (int block = 0; block < kSuper / kBlock; ++block) {
      const size_t column = super * (kSuper / static_cast<size_t>(group_)) + static_cast<size_t>(block * groups);
      to = interleave(to, from.sub_scale + column, stride, groups, rows);
      if (has_offset(scales_)) to = interleave(to, from.sub_offset + column, stride, groups, rows);
    }
  }
}

void Matrix::pack_floats(int first_row, int n_rows, const float* from) {
  require(!quantised(), "floats for a quantised matrix");
  check_range(first_row, n_rows);
  const size_t size = float_bytes(codes_);
  for (int row = 0; row < n_rows; ++row, from += cols_) {
    std::byte* panel = data_.get() + panel_bytes_ * static_cast<size_t>((first_row + row) / kPanelRows);
    const int lane = row % kPanelRows;
    if (lane == 0 && n_rows - row < kPanelRows) std::memset(panel, 0, panel_bytes_);
    std::byte* to = panel + size * static_cast<size_t>(lane);
    for (int col = 0; col < cols_; ++col, to += size * kPanelRows) {
      const uint16_t half = codes_ == Codes::F16 ? float_to_half(from[col]) : float_to_bf16(from[col]);
      codes_ == Codes::F32 ? std::memcpy(to, from + col, 4) : std::memcpy(to, &half, 2);
    }
  }
}

int Matrix::code_at(const std::byte* block, int lane, int col) const {
  const auto [g, at] = lane_byte_of(order_, col);
  const std::byte* byte = block + 4 * lane + at;
  if (codes_ == Codes::S8) return static_cast<int8_t>(byte[g * kVector]);
  int code = static_cast<int>(byte[g % 4 * kVector]) >> (g < 4 ? 0 : 4) & 15;
  if (codes_ == Codes::U5) code |= (static_cast<int>(byte[4 * kVector]) >> g & 1) << 4;
  if (codes_ == Codes::U6) code |= (static_cast<int>(byte[(4 + g / 4) * kVector]) >> 2 * (g % 4) & 3) << 4;
  return code;
}

Matrix::GroupScale Matrix::group_scale(const std::byte* scales, int lane, int group) const {
  const int groups = kBlock / group_;
  const auto half = [lane](const std::byte* halves) { return half_to_float(load_half(halves + 2 * lane)); };
  const bool offset = has_offset(scales_);
  if (!is_super(scales_)) {
    scales += scale_bytes_ * static_cast<size_t>(group / groups) + 16 * static_cast<size_t>(group % groups);
    return {half(scales), offset ? half(scales + 16 * groups) : 0.0f};
  }
  const int in_super = group % (kSuper / group_);
  scales += scale_bytes_ * static_cast<size_t>(group / (kSuper / group_));
  const std::byte* sub = scales + (offset ? 32 : 16) + in_super / groups * groups * kPanelRows * (offset ? 2 : 1) +
                         in_super % groups * kPanelRows + lane;
  const float scale = half(scales) * static_cast<float>(static_cast<int8_t>(*sub));
  if (!offset) return {scale, 0.0f};
  return {scale, -half(scales + 16) * static_cast<float>(static_cast<uint8_t>(sub[groups * kPanelRows]))};
}

void Matrix::dequantize_row(int row, float* out) const {
  require(row >= 0 && row < rows_, "no such row");
  const std::byte* data = panel(row / kPanelRows);
  const int lane = row % kPanelRows;
  if (!quantised()) return dequantize_floats(data, lane, out);
  for (int group = 0; group < cols_ / group_; ++group) {
    const GroupScale by = group_scale(data, lane, group);
    for (int col = group * group_; col < (group + 1) * group_; ++col) {
      const std::byte* block = data + codes_at_ + block_code_bytes_ * static_cast<size_t>(col / kBlock);
      const float weight = static_cast<float>(code_at(block, lane, col % kBlock) - zero_) * by.scale;
      out[col] = has_offset(scales_) ? weight + by.offset : weight;
    }
  }
}

void Matrix::dequantize_floats(const std::byte* panel, int lane, float* out) const {
  const size_t size = float_bytes(codes_);
  const std::byte* from = panel + size * static_cast<size_t>(lane);
  for (int col = 0; col < cols_; ++col, from += size * kPanelRows) {
    if (codes_ == Codes::F32) std::memcpy(out + col, from, 4);
    if (codes_ == Codes::F16) out[col] = half_to_float(load_half(from));
    if (codes_ == Codes::BF16) out[col] = std::bit_cast<float>(static_cast<uint32_t>(load_half(from)) << 16);
  }
}

}  // namespace corral
