// Which instruction set this processor and build can run.
#pragma once

#include <optional>
#include <string_view>

namespace corral {

// Avx2 = AVX2 + FMA + F16C, Neon = ARMv8.2 with dot products.
enum class Isa { Scalar, Avx2, Avx512Vnni, Neon };
inline constexpr Isa kIsas[] = {Isa::Scalar, Isa::Avx2, Isa::Avx512Vnni, Isa::Neon};  // slow before fast

bool supported(Isa isa);
Isa best_isa();
std::string_view isa_name(Isa isa);  // "scalar", "avx2", "avx512vnni", "neon"
std::optional<Isa> isa_by_name(std::string_view name);

}  // namespace corral
