"""Kernels with one fault each, and how `harness` describes it."""

from cuda_on_cpu.semantics import COMMON

# Bodies of kernels of 64 threads. Each is right, or has the fault where EITHER takes its second argument. `s`
# are 64 floats of dynamic shared memory, `row()` is a static array of 64.
FAULTS = {
    "read past the end": (
        "y[t] = x[t + EITHER(0, 1)];",
        "out of bounds: reads 4 bytes, 4 bytes past the end of tensor 0",
    ),
    "read before the start": (
        "y[t] = x[t - EITHER(0, 1)];",
        "out of bounds: reads 4 bytes, 4 bytes before the start of tensor 0",
    ),
    "write past the end": (
        "y[t + EITHER(0, 1)] = x[t];",
        "out of bounds: writes 4 bytes, 4 bytes past the end of tensor 1",
    ),
    "write before the start": (
        "y[t - EITHER(0, 1)] = x[t];",
        "out of bounds: writes 4 bytes, 4 bytes before the start of tensor 1",
    ),
    "change past the end": (
        "y[t + EITHER(0, 1)] += 1;",
        "out of bounds: (reads|writes) 4 bytes, 4 bytes past the end of tensor 1",
    ),
    "add atomically past the end": (
        "atomicAdd(y + t + EITHER(0, 1), 1.0f);",
        "out of bounds: writes 4 bytes, 4 bytes past the end of tensor 1",
    ),
    "read through a null pointer": (
        "const float* none = EITHER(x, nullptr); y[t] = none[t];",
        "out of bounds: reads 4 bytes",
    ),
    "copy a structure past the end": (
        "if (t < 8) reinterpret_cast<Eight*>(y)[t] = reinterpret_cast<Eight*>(x)[t + EITHER(0, 1)];",
        "out of bounds: reads 32 bytes, 32 bytes past the end of tensor 0",
    ),
    "clear past the end": (
        "if (t == 0) for (int i = 0; i < EITHER(64, 65); i++) y[i] = 0;",
        "out of bounds: writes 4 bytes, 4 bytes past the end of tensor 1",
    ),
    "write past the end of dynamic shared memory": (
        "s[t + EITHER(0, 1)] = x[t];",
        "out of bounds: writes 4 bytes, 4 bytes past the end of shared memory 1",
    ),
    "write before the start of dynamic shared memory": (
        "s[t - EITHER(0, 1)] = x[t];",
        "out of bounds: writes 4 bytes, 4 bytes before the start of shared memory 1",
    ),
    "read past the end of dynamic shared memory": (
        "s[t] = x[t]; __syncthreads(); y[t] = s[t + EITHER(0, 1)];",
        "out of bounds: reads 4 bytes, 4 bytes past the end of shared memory 1",
    ),
    "write past the end of static shared memory": (
        "row()[t + EITHER(0, 1)] = x[t];",
        "out of bounds: writes 4 bytes, 4 bytes past the end of shared memory 0",
    ),
    "write before the start of static shared memory": (
        "row()[t - EITHER(0, 1)] = x[t];",
        "out of bounds: writes 4 bytes, 4 bytes before the start of shared memory 0",
    ),
    "read past the end of static shared memory": (
        "row()[t] = x[t]; __syncthreads(); y[t] = row()[t + EITHER(0, 1)];",
        "out of bounds: reads 4 bytes, 4 bytes past the end of shared memory 0",
    ),
    "misaligned load of float4": (
        "if (t == 0) { const float4 v = *(float4*)(x + EITHER(0, 1)); y[t] = v.x + v.y + v.z + v.w; }",
        "misaligned: reads 16 bytes at offset 4 of tensor 0",
    ),
    "misaligned load of float4, of which one is used": (
        "if (t == 0) { const float4 v = *(float4*)(x + EITHER(0, 2)); y[t] = v.y; }",
        "misaligned: reads 16 bytes at offset 8 of tensor 0",
    ),
    "misaligned store of float4": (
        "if (t == 0) *(float4*)(y + EITHER(0, 1)) = make_float4(1, 2, 3, x[t]);",
        "misaligned: writes 16 bytes at offset 4 of tensor 1",
    ),
    "misaligned load of float2": (
        "if (t == 0) { const float2 v = *(float2*)(x + EITHER(0, 1)); y[t] = v.x + v.y; }",
        "misaligned: reads 8 bytes at offset 4 of tensor 0",
    ),
    "misaligned load of eight halves": (
        "const Halves v = *(Halves*)((uint16*)x + EITHER(8, 4)); float sum = 0;"
        "for (int e = 0; e < 8; e++) sum += from_half(v.bits[e]); y[t] = sum;",
        "misaligned: reads 16 bytes at offset 8 of tensor 0",
    ),
    "misaligned load from shared memory": (
        "s[t] = x[t]; __syncthreads();"
        "if (t == 0) { const float4 v = *(float4*)(s + EITHER(0, 1)); y[t] = v.x + v.y + v.z + v.w; }",
        "misaligned: reads 16 bytes at offset 4 of shared memory 1",
    ),
    "misaligned double": (
        "if (t == 0) y[t] = *(double*)(x + EITHER(0, 1));",
        "misaligned: reads 8 bytes at offset 4 of tensor 0",
    ),
    "dynamic shared memory that nothing wrote": (
        "if (t < EITHER(64, 63)) s[t] = x[t]; __syncthreads(); y[t] = s[t];",
        "uninitialised: reads byte 252 of shared memory",
    ),
    "static shared memory that nothing wrote": (
        "if (t < EITHER(64, 63)) row()[t] = x[t]; __syncthreads(); y[t] = row()[t];",
        "uninitialised: reads byte 252 of shared memory",
    ),
    "shared memory that nothing wrote, added to": (
        "if (EITHER(true, false)) s[t] = 0; atomicAdd(s + t, 1.0f); y[t] = s[t];",
        "uninitialised: reads byte [0-9]+ of shared memory",
    ),
    "shared memory that only an earlier block wrote": (
        "if (EITHER(true, blockIdx.x == 0)) s[t] = x[t]; y[64 * blockIdx.x + t] = s[t];",
        "uninitialised: reads byte [0-9]+ of shared memory",
    ),
    "write, then read, in a block": (
        "s[t] = 0; __syncthreads(); s[t] = x[t]; EITHER(__syncthreads(), ); y[t] = s[63 - t];",
        "race: (reads|writes) byte [0-9]+ of shared memory 1, which thread [0-9]+ of block 0 (read|wrote)",
    ),
    "write, then read, in a block, through static shared memory": (
        "row()[t] = 0; __syncthreads(); row()[t] = x[t]; EITHER(__syncthreads(), ); y[t] = row()[63 - t];",
        "race: (reads|writes) byte [0-9]+ of shared memory 0",
    ),
    "write, then read, in a block, through global memory": (
        "y[t] = x[t]; EITHER(__syncthreads(), ); const float v = y[63 - t]; __syncthreads(); y[t] = v;",
        "race: (reads|writes) byte [0-9]+ of tensor 1",
    ),
    "read, then write, in a block": (
        "s[t] = x[t]; __syncthreads(); const float v = s[63 - t]; EITHER(__syncthreads(), ); s[t] = v;",
        "race: (reads|writes) byte [0-9]+ of shared memory 1",
    ),
    "write, then write, in a block": (
        "if (t < 32) s[t] = x[t]; EITHER(__syncthreads(), ); if (t >= 32) s[t - 32] = x[t];",
        "race: writes byte [0-9]+ of shared memory 1, which thread [0-9]+ of block 0 wrote",
    ),
    "__syncwarp between warps": (
        "s[t] = 0; __syncthreads(); s[t] = x[t]; EITHER(__syncthreads(), __syncwarp()); y[t] = s[63 - t];",
        "race: (reads|writes) byte [0-9]+ of shared memory 1",
    ),
    "read by many warps, then written by one of them": (
        "if (t == 0) s[0] = 1; __syncthreads(); const float v = s[0]; EITHER(__syncthreads(), ); y[t] = v;"
        "if (t == 63) s[0] = v + 1;",
        "race: (reads|writes) byte [0-9]+ of shared memory 1",
    ),
    "write, then read, in a warp": (
        "s[t] = 0; __syncwarp(); s[t] = x[t]; EITHER(__syncwarp(), ); y[t] = s[t ^ 31];",
        "race: (reads|writes) byte [0-9]+ of shared memory 1",
    ),
    "read, then write, in a warp": (
        "s[t] = x[t]; __syncwarp(); const float v = s[t ^ 31]; EITHER(__syncwarp(), ); s[t] = v;",
        "race: (reads|writes) byte [0-9]+ of shared memory 1",
    ),
    "write, then write, in a warp": (
        "if (t % 32 < 16) s[t] = 1; EITHER(__syncwarp(), ); if (t % 32 >= 16) s[t - 16] = 2;",
        "race: writes byte [0-9]+ of shared memory 1",
    ),
    "read by a warp, then written by its last lane": (
        "if (t == 0) s[0] = 1; __syncthreads(); const float v = t < 32 ? s[0] : 0; "
        "EITHER(__syncwarp(), ); y[t] = v; if (t == 31) s[0] = v + 1;",
        "race: (reads|writes) byte [0-9]+ of shared memory 1",
    ),
    "read by a warp, then written by its first lane": (
        "if (t == 0) s[0] = 1; __syncthreads(); const float v = t < 32 ? s[0] : 0; "
        "EITHER(__syncwarp(), ); y[t] = v; if (t == 0) s[0] = v + 1;",
        "race: (reads|writes) byte [0-9]+ of shared memory 1",
    ),
    "a shuffle is no barrier": (
        "s[t] = 0; __syncwarp(); s[t] = x[t];"
        "EITHER(__syncwarp(), __shfl_sync(FULL_WARP, t, 0)); y[t] = s[t ^ 31];",
        "race: (reads|writes) byte [0-9]+ of shared memory 1",
    ),
    "write by two blocks": (
        "y[EITHER(64 * blockIdx.x, 0) + t] = x[t];",
        "race: writes byte [0-9]+ of tensor 1, which thread [0-9]+ of block 0 wrote",
    ),
    "write by a block, read by another": (
        "if (blockIdx.x == 0) y[t] = x[t]; else y[64 + t] = EITHER(x, y)[t];",
        "race: reads byte [0-9]+ of tensor 1, which thread [0-9]+ of block 0 wrote",
    ),
    "read by two blocks, written by one of them": (
        "const float v = x[t]; y[64 * blockIdx.x + t] = v; if (EITHER(false, blockIdx.x == 1)) x[t] = v + 1;",
        "race: writes byte [0-9]+ of tensor 0, which thread [0-9]+ of block 1 and another read",
    ),
    "a barrier orders no blocks": (
        "if (t == 0 && blockIdx.x == 0) y[0] = 1; __syncthreads();"
        "if (t == 0 && blockIdx.x == 1) y[EITHER(1, 0)] = 2;",
        "race: writes byte 0 of tensor 1",
    ),
    "sum without atomics": (
        "EITHER(atomicAdd(y, 1.0f), y[0] += 1);",
        "race: (reads|writes) byte 0 of tensor 1",
    ),
    "atomic sum, then read by the last thread": (
        "atomicAdd(y, 1.0f); EITHER(if (t == 63) return, ); if (t == 63) x[64 * blockIdx.x] = y[0];",
        "race: (reads|writes) byte 0 of tensor 1, which thread [0-9]+ of block [01]( and another)? "
        "(read|changed atomically)",
    ),
    "atomic sum, then read by the first thread": (
        "atomicAdd(y, 1.0f); EITHER(if (t == 0) return, ); if (t == 0) x[64 * blockIdx.x] = y[0];",
        "race: (reads|writes) byte 0 of tensor 1",
    ),
    "set, then atomic sum": (
        "if (t == 0) s[0] = 1; __syncthreads(); if (t == 9) s[0] = 2;"
        "EITHER(__syncthreads(), ); atomicAdd(s, 1.0f);",
        "race: writes byte [0-9]+ of shared memory 1, which thread [0-9]+ of block 0 (wrote|changed)",
    ),
    "atomic sum, then set": (
        "if (t == 0) s[0] = 1; __syncthreads(); atomicAdd(s, 1.0f);"
        "EITHER(__syncthreads(), ); if (t == 9) s[0] = 1;",
        "race: writes byte [0-9]+ of shared memory 1",
    ),
    "a barrier before which threads end": (
        "if (t < EITHER(64, 32)) __syncthreads();",
        "deadlock: 32 threads ended before a barrier at which others wait",
    ),
    "a barrier for which a loop is too short": (
        "for (int i = 0; i < EITHER(3, t / 32 + 1); i++) __syncthreads();",
        "deadlock: 32 threads ended before a barrier",
    ),
    "different barriers": (
        "if (t < EITHER(64, 32))\n __syncthreads();\n else\n __syncthreads();",
        "divergence: threads wait at different barriers",
    ),
    "a warp barrier which some lanes never reach": (
        "if (t < EITHER(64, 63)) __syncwarp();",
        "deadlock: some threads wait where others never come",
    ),
    "a shuffle which some lanes never reach": (
        "if (t % 32 < EITHER(32, 16)) y[t] = __shfl_sync(FULL_WARP, x[t], 3);",
        "deadlock: some threads wait where others never come",
    ),
    "different shuffles": (
        "if (t % 32 < EITHER(32, 16))\n y[t] = __shfl_up_sync(FULL_WARP, x[t], 1);\n"
        "else\n y[t] = __shfl_xor_sync(FULL_WARP, x[t], 1);",
        "divergence: the lanes of warp [01] wait in different places",
    ),
    "a warp at two kinds of barriers": (
        "if (t % 32 < EITHER(0, 16))\n __syncwarp();\n else\n __syncthreads();",
        "deadlock: some threads wait where others never come",
    ),
    "a vote of half a warp": (
        "y[t] = __ballot_sync(EITHER(FULL_WARP, 0xffff), t);",
        "only warp operations of all 32 lanes are supported",
    ),
}  # fmt: skip

NAMES = {name: f"kernel_{i}" for i, name in enumerate(FAULTS)}

SOURCE = (
    COMMON
    + """
#if WRONG
#define EITHER(right, wrong) wrong
#else
#define EITHER(right, wrong) right
#endif
struct Eight { float values[8]; };
struct alignas(16) Halves { uint16 bits[8]; };
__device__ float* row() { __shared__ float values[64]; return values; }
"""
    + "".join(
        f"""
extern "C" __global__ void {NAMES[name]}(float* x, float* y) {{
  DYNAMIC_SHARED(float, s);
  const int t = threadIdx.x;
  {body}
}}
"""
        for name, (body, _) in FAULTS.items()
    )
)
