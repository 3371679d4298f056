// Expands the scales of some blocks of a panel from halves and bytes to what the kernels multiply by.
//
// `Floats` is eight floats of an instruction set: static load_halves, load_signed and load_unsigned (from bytes), set,
// and *, - and store.
#pragma once

#include "matmul_blocks.h"

namespace corral {
namespace {

// Blocks [begin, end) of a panel with a scale a group.
template <class Floats, int Groups, bool Offset>
inline void expand_half_scales(const Matrix& matrix, const std::byte* scales, int begin, int end, BlockScales* to) {
  const Floats zero = Floats::set(static_cast<float>(matrix.zero()));
  const std::byte* at = scales + matrix.scale_bytes() * static_cast<size_t>(begin);
  for (int block = begin; block < end; ++block, ++to, at += matrix.scale_bytes()) {
    for (int group = 0; group < Groups; ++group) {
      const Floats scale = Floats::load_halves(at + 16 * group);
      scale.store(to->group[group].scale);
      const Floats offset = Offset ? Floats::load_halves(at + 16 * (Groups + group)) : -(zero * scale);
      offset.store(to->group[group].offset);
    }
  }
}

// Blocks [begin, end) with super-blocks; begin is a super-block's first.
template <class Floats, int Groups, bool Offset>
inline void expand_super_scales(const Matrix& matrix, const std::byte* scales, int begin, int end, BlockScales* to) {
  constexpr int kBlocks = kSuper / kBlock;
  const Floats zero = Floats::set(static_cast<float>(matrix.zero()));
  const std::byte* super = scales + matrix.scale_bytes() * static_cast<size_t>(begin / kBlocks);
  for (int first = begin; first < end; first += kBlocks, super += matrix.scale_bytes()) {
    const Floats super_scale = Floats::load_halves(super);
    const Floats super_offset = Offset ? Floats::load_halves(super + 16) : Floats::set(0);
    const std::byte* sub = super + (Offset ? 32 : 16);
    for (int block = 0; block < kBlocks; ++block, ++to, sub += Groups * kPanelRows * (Offset ? 2 : 1)) {
      for (int group = 0; group < Groups; ++group) {
        const Floats scale = super_scale * Floats::load_signed(sub + kPanelRows * group);
        scale.store(to->group[group].scale);
        const Floats offset =
            Offset ? super_offset * Floats::load_unsigned(sub + kPanelRows * (Groups + group)) : zero * scale;
        (-offset).store(to->group[group].offset);
      }
    }
  }
}

template <class Floats, int Groups>
inline void expand_scales(const Matrix& matrix, const std::byte* scales, int begin, int end, BlockScales* to) {
  switch (matrix.scales()) {
    case Scales::Half: return expand_half_scales<Floats, Groups, false>(matrix, scales, begin, end, to);
    case Scales::HalfOffset: return expand_half_scales<Floats, Groups, true>(matrix, scales, begin, end, to);
    case Scales::Super: return expand_super_scales<Floats, Groups, false>(matrix, scales, begin, end, to);
    case Scales::SuperOffset: return expand_super_scales<Floats, Groups, true>(matrix, scales, begin, end, to);
    case Scales::None: return;
  }
}

struct ScaleSegment {
  BlockScales block[kSegmentBlocks];
};

// Fills `to` for blocks [begin, end) of a panel, at most kSegmentBlocks of them.
template <class Floats>
inline void expand_segment_by(const Matrix& matrix, int panel, int begin, int end, ScaleSegment& to) {
  const std::byte* scales = matrix.panel_scales(panel);
  if (matrix.group() == 16) return expand_scales<Floats, 2>(matrix, scales, begin, end, to.block);
  expand_scales<Floats, 1>(matrix, scales, begin, end, to.block);
}

}  // namespace
}  // namespace corral
