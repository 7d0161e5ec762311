// Prepended to every kernel of this folder before it is compiled: number formats, and the tile of logits from
// which patch_entropy and confusion upsample. Variants are chosen by -D macros; entry points are extern "C".

typedef unsigned char uint8;
typedef unsigned short uint16;
typedef unsigned int uint32;
typedef long long int64;
typedef unsigned long long uint64;

#define FULL_WARP 0xffffffffu
#define INFINITE __int_as_float(0x7f800000)
#define LARGEST 3e38f

#ifndef CUDA_ON_CPU  // the tests' harness brings its own of these

#define DYNAMIC_SHARED(type, name) extern __shared__ __align__(16) type name[]

// 2^x to 2 units in the last place, subnormal results flushed to 0
__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ float log2_approx(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ float reciprocal_approx(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ float from_half(uint16 bits) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(bits));
  return y;
}

__device__ __forceinline__ uint16 to_half(float x) {
  uint16 bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
}

__device__ __forceinline__ uint16 to_bfloat16(float x) {
  uint16 bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
}

#endif

__device__ __forceinline__ float from_bfloat16(uint16 bits) { return __uint_as_float((uint32)bits << 16); }

#ifdef LOGITS  // 0 float32, 1 float16, 2 bfloat16

#if LOGITS == 0
typedef uint32 Logit;
#else
typedef uint16 Logit;
#endif

__device__ __forceinline__ float to_float(Logit bits) {
#if LOGITS == 0
  return __uint_as_float(bits);
#elif LOGITS == 1
  return from_half(bits);
#else
  return from_bfloat16(bits);
#endif
}

// A class masked by the least float would be infinite in bits, and its p log p, 0 times that, no number
__device__ __forceinline__ float scaled(float logit, float scale) {
  const float z = logit * scale;
  return fabsf(z) == INFINITE && fabsf(logit) < INFINITE ? copysignf(LARGEST, z) : z;
}

// Up to SPAN_X (SPAN_Y) neighbouring pixels of one axis that lie between the same two nodes, that is,
// low-resolution logits, and in the same patch. Pixel i of a span stands at `at` + i * `step` of the way from
// `lower` to `upper`.
struct Span {
  int first, length, lower, upper;
  float at, step;
};

__device__ __forceinline__ Span load_span(const int4* spans, const float2* places, int index) {
  const int4 span = spans[index];
  const float2 place = places[index];
  return Span{span.x, span.y, span.z, span.w, place.x, place.y};
}

// What a launch knows about its logits [B, C, h, w], contiguous or channels-last, and the two axes' spans
struct Geometry {
  int images, height, width;       // of the logits
  int spans_x, spans_y;            // in all
  int tile_spans_x, tile_spans_y;  // per block
};

// The spans of one block and the nodes that they need, held in shared memory as float: class by class,
// `pitch` apart
struct Tile {
  int image, first_x, first_y, spans_x, spans_y;
  int left, top, columns, rows, pitch;
};

__device__ __forceinline__ Tile find_tile(Geometry g, const int4* spans_x, const int4* spans_y) {
  const int across = (g.spans_x + g.tile_spans_x - 1) / g.tile_spans_x;
  const int down = (g.spans_y + g.tile_spans_y - 1) / g.tile_spans_y;
  const int row = blockIdx.x / across;
  Tile tile;
  tile.image = row / down;
  tile.first_x = blockIdx.x % across * g.tile_spans_x;
  tile.first_y = row % down * g.tile_spans_y;
  tile.spans_x = min(g.tile_spans_x, g.spans_x - tile.first_x);
  tile.spans_y = min(g.tile_spans_y, g.spans_y - tile.first_y);
  // Whole vectors are staged, so a tile begins and ends on one; VECTOR divides the width
  tile.left = spans_x[tile.first_x].z;
  int right = spans_x[tile.first_x + tile.spans_x - 1].w + 1;
#if !CHANNELS_LAST
  tile.left = tile.left / VECTOR * VECTOR;
  right = (right + VECTOR - 1) / VECTOR * VECTOR;
#endif
  tile.columns = right - tile.left;
  tile.top = spans_y[tile.first_y].z;
  tile.rows = spans_y[tile.first_y + tile.spans_y - 1].w + 1 - tile.top;
  const int nodes = tile.columns * tile.rows;
#if CHANNELS_LAST
  tile.pitch = nodes | 1;  // neighbouring classes fall into different banks
#else
  tile.pitch = (nodes + 3) / 4 * 4;
#endif
  return tile;
}

struct alignas(sizeof(Logit) * VECTOR) Vector {
  Logit logits[VECTOR];
};

