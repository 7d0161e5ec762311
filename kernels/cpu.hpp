// What the kernels of meal_gpu.ops.cpu that read logits share: low-resolution logits become full-resolution
// pixels in registers only.
//
// Threads share the work by taking numbered pieces from `next`. What a pixel gives never depends on the piece
// that it is in, and sums are taken in one order: results have the same bits however the work is split.

#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <new>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));

// Of the two rows of nodes that a tile keeps, all classes: they stay in the first-level cache
constexpr int kTileBytes = 32 << 10;

inline Floats all(float x) { return x - Floats{}; }
inline Floats load(const float* from) {
  Floats x;
  std::memcpy(&x, from, sizeof x);
  return x;
}
inline void store(float* to, Floats x) { std::memcpy(to, &x, sizeof x); }

// One axis: pixel i lies `weight[i]` of the way from node `lower[i]` to node `upper[i]`
struct Axis {
  const int32_t* lower;
  const int32_t* upper;
  const float* weight;
};

struct Logits {
  const float* values;  // [images, classes, height, width]
  int64_t classes, height, width;
  Axis x, y;
  int64_t full_height, full_width;
};

// A row of nodes brought to the pixels' columns. Where kLanes pixels lie between the kLanes nodes from
// `first`, they are shuffled out of one load of those; elsewhere each pixel loads its two nodes.
class Columns {
 public:
  Columns(const Logits& logits, int64_t begin, int64_t end)
      : classes_(logits.classes), plane_(logits.height * logits.width), width_(logits.width) {
    vectors_ = (end - begin + kLanes - 1) / kLanes;
    plans_.reset(new (std::nothrow) Plan[vectors_]);
    if (!plans_) return;
    for (int64_t v = 0; v < vectors_; v++) {
      Plan& plan = plans_[v];
      int32_t last = 0;
      for (int lane = 0; lane < kLanes; lane++) {
        int64_t x = begin + v * kLanes + lane;
        if (x >= end) x = end - 1;
        plan.lower[lane] = logits.x.lower[x];
        plan.upper[lane] = last = logits.x.upper[x];
        plan.weight[lane] = logits.x.weight[x];
      }
      plan.first = plan.lower[0];
      if (plan.first > width_ - kLanes) plan.first = width_ - kLanes;
      plan.shuffled = kShuffles && plan.first >= 0 && last - plan.first < kLanes;
      if (plan.shuffled) {
        plan.lower -= (int32_t)plan.first;
        plan.upper -= (int32_t)plan.first;
      }
    }
  }

  bool ready() const { return plans_ != nullptr; }
  int64_t vectors() const { return vectors_; }

  // to[vector][class] <- row `node` of one image
  void expand(const float* image, int64_t node, Floats* to) const {
    for (int64_t k = 0; k < classes_; k++) {
      const float* row = image + k * plane_ + node * width_;
      for (int64_t v = 0; v < vectors_; v++) {
        const Plan& plan = plans_[v];
        Floats left, right;
        if (plan.shuffled) {
          const Floats nodes = load(row + plan.first);
          left = shuffle(nodes, plan.lower);
          right = shuffle(nodes, plan.upper);
        } else {
          for (int lane = 0; lane < kLanes; lane++) {
            left[lane] = row[plan.lower[lane]];
            right[lane] = row[plan.upper[lane]];
          }
        }
        to[v * classes_ + k] = left + plan.weight * (right - left);
      }
    }
  }

 private:
  struct Plan {
    Ints lower, upper;
    Floats weight;
    int64_t first;
    bool shuffled;
  };

#if defined(__AVX512F__)
  static constexpr bool kShuffles = true;
  static Floats shuffle(Floats nodes, Ints at) {
    return (Floats)_mm512_permutexvar_ps((__m512i)at, (__m512)nodes);
  }
#elif defined(__AVX2__)
  static constexpr bool kShuffles = true;
  static Floats shuffle(Floats nodes, Ints at) {
    return (Floats)_mm256_permutevar8x32_ps((__m256)nodes, (__m256i)at);
  }
#else
  static constexpr bool kShuffles = false;
  static Floats shuffle(Floats nodes, Ints) { return nodes; }
#endif

  int64_t classes_, plane_, width_, vectors_;
  std::unique_ptr<Plan[]> plans_;
};

// Call pixels(y, x, z) for every kLanes pixels of rows [top, bottom) of one image, with all classes' logits
// there, which it may overwrite
template <typename Pixels>
bool upsample(const Logits& logits, int64_t image, int64_t top, int64_t bottom, Pixels pixels) {
  const int64_t classes = logits.classes;
  const float* values = logits.values + image * classes * logits.height * logits.width;
  int64_t tile = kTileBytes / (2 * classes * (int64_t)sizeof(Floats)) * kLanes;
  if (tile < kLanes) tile = kLanes;
  if (tile > logits.full_width) tile = (logits.full_width + kLanes - 1) / kLanes * kLanes;
  std::unique_ptr<Floats[]> rows(new (std::nothrow) Floats[(2 * tile / kLanes + 1) * classes]);
  if (!rows) return false;
  Floats* const z = rows.get();
  for (int64_t begin = 0; begin < logits.full_width; begin += tile) {
    const int64_t end = begin + tile < logits.full_width ? begin + tile : logits.full_width;
    const Columns columns(logits, begin, end);
    if (!columns.ready()) return false;
    Floats *upper = z + classes, *lower = upper + classes * tile / kLanes;
    int64_t at_upper = -1, at_lower = -1;
    for (int64_t y = top; y < bottom; y++) {
      if (at_upper != logits.y.lower[y] && at_lower == logits.y.lower[y]) {
        Floats* const swapped = upper;
        upper = lower, lower = swapped;
        at_upper = at_lower, at_lower = -1;
      }
      if (at_upper != logits.y.lower[y]) columns.expand(values, at_upper = logits.y.lower[y], upper);
      if (at_lower != logits.y.upper[y]) columns.expand(values, at_lower = logits.y.upper[y], lower);
      const Floats weight = all(logits.y.weight[y]);
      for (int64_t v = 0; v < columns.vectors(); v++) {
        const Floats *a = upper + v * classes, *b = lower + v * classes;
        for (int64_t k = 0; k < classes; k++) z[k] = a[k] + weight * (b[k] - a[k]);
        pixels(y, begin + v * kLanes, z);
      }
    }
  }
  return true;
}

