// A GPU of one block at a time: each CUDA thread is a fiber; barriers, shuffles and votes hand over to the
// next one.
//
// Kernels are compiled with -fsanitize=thread and linked without its runtime, so that every load and store
// calls a function here. It must lie, aligned, in a buffer of the launch or in shared memory; shared memory
// must have been written before it is read; and two threads that meet at a byte, one of them writing, must
// have a barrier between: __syncthreads, or __syncwarp within a warp, since shuffles and votes order no
// memory. All threads must reach every barrier, and at the same place of the source. The first fault ends the
// launch and is described in words.
//
// What is not seen: an index so wrong that it falls into another buffer, or from one __shared__ array into
// the next; and anything about a thread's own local variables.

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

// Threads are numbered through the grid; epochs count the barriers of the block and of the warp, and no two
// blocks share one
struct Moment {
  int thread = -1;
  int epoch = 0, warp_epoch = 0;
};

// Those who accessed a byte in one way: the last of them, and whether others were of another block; of
// another warp in the same epoch; of another lane in the same epoch of the same warp
struct Crowd {
  Moment last;
  bool blocks = false, warps = false, lanes = false;
};

// What is known of a byte
struct Trace {
  Crowd readers, writers, atomics;
};

struct Region {
  char* begin;
  char* end;
  const char* what;
  int number;
  bool shared;
  std::vector<Trace> traces;
  uint64_t read_bytes = 0, written_bytes = 0;
};

enum State { READY, AT_BARRIER, AT_WARP, DONE };

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[STACK]};
  State state = DONE;
  int line = 0;        // of the source, where it waits
  bool fence = false;  // the warp operation that it waits in is __syncwarp
  int64_t rounds = 0;  // of warp operations
};

