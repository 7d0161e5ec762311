// K-Means++ seeding (D² sampling) by given uniforms, in float64, with every sum in a fixed order. Twin:
// meal_gpu.ops.reference.kmeans_plusplus.
//
// A draw looks for the row at which the running sum of the rows' weights passes u * total. So as not to walk
// through all rows, a tile, up to `length` consecutive rows and the work of one warp, keeps the sum of its
// weights, and the block that draws adds these up by segments of consecutive tiles, one a warp; segment, tile
// and row are then found in turn. Of several trials the one that leaves the lowest potential becomes the
// centre; their potentials are the totals of the next draw.
//
// `cover` (all tiles) and `draw` (one block) alternate, the host only launches them. Where there are few rows
// one block does both (`seed`), by the same arithmetic.
//
// -D DOUBLE (points are float64, else float32) COLUMNS

#if DOUBLE
typedef double Point;
#else
typedef float Point;
#endif

constexpr double TAKEN = -1;  // of `nearest`: the row is a centre itself

// Neighbouring lanes that read a row together, 4 to 8 columns each where they are many
constexpr int LANES = COLUMNS < 8     ? 1
                      : COLUMNS < 16  ? 2
                      : COLUMNS < 32  ? 4
                      : COLUMNS < 64  ? 8
                      : COLUMNS < 128 ? 16
                                      : 32;

struct Seeding {
  const Point* points;     // [rows, COLUMNS]
  const Point* chosen;     // [chosen_rows, COLUMNS]
  const double* uniforms;  // [draws, trials]
  double* nearest;         // [rows] squared distance to the nearest centre, infinite before any, or TAKEN
  double* sums;            // [trials + 1, tiles] of weights, were each trial a centre; then of free rows
  int* tried;              // [trials] rows
  int64* picks;            // [draws] rows
  int rows, chosen_rows, trials, draws;
  int length, tiles;  // length: rows of a tile, a multiple of 32
};

__device__ __forceinline__ double warp_sum(double value) {
  for (int far = 16; far > 0; far /= 2) value += __shfl_xor_sync(FULL_WARP, value, far);
  return value;
}

// Squared distance from each lane's row to one centre. Rounded as the twin does, without fused operations,
// and so the same wherever it is computed.
__device__ __forceinline__ double distance(const Point* points, int row, const Point* centre) {
  const int lane = threadIdx.x % 32, at_once = 32 / LANES;
  double own = 0;
#pragma unroll 1
  for (int turn = 0; turn < LANES; turn++) {
    const int read = LANES == 1 ? row : __shfl_sync(FULL_WARP, row, turn * at_once + lane / LANES);
    double sum = 0;
#pragma unroll 4
    for (int c = lane % LANES; c < COLUMNS; c += LANES) {
      const double difference = (double)points[(int64)read * COLUMNS + c] - (double)centre[c];
      sum = __dadd_rn(sum, __dmul_rn(difference, difference));
    }
    for (int far = LANES / 2; far > 0; far /= 2) sum += __shfl_xor_sync(FULL_WARP, sum, far);
    if (LANES > 1) sum = __shfl_sync(FULL_WARP, sum, lane % at_once * LANES);
    if (lane / at_once == turn) own = sum;
  }
  return own;
}

// The first i in [begin, end) at which the running sum of weights passes `target`; the last that has weight
// where rounding keeps the sum below. `before`: the sum ahead of `begin`, and then of i.
template <typename Weight>
__device__ __forceinline__ int find(int begin, int end, double target, double& before, Weight weight) {
  const int lane = threadIdx.x % 32;
  int found = begin;
  double sum = before;
#pragma unroll 1
  for (int first = begin; first < end; first += 32) {
    double own = weight(min(first + lane, end - 1));  // in all lanes: they may help each other
    if (first + lane >= end) own = 0;
    double until = own;
    for (int far = 1; far < 32; far *= 2) {
      const double lower = __shfl_up_sync(FULL_WARP, until, far);
      if (lane >= far) until += lower;
    }
    // Each lane's sum is rounded in its own way: it may pass where there is no weight
    const uint32 weighted = __ballot_sync(FULL_WARP, own > 0);
    const uint32 passed = __ballot_sync(FULL_WARP, own > 0 && sum + until > target);
    if (weighted) {
      const int at = passed ? __ffs(passed) - 1 : 31 - __clz(weighted);
      const double lower = __shfl_sync(FULL_WARP, until, max(at - 1, 0));
      found = first + at;
      before = at > 0 ? sum + lower : sum;
    }
    if (passed) break;
    sum += __shfl_sync(FULL_WARP, until, 31);
  }
  return found;
}

// Sums of `weights` [tiles] by segment: lane i gets segment i's
__device__ __forceinline__ double segment_sums(Seeding s, const double* weights, int per_segment,
                                               double* shared) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int end = min((warp + 1) * per_segment, s.tiles);
  double sum = 0;
  for (int tile = warp * per_segment + lane; tile < end; tile += 32) sum += weights[tile];
  sum = warp_sum(sum);
  if (lane == 0) shared[warp] = sum;
  __syncthreads();
  return lane < blockDim.x / 32 ? shared[lane] : 0.0;
}

