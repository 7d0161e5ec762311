// Low-resolution logits [B, C, h, w] and labels uint8 [B, H, W] -> confusion matrix [C, C] int64, rows the
// truth: upsampling, arg max and histogram in one pass. Twin: meal_gpu.ops.reference.confusion.
//
// The lowest class wins among equals; what a NaN logit counts as is undefined. The counts are integers, so
// their atomic sums do not depend on the schedule.
//
// -D LOGITS CLASSES VECTOR CHANNELS_LAST SPAN_X SPAN_Y SHARED_COUNTS

#if SHARED_COUNTS
typedef uint32 Count;
#else
typedef uint64 Count;
#endif

extern "C" __global__ void __launch_bounds__(256, 2)
    confusion(const Logit* logits, const int4* spans_x, const float2* places_x, const int4* spans_y,
              const float2* places_y, const uint8* labels, uint64* counts, int images, int height, int width,
              int count_x, int count_y, int tile_spans_x, int tile_spans_y, int full_height, int full_width,
              int void_label) {
  DYNAMIC_SHARED(float, staged);
  const Geometry g{images, height, width, count_x, count_y, tile_spans_x, tile_spans_y};
  const Tile tile = find_tile(g, spans_x, spans_y);
  const int item = min((int)threadIdx.x, tile.spans_x * tile.spans_y - 1);
  const int index_x = tile.first_x + item % tile.spans_x, index_y = tile.first_y + item / tile.spans_x;

  float best[SPAN_Y][SPAN_X];
  int winner[SPAN_Y][SPAN_X];
#pragma unroll
  for (int j = 0; j < SPAN_Y; j++) {
#pragma unroll
    for (int i = 0; i < SPAN_X; i++) {
      best[j][i] = -INFINITE;
      winner[j][i] = 0;
    }
  }
  stage(staged, logits, g, tile, 1.0f);
  __syncthreads();
  {
    const Span x = load_span(spans_x, places_x, index_x), y = load_span(spans_y, places_y, index_y);
    const Cell cell = find_cell(tile, x, y);
#pragma unroll 1
    for (int k = 0; k < CLASSES; k++) {
      const Plane plane = cell_plane(staged + k * tile.pitch, cell, x, y);
#pragma unroll
      for (int j = 0; j < SPAN_Y; j++) {
#pragma unroll
        for (int i = 0; i < SPAN_X; i++) {
          const float z = value_at(plane, j, i);
          winner[j][i] = z > best[j][i] ? k : winner[j][i];
          best[j][i] = fmaxf(z, best[j][i]);
        }
      }
    }
  }

#if SHARED_COUNTS
  __syncthreads();
  Count* block_counts = reinterpret_cast<Count*>(staged);
  for (int i = threadIdx.x; i < CLASSES * CLASSES; i += blockDim.x) block_counts[i] = 0;
  __syncthreads();
#else
  Count* block_counts = counts;
#endif
  if (threadIdx.x < tile.spans_x * tile.spans_y) {
    const Span x = load_span(spans_x, places_x, index_x), y = load_span(spans_y, places_y, index_y);
    // Neighbouring pixels mostly agree: one atomic addition per stretch of equals
    int pair = -1;
    Count times = 0;
#pragma unroll
    for (int j = 0; j < SPAN_Y; j++) {
#pragma unroll
      for (int i = 0; i < SPAN_X; i++) {
        if (j >= y.length || i >= x.length) continue;
        const int64 row = (int64)tile.image * full_height + y.first + j;
        const int truth = labels[row * full_width + x.first + i];
        if (truth == void_label || truth >= CLASSES) continue;
        const int here = truth * CLASSES + winner[j][i];
        if (here != pair && times > 0) {
          atomicAdd(block_counts + pair, times);
          times = 0;
        }
        pair = here;
        times++;
      }
    }
    if (times > 0) atomicAdd(block_counts + pair, times);
  }
#if SHARED_COUNTS
  __syncthreads();
  for (int i = threadIdx.x; i < CLASSES * CLASSES; i += blockDim.x) {
    if (block_counts[i] > 0) atomicAdd(counts + i, (uint64)block_counts[i]);
  }
#endif
}
