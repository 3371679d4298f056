#include "kernels.h"

#include <stdexcept>

namespace corral {

Kernels choose_kernels(const std::string& name) {
  const std::optional<Isa> isa = name == "auto" ? best_isa() : isa_by_name(name);
  if (!isa || !supported(*isa)) throw std::invalid_argument("this processor has no kernels named '" + name + "'");
#if defined(__x86_64__)
  if (*isa == Isa::Avx2) return {*isa, &kernels(*isa), &kAvx2Pointwise, attend_segment_avx2};
  if (*isa != Isa::Scalar) return {*isa, &kernels(*isa), &kAvx2Pointwise, attend_segment_avx512};
#elif defined(__aarch64__)
  if (*isa != Isa::Scalar) return {*isa, &kernels(*isa), &kNeonPointwise, attend_segment_neon};
#endif
  return {*isa, &kernels(*isa), &kScalarPointwise, attend_segment_scalar};
}

}  // namespace corral
