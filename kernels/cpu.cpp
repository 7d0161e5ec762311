// patch_entropy and confusion of meal_gpu.ops.cpu, one call per thread. Twins: meal_gpu.ops.reference.

#include "cpu.hpp"

namespace {

enum Measure { kEntropy, kMargin, kLeastConfidence };

template <int measure>
inline Floats uncertainty(const Floats* z, int64_t classes, float scale, float inverse_temperature) {
  Floats best = z[0], second = all(-__builtin_inff());
  for (int64_t k = 1; k < classes; k++) {
    if (measure == kMargin) {
      const Floats loser = best > z[k] ? z[k] : best;
      second = second > loser ? second : loser;
    }
    best = best > z[k] ? best : z[k];
  }
  Floats sum = {}, weighted = {};
  for (int64_t k = 0; k < classes; k++) {
    const Floats below = z[k] - best;
    const Floats power = exp2(below * scale);
    sum += power;
    weighted += below * power;  // NaN where a logit is infinite
  }
  if (measure == kEntropy) return log(sum) - inverse_temperature * weighted / sum;
  Floats first = all(1.0f);
  if (measure == kMargin) first -= exp2((second - best) * scale);
  return 1.0f - first / sum + 0.0f * weighted;
}

template <int measure>
bool measured(const Logits& logits, int64_t images, int64_t band, int64_t patch_width, int64_t columns,
              float temperature, const uint8_t* valid, double* sums, int64_t* next) {
  const float inverse_temperature = 1 / temperature, scale = 1.44269504088896f / temperature;
  return row_sums<1>(logits, images, band, patch_width, columns, valid, sums, next,
                     [&](const Floats* z, Floats* values) {
                       *values = uncertainty<measure>(z, logits.classes, scale, inverse_temperature);
                     });
}

}  // namespace

// All return 0, or 1 where memory ran out.

// Sums of the measure over each row of each column of patches, [images, full_height, columns]
extern "C" int patch_entropy(const float* values, int64_t classes, int64_t height, int64_t width,
                             const int32_t* x_lower, const int32_t* x_upper, const float* x_weight,
                             const int32_t* y_lower, const int32_t* y_upper, const float* y_weight,
                             int64_t full_height, int64_t full_width, int64_t images, int64_t band,
                             int64_t patch_width, int64_t columns, int64_t measure, float temperature,
                             const uint8_t* valid, double* sums, int64_t* next) {
  const Logits logits = describe(values, classes, height, width, x_lower, x_upper, x_weight, y_lower, y_upper,
                                 y_weight, full_height, full_width);
  const auto function = measure == kEntropy  ? measured<kEntropy>
                        : measure == kMargin ? measured<kMargin>
                                             : measured<kLeastConfidence>;
  return !function(logits, images, band, patch_width, columns, temperature, valid, sums, next);
}

// counts[truth][prediction] of one thread; a label that is neither a class nor void is left in `unknown`
extern "C" int confusion(const float* values, int64_t classes, int64_t height, int64_t width,
                         const int32_t* x_lower, const int32_t* x_upper, const float* x_weight,
                         const int32_t* y_lower, const int32_t* y_upper, const float* y_weight,
                         int64_t full_height, int64_t full_width, int64_t images, int64_t band,
                         const uint8_t* labels, int64_t void_label, int64_t* counts, int64_t* unknown,
                         int64_t* next) {
  const Logits logits = describe(values, classes, height, width, x_lower, x_upper, x_weight, y_lower, y_upper,
                                 y_weight, full_height, full_width);
  const int64_t bands = (full_height + band - 1) / band;
  for (int64_t piece; (piece = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED)) < images * bands;) {
    const int64_t image = piece / bands, top = piece % bands * band;
    const int64_t bottom = top + band < full_height ? top + band : full_height;
    const bool done = upsample(logits, image, top, bottom, [&](int64_t y, int64_t x, const Floats* z) {
      Floats best = z[0];
      Ints winner = {};
      for (int64_t k = 1; k < classes; k++) {
        // The first of the largest wins, and the first NaN before any number, as in torch
        const Ints better = ~(z[k] <= best) & (best == best);
        best = better ? z[k] : best;
        winner = better ? winner * 0 + (int32_t)k : winner;
      }
      const uint8_t* truth = labels + (image * full_height + y) * full_width + x;
      const int64_t count = x + kLanes < full_width ? kLanes : full_width - x;
      for (int64_t i = 0; i < count; i++) {
        if (truth[i] == void_label) continue;
        if (truth[i] >= classes) {
          *unknown = truth[i];
          continue;
        }
        counts[truth[i] * classes + winner[i]]++;
      }
    });
    if (!done) return 1;
  }
  return 0;
}
