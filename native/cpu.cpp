#include "cpu.h"

#include <iterator>

namespace corral {
namespace {

constexpr std::string_view kNames[] = {"scalar", "avx2", "avx512vnni"};

}  // namespace

bool supported(Isa isa) {
#if defined(__x86_64__)
  static const bool avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  static const bool vnni = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                           __builtin_cpu_supports("avx512vl") &&
                           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni");
  return isa == Isa::Scalar || (isa == Isa::Avx2 ? avx2 : vnni);
#else
  return isa == Isa::Scalar;
#endif
}

Isa best_isa() {
  if (supported(Isa::Avx512Vnni)) return Isa::Avx512Vnni;
  return supported(Isa::Avx2) ? Isa::Avx2 : Isa::Scalar;
}

std::string_view isa_name(Isa isa) { return kNames[static_cast<int>(isa)]; }

std::optional<Isa> isa_by_name(std::string_view name) {
  for (size_t i = 0; i < std::size(kNames); ++i) {
    if (kNames[i] == name) return static_cast<Isa>(i);
  }
  return std::nullopt;
}

}  // namespace corral
