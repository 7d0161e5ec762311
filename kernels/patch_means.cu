// Sums of cells of pixels -> means of patches, for patch_entropy and patch_committee.

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
    double total = 0;
    for (int warp = 0; warp < blockDim.x / 32; warp++) total += partial[warp];
    // Rounding may end below 0; and nothing to see, in a patch without valid pixels, is nothing to learn
    const double mean = total < 0 || pixels[patch] == 0 ? 0.0 : total / pixels[patch];
    means[blockIdx.x] = (float)mean;
  }
}
