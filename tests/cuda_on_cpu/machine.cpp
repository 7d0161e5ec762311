// A GPU of one block at a time: each CUDA thread is a fiber; barriers, shuffles and votes hand over to the
// next one.
//
// Kernels are compiled with -fsanitize=thread and linked without its runtime, so that every load and store
// calls a function here. It must lie, aligned, in a buffer of the launch or in shared memory; shared memory
// must have been written before it is read; and two threads that meet at a byte, one of them writing, must
// have a barrier between. The first fault ends the launch and is described in words.

#include <ucontext.h>

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

struct uint3 {
  unsigned x, y, z;
};

extern "C" char __start_cuda_shared[] __attribute__((weak));
extern "C" char __stop_cuda_shared[] __attribute__((weak));

namespace {

constexpr size_t STACK = 64 << 10;

// What is known of a byte. Threads are numbered through the grid; an epoch counts barriers of the block and
// of the warp, since the first of a launch.
struct Trace {
  int64_t writer = -1, reader = -1;
  int64_t write_epoch = 0, read_epoch = 0;
  int64_t write_warp_epoch = 0, read_warp_epoch = 0;
  bool atomic = false;  // the last write was
  bool crowd = false;   // threads of several warps read in read_epoch
};

struct Region {
  char* begin;
  char* end;
  const char* what;
  int number;
  bool shared;
  std::vector<Trace> traces;
};

enum State { READY, AT_BARRIER, AT_WARP, DONE };

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[STACK]};
  State state = DONE;
  int64_t rounds = 0;  // of warp operations
};

struct Machine {
  uint3 block, thread, grid_dim, block_dim;
  std::vector<Fiber> fibers;
  std::vector<Region> regions;
  std::vector<int64_t> warp_epochs;
  std::vector<uint64_t> slots;  // [warp][parity of the round][lane]
  std::vector<char> shared;
  char* dynamic = nullptr;
  size_t dynamic_size = 0;
  ucontext_t scheduler;
  int running = -1;
  int64_t block_number = 0, epoch = 0;
  int counted = 0, counted_before = 0;
  uint64_t read_bytes = 0, written_bytes = 0;
  bool reversed = false;
  std::string fault;
  void (*kernel)(void**) = nullptr;
  void** arguments = nullptr;
} gpu;

int threads() { return static_cast<int>(gpu.block_dim.x * gpu.block_dim.y * gpu.block_dim.z); }

void hand_over() { swapcontext(&gpu.fibers[gpu.running].context, &gpu.scheduler); }

__attribute__((format(printf, 1, 2))) void fail(const char* format, ...) {
  char text[400];
  va_list list;
  va_start(list, format);
  vsnprintf(text, sizeof text, format, list);
  va_end(list);
  if (gpu.fault.empty()) {
    char where[120] = "";
    if (gpu.running >= 0)
      snprintf(where, sizeof where, " (block %u,%u,%u, thread %d)", gpu.block.x, gpu.block.y, gpu.block.z,
               gpu.running);
    gpu.fault = std::string(text) + where;
  }
  if (gpu.running >= 0)
    for (;;) hand_over();  // this fiber never goes on
}

Region* find(const char* address) {
  for (Region& region : gpu.regions)
    if (address >= region.begin && address < region.end) return &region;
  return nullptr;
}

bool on_own_stack(const char* address) {
  const char* stack = gpu.fibers[gpu.running].stack.get();
  return address >= stack && address < stack + STACK;
}

// Whether the running thread and `other` have been kept apart since `epoch` and `warp_epoch`
bool ordered(int64_t other, int64_t self, int64_t epoch, int64_t warp_epoch) {
  if (other < 0 || other == self) return true;
  if (other / threads() != self / threads()) return false;  // blocks of one launch are never ordered
  if (epoch != gpu.epoch) return true;
  const bool same_warp = other % threads() / 32 == self % threads() / 32;
  return same_warp && warp_epoch != gpu.warp_epochs[gpu.running / 32];
}

