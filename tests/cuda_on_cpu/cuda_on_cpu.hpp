// The CUDA names that kernels/*.cu use, in plain C++: put before a kernel's source and compiled by g++ with
// -fsanitize=thread, whose hooks machine.cpp answers itself. Every load and store of a kernel passes there.

#pragma once
#define CUDA_ON_CPU

#include <cmath>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __restrict__ __restrict
#define __align__(n) __attribute__((aligned(n)))
// Blocks run one after another, so that a static variable is as good as a block's own; the section names the
// range
#define __shared__ static __attribute__((section("cuda_shared")))
#define DYNAMIC_SHARED(type, name) type* const name = static_cast<type*>(machine::dynamic_shared())

struct uint3 {
  unsigned x, y, z;
};
struct alignas(8) int2 {
  int x, y;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) double2 {
  double x, y;
};
struct alignas(16) longlong2 {
  long long x, y;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

namespace machine {
struct Place {  // where in the source a thread waits
  int line;
};
uint3 thread_index();
uint3 block_index();
uint3 block_size();
uint3 grid_size();
void* dynamic_shared();
void block_barrier(int* counted, int line);  // counted: how many came with a predicate, or null
void warp_barrier(unsigned mask, int line);
// Lane by lane what all 32 lanes, who must come to this line, gave
void exchange_all(unsigned mask, uint64_t value, uint64_t* values, int line);
// An atomic read and write of `size` bytes: checked, and no race with other atomics
void atomic(void* address, int size);
}  // namespace machine

#define threadIdx (machine::thread_index())
#define blockIdx (machine::block_index())
#define blockDim (machine::block_size())
#define gridDim (machine::grid_size())
// The last parameter of what makes a thread wait
#define HERE machine::Place at = {__builtin_LINE()}
inline void __syncthreads(HERE) { machine::block_barrier(nullptr, at.line); }
inline int __syncthreads_count(int predicate, HERE) {
  int counted = predicate != 0;
  machine::block_barrier(&counted, at.line);
  return counted;
}
inline int __syncthreads_or(int predicate, HERE) { return __syncthreads_count(predicate, at) > 0; }
inline void __syncwarp(unsigned mask = 0xffffffffu, HERE) { machine::warp_barrier(mask, at.line); }

namespace machine {
template <typename T>
uint64_t pack(T value) {
  static_assert(sizeof(T) <= 8);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return bits;
}
template <typename T>
T unpack(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}
inline int lane() {
  const uint3 t = thread_index(), n = block_size();
  return static_cast<int>((t.x + n.x * (t.y + n.y * t.z)) % 32);
}
// What lane `source` gives; out of the warp, a lane's own
template <typename T>
T shuffle(unsigned mask, T value, int source, Place at) {
  uint64_t values[32];
  exchange_all(mask, pack(value), values, at.line);
  return source < 0 || source > 31 ? value : unpack<T>(values[source]);
}
}  // namespace machine

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, HERE) {
  return machine::shuffle(mask, value, source & 31, at);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, HERE) {
  return machine::shuffle(mask, value, machine::lane() - static_cast<int>(delta), at);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, HERE) {
  return machine::shuffle(mask, value, machine::lane() + static_cast<int>(delta), at);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits, HERE) {
  return machine::shuffle(mask, value, machine::lane() ^ bits, at);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, HERE) {
  uint64_t votes[32];
  machine::exchange_all(mask, predicate != 0, votes, at.line);
  unsigned ballot = 0;
  for (int lane = 0; lane < 32; lane++) ballot |= static_cast<unsigned>(votes[lane]) << lane;
  return ballot;
}
inline int __any_sync(unsigned mask, int predicate, HERE) { return __ballot_sync(mask, predicate, at) != 0; }
inline int __all_sync(unsigned mask, int predicate, HERE) {
  return __ballot_sync(mask, predicate, at) == mask;
}
template <typename T>
unsigned __match_any_sync(unsigned mask, T value, HERE) {
  uint64_t values[32];
  machine::exchange_all(mask, machine::pack(value), values, at.line);
  unsigned same = 0;
  for (int lane = 0; lane < 32; lane++) same |= unsigned(values[lane] == machine::pack(value)) << lane;
  return same;
}

template <typename T>
__attribute__((no_sanitize("thread"))) T atomicAdd(T* address, T value) {
  machine::atomic(address, sizeof(T));
  const T old = *address;
  *address = old + value;
  return old;
}

