// Low-resolution logits [B, C, h, w] -> mean probability of each class in each patch at full resolution, and
// of how many of its pixels each class is the most likely. Neither upsampled logits nor probabilities exist.
// Twin: meal_gpu.ops.reference.patch_classes.
//
// A block takes up to 256 cells of one patch, a thread a cell, see patch_entropy.cu. The thread walks through
// the classes three times: for each pixel's largest logit and its class, for Z = sum e^(z - largest), and to
// add e^(z - largest)/Z class by class, over the cell and over the block. Every pixel has its own maximum, so
// there is nothing to guard against. Sums are written per block and added in one order: results depend
// neither on the batch nor on the schedule. The lowest class wins among equals, as in confusion.cu.
//
// -D LOGITS CLASSES VECTOR CHANNELS_LAST SPAN_X SPAN_Y VALID

// [B, P, parts, C] each, of the blocks; spans of patches begin at starts_x[column], starts_y[row]
extern "C" __global__ void __launch_bounds__(256, 2)
    part_sums(const Logit* logits, const int4* spans_x, const float2* places_x, const int* starts_x,
              const int4* spans_y, const float2* places_y, const int* starts_y, const uint8* valid,
              float* sums, int* counts, int height, int width, int columns, int patches, int parts,
              int full_width, float scale) {
  DYNAMIC_SHARED(float, warp_sums);  // [warps, C]
  const int warps = blockDim.x / 32;
  int* block_counts = reinterpret_cast<int*>(warp_sums + warps * CLASSES);
  const int patch = blockIdx.x / parts % patches;
  const int64 image = blockIdx.x / parts / patches;
  const int left = starts_x[patch % columns], wide = starts_x[patch % columns + 1] - left;
  const int top = starts_y[patch / columns], cells = (starts_y[patch / columns + 1] - top) * wide;
  const int first = blockIdx.x % parts * blockDim.x;
  for (int k = threadIdx.x; k < CLASSES; k += blockDim.x) block_counts[k] = 0;
  __syncthreads();

  // Threads without a cell, and blocks of a smaller patch without any, go along and count nothing
  const int item = min(first + (int)threadIdx.x, cells - 1);
  const Span x = load_span(spans_x, places_x, left + item % wide);
  const Span y = load_span(spans_y, places_y, top + item / wide);
  const int64 area = (int64)height * width;
  const Logit* planes = logits + image * CLASSES * area;
  uint32 counted = 0;  // a bit per pixel of the cell that lies in the patch and is valid
#pragma unroll
  for (int j = 0; j < SPAN_Y; j++) {
#pragma unroll
    for (int i = 0; i < SPAN_X; i++) {
      bool counts_here = first + threadIdx.x < cells && j < y.length && i < x.length;
#if VALID
      counts_here = counts_here && valid[(int64)(y.first + j) * full_width + x.first + i] != 0;
#endif
      counted |= (uint32)counts_here << (j * SPAN_X + i);
    }
  }

  float largest[SPAN_Y][SPAN_X];
  {
    int winner[SPAN_Y][SPAN_X];
#pragma unroll
    for (int j = 0; j < SPAN_Y; j++) {
#pragma unroll
      for (int i = 0; i < SPAN_X; i++) {
        largest[j][i] = -INFINITE;
        winner[j][i] = 0;
      }
    }
#pragma unroll 1
    for (int k = 0; k < CLASSES; k++) {
      const Plane plane = logits_plane(planes + k * area, width, x, y);
#pragma unroll
      for (int j = 0; j < SPAN_Y; j++) {
#pragma unroll
        for (int i = 0; i < SPAN_X; i++) {
          const float z = value_at(plane, j, i);
          winner[j][i] = z > largest[j][i] ? k : winner[j][i];
          largest[j][i] = fmaxf(z, largest[j][i]);
        }
      }
    }
    // Neighbouring pixels mostly agree: one atomic addition per stretch of equals
    int previous = 0, times = 0;
#pragma unroll
    for (int j = 0; j < SPAN_Y; j++) {
#pragma unroll
      for (int i = 0; i < SPAN_X; i++) {
        if (!(counted & 1u << (j * SPAN_X + i))) continue;
        if (winner[j][i] != previous && times > 0) {
          atomicAdd(block_counts + previous, times);
          times = 0;
        }
        previous = winner[j][i];
        times++;
      }
    }
    if (times > 0) atomicAdd(block_counts + previous, times);
  }

  float inverse[SPAN_Y][SPAN_X];  // Z, then 1/Z
#pragma unroll
  for (int j = 0; j < SPAN_Y; j++) {
#pragma unroll
    for (int i = 0; i < SPAN_X; i++) inverse[j][i] = 0;
  }
#pragma unroll 1
  for (int k = 0; k < CLASSES; k++) {
    const Plane plane = logits_plane(planes + k * area, width, x, y);
#pragma unroll
    for (int j = 0; j < SPAN_Y; j++) {
#pragma unroll
      for (int i = 0; i < SPAN_X; i++) {
        inverse[j][i] += exp2_approx(scale * (value_at(plane, j, i) - largest[j][i]));
      }
    }
  }
#pragma unroll
  for (int j = 0; j < SPAN_Y; j++) {
#pragma unroll
    for (int i = 0; i < SPAN_X; i++) inverse[j][i] = reciprocal_approx(inverse[j][i]);
  }

#pragma unroll 1
  for (int k = 0; k < CLASSES; k++) {
    const Plane plane = logits_plane(planes + k * area, width, x, y);
    float sum = 0;
#pragma unroll
    for (int j = 0; j < SPAN_Y; j++) {
#pragma unroll
      for (int i = 0; i < SPAN_X; i++) {
        const float power = exp2_approx(scale * (value_at(plane, j, i) - largest[j][i]));
        // Not times 0: what does not count may be NaN
        sum += counted & 1u << (j * SPAN_X + i) ? power * inverse[j][i] : 0.0f;
      }
    }
    for (int step = 16; step > 0; step /= 2) sum += __shfl_down_sync(FULL_WARP, sum, step);
    if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32 * CLASSES + k] = sum;
  }
  __syncthreads();
  for (int k = threadIdx.x; k < CLASSES; k += blockDim.x) {
    float sum = 0;
    for (int warp = 0; warp < warps; warp++) sum += warp_sums[warp * CLASSES + k];
    sums[(int64)blockIdx.x * CLASSES + k] = sum;
    counts[(int64)blockIdx.x * CLASSES + k] = block_counts[k];
  }
}

// A block per patch: what its parts add up to, [B, P, C]
extern "C" __global__ void __launch_bounds__(256)
    class_means(const float* sums, const int* counts, const double* pixels, float* means, int* totals,
                int patches, int parts) {
  const double counted = pixels[blockIdx.x % patches];
  for (int k = threadIdx.x; k < CLASSES; k += blockDim.x) {
    double sum = 0;
    int count = 0;
    for (int part = 0; part < parts; part++) {
      const int64 at = ((int64)blockIdx.x * parts + part) * CLASSES + k;
      sum += sums[at];
      count += counts[at];
    }
    // 0 where a patch has no valid pixel
    means[(int64)blockIdx.x * CLASSES + k] = (float)(sum / (counted > 0 ? counted : 1.0));
    totals[(int64)blockIdx.x * CLASSES + k] = count;
  }
}