void access(void* pointer, size_t size, bool write, bool atomic = false, bool aligned = true) {
  if (gpu.running < 0) return;
  char* address = static_cast<char*>(pointer);
  if (on_own_stack(address)) return;
  const char* verb = write ? "writes" : "reads";
  Region* region = find(address);
  if (region == nullptr || address + size > region->end) {
    std::string nearest;
    for (Region& r : gpu.regions) {
      const long past = address + size - r.end;
      if (past > 0 && past < (1 << 20) && (nearest.empty() || region == &r))
        nearest = std::string(", ") + std::to_string(past) + " bytes past the end of " + r.what + " " +
                  std::to_string(r.number);
    }
    return fail("out of bounds: %s %zu bytes%s", verb, size, nearest.c_str());
  }
  const size_t offset = address - region->begin;
  if (aligned && reinterpret_cast<uintptr_t>(address) % size != 0)
    return fail("misaligned: %s %zu bytes at offset %zu of %s %d", verb, size, offset, region->what,
                region->number);
  if (!region->shared) (write ? gpu.written_bytes : gpu.read_bytes) += size;
  const int64_t self = gpu.block_number * threads() + gpu.running;
  const int64_t warp_epoch = gpu.warp_epochs[gpu.running / 32];
  for (size_t i = offset; i < offset + size; i++) {
    Trace& trace = region->traces[i];
    if (!write && region->shared && trace.writer < 0)
      return fail("uninitialised: reads byte %zu of shared memory, which nothing wrote", i);
    const bool both_atomic = atomic && trace.atomic;
    if (!both_atomic && !ordered(trace.writer, self, trace.write_epoch, trace.write_warp_epoch))
      return fail("race: %s byte %zu of %s %d, which thread %ld of block %ld wrote", verb, i, region->what,
                  region->number, long(trace.writer % threads()), long(trace.writer / threads()));
    if (write) {
      const bool meets_crowd = trace.crowd && trace.read_epoch == gpu.epoch;
      if (!both_atomic &&
          (meets_crowd || !ordered(trace.reader, self, trace.read_epoch, trace.read_warp_epoch)))
        return fail("race: writes byte %zu of %s %d, which thread %ld of block %ld read", i, region->what,
                    region->number, long(trace.reader % threads()), long(trace.reader / threads()));
      trace.writer = self;
      trace.write_epoch = gpu.epoch;
      trace.write_warp_epoch = warp_epoch;
      trace.atomic = atomic;
      if (atomic) continue;
      trace.reader = -1;
      trace.crowd = false;
    } else {
      const bool again = trace.reader >= 0 && trace.read_epoch == gpu.epoch;
      trace.crowd = again && (trace.crowd || trace.reader / 32 != self / 32);
      trace.reader = self;
      trace.read_epoch = gpu.epoch;
      trace.read_warp_epoch = warp_epoch;
    }
  }
}

void warp_round(unsigned mask, uint64_t value, uint64_t* values) {
  if (mask != 0xffffffffu) return fail("only warp operations of all 32 lanes are supported");
  Fiber& fiber = gpu.fibers[gpu.running];
  const int warp = gpu.running / 32, lane = gpu.running % 32;
  // Two sets of slots: a lane that runs ahead cannot pass the next round before all others have read this one
  uint64_t* slots = &gpu.slots[(warp * 2 + fiber.rounds % 2) * 32];
  slots[lane] = value;
  fiber.rounds++;
  fiber.state = AT_WARP;
  hand_over();
  if (values != nullptr) memcpy(values, slots, 32 * sizeof(uint64_t));
}

void enter() {
  gpu.kernel(gpu.arguments);
  gpu.fibers[gpu.running].state = DONE;
  hand_over();
}

// Let those go on who wait for nobody any more. False where nobody can.
bool release() {
  bool released = false;
  int waiting = 0, alive = 0;
  for (int warp = 0; warp < threads() / 32; warp++) {
    int arrived = 0;
    for (int lane = 0; lane < 32; lane++) {
      const State state = gpu.fibers[warp * 32 + lane].state;
      arrived += state == AT_WARP;
      alive += state != DONE;
      waiting += state == AT_BARRIER;
    }
    if (arrived == 32) {
      for (int lane = 0; lane < 32; lane++) gpu.fibers[warp * 32 + lane].state = READY;
      gpu.warp_epochs[warp]++;
      released = true;
    }
  }
  if (!released && alive > 0 && waiting == alive) {
    for (Fiber& fiber : gpu.fibers)
      if (fiber.state == AT_BARRIER) fiber.state = READY;
    gpu.epoch++;
    gpu.counted_before = gpu.counted;
    gpu.counted = 0;
    released = true;
  }
  return released;
}

void run_block() {
  const int count = threads();
  for (int i = 0; i < count; i++) {
    Fiber& fiber = gpu.fibers[i];
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = STACK;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, enter, 0);
    fiber.state = READY;
    fiber.rounds = 0;
  }
  for (;;) {
    bool ran = false, done = true;
    for (int k = 0; k < count; k++) {
      const int i = gpu.reversed ? count - 1 - k : k;
      if (gpu.fibers[i].state == READY) {
        gpu.running = i;
        swapcontext(&gpu.scheduler, &gpu.fibers[i].context);
        gpu.running = -1;
        if (!gpu.fault.empty()) return;
        ran = true;
      }
      done = done && gpu.fibers[i].state == DONE;
    }
    if (done) return;
    if (!release() && !ran) return fail("deadlock: some threads wait where others never come");
  }
}

}  // namespace

