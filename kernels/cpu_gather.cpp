// Patches picked from resident images on the CPU: normalised, laid out and padded, with their labels beside
// them. Twin: meal_gpu.ops.reference.gather_patches. Threads share the work as in cpu.cpp.

#include <cstdint>
#include <cstring>

namespace {

struct Gather {
  const uint8_t* images;  // [images, height, width, 3], rows contiguous
  int64_t image_step, row_step;
  const uint8_t* labels;  // [images, height, width], rows contiguous; or null
  int64_t label_image_step, label_row_step;
  const int64_t* patches;
  int64_t height, width, columns, patches_per_image, patch_height, patch_width;
  int64_t padded_height, padded_width;
  bool channels_last;
  uint8_t void_label;
};

// `table` [3, 256]: what each byte of each channel becomes
template <typename Element>
void gather_row(const Gather& g, const Element* table, int64_t index, int64_t y, Element* pixels,
                uint8_t* labels) {
  const int64_t image = g.patches[index] / g.patches_per_image, cell = g.patches[index] % g.patches_per_image;
  const int64_t top = cell / g.columns * g.patch_height, left = cell % g.columns * g.patch_width;
  const int64_t inside = left + g.patch_width < g.width ? g.patch_width : g.width - left;
  const int64_t count = y < g.patch_height && top + y < g.height ? inside : 0, width = g.padded_width;
  const int64_t row = index * g.padded_height + y;
  if (labels) {
    uint8_t* const to = labels + row * width;
    if (count)
      std::memcpy(to, g.labels + image * g.label_image_step + (top + y) * g.label_row_step + left, count);
    std::memset(to + count, g.void_label, width - count);
  }
  const uint8_t* const from = g.images + image * g.image_step + (top + y) * g.row_step + 3 * left;
  const Element *const red = table, *const green = table + 256, *const blue = table + 512;
  if (g.channels_last) {
    Element* const to = pixels + 3 * row * width;
    for (int64_t x = 0; x < count; x++) {
      to[3 * x] = red[from[3 * x]];
      to[3 * x + 1] = green[from[3 * x + 1]];
      to[3 * x + 2] = blue[from[3 * x + 2]];
    }
    std::memset(to + 3 * count, 0, 3 * (width - count) * sizeof(Element));
  } else {
    for (int channel = 0; channel < 3; channel++) {
      Element* const to = pixels + ((3 * index + channel) * g.padded_height + y) * width;
      const Element* const values = table + 256 * channel;
      for (int64_t x = 0; x < count; x++) to[x] = values[from[3 * x + channel]];
      std::memset(to + count, 0, (width - count) * sizeof(Element));
    }
  }
}

}  // namespace

// Pixels are floats where `element_bytes` is 4, and 16-bit patterns where it is 2. Strides are in bytes.
extern "C" int gather_patches(const uint8_t* images, int64_t image_step, int64_t row_step,
                              const uint8_t* labels, int64_t label_image_step, int64_t label_row_step,
                              const int64_t* patches, int64_t count, const void* table, int64_t element_bytes,
                              int64_t height, int64_t width, int64_t columns, int64_t patches_per_image,
                              int64_t patch_height, int64_t patch_width, int64_t padded_height,
                              int64_t padded_width, int64_t channels_last, int64_t void_label, int64_t band,
                              void* pixels, uint8_t* patch_labels, int64_t* next) {
  const Gather g{images,
                 image_step,
                 row_step,
                 labels,
                 label_image_step,
                 label_row_step,
                 patches,
                 height,
                 width,
                 columns,
                 patches_per_image,
                 patch_height,
                 patch_width,
                 padded_height,
                 padded_width,
                 channels_last != 0,
                 (uint8_t)void_label};
  const int64_t bands = (padded_height + band - 1) / band;
  for (int64_t piece; (piece = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED)) < count * bands;) {
    const int64_t top = piece % bands * band;
    const int64_t bottom = top + band < padded_height ? top + band : padded_height;
    for (int64_t y = top; y < bottom; y++) {
      if (element_bytes == 4) {
        gather_row(g, (const float*)table, piece / bands, y, (float*)pixels, patch_labels);
      } else {
        gather_row(g, (const uint16_t*)table, piece / bands, y, (uint16_t*)pixels, patch_labels);
      }
    }
  }
  return 0;
}
