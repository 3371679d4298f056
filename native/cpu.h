// Which instruction set this processor and build can run.
#pragma once

#include <optional>
#include <string_view>

namespace corral {

enum class Isa { Scalar, Avx2, Avx512Vnni };  // Avx2 = AVX2 + FMA + F16C; each is a superset of the one before

bool supported(Isa isa);
Isa best_isa();
std::string_view isa_name(Isa isa);  // "scalar", "avx2", "avx512vnni"
std::optional<Isa> isa_by_name(std::string_view name);

}  // namespace corral
