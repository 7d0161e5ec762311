"""Kernels that say what CUDA's built-ins do, each in the simplest way."""

from meal_gpu.ops import compile as compiler

COMMON = (compiler.folder() / "common.cuh").read_text(encoding="utf-8")
SOURCE = (
    COMMON
    + """
extern "C" __global__ void copy(const float* x, float* y) { y[threadIdx.x] = x[threadIdx.x]; }
extern "C" __global__ void load_vectors(const float4* x, float* y) { y[threadIdx.x] = x[threadIdx.x].w; }
extern "C" __global__ void load_firsts(const float4* x, float* y) {
  const float4 v = x[threadIdx.x];
  y[threadIdx.x] = v.x;
}
extern "C" __global__ void __launch_bounds__(64, 2) bounded(float* y) { y[threadIdx.x] = 1; }
extern "C" __global__ void takes(const float* a, int b, int64 c, float d, uint8* e) {}

extern "C" __global__ void indices(int* y) {
  int* mine = y + 4 * (blockIdx.x * blockDim.x + threadIdx.x);
  mine[0] = blockIdx.x, mine[1] = threadIdx.x, mine[2] = blockDim.x, mine[3] = gridDim.x;
}

template <typename T>
__device__ void shuffles(const T* x, T* y) {
  const int t = threadIdx.x, lane = t % 32;
  y[t] = __shfl_up_sync(FULL_WARP, x[t], 3);
  y[t + 64] = __shfl_down_sync(FULL_WARP, x[t], 5);
  y[t + 128] = __shfl_xor_sync(FULL_WARP, x[t], 9);
  y[t + 192] = __shfl_sync(FULL_WARP, x[t], 7);
  y[t + 256] = __shfl_sync(FULL_WARP, x[t], lane * 5);
  y[t + 320] = __shfl_sync(FULL_WARP, x[t], -1);
  y[t + 384] = __shfl_xor_sync(FULL_WARP, x[t], 32);
}
extern "C" __global__ void shuffle_ints(const int* x, int* y) { shuffles(x, y); }
extern "C" __global__ void shuffle_floats(const float* x, float* y) { shuffles(x, y); }
extern "C" __global__ void shuffle_doubles(const double* x, double* y) { shuffles(x, y); }
extern "C" __global__ void shuffle_longs(const int64* x, int64* y) { shuffles(x, y); }

extern "C" __global__ void votes(const int* x, int* y) {
  const int t = threadIdx.x;
  y[t] = __ballot_sync(FULL_WARP, x[t] & 1);
  y[t + 64] = __any_sync(FULL_WARP, x[t] == 3);
  y[t + 128] = __all_sync(FULL_WARP, x[t] < 7);
  y[t + 192] = __match_any_sync(FULL_WARP, x[t]);
  y[t + 256] = __syncthreads_count(x[t] & 1);
  y[t + 320] = __syncthreads_count(x[t] > 5);
  y[t + 384] = __syncthreads_or(x[t] > 7);
  y[t + 448] = __popc(x[t]) + 100 * __ffs(x[t]) + 10000 * __clz(x[t]);
}

// Sums of 64 numbers per block, through shuffles, static and dynamic shared memory and an atomic
extern "C" __global__ void sums(const double* x, double* y, int* count) {
  __shared__ double partial[2];
  DYNAMIC_SHARED(double, staged);
  const int t = threadIdx.x;
  staged[63 - t] = x[64 * blockIdx.x + t];
  __syncthreads();
  double sum = staged[t];
  for (int step = 16; step > 0; step /= 2) sum += __shfl_down_sync(FULL_WARP, sum, step);
  if (t % 32 == 0) partial[t / 32] = sum;
  __syncthreads();
  if (t == 0) y[blockIdx.x] = partial[0] + partial[1];
  atomicAdd(count, 1);
}
__device__ float quotient(float2 x) { return __fdividef(x.x, x.y); }
extern "C" __global__ void arrivals(int* count, int* y) { y[threadIdx.x] = atomicAdd(count, 1); }
"""
    + "".join(
        f"""
extern "C" __global__ void map_{function}(const {given}* xs, {result}* ys, int n) {{
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) ys[i] = {function}(xs[i]);
}}
"""
        for function, given, result in (
            ("exp2_approx", "float", "float"),
            ("log2_approx", "float", "float"),
            ("reciprocal_approx", "float", "float"),
            ("quotient", "float2", "float"),
            ("from_half", "uint16", "float"),
            ("to_half", "float", "uint16"),
            ("from_bfloat16", "uint16", "float"),
            ("to_bfloat16", "float", "uint16"),
        )
    )
)
