#include "qmatmul.h"

#include "matmul_blocks.h"

namespace corral {

const MatmulKernels& kernels(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::Avx512Vnni) return kAvx512VnniMatmul;
  if (isa == Isa::Avx2) return kAvx2Matmul;
#elif defined(__aarch64__)
  if (isa == Isa::Neon) return kNeonMatmul;
#endif
  static_cast<void>(isa);
  return kScalarMatmul;
}

}  // namespace corral
