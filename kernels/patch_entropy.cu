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
// -D LOGITS CLASSES VECTOR CHANNELS_LAST SPAN_X SPAN_Y MEASURE VALID

#define ENTROPY 0
#define MARGIN 1
#define LEAST_CONFIDENCE 2

// Pixels that the fast path gets wrong are done again with their own maximum. Where the winners of
// neighbouring nodes differ, Z is small and log2 Z - S/Z the small difference of large numbers; and where
// some z of a node is so low that its power is subnormal, the geometric series that starts there never grows.
#define LEAST_SUM 0.015625f  // 2^-6; a network trained on CamVid stays above 2^-2
#define LEAST_Z -100.0f

#if MEASURE == ENTROPY
#define UNIT 0.693147180559945f  // bits to nats
#else
#define UNIT 1.0f
#endif

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
  __device__ __forceinline__ bool trusted() const { return z_sum >= LEAST_SUM; }

  // In units of UNIT
  __device__ __forceinline__ float measure() const {
    const float inverse = reciprocal_approx(z_sum);
#if MEASURE == ENTROPY
    // With every z raised by Z's exponent the difference is one of small numbers
    const int exponent = (__float_as_int(z_sum) >> 23) - 127;
    const float rescaled = __int_as_float(__float_as_int(z_sum) - (exponent << 23));
    return fmaf(-fmaf((float)-exponent, z_sum, weighted), inverse, log2_approx(rescaled));
#elif MEASURE == MARGIN
    return fmaf(second - best, inverse, 1.0f);
#else
    return fmaf(-best, inverse, 1.0f);
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

// The inner loop: what every class adds to the pixels of a cell
__device__ __forceinline__ void add_classes(Pixel (&pixels)[SPAN_Y][SPAN_X], const float* staged, Tile tile,
                                            Span x, Span y) {
  const Cell cell = find_cell(tile, x, y);
#pragma unroll 1
  for (int k = 0; k < CLASSES; k++) {
    const Plane plane = cell_plane(staged + k * tile.pitch, cell, x, y);
#pragma unroll
    for (int j = 0; j < SPAN_Y; j++) {
      const float value = j > 0 ? fmaf(j, plane.value_step, plane.value) : plane.value;
      const float slope = j > 0 ? fmaf(j, plane.slope_step, plane.slope) : plane.slope;
      const float ratio = exp2_approx(slope);
      float power = exp2_approx(value);
#pragma unroll
      for (int i = 0; i < SPAN_X; i++) {
        if (i > 0) power *= ratio;
        pixels[j][i].add(i > 0 ? fmaf(i, slope, value) : value, power);
      }
    }
  }
}

// The measure of one pixel with its own exact maximum, straight from the logits of its image; slow, and rare
__device__ __forceinline__ float exact_measure(const Logit* logits, Geometry g, float scale, Span x, Span y,
                                               int i, int j) {
  const int top = y.lower * g.width, bottom = y.upper * g.width;
  const float right = fmaf(i, x.step, x.at), low = fmaf(j, y.step, y.at);
  float largest = -INFINITE;
  Pixel pixel;
#pragma unroll 1
  for (int pass = 0; pass < 2; pass++) {
#pragma unroll 1
    for (int k = 0; k < CLASSES; k++) {
      const float a = logit_at(logits, g, k, top + x.lower), b = logit_at(logits, g, k, top + x.upper);
      const float c = logit_at(logits, g, k, bottom + x.lower), d = logit_at(logits, g, k, bottom + x.upper);
      const float upper = fmaf(right, b - a, a);
      const float z = scaled(fmaf(low, fmaf(right, d - c, c) - upper, upper), scale);
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
extern "C" __global__ void __launch_bounds__(256, MEASURE == MARGIN ? 2 : 3)
    cell_sums(const Logit* logits, const int4* spans_x, const float2* places_x, const int4* spans_y,
              const float2* places_y, const uint8* valid, float* sums, int images, int height, int width,
              int count_x, int count_y, int tile_spans_x, int tile_spans_y, int full_width, float scale) {
  DYNAMIC_SHARED(float, staged);
  const Geometry g{images, height, width, count_x, count_y, tile_spans_x, tile_spans_y};
  const Tile tile = find_tile(g, spans_x, spans_y);
  stage(staged, logits, g, tile, scale);
  __syncthreads();
  const int nodes = tile.columns * tile.rows;
  float* least = staged + CLASSES * tile.pitch;  // z of each node
  for (int node = threadIdx.x; node < nodes; node += blockDim.x) {
    float* z = staged + node;
    float largest = -INFINITE, lowest = INFINITE;
    for (int k = 0; k < CLASSES; k++) {
      largest = fmaxf(largest, z[k * tile.pitch]);
      lowest = fminf(lowest, z[k * tile.pitch]);
    }
    for (int k = 0; k < CLASSES; k++) z[k * tile.pitch] -= largest;
    least[node] = lowest - largest;
  }
  __syncthreads();

  const int item = min((int)threadIdx.x, tile.spans_x * tile.spans_y - 1);
  const int index_x = tile.first_x + item % tile.spans_x, index_y = tile.first_y + item / tile.spans_x;
  Pixel pixels[SPAN_Y][SPAN_X];

  add_classes(pixels, staged, tile, load_span(spans_x, places_x, index_x),
              load_span(spans_y, places_y, index_y));

  if (threadIdx.x >= tile.spans_x * tile.spans_y) return;
  // Load the spans again rather than keep what is not needed in the loop above in registers
  asm volatile("" ::: "memory");
  const Span x = load_span(spans_x, places_x, index_x), y = load_span(spans_y, places_y, index_y);
  uint32 counted = 0;  // a bit per pixel of the cell that lies in the patch and is valid
#pragma unroll
  for (int j = 0; j < SPAN_Y; j++) {
#pragma unroll
    for (int i = 0; i < SPAN_X; i++) {
      bool counts = j < y.length && i < x.length;
#if VALID
      counts = counts && valid[(int64)(y.first + j) * full_width + x.first + i] != 0;
#endif
      counted |= (uint32)counts << (j * SPAN_X + i);
    }
  }
  const Cell cell = find_cell(tile, x, y);
  const float lowest = fminf(fminf(least[cell.a], least[cell.b]), fminf(least[cell.c], least[cell.d]));
  float sum = 0;
  uint32 distrusted = 0;
#pragma unroll
  for (int j = 0; j < SPAN_Y; j++) {
#pragma unroll
    for (int i = 0; i < SPAN_X; i++) {
      const uint32 bit = counted & 1u << (j * SPAN_X + i);
      const bool trusted = lowest >= LEAST_Z && pixels[j][i].trusted();
      sum += trusted && bit ? pixels[j][i].measure() : 0.0f;
      distrusted |= trusted ? 0u : bit;
    }
  }
  const Logit* image = logits + (int64)tile.image * CLASSES * g.height * g.width;
  while (distrusted) {
    const int bit = __ffs(distrusted) - 1;
    distrusted &= distrusted - 1;
    sum += exact_measure(image, g, scale, x, y, bit % SPAN_X, bit / SPAN_X);
  }
  sums[((int64)tile.image * g.spans_y + index_y) * g.spans_x + index_x] = UNIT * sum;
}
