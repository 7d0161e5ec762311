// patch_classes and patch_committee of meal_gpu.ops.cpu, one call per thread. Twins: meal_gpu.ops.reference.

#include "cpu.hpp"

namespace {

constexpr float kLog2E = 1.44269504088896f;
constexpr float kLeast = 1.17549435e-38f;  // 2^-126, the least that `log` takes

// The sums of one thread's rows of one row of patches: [columns, classes]
class Sums {
 public:
  Sums(int64_t columns, int64_t classes) : size_(columns * classes) {
    probabilities_.reset(new (std::nothrow) Floats[size_]);
    counts_.reset(new (std::nothrow) int32_t[size_]);
  }

  bool ready() const { return probabilities_ && counts_; }
  void clear() {
    for (int64_t i = 0; i < size_; i++) probabilities_[i] = Floats{}, counts_[i] = 0;
  }
  Floats* probabilities(int64_t at) { return &probabilities_[at]; }
  void count(int64_t at) { counts_[at]++; }

  // Other threads add to the same counts, in whatever order
  void write(double* probabilities, int32_t* counts) const {
    for (int64_t i = 0; i < size_; i++) {
      double sum = 0;
      for (int lane = 0; lane < kLanes; lane++) sum += probabilities_[i][lane];
      probabilities[i] = sum;
      if (counts_[i]) __atomic_fetch_add(counts + i, counts_[i], __ATOMIC_RELAXED);
    }
  }

 private:
  int64_t size_;
  std::unique_ptr<Floats[]> probabilities_;
  std::unique_ptr<int32_t[]> counts_;
};

}  // namespace

// All return 0, or 1 where memory ran out.

// probabilities[images, rows, ceil(patch_height / band), columns, classes]: sums over `band` rows of pixels
// each, which must not depend on how the work is split. counts[images, rows, columns, classes] begin as 0.
extern "C" int patch_classes(const float* values, int64_t classes, int64_t height, int64_t width,
                             const int32_t* x_lower, const int32_t* x_upper, const float* x_weight,
                             const int32_t* y_lower, const int32_t* y_upper, const float* y_weight,
                             int64_t full_height, int64_t full_width, int64_t images, int64_t band,
                             int64_t patch_height, int64_t patch_width, int64_t rows, int64_t columns,
                             float temperature, const uint8_t* valid, double* probabilities, int32_t* counts,
                             int64_t* next) {
  const Logits logits = describe(values, classes, height, width, x_lower, x_upper, x_weight, y_lower, y_upper,
                                 y_weight, full_height, full_width);
  const float scale = kLog2E / temperature;
  const int64_t bands = (patch_height + band - 1) / band, size = columns * classes;
  Sums sums(columns, classes);
  if (!sums.ready()) return 1;
  Ints lanes;
  for (int lane = 0; lane < kLanes; lane++) lanes[lane] = lane;
  for (int64_t piece; (piece = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED)) < images * rows * bands;) {
    const int64_t image = piece / (rows * bands), row = piece / bands % rows;
    const int64_t top = row * patch_height + piece % bands * band;
    int64_t bottom = top + band < (row + 1) * patch_height ? top + band : (row + 1) * patch_height;
    if (bottom > full_height) bottom = full_height;
    sums.clear();
    const bool done = upsample(logits, image, top, bottom, [&](int64_t y, int64_t x, Floats* z) {
      Floats best = z[0];
      Ints winner = {};
      for (int64_t k = 1; k < classes; k++) {
        // As in confusion
        const Ints better = ~(z[k] <= best) & (best == best);
        best = better ? z[k] : best;
        winner = better ? winner * 0 + (int32_t)k : winner;
      }
      Floats sum = {};
      for (int64_t k = 0; k < classes; k++) {
        z[k] = exp2((z[k] - best) * scale);
        sum += z[k];
      }
      const Floats inverse = 1.0f / sum;
      const int64_t end = x + kLanes < full_width ? x + kLanes : full_width;
      Ints counted = lanes < (int32_t)(end - x);
      if (valid)
        for (int64_t i = x; i < end; i++) counted[i - x] = valid[y * full_width + i] ? -1 : 0;
      for (int64_t column = x / patch_width; column * patch_width < end; column++) {
        const int64_t left = column * patch_width - x, right = left + patch_width;
        const Ints here = counted & (lanes >= (int32_t)(left < 0 ? 0 : left)) &
                          (lanes < (int32_t)(right > kLanes ? kLanes : right));
        Floats* to = sums.probabilities(column * classes);
        for (int64_t k = 0; k < classes; k++) to[k] += here ? z[k] * inverse : Floats{};
        for (int lane = 0; lane < kLanes; lane++)
          if (here[lane]) sums.count(column * classes + winner[lane]);
      }
    });
    if (!done) return 1;
    sums.write(probabilities + piece * size, counts + (image * rows + row) * size);
  }
  return 0;
}

// Sums over each row of each column of patches, [2, images, full_height, columns]: of the entropy of the
// members' mean probabilities, and of the mean of their entropies. `classes` are those of all members.
extern "C" int patch_committee(const float* values, int64_t classes, int64_t height, int64_t width,
                               const int32_t* x_lower, const int32_t* x_upper, const float* x_weight,
                               const int32_t* y_lower, const int32_t* y_upper, const float* y_weight,
                               int64_t full_height, int64_t full_width, int64_t images, int64_t band,
                               int64_t patch_width, int64_t columns, int64_t members, float temperature,
                               const uint8_t* valid, double* sums, int64_t* next) {
  const Logits logits = describe(values, classes, height, width, x_lower, x_upper, x_weight, y_lower, y_upper,
                                 y_weight, full_height, full_width);
  const float inverse_temperature = 1 / temperature, scale = kLog2E / temperature;
  const int64_t own = classes / members;
  return !row_sums<2>(logits, images, band, patch_width, columns, valid, sums, next,
                      [&](Floats* z, Floats* values) {
                        Floats expected = {};
                        for (int64_t member = 0; member < members; member++) {
                          Floats* p = z + member * own;
                          Floats best = p[0];
                          for (int64_t k = 1; k < own; k++) best = best > p[k] ? best : p[k];
                          Floats sum = {}, weighted = {};
                          for (int64_t k = 0; k < own; k++) {
                            const Floats below = p[k] - best;
                            p[k] = exp2(below * scale);
                            sum += p[k];
                            weighted += below * p[k];  // NaN where a logit is infinite
                          }
                          const Floats inverse = 1.0f / sum;
                          for (int64_t k = 0; k < own; k++) p[k] *= inverse;
                          expected += log(sum) - inverse_temperature * weighted * inverse;
                        }
                        Floats total = {};
                        for (int64_t k = 0; k < own; k++) {
                          Floats p = z[k];
                          for (int64_t member = 1; member < members; member++) p += z[member * own + k];
                          p /= (float)members;
                          total -= p * log(p > kLeast ? p : all(kLeast));
                        }
                        // Rounding may end below 0
                        values[0] = total < 0.0f ? Floats{} : total;
                        values[1] = expected / (float)members;
                      });
}
