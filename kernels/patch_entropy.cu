// Low-resolution logits [B, C, h, w] -> mean uncertainty of each patch at full resolution, which never
// exists: upsampling, softmax, measure and mean in one pass over the logits. Twin:
// meal_gpu.ops.reference.patch_entropy.
//
// Each thread takes a cell of up to SPAN_Y x SPAN_X pixels between the same four nodes and walks through the
// classes. With z the interpolated log2(e)/T * logit minus each node's own maximum (softmax does not mind,
// and z <= 0), it sums Z = sum 2^z and S = sum z 2^z; the entropy is ln 2 (log2 Z - S/Z). Along a row z is
// linear, so 2^(z + d) = 2^z 2^d: two exponentials serve SPAN_X pixels. No sum crosses threads here:
// patch_means adds the cells' sums in the order of the pixels, so results do not depend on the batch or the
// schedule.
//
// -D LOGITS CLASSES CHUNK VECTOR CHANNELS_LAST SPAN_X SPAN_Y MEASURE VALID

#define ENTROPY 0
#define MARGIN 1
#define LEAST_CONFIDENCE 2

// Below this Z the winners of neighbouring nodes differ by so much that z ran out of digits, or out of range
#define LEAST_Z 1.52587890625e-05f  // 2^-16

// What the classes of one pixel add up to
struct Pixel {
  float z_sum;     // Z
  float weighted;  // S
  float best, second;

  __device__ __forceinline__ Pixel() : z_sum(0), weighted(0), best(0), second(0) {}

  __device__ __forceinline__ void add(float z, float power) {
    z_sum += power;
#if MEASURE == ENTROPY
    weighted = fmaf(z, power, weighted);
#else
#if MEASURE == MARGIN
    second = fmaxf(second, fminf(best, power));
#endif
    best = fmaxf(best, power);
#endif
  }

  // False for NaN too
  __device__ __forceinline__ bool trusted() const { return z_sum >= LEAST_Z && z_sum <= 2.0f * CLASSES; }

  __device__ __forceinline__ float measure() const {
#if MEASURE == ENTROPY
    return 0.693147180559945f * (log2_approx(z_sum) - __fdividef(weighted, z_sum));
#elif MEASURE == MARGIN
    return 1.0f - __fdividef(best - second, z_sum);
#else
    return 1.0f - __fdividef(best, z_sum);
#endif
  }
};

__device__ __forceinline__ float logit_at(const Logit* logits, Geometry g, int k, int node) {
#if CHANNELS_LAST
  return to_float(logits[(int64)node * CLASSES + k]);
#else
  return to_float(logits[(int64)k * g.height * g.width + node]);
#endif
}

// The measure of one pixel with its own exact maximum, straight from the logits of its image; slow, and rare
__device__ __noinline__ float exact_measure(const Logit* logits, Geometry g, float scale, Span x, Span y,
                                            int i, int j) {
  const int top = y.lower * g.width, bottom = y.upper * g.width;
  const float right = fmaf((float)i, x.step, x.at), low = fmaf((float)j, y.step, y.at);
  float largest = -INFINITE;
  Pixel pixel;
  for (int pass = 0; pass < 2; pass++) {
    for (int k = 0; k < CLASSES; k++) {
      const float a = logit_at(logits, g, k, top + x.lower), b = logit_at(logits, g, k, top + x.upper);
      const float c = logit_at(logits, g, k, bottom + x.lower), d = logit_at(logits, g, k, bottom + x.upper);
      const float upper = fmaf(right, b - a, a);
      const float z = scale * fmaf(low, fmaf(right, d - c, c) - upper, upper);
      if (pass == 0) {
        largest = fmaxf(largest, z);
      } else {
        pixel.add(z - largest, exp2_approx(z - largest));
      }
    }
  }
  return pixel.measure();
}

