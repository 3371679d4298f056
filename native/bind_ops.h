// Reads the dataclasses of models/ops.py.
#pragma once

#include <nanobind/nanobind.h>

#include "ops.h"

namespace corral {

// The struct named like the op's class, its fields read by name; std::invalid_argument if there is none, or if a field
// has another type.
Op read_op(nanobind::handle op);

}  // namespace corral