struct Machine {
  uint3 block, grid_dim, block_dim;
  std::vector<Fiber> fibers;
  std::vector<Region> regions;
  std::vector<int> warp_epochs;
  std::vector<uint64_t> slots;  // [warp][parity of the round][lane]
  std::vector<char> shared;
  char* dynamic = nullptr;
  ucontext_t scheduler;
  int running = -1;
  int block_number = 0, epoch = 0;
  int counted = 0, counted_before = 0;
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

int block_of(Moment moment) { return moment.thread / threads(); }
int warp_of(Moment moment) { return moment.thread / 32; }

// Whether no barrier lies between what one of the crowd did and now
bool meets(const Crowd& crowd, Moment now) {
  const Moment last = crowd.last;
  if (last.thread < 0) return false;
  if (crowd.blocks || block_of(last) != block_of(now)) return true;  // no two blocks are ever ordered
  if (last.epoch != now.epoch) return false;
  if (crowd.warps || warp_of(last) != warp_of(now)) return true;
  if (last.warp_epoch != now.warp_epoch) return false;
  return crowd.lanes || last.thread != now.thread;
}

void join(Crowd& crowd, Moment now) {
  const Moment last = crowd.last;
  const bool same_epoch = last.thread >= 0 && last.epoch == now.epoch;
  const bool same_warp = same_epoch && warp_of(last) == warp_of(now);
  crowd.blocks = crowd.blocks || (last.thread >= 0 && block_of(last) != block_of(now));
  crowd.warps = same_epoch && (crowd.warps || !same_warp);
  crowd.lanes = same_warp && last.warp_epoch == now.warp_epoch && (crowd.lanes || last.thread != now.thread);
  crowd.last = now;
}

enum Kind { READ, WRITE, ATOMIC };

void access(void* pointer, size_t size, Kind kind, bool aligned = true) {
  if (gpu.running < 0) return;
  char* address = static_cast<char*>(pointer);
  if (on_own_stack(address)) return;
  const char* verb = kind == READ ? "reads" : "writes";
  Region* region = find(address);
  if (region == nullptr || address + size > region->end) {
    std::string nearest;
    long least = 1 << 20;
    for (const Region& r : gpu.regions) {
      const long past = address + size - r.end, before = r.begin - address;
      const long distance = past > before ? past : before;
      if (distance <= 0 || distance >= least) continue;
      least = distance;
      nearest = ", " + std::to_string(distance) +
                (past > before ? " bytes past the end" : " bytes before the start") + " of " + r.what + " " +
                std::to_string(r.number);
    }
    return fail("out of bounds: %s %zu bytes%s", verb, size, nearest.c_str());
  }
  const size_t offset = address - region->begin;
  if (aligned && reinterpret_cast<uintptr_t>(address) % size != 0)
    return fail("misaligned: %s %zu bytes at offset %zu of %s %d", verb, size, offset, region->what,
                region->number);
  (kind == READ ? region->read_bytes : region->written_bytes) += size;
  const Moment now{gpu.block_number * threads() + gpu.running, gpu.epoch, gpu.warp_epochs[gpu.running / 32]};
  for (size_t i = offset; i < offset + size; i++) {
    Trace& trace = region->traces[i];
    if (kind != WRITE && region->shared && trace.writers.last.thread < 0)
      return fail("uninitialised: reads byte %zu of shared memory, which nothing wrote", i);
    const struct {
      const Crowd& crowd;
      bool harmless;
      const char* verb;
    } others[] = {{trace.writers, false, "wrote"},
                  {trace.readers, kind == READ, "read"},
                  {trace.atomics, kind == ATOMIC, "changed atomically"}};
    for (const auto& other : others)
      if (!other.harmless && meets(other.crowd, now))
        return fail("race: %s byte %zu of %s %d, which thread %d of block %d%s %s", verb, i, region->what,
                    region->number, other.crowd.last.thread % threads(), block_of(other.crowd.last),
                    other.crowd.last.thread == now.thread ? " and another" : "", other.verb);
    if (kind == WRITE) trace = {};  // whoever is ordered after this is ordered after all before
    join(kind == READ ? trace.readers : kind == WRITE ? trace.writers : trace.atomics, now);
  }
}

void warp_round(unsigned mask, uint64_t value, uint64_t* values, int line) {
  if (mask != 0xffffffffu) return fail("only warp operations of all 32 lanes are supported");
  Fiber& fiber = gpu.fibers[gpu.running];
  const int warp = gpu.running / 32, lane = gpu.running % 32;
  // Two sets of slots: a lane that runs ahead cannot pass the next round before all others have read this one
  uint64_t* slots = &gpu.slots[(warp * 2 + fiber.rounds % 2) * 32];
  slots[lane] = value;
  fiber.rounds++;
  fiber.line = line;
  fiber.fence = values == nullptr;
  fiber.state = AT_WARP;
  hand_over();
  if (values != nullptr) memcpy(values, slots, 32 * sizeof(uint64_t));
}

void enter() {
  gpu.kernel(gpu.arguments);
  gpu.fibers[gpu.running].state = DONE;
  hand_over();
}

// Whether `count` threads from `first` on wait in the same place
bool together(int first, int count) {
  for (int i = first; i < first + count; i++)
    if (gpu.fibers[i].line != gpu.fibers[first].line) return false;
  return true;
}

// Let those go on who wait for nobody any more. False where nobody can.
bool release() {
  bool released = false;
  int waiting = 0, ended = 0;
  for (int warp = 0; warp < threads() / 32; warp++) {
    int arrived = 0;
    for (int lane = 0; lane < 32; lane++) {
      const State state = gpu.fibers[warp * 32 + lane].state;
      arrived += state == AT_WARP;
      ended += state == DONE;
      waiting += state == AT_BARRIER;
    }
    if (arrived == 32) {
      if (!together(warp * 32, 32)) fail("divergence: the lanes of warp %d wait in different places", warp);
      for (int lane = 0; lane < 32; lane++) gpu.fibers[warp * 32 + lane].state = READY;
      gpu.warp_epochs[warp] += gpu.fibers[warp * 32].fence;
      released = true;
    }
  }
  if (released || waiting == 0 || waiting + ended < threads()) return released;
  if (ended > 0) fail("deadlock: %d threads ended before a barrier at which others wait", ended);
  if (!together(0, threads())) fail("divergence: threads wait at different barriers");
  for (Fiber& fiber : gpu.fibers) fiber.state = READY;
  gpu.epoch++;
  gpu.counted_before = gpu.counted;
  gpu.counted = 0;
  return true;
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
    if (!release() && !ran) fail("deadlock: some threads wait where others never come");
    if (!gpu.fault.empty()) return;
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

void block_barrier(int* counted, int line) {
  Fiber& fiber = gpu.fibers[gpu.running];
  if (counted != nullptr) gpu.counted += *counted;
  fiber.line = line;
  fiber.state = AT_BARRIER;
  hand_over();
  if (counted != nullptr) *counted = gpu.counted_before;
}

void warp_barrier(unsigned mask, int line) { warp_round(mask, 0, nullptr, line); }

void exchange_all(unsigned mask, uint64_t value, uint64_t* values, int line) {
  warp_round(mask, value, values, line);
}

void atomic(void* address, int size) { access(address, size, ATOMIC); }

}  // namespace machine

extern "C" {

// What -fsanitize=thread calls
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
#define HOOKS(size)                                                           \
  void __tsan_read##size(void* p) { access(p, size, READ); }                  \
  void __tsan_write##size(void* p) { access(p, size, WRITE); }                \
  void __tsan_unaligned_read##size(void* p) { access(p, size, READ, false); } \
  void __tsan_unaligned_write##size(void* p) { access(p, size, WRITE, false); }
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)
void __tsan_read_range(void* p, size_t size) { access(p, size, READ, false); }
void __tsan_write_range(void* p, size_t size) { access(p, size, WRITE, false); }

// Run `kernel` on a grid. Returns null, or what went wrong; `traffic`: bytes read from and written to each
// buffer.
const char* launch(void (*kernel)(void**), void** arguments, const unsigned* grid, const unsigned* block,
                   size_t shared_bytes, int buffers, char** begins, const size_t* sizes, int reversed,
                   uint64_t* traffic) {
  gpu.grid_dim = {grid[0], grid[1], grid[2]};
  gpu.block_dim = {block[0], block[1], block[2]};
  gpu.kernel = kernel;
  gpu.arguments = arguments;
  gpu.reversed = reversed != 0;
  gpu.fault.clear();
  gpu.running = -1;
  const int count = threads();
  if (count % 32 != 0 || count == 0 || count > 1024) {
    fail("a block of %d threads: it must be a multiple of 32, from 32 to 1024", count);
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
        {begins[i], begins[i] + sizes[i], "tensor", i, false, std::vector<Trace>(sizes[i])});
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
        gpu.block_number = x + grid[0] * (y + grid[1] * z);
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
  for (int i = 0; i < buffers; i++) {
    traffic[2 * i] = gpu.regions[i].read_bytes;
    traffic[2 * i + 1] = gpu.regions[i].written_bytes;
  }
  return nullptr;
}
}