namespace machine {

uint3 thread_index() {
  const unsigned i = static_cast<unsigned>(gpu.running), x = gpu.block_dim.x, y = gpu.block_dim.y;
  return {i % x, i / x % y, i / x / y};
}
uint3 block_index() { return gpu.block; }
uint3 block_size() { return gpu.block_dim; }
uint3 grid_size() { return gpu.grid_dim; }
void* dynamic_shared() { return gpu.dynamic; }

void block_barrier(int* counted) {
  if (counted != nullptr) gpu.counted += *counted;
  gpu.fibers[gpu.running].state = AT_BARRIER;
  hand_over();
  if (counted != nullptr) *counted = gpu.counted_before;
}

void warp_barrier(unsigned mask) { warp_round(mask, 0, nullptr); }

void exchange_all(unsigned mask, uint64_t value, uint64_t* values) { warp_round(mask, value, values); }

uint64_t exchange(unsigned mask, uint64_t value, int source) {
  uint64_t values[32];
  warp_round(mask, value, values);
  return values[source];
}

void atomic(void* address, int size) { access(address, size, true, true); }

}  // namespace machine

extern "C" {

// What -fsanitize=thread calls
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
#define HOOKS(size)                                                                   \
  void __tsan_read##size(void* p) { access(p, size, false); }                         \
  void __tsan_write##size(void* p) { access(p, size, true); }                         \
  void __tsan_unaligned_read##size(void* p) { access(p, size, false, false, false); } \
  void __tsan_unaligned_write##size(void* p) { access(p, size, true, false, false); }
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)
void __tsan_read_range(void* p, size_t size) { access(p, size, false, false, false); }
void __tsan_write_range(void* p, size_t size) { access(p, size, true, false, false); }

// Run `kernel` on a grid. Returns null, or what went wrong; `traffic`: bytes read from and written to
// buffers.
const char* launch(void (*kernel)(void**), void** arguments, const unsigned* grid, const unsigned* block,
                   size_t shared_bytes, int buffers, char** begins, const size_t* sizes, int reversed,
                   uint64_t* traffic) {
  gpu.grid_dim = {grid[0], grid[1], grid[2]};
  gpu.block_dim = {block[0], block[1], block[2]};
  gpu.kernel = kernel;
  gpu.arguments = arguments;
  gpu.reversed = reversed != 0;
  gpu.fault.clear();
  gpu.read_bytes = gpu.written_bytes = 0;
  gpu.running = -1;
  const int count = threads();
  if (count % 32 != 0 || count > 1024) {
    fail("a block of %d threads: it must be a multiple of 32, at most 1024", count);
    return gpu.fault.c_str();
  }
  if (gpu.fibers.size() != static_cast<size_t>(count)) gpu.fibers = std::vector<Fiber>(count);
  gpu.warp_epochs.assign(count / 32, 0);
  gpu.slots.assign(count / 32 * 64, 0);
  gpu.shared.assign(shared_bytes + 128, 0);
  const auto base = reinterpret_cast<uintptr_t>(gpu.shared.data());
  gpu.dynamic = reinterpret_cast<char*>((base + 127) / 128 * 128);
  gpu.regions.clear();
  for (int i = 0; i < buffers; i++)
    gpu.regions.push_back(
        {begins[i], begins[i] + sizes[i], "argument", i, false, std::vector<Trace>(sizes[i])});
  const size_t globals = gpu.regions.size();
  const size_t fixed = __stop_cuda_shared - __start_cuda_shared;
  if (fixed + shared_bytes > (227u << 10))
    fail("%zu bytes of shared memory, 227 KiB are there", fixed + shared_bytes);
  gpu.regions.push_back({gpu.dynamic, gpu.dynamic + shared_bytes, "shared memory", 1, true, {}});
  gpu.regions.push_back({__start_cuda_shared, __stop_cuda_shared, "shared memory", 0, true, {}});
  for (unsigned z = 0; z < grid[2]; z++)
    for (unsigned y = 0; y < grid[1]; y++)
      for (unsigned x = 0; x < grid[0]; x++) {
        gpu.block = {x, y, z};
        gpu.block_number = x + int64_t(grid[0]) * (y + int64_t(grid[1]) * z);
        gpu.epoch++;  // what an earlier block did is told apart by its number
        for (size_t r = globals; r < gpu.regions.size(); r++) {
          Region& region = gpu.regions[r];
          region.traces.assign(region.end - region.begin, Trace{});
          memset(region.begin, 0xff, region.end - region.begin);
        }
        if (gpu.fault.empty()) run_block();
        gpu.running = -1;
        if (!gpu.fault.empty()) return gpu.fault.c_str();
      }
  traffic[0] = gpu.read_bytes;
  traffic[1] = gpu.written_bytes;
  return nullptr;
}
}
