#include "cpu.h"

#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace corral {
namespace {

constexpr std::string_view kNames[] = {"scalar", "avx2", "avx512vnni", "neon"};

#if defined(__x86_64__)
bool has(Isa isa) {
  static const bool avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  static const bool vnni = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                           __builtin_cpu_supports("avx512vl") &&
                           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni");
  return (isa == Isa::Avx2 && avx2) || (isa == Isa::Avx512Vnni && vnni);
}
#elif defined(__aarch64__) && defined(__linux__)
bool has(Isa isa) { return isa == Isa::Neon && (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0; }
#elif defined(__aarch64__) && defined(__APPLE__)
bool has(Isa isa) { return isa == Isa::Neon; }  // every Apple processor of this kind has dot products
#else
bool has(Isa) { return false; }
#endif

}  // namespace

bool supported(Isa isa) { return isa == Isa::Scalar || has(isa); }

Isa best_isa() {
  Isa best = Isa::Scalar;
  for (Isa isa : kIsas) {
    if (supported(isa)) best = isa;
  }
  return best;
}

std::string_view isa_name(Isa isa) { return kNames[static_cast<int>(isa)]; }

std::optional<Isa> isa_by_name(std::string_view name) {
  for (Isa isa : kIsas) {
    if (isa_name(isa) == name) return isa;
  }
  return std::nullopt;
}

}  // namespace corral