template <typename A, typename B>
constexpr auto min(A a, B b) -> std::common_type_t<A, B> {
  return a < b ? a : b;
}
template <typename A, typename B>
constexpr auto max(A a, B b) -> std::common_type_t<A, B> {
  return a > b ? a : b;
}
inline float __uint_as_float(unsigned bits) { return machine::unpack<float>(bits); }
inline unsigned __float_as_uint(float value) { return static_cast<unsigned>(machine::pack(value)); }
inline float __int_as_float(int bits) { return __uint_as_float(static_cast<unsigned>(bits)); }
inline int __float_as_int(float value) { return static_cast<int>(__float_as_uint(value)); }
inline int __ffs(int value) { return __builtin_ffs(value); }
inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
  const uint64_t bytes = static_cast<uint64_t>(high) << 32 | low;
  unsigned picked = 0;
  for (int i = 0; i < 4; i++) {
    picked |= static_cast<unsigned>(bytes >> (selector >> 4 * i & 7) * 8 & 0xff) << 8 * i;
  }
  return picked;
}
inline int __clz(int value) { return value == 0 ? 32 : __builtin_clz(static_cast<unsigned>(value)); }
template <typename T>
T __ldg(const T* address) {
  return *address;
}
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }

namespace machine {
inline float flushed(float x) { return std::fabs(x) < 1.17549435e-38f ? std::copysign(0.0f, x) : x; }

// The hardware's approximations are as wrong as NVIDIA says they may be (PTX ISA, ex2, lg2, rcp; "CUDA C++
// Programming Guide", __fdividef), by an amount that looks random in the operand: in [-1, 1]
inline float wrongness(float operand) {
  return static_cast<int>((__float_as_uint(operand) * 2654435761u) >> 8) / 8388608.0f - 1.0f;
}
inline float blurred(float value, float operand, int ulps) {
  if (!std::isfinite(value) || value == 0) return value;
  return __int_as_float(__float_as_int(value) +
                        static_cast<int>(std::lround(wrongness(operand) * static_cast<float>(ulps))));
}
}  // namespace machine
inline float exp2_approx(float x) {
  const float rounded = static_cast<float>(std::exp2(static_cast<double>(x)));
  return x == 0 ? 1.0f : machine::flushed(machine::blurred(machine::flushed(rounded), x, 2));
}
// To 2^-22: of the logarithm, and near 1 absolutely
inline float log2_approx(float x) {
  const double exact = std::log2(static_cast<double>(machine::flushed(x)));
  if (x == 1 || !std::isfinite(exact)) return static_cast<float>(exact);
  return static_cast<float>(exact + machine::wrongness(x) * 0x1p-22 * std::fmax(1.0, std::fabs(exact)));
}
inline float reciprocal_approx(float x) {
  return machine::flushed(machine::blurred(machine::flushed(1.0f / machine::flushed(x)), x, 1));
}
// Its documented flaw: b above 2^126 counts as infinite
inline float __fdividef(float a, float b) {
  return machine::blurred(std::fabs(b) > 0x1p126f ? a * std::copysign(0.0f, b) : a / b, a, 2);
}

inline float from_half(unsigned short bits) { return static_cast<float>(machine::unpack<_Float16>(bits)); }
inline unsigned short to_half(float x) {
  return static_cast<unsigned short>(machine::pack(static_cast<_Float16>(x)));
}
inline unsigned short to_bfloat16(float x) {
  const unsigned bits = __float_as_uint(x);
  if (std::isnan(x)) return 0x7fff;
  return static_cast<unsigned short>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

namespace machine {
template <typename P>
constexpr char letter() {
  if constexpr (std::is_pointer_v<P>)
    return 'p';
  else if constexpr (std::is_same_v<P, float>)
    return 'f';
  else if constexpr (std::is_same_v<P, double>)
    return 'd';
  else if constexpr (std::is_integral_v<P> && sizeof(P) == 4)
    return 'i';
  else if constexpr (std::is_integral_v<P> && sizeof(P) == 8)
    return 'l';
  else
    return '?';
}
template <typename... P>
constexpr size_t arity(void (*)(P...)) {
  return sizeof...(P);
}
template <typename... P, size_t... I>
__attribute__((no_sanitize("thread"))) void call(void (*kernel)(P...), void** arguments,
                                                 std::index_sequence<I...>) {
  kernel(*static_cast<P*>(arguments[I])...);
}
template <typename... P>
const char* signature(void (*)(P...)) {
  static const char letters[] = {letter<P>()..., 0};
  return letters;
}
}  // namespace machine

// After the source of a kernel: how machine.cpp calls an entry point, and with what
#define ENTRY(name)                                                                      \
  extern "C" __attribute__((no_sanitize("thread"))) void call_##name(void** arguments) { \
    machine::call(name, arguments, std::make_index_sequence<machine::arity(name)>{});    \
  }                                                                                      \
  extern "C" const char* signature_##name() { return machine::signature(name); }