// Sums of the measure over the pixels of each cell, [B, spans_y, spans_x]
extern "C" __global__ void __launch_bounds__(256)
    cell_sums(const Logit* logits, const int4* spans_x, const float2* places_x, const int4* spans_y,
              const float2* places_y, const uint8* valid, float* sums, int images, int height, int width,
              int count_x, int count_y, int tile_spans_x, int tile_spans_y, int full_width, float scale) {
  DYNAMIC_SHARED(float, staged);
  const Geometry g{images, height, width, count_x, count_y, tile_spans_x, tile_spans_y};
  const Tile tile = find_tile(g, spans_x, spans_y);
  const int nodes = tile.columns * tile.rows;
  float* largest = staged + CHUNK * tile.pitch;  // of each node, over the classes of earlier chunks too

  // More chunks than one are read twice: first for the maxima
  for (int first = 0; first < CLASSES; first += CHUNK) {
    const int classes = min(CHUNK, CLASSES - first);
    stage(staged, logits, g, tile, first, classes, scale);
    __syncthreads();
    for (int node = threadIdx.x; node < nodes; node += blockDim.x) {
      float most = first == 0 ? -INFINITE : largest[node];
      for (int k = 0; k < classes; k++) most = fmaxf(most, staged[k * tile.pitch + node]);
      largest[node] = most;
    }
    if (CHUNK < CLASSES) __syncthreads();
  }

  const int item = min((int)threadIdx.x, tile.spans_x * tile.spans_y - 1);
  const int index_x = tile.first_x + item % tile.spans_x, index_y = tile.first_y + item / tile.spans_x;
  const Span x = load_span(spans_x, places_x, index_x), y = load_span(spans_y, places_y, index_y);
  const Cell cell = find_cell(tile, x, y);
  Pixel pixels[SPAN_Y][SPAN_X];

  for (int first = 0; first < CLASSES; first += CHUNK) {
    const int classes = min(CHUNK, CLASSES - first);
    if (CHUNK < CLASSES) {
      stage(staged, logits, g, tile, first, classes, scale);
      __syncthreads();
    }
    // Each thread meets the nodes whose maxima it found itself
    for (int node = threadIdx.x; node < nodes; node += blockDim.x) {
      for (int k = 0; k < classes; k++) staged[k * tile.pitch + node] -= largest[node];
    }
    __syncthreads();
#pragma unroll 1
    for (int k = 0; k < classes; k++) {
      const Plane plane = cell_plane(staged + k * tile.pitch, cell, x, y);
#pragma unroll
      for (int j = 0; j < SPAN_Y; j++) {
        const float value = fmaf((float)j, plane.value_step, plane.value);
        const float slope = fmaf((float)j, plane.slope_step, plane.slope);
        const float ratio = exp2_approx(slope);
        float power = exp2_approx(value);
#pragma unroll
        for (int i = 0; i < SPAN_X; i++) {
          if (i > 0) power *= ratio;
          pixels[j][i].add(fmaf((float)i, slope, value), power);
        }
      }
    }
    if (CHUNK < CLASSES) __syncthreads();
  }

  if (threadIdx.x >= tile.spans_x * tile.spans_y) return;
  float sum = 0;
  uint32 distrusted = 0;
#pragma unroll
  for (int j = 0; j < SPAN_Y; j++) {
#pragma unroll
    for (int i = 0; i < SPAN_X; i++) {
      bool counts = j < y.length && i < x.length;
#if VALID
      counts = counts && valid[(int64)(y.first + j) * full_width + x.first + i] != 0;
#endif
      if (!counts) continue;
      if (pixels[j][i].trusted()) {
        sum += pixels[j][i].measure();
      } else {
        distrusted |= 1u << (j * SPAN_X + i);
      }
    }
  }
  const Logit* image = logits + (int64)tile.image * CLASSES * g.height * g.width;
  while (distrusted) {
    const int bit = __ffs(distrusted) - 1;
    distrusted &= distrusted - 1;
    sum += exact_measure(image, g, scale, x, y, bit % SPAN_X, bit / SPAN_X);
  }
  sums[((int64)tile.image * g.spans_y + index_y) * g.spans_x + index_x] = sum;
}

// A block per patch: the mean over its cells, whose first indices on each axis are starts_x[column],
// starts_y[row]
extern "C" __global__ void __launch_bounds__(128)
    patch_means(const float* sums, const int* starts_x, const int* starts_y, const double* pixels,
                float* means, int count_x, int count_y, int columns, int patches) {
  __shared__ double partial[4];
  const int64 image = blockIdx.x / patches;
  const int patch = blockIdx.x % patches;
  const int left = starts_x[patch % columns], wide = starts_x[patch % columns + 1] - left;
  const int top = starts_y[patch / columns], cells = (starts_y[patch / columns + 1] - top) * wide;
  double sum = 0;
  for (int i = threadIdx.x; i < cells; i += blockDim.x) {
    sum += sums[(image * count_y + top + i / wide) * count_x + left + i % wide];
  }
  for (int step = 16; step > 0; step /= 2) sum += __shfl_down_sync(FULL_WARP, sum, step);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    const double total = partial[0] + partial[1] + partial[2] + partial[3];
    // Nothing to see is nothing to learn
    means[blockIdx.x] = pixels[patch] > 0 ? (float)(total / pixels[patch]) : 0.0f;
  }
}
