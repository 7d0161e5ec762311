// Patches picked from a resident pool, uint8 images [N, H, W, 3] and labels [N, H, W]: normalised, rounded to
// ELEMENT, laid out and padded, with their labels beside them, in one pass. Twin:
// meal_gpu.ops.reference.gather_patches.
//
// A block makes up to `down` x `across` pixels of one padded patch. It stages the image's bytes in shared
// memory, LOAD at a time, and stores the normalised pixels, STORE bytes at a time: neighbouring threads touch
// neighbouring memory on both sides, however different the two widths are. LOAD divides the addresses and the
// widths of images and patches, so that LOAD bytes of a row belong to the patch together, or not at all.
//
// -D ELEMENT (0 float32, 1 float16, 2 bfloat16) LOAD STORE LABELS (bytes at a time; 0: none) CHANNELS_LAST

#if ELEMENT == 0
typedef float Element;
#else
typedef uint16 Element;
#endif

#define ELEMENTS (STORE / (int)sizeof(Element))
// What a thread normalises at a time. A vector of one plane takes every third byte: all three planes at once
#define BYTES (CHANNELS_LAST ? ELEMENTS : 3 * ELEMENTS)
#define GROUP (LOAD < ELEMENTS ? LOAD : ELEMENTS)

__device__ __forceinline__ Element to_element(float x) {
#if ELEMENT == 0
  return x;
#elif ELEMENT == 1
  return to_half(x);
#else
  return to_bfloat16(x);
#endif
}

struct alignas(STORE) Vector {
  Element elements[ELEMENTS];
};

template <int N>
struct alignas(N) Bytes {
  uint32 words[N / 4];
};

template <>
struct Bytes<2> {
  uint16 words[1];
};

template <>
struct Bytes<1> {
  uint8 words[1];
};

typedef Bytes<LOAD> Load;
typedef Bytes<GROUP> Group;
typedef Bytes<LABELS ? LABELS : 1> Labels;

// (x/255 - mean) / std as (x - centre) * scale + shift with an integer `centre` near 255 * mean: the
// difference is exact and the shift small, so that nothing cancels. `bias` is 2^23 + centre, because a byte
// in the last place of 2^23 is a float without a conversion.
struct Channel {
  float bias, scale, shift;

  __device__ __forceinline__ float normalise(uint32 word, int byte) const {
    return fmaf(__uint_as_float(__byte_perm(word, 0x4b000000, 0x7440 | byte)) - bias, scale, shift);
  }
};

// What a block makes
struct Part {
  int64 source, target;  // its first pixel's place in the pool, and in the padded patches
  int64 before;          // pixels of the patches before
  int wide, high;
  int inside_x, inside_y;  // how many pixels the image has, if any; the others are padding
};

// Share out `length` items in each of `rows` rows among the block's threads, without a division per item
template <typename Visit>
__device__ __forceinline__ void for_each(int rows, int length, Visit visit) {
  if (length <= 0) return;
  const int step_rows = blockDim.x / length, step = blockDim.x % length;
  int row = threadIdx.x / length, item = threadIdx.x % length;
  while (row < rows) {
    visit(row, item);
    row += step_rows;
    item += step;
    if (item >= length) {
      item -= length;
      row++;
    }
  }
}

extern "C" __global__ void __launch_bounds__(192)
    gather_patches(const Load* images, const Labels* labels, const int64* patches, Vector* pixels,
                   Labels* patch_labels, int height, int width, int columns, int per_image, int patch_height,
                   int patch_width, int padded_height, int padded_width, int down, int across, int void_label,
                   float bias_0, float bias_1, float bias_2, float scale_0, float scale_1, float scale_2,
                   float shift_0, float shift_1, float shift_2) {
  DYNAMIC_SHARED(Load, staged);
  __shared__ Part found;
  const int64 plane = (int64)padded_height * padded_width;
  if (threadIdx.x == 0) {
    const int parts_x = (padded_width + across - 1) / across, parts_y = (padded_height + down - 1) / down;
    const int row = blockIdx.x / parts_x, index = row / parts_y;
    const int left = blockIdx.x % parts_x * across, top = row % parts_y * down;
    const int64 patch = patches[index], image = patch / per_image;
    const int cell = (int)(patch - image * per_image);
    const int x = cell % columns * patch_width, y = cell / columns * patch_height;
    found.source = (image * height + y + top) * width + x + left;
    found.before = index * plane;
    found.target = found.before + (int64)top * padded_width + left;
    found.wide = min(across, padded_width - left);
    found.high = min(down, padded_height - top);
    found.inside_x = min(found.wide, min(patch_width, width - x) - left);
    found.inside_y = min(found.high, min(patch_height, height - y) - top);
  }
  __syncthreads();
  const Part part = found;

  const int row_loads = 3 * part.inside_x / LOAD;
  const Load* from = images + 3 * part.source / LOAD;
  for_each(part.inside_y, row_loads, [&](int row, int item) {
    staged[row * row_loads + item] = from[(int64)row * (3 * width / LOAD) + item];
  });

#if LABELS
  const Labels* labels_from = labels + part.source / LABELS;
  Labels* labels_to = patch_labels + part.target / LABELS;
  for_each(part.high, part.wide / LABELS, [&](int row, int item) {
    Labels some;
    if (row < part.inside_y && item * LABELS < part.inside_x) {
      some = labels_from[(int64)row * (width / LABELS) + item];
    } else {
#pragma unroll
      for (int i = 0; i * 4 < LABELS; i++) some.words[i] = void_label * 0x01010101u;
    }
    labels_to[row * (padded_width / LABELS) + item] = some;
  });
#endif
  __syncthreads();

  // Vectors per row and threads per block are multiples of 3: all vectors of a thread begin in this channel
  const int first = CHANNELS_LAST ? threadIdx.x * ELEMENTS % 3 : 0;
  const auto channel = [&](int c) {
    if (c % 3 == 0) return Channel{bias_0, scale_0, shift_0};
    return c % 3 == 1 ? Channel{bias_1, scale_1, shift_1} : Channel{bias_2, scale_2, shift_2};
  };
  const Channel channels[3] = {channel(first), channel(first + 1), channel(first + 2)};
  const Group* groups = reinterpret_cast<const Group*>(staged);
  const int row_bytes = 3 * part.inside_x, row_groups = row_bytes / GROUP;
  Vector* to = pixels + (CHANNELS_LAST ? 3 * part.target : part.target + 2 * part.before) / ELEMENTS;
  const int row_vectors = (CHANNELS_LAST ? 3 : 1) * padded_width / ELEMENTS;
  for_each(part.high, 3 * part.wide / BYTES, [&](int row, int item) {
    const int inside = row < part.inside_y ? row_bytes - item * BYTES : 0;
    Element values[BYTES];
#pragma unroll
    for (int i = 0; i < BYTES; i += GROUP) {
      if (i < inside) {
        const Group group = groups[row * row_groups + item * (BYTES / GROUP) + i / GROUP];
#pragma unroll
        for (int e = 0; e < GROUP; e++) {
          values[i + e] = to_element(channels[(i + e) % 3].normalise(group.words[e / 4], e % 4));
        }
      } else {
#pragma unroll
        for (int e = 0; e < GROUP; e++) values[i + e] = Element(0);
      }
    }
#pragma unroll
    for (int v = 0; v < BYTES / ELEMENTS; v++) {
      Vector vector;
#pragma unroll
      for (int e = 0; e < ELEMENTS; e++) vector.elements[e] = values[CHANNELS_LAST ? e : 3 * e + v];
      to[v * (plane / ELEMENTS) + row * row_vectors + item] = vector;
    }
  });
}