// Bring all classes of the tile's nodes into shared memory, times `scale`. The loads are VECTOR logits wide:
// 16 bytes where the addresses allow it.
__device__ __forceinline__ void stage(float* staged, const Logit* logits, Geometry g, Tile tile,
                                      float scale) {
  const int64 image = (int64)tile.image * CLASSES * g.height * g.width;
#if CHANNELS_LAST
  // A row of nodes is one stretch of memory, which begins and ends anywhere in a vector
  const int length = tile.columns * CLASSES;
  const int vectors = (length + 2 * VECTOR - 2) / VECTOR;
  const int64 total = (int64)g.images * CLASSES * g.height * g.width;
  for (int i = threadIdx.x; i < tile.rows * vectors; i += blockDim.x) {
    const int row = i / vectors;
    const int64 begin = image + ((int64)(tile.top + row) * g.width + tile.left) * CLASSES;
    const int64 start = begin / VECTOR * VECTOR + (int64)(i % vectors) * VECTOR;
    if (start >= begin + length) continue;
    Vector vector;
    if (start + VECTOR <= total) {
      vector = *reinterpret_cast<const Vector*>(logits + start);
    } else {
#pragma unroll
      for (int e = 0; e < VECTOR; e++) vector.logits[e] = start + e < total ? logits[start + e] : Logit(0);
    }
    const int offset = (int)(start - begin), skipped = max(-offset, 0);
    int k = max(offset, 0) % CLASSES;
    float* to = staged + k * tile.pitch + row * tile.columns + max(offset, 0) / CLASSES;
#pragma unroll
    for (int e = 0; e < VECTOR; e++) {
      if (e >= skipped && offset + e < length) {
        *to = scaled(to_float(vector.logits[e]), scale);
        to += tile.pitch;
        if (++k == CLASSES) {
          k = 0;
          to += 1 - CLASSES * tile.pitch;
        }
      }
    }
  }
#else
  const int vectors = tile.columns / VECTOR;
  for (int i = threadIdx.x; i < CLASSES * tile.rows * vectors; i += blockDim.x) {
    const int stretch = i / vectors, column = i % vectors * VECTOR;
    const int k = stretch / tile.rows, row = stretch % tile.rows;
    const int64 start = image + ((int64)k * g.height + tile.top + row) * g.width + tile.left + column;
    const Vector vector = *reinterpret_cast<const Vector*>(logits + start);
    float* to = staged + k * tile.pitch + row * tile.columns + column;
#pragma unroll
    for (int e = 0; e < VECTOR; e++) to[e] = scaled(to_float(vector.logits[e]), scale);
  }
#endif
}

// Where a thread's cell lies in the tile: offsets of its four nodes
struct Cell {
  int a, b, c, d;
};

__device__ __forceinline__ Cell find_cell(Tile tile, Span x, Span y) {
  const int top = (y.lower - tile.top) * tile.columns, bottom = (y.upper - tile.top) * tile.columns;
  const int left = x.lower - tile.left, right = x.upper - tile.left;
  return Cell{top + left, top + right, bottom + left, bottom + right};
}

// A function that is linear in x along each row of pixels: value and slope per pixel, and how both change by
// row
struct Plane {
  float value, slope, value_step, slope_step;
};

__device__ __forceinline__ Plane plane_between(float a, float b, float c, float d, Span x, Span y) {
  const float down_left = c - a, down_right = d - b;
  const float left = fmaf(y.at, down_left, a);
  const float across = fmaf(y.at, down_right, b) - left;
  // Not step * (right - left): of the least float at opposite corners that difference is infinite
  const float left_step = y.step * down_left;
  const float across_step = fmaf(y.step, down_right, -left_step);
  Plane plane;
  plane.slope = x.step * across;
  plane.slope_step = x.step * across_step;
  plane.value = fmaf(x.at, across, left);
  plane.value_step = fmaf(x.at, across_step, left_step);
  return plane;
}

__device__ __forceinline__ Plane cell_plane(const float* staged, Cell cell, Span x, Span y) {
  return plane_between(staged[cell.a], staged[cell.b], staged[cell.c], staged[cell.d], x, y);
}

// Straight from `logits` [h, w] of one class. The four loads serve all pixels of a cell, and its neighbours
// find theirs in the first-level cache.
__device__ __forceinline__ Plane logits_plane(const Logit* logits, int width, Span x, Span y) {
  const Logit *upper = logits + y.lower * width, *lower = logits + y.upper * width;
  return plane_between(to_float(upper[x.lower]), to_float(upper[x.upper]), to_float(lower[x.lower]),
                       to_float(lower[x.upper]), x, y);
}

// At pixel (j, i) of the cell. Both are known where loops are unrolled: a row's part is computed once
__device__ __forceinline__ float value_at(Plane plane, int j, int i) {
  const float value = j > 0 ? fmaf(j, plane.value_step, plane.value) : plane.value;
  const float slope = j > 0 ? fmaf(j, plane.slope_step, plane.slope) : plane.slope;
  return i > 0 ? fmaf(i, slope, value) : value;
}

#endif