// By one block: the best trial of the previous draw becomes a pick, then this draw's trials are found
__device__ __forceinline__ void draw_trials(Seeding s, int draw, double (*shared)[32]) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  const int per_segment = (s.tiles + warps - 1) / warps;
  int best = 0;
  double segments = 0, total = 0;
  for (int trial = 0; trial < s.trials; trial++) {
    // Other warps may still read the previous trial's sums, hence the other half of `shared`
    const double sums = segment_sums(s, s.sums + (int64)trial * s.tiles, per_segment, shared[trial % 2]);
    const double potential = warp_sum(sums);
    if (trial == 0 || potential < total) {
      best = trial;
      segments = sums;
      total = potential;
    }
  }
  const int newest = draw > 0 ? s.tried[best] : 0;
  double* const free = s.sums + (int64)s.trials * s.tiles;
  if (draw > 0 && threadIdx.x == 0) {
    s.picks[draw - 1] = newest;
    s.nearest[newest] = TAKEN;
    free[newest / s.length] -= 1;
  }
  if (draw == s.draws) return;
  __syncthreads();
  // All weights equal: before any centre is known, and once every free row coincides with one
  const bool uniform = !(total > 0 && total < INFINITE);
  const double* weights = uniform ? free : s.sums + (int64)best * s.tiles;
  if (uniform) {
    segments = segment_sums(s, weights, per_segment, shared[s.trials % 2]);
    total = warp_sum(segments);
  }
  // With several trials `nearest` does not know the newest centre yet
  const bool behind = draw > 0 && s.trials > 1;
  for (int trial = warp; trial < s.trials; trial += warps) {
    const double target = s.uniforms[(int64)draw * s.trials + trial] * total;
    double before = 0;
    const int segment = find(0, warps, target, before, [&](int) { return segments; });
    const int tiles_end = min((segment + 1) * per_segment, s.tiles);
    const int tile =
        find(segment * per_segment, tiles_end, target, before, [&](int i) { return weights[i]; });
    const int rows_end = min((tile + 1) * s.length, s.rows);
    const int row = find(tile * s.length, rows_end, target, before, [&](int i) {
      double weight = s.nearest[i];
      if (behind) weight = fmin(weight, distance(s.points, i, s.points + (int64)newest * COLUMNS));
      return uniform && weight != TAKEN ? 1.0 : fmax(weight, 0.0);
    });
    if (lane == 0) s.tried[trial] = row;
  }
}

// A tile's sums after `draw` draws, for each trial of the last one
__device__ __forceinline__ void cover_tile(Seeding s, int tile, int draw) {
  const int lane = threadIdx.x % 32;
  const int begin = tile * s.length, end = min(begin + s.length, s.rows);
  // Centres for certain that `nearest` does not know yet
  const Point* centres = s.chosen;
  int count = s.chosen_rows;
  if (draw > 0) {
    count = s.trials == 1 || draw > 1;
    const int64 newest = s.trials == 1 ? s.tried[0] : draw > 1 ? s.picks[draw - 2] : 0;
    centres = s.points + newest * COLUMNS;
  } else if (lane == 0) {
    s.sums[(int64)s.trials * s.tiles + tile] = end - begin;
  }
  for (int trial = 0; trial < s.trials; trial++) {
    const Point* tried = draw > 0 && s.trials > 1 ? s.points + (int64)s.tried[trial] * COLUMNS : nullptr;
    double sum = 0;
#pragma unroll 1
    for (int first = begin; first < end; first += 32) {
      const int row = min(first + lane, end - 1);
      const double known = first + lane < end ? s.nearest[row] : TAKEN;
      double weight = known;
#pragma unroll 1
      for (int c = 0; c < count; c++) {
        weight = fmin(weight, distance(s.points, row, centres + (int64)c * COLUMNS));
      }
      if (weight < known) s.nearest[row] = weight;
      if (tried) weight = fmin(weight, distance(s.points, row, tried));
      sum += fmax(weight, 0.0);
    }
    sum = warp_sum(sum);
    if (lane == 0) s.sums[(int64)trial * s.tiles + tile] = sum;
    count = 0;
  }
}

extern "C" __global__ void __launch_bounds__(64, 16)
    cover(const Point* points, const Point* chosen, const double* uniforms, double* nearest, double* sums,
          int* tried, int64* picks, int rows, int chosen_rows, int trials, int draws, int length, int tiles,
          int draw) {
  const Seeding s{points, chosen,      uniforms, nearest, sums,   tried, picks,
                  rows,   chosen_rows, trials,   draws,   length, tiles};
  const int tile = (blockIdx.x * blockDim.x + threadIdx.x) / 32;
  if (tile < tiles) cover_tile(s, tile, draw);
}

extern "C" __global__ void __launch_bounds__(1024, 1)
    draw(const Point* points, const Point* chosen, const double* uniforms, double* nearest, double* sums,
         int* tried, int64* picks, int rows, int chosen_rows, int trials, int draws, int length, int tiles,
         int draw) {
  __shared__ double shared[2][32];
  const Seeding s{points, chosen,      uniforms, nearest, sums,   tried, picks,
                  rows,   chosen_rows, trials,   draws,   length, tiles};
  draw_trials(s, draw, shared);
}

extern "C" __global__ void __launch_bounds__(1024, 1)
    seed(const Point* points, const Point* chosen, const double* uniforms, double* nearest, double* sums,
         int* tried, int64* picks, int rows, int chosen_rows, int trials, int draws, int length, int tiles) {
  __shared__ double shared[2][32];
  const Seeding s{points, chosen,      uniforms, nearest, sums,   tried, picks,
                  rows,   chosen_rows, trials,   draws,   length, tiles};
  for (int draw = 0; draw <= draws; draw++) {
    for (int tile = threadIdx.x / 32; tile < tiles; tile += blockDim.x / 32) cover_tile(s, tile, draw);
    __syncthreads();
    draw_trials(s, draw, shared);
    __syncthreads();
  }
}
