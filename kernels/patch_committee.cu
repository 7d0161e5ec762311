// Low-resolution logits [T, B, C, h, w] of T members -> two entropies of each pixel at full resolution, which
// never exists: of the members' mean probabilities, and the mean of the members' own. Twin:
// meal_gpu.ops.reference.patch_committee.
//
// Each thread takes up to SPAN_X neighbouring pixels of one row. It needs no sum per class: first it finds
// each member's largest logit and 1/Z, Z = sum e^(z - largest), for its pixels, and with them the member's
// entropy; then, class by class, the members' mean probability. The members' two numbers lie in shared
// memory, where no other thread looks at them: that bounds T, whatever C is. No sum crosses threads here:
// patch_means adds them in the order of the pixels, so results depend neither on the batch nor on the
// schedule.
//
// -D LOGITS CLASSES VECTOR CHANNELS_LAST SPAN_X SPAN_Y=1 VALID

#define LN_2 0.693147180559945f
#define LEAST 1.17549435e-38f  // 2^-126: p log p of less is nothing, and the logarithm of 0 no number

// Sums over each span's pixels, total then expected: [2, B, count_y, count_x]; `count_y` is the height
extern "C" __global__ void __launch_bounds__(128)
    span_sums(const Logit* logits, const int4* spans_x, const float2* places_x, const int4* spans_y,
              const float2* places_y, const uint8* valid, float* sums, int members, int images, int height,
              int width, int count_x, int count_y, int full_width, float scale) {
  DYNAMIC_SHARED(float2, kept);  // [T, SPAN_X, threads]: largest logit, 1/Z
  const int spans = count_x * count_y, blocks = (spans + blockDim.x - 1) / blockDim.x;
  const int64 image = blockIdx.x / blocks;
  const int item = blockIdx.x % blocks * blockDim.x + threadIdx.x;
  if (item >= spans) return;
  const Span x = load_span(spans_x, places_x, item % count_x);
  const Span y = load_span(spans_y, places_y, item / count_x);
  const int64 area = (int64)height * width;
  const int64 stride = images * CLASSES * area;  // from member to member
  const Logit* first = logits + image * CLASSES * area;
  bool counted[SPAN_X];
#pragma unroll
  for (int i = 0; i < SPAN_X; i++) {
    counted[i] = i < x.length;
#if VALID
    counted[i] = counted[i] && valid[(int64)y.first * full_width + x.first + i] != 0;
#endif
  }

  float expected = 0;  // bits times members
  for (int member = 0; member < members; member++) {
    const Logit* planes = first + member * stride;
    float largest[SPAN_X], z_sum[SPAN_X], weighted[SPAN_X];
#pragma unroll
    for (int i = 0; i < SPAN_X; i++) {
      largest[i] = -INFINITE;
      z_sum[i] = weighted[i] = 0;
    }
    for (int k = 0; k < CLASSES; k++) {
      const Plane plane = logits_plane(planes + k * area, width, x, y);
#pragma unroll
      for (int i = 0; i < SPAN_X; i++) largest[i] = fmaxf(largest[i], value_at(plane, 0, i));
    }
    for (int k = 0; k < CLASSES; k++) {
      const Plane plane = logits_plane(planes + k * area, width, x, y);
#pragma unroll
      for (int i = 0; i < SPAN_X; i++) {
        const float below = scaled(value_at(plane, 0, i) - largest[i], scale);
        const float power = exp2_approx(below);
        z_sum[i] += power;
        weighted[i] = fmaf(below, power, weighted[i]);
      }
    }
#pragma unroll
    for (int i = 0; i < SPAN_X; i++) {
      const float inverse = reciprocal_approx(z_sum[i]);
      kept[(member * SPAN_X + i) * blockDim.x + threadIdx.x] = make_float2(largest[i], inverse);
      expected += counted[i] ? fmaf(-weighted[i], inverse, log2_approx(z_sum[i])) : 0.0f;
    }
  }

  const float share = 1.0f / members;
  float total[SPAN_X];
#pragma unroll
  for (int i = 0; i < SPAN_X; i++) total[i] = 0;
  for (int k = 0; k < CLASSES; k++) {
    float p[SPAN_X];
#pragma unroll
    for (int i = 0; i < SPAN_X; i++) p[i] = 0;
    for (int member = 0; member < members; member++) {
      const Plane plane = logits_plane(first + member * stride + k * area, width, x, y);
#pragma unroll
      for (int i = 0; i < SPAN_X; i++) {
        const float2 own = kept[(member * SPAN_X + i) * blockDim.x + threadIdx.x];
        p[i] = fmaf(exp2_approx(scale * (value_at(plane, 0, i) - own.x)), own.y, p[i]);
      }
    }
#pragma unroll
    for (int i = 0; i < SPAN_X; i++) {
      p[i] *= share;
      total[i] = fmaf(-p[i], log2_approx(fmaxf(p[i], LEAST)), total[i]);
    }
  }
  float sum = 0;
#pragma unroll
  for (int i = 0; i < SPAN_X; i++) sum += counted[i] ? total[i] : 0.0f;
  sums[image * spans + item] = LN_2 * sum;
  sums[(images + image) * spans + item] = LN_2 * (expected / members);
}
