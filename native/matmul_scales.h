// Expands the scales of some blocks of a panel from halves and bytes to what the kernels multiply by.
//
// `Floats` is eight floats of an instruction set: static load_halves, load_signed and load_unsigned (from bytes),
// load_low and load_high (from nibbles), set, and *, - and store.
#pragma once

#include "matmul_blocks.h"

namespace corral {
namespace {

// Blocks [begin, end) of a panel with a scale a group.
template <class Floats, int Groups, Scales S>
inline void expand_half_scales(const Matrix& matrix, const std::byte* scales, int begin, int end, BlockScales* to) {
  const Floats zero = Floats::set(static_cast<float>(matrix.zero()));
  const std::byte* at = scales + matrix.scale_bytes() * static_cast<size_t>(begin);
  for (int block = begin; block < end; ++block, ++to, at += matrix.scale_bytes()) {
    const std::byte* second = at + 16 * Groups;
    for (int group = 0; group < Groups; ++group) {
      const Floats scale = Floats::load_halves(at + 16 * group);
      scale.store(to->group[group].scale);
      const Floats offset = S == Scales::HalfOffset ? Floats::load_halves(second + 16 * group)
                            : S == Scales::HalfZero ? -(Floats::load_signed(second + kPanelRows * group) * scale)
                                                    : -(zero * scale);
      offset.store(to->group[group].offset);
    }
  }
}

// Blocks [begin, end) with super-blocks; begin is a super-block's first.
template <class Floats, int Groups, Scales S>
inline void expand_super_scales(const Matrix& matrix, const std::byte* scales, int begin, int end, BlockScales* to) {
  constexpr int kBlocks = kSuper / kBlock, kBlockBytes = Groups * kPanelRows * (S == Scales::SuperOffset ? 2 : 1);
  const Floats zero = Floats::set(static_cast<float>(matrix.zero())), unit = Floats::set(matrix.unit());
  const std::byte* super = scales + matrix.scale_bytes() * static_cast<size_t>(begin / kBlocks);
  for (int first = begin; first < end; first += kBlocks, super += matrix.scale_bytes()) {
    const Floats super_scale = Floats::load_halves(super) * unit;
    const Floats super_offset = has_offset(S) ? Floats::load_halves(super + 16) * unit : Floats::set(0);
    const std::byte* sub = super + (has_offset(S) ? 32 : 16);
    for (int block = 0; block < kBlocks; ++block, ++to, sub += kBlockBytes) {
      for (int group = 0; group < Groups; ++group) {
        const std::byte* at = sub + kPanelRows * group;
        const bool nibbles = S == Scales::SuperNibbles;
        const Floats scale = super_scale * (nibbles ? Floats::load_low(at) : Floats::load_signed(at));
        scale.store(to->group[group].scale);
        const Floats offset = nibbles           ? super_offset * Floats::load_high(at)
                              : has_offset(S) ? super_offset * Floats::load_unsigned(at + kPanelRows * Groups)
                                                : zero * scale;
        (-offset).store(to->group[group].offset);
      }
    }
  }
}

template <class Floats, int Groups>
inline void expand_scales(const Matrix& matrix, const std::byte* scales, int begin, int end, BlockScales* to) {
  using S = Scales;
  switch (matrix.scales()) {
    case S::Half: return expand_half_scales<Floats, Groups, S::Half>(matrix, scales, begin, end, to);
    case S::HalfZero: return expand_half_scales<Floats, Groups, S::HalfZero>(matrix, scales, begin, end, to);
    case S::HalfOffset: return expand_half_scales<Floats, Groups, S::HalfOffset>(matrix, scales, begin, end, to);
    case S::Super: return expand_super_scales<Floats, Groups, S::Super>(matrix, scales, begin, end, to);
    case S::SuperOffset: return expand_super_scales<Floats, Groups, S::SuperOffset>(matrix, scales, begin, end, to);
    case S::SuperNibbles: return expand_super_scales<Floats, Groups, S::SuperNibbles>(matrix, scales, begin, end, to);
    case S::None: return;
  }
}

// What the codes of a segment of blocks are multiplied by; of T4, their table first.
struct ScaleSegment {
  BlockScales block[kSegmentBlocks];
  const int8_t* table;
};

// Fills `to` for blocks [begin, end) of a panel, at most kSegmentBlocks of them.
template <class Floats>
inline void expand_segment_by(const Matrix& matrix, int panel, int begin, int end, ScaleSegment& to) {
  const std::byte* scales = matrix.panel_scales(panel);
  to.table = matrix.table();
  if (matrix.group() == 16) return expand_scales<Floats, 2>(matrix, scales, begin, end, to.block);
  expand_scales<Floats, 1>(matrix, scales, begin, end, to.block);
}

}  // namespace
}  // namespace corral
