/* Force-included when mlx-c is compiled on Linux (scripts/setup.sh).
   (a) std::format from {fmt} where the C++ library has no <format> (GCC 12 and older);
   (b) the half-type accessors, which mlx-c declares on Arm only and mlx-rs needs everywhere. */
#ifdef __cplusplus
#include <string>
#include <version>
#if !__has_include(<format>)
#define FMT_HEADER_ONLY
#include <fmt/format.h>
namespace std {
using fmt::format;
}
#endif
#include "mlx/types/half_types.h"
#if !defined(__aarch64__)
#define HAS_FLOAT16
#define HAS_BFLOAT16
using mlx::core::bfloat16_t;
using mlx::core::float16_t;
#endif
#endif