// 2^x for x <= 0, to 2 units in the last place; 0 below 2^-126. NaN stays NaN.
inline Floats exp2(Floats x) {
  x = all(-127.0f) > x ? all(-127.0f) : x;
  // Adding 1.5 * 2^23 rounds to an integer and leaves it, with the exponent's bias, in the lowest bits
  const Floats magic = all(12582912.0f + 127.0f);
  const Floats whole = x + magic;
  const Floats f = x - (whole - magic);
  // Relative minimax on [-0.5, 0.5] with p(0) = 1
  Floats p = all(0.0013264727f);
  p = p * f + 0.009671513f;
  p = p * f + 0.055507336f;
  p = p * f + 0.24022242f;
  p = p * f + 0.693147f;
  p = p * f + 1.0f;
  return p * (Floats)((Ints)whole << 23);
}

// ln x for finite x >= 2^-126, to 1 unit in the last place: exactly 0 at 1
inline Floats log(Floats x) {
  // x = 2^e * (1 + f) with 1 + f between sqrt(1/2) and sqrt(2); coefficients: Cephes 2.8, logf (Moshier 1992)
  const Ints e = ((Ints)x - 0x3f3504f3) >> 23;
  const Floats f = (Floats)((Ints)x - (e << 23)) - 1.0f;
  Floats p = all(7.0376836292e-2f);
  p = p * f - 1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f - 1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f - 1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f - 2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  const Floats square = f * f;
  const Floats exponent = __builtin_convertvector(e, Floats);
  // ln 2 in two parts, of which the first has few bits
  return f + (square * (f * p - 0.5f) + exponent * -2.12194440e-4f) + exponent * 0.693359375f;
}

// In an order that the vectors' length has no part in
double sum(const float* values, int64_t count) {
  double parts[8] = {};
  int64_t i = 0;
  for (; i + 8 <= count; i += 8)
    for (int j = 0; j < 8; j++) parts[j] += values[i + j];
  for (int j = 0; i + j < count; j++) parts[j] += values[i + j];
  return ((parts[0] + parts[4]) + (parts[2] + parts[6])) + ((parts[1] + parts[5]) + (parts[3] + parts[7]));
}

// What measure(z, values) gives of each pixel, summed over each row of each column of patches:
// [maps, images, full_height, columns]
template <int maps, typename Measure>
bool row_sums(const Logits& logits, int64_t images, int64_t band, int64_t patch_width, int64_t columns,
              const uint8_t* valid, double* sums, int64_t* next, Measure measure) {
  const int64_t width = logits.full_width, pitch = (width + kLanes - 1) / kLanes * kLanes;
  const int64_t bands = (logits.full_height + band - 1) / band;
  std::unique_ptr<float[]> map(new (std::nothrow) float[maps * band * pitch]);
  if (!map) return false;
  for (int64_t piece; (piece = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED)) < images * bands;) {
    const int64_t image = piece / bands, top = piece % bands * band;
    const int64_t bottom = top + band < logits.full_height ? top + band : logits.full_height;
    const bool done = upsample(logits, image, top, bottom, [&](int64_t y, int64_t x, Floats* z) {
      Floats values[maps];
      measure(z, values);
      for (int m = 0; m < maps; m++) store(&map[(m * band + y - top) * pitch + x], values[m]);
    });
    if (!done) return false;
    for (int m = 0; m < maps; m++) {
      for (int64_t y = top; y < bottom; y++) {
        float* row = &map[(m * band + y - top) * pitch];
        double* to = sums + ((m * images + image) * logits.full_height + y) * columns;
        if (valid)
          for (int64_t x = 0; x < width; x++) row[x] = valid[y * width + x] ? row[x] : 0.0f;
        for (int64_t column = 0; column < columns; column++) {
          const int64_t left = column * patch_width;
          const int64_t right = left + patch_width < width ? left + patch_width : width;
          to[column] = sum(row + left, right - left);
        }
      }
    }
  }
  return true;
}

Logits describe(const float* logits, int64_t classes, int64_t height, int64_t width, const int32_t* x_lower,
                const int32_t* x_upper, const float* x_weight, const int32_t* y_lower, const int32_t* y_upper,
                const float* y_weight, int64_t full_height, int64_t full_width) {
  return Logits{
      logits,      classes,   height, width, {x_lower, x_upper, x_weight}, {y_lower, y_upper, y_weight},
      full_height, full_width};
}

}  // namespace
