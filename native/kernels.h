// All the kernels of one instruction set.
#pragma once

#include <string>

#include "attention.h"
#include "pointwise.h"
#include "qmatmul.h"

namespace corral {

struct Kernels {
  Isa isa;
  const MatmulKernels* matmul;
  const PointwiseKernels* pointwise;
  AttendSegment attend;
};

// "auto" is the best that this processor can run; std::invalid_argument for a name that is unknown or cannot run.
Kernels choose_kernels(const std::string& name);

}  // namespace corral
