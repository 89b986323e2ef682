// The coroutines behind cuda_on_host.h, and as much of the CUDA runtime as the library calls.
#include "cuda_on_host.h"

#include <ucontext.h>

#include <algorithm>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

namespace emulated {
namespace {

constexpr unsigned MOST_THREADS = 1024;
constexpr size_t STACK = 128 * 1024;
// So few that loops over a grid go round more than once at sizes that tests can afford.
constexpr int PROCESSORS = 1, TOGETHER = 2;

struct Warp {
  uint64_t bits[2][LANES];
  Kind kind[2];
  int64_t arrivals;  // of all lanes at all exchanges
};

struct Thread {
  ucontext_t context;
  uint3 index;
  int64_t exchanges;
  bool done;
};

Thread threads[MOST_THREADS];
Warp warps[MOST_THREADS / LANES];
std::unique_ptr<char[]> stacks;
ucontext_t scheduler;
Thread* running;
const std::function<void()>* code;
unsigned living, at_barrier;
bool parted;  // threads that belong together have not done the same
int64_t barriers, events;
std::minstd_rand order;
unsigned launches;

Warp& own_warp() { return warps[running->index.x / LANES]; }
int lanes_of(unsigned warp) {
  return static_cast<int>(std::min<unsigned>(LANES, blockDim.x - warp * LANES));
}

void wait() { swapcontext(&running->context, &scheduler); }

void begin() {
  (*code)();
  running->done = true;
  parted = parted || at_barrier > 0;
  --living;
  ++events;
}

bool run_block() {
  const unsigned count = blockDim.x;
  std::vector<unsigned> turns(count);
  std::iota(turns.begin(), turns.end(), 0u);
  std::shuffle(turns.begin(), turns.end(), order);
  for (Warp& warp : warps) warp.arrivals = 0;
  living = count;
  at_barrier = 0;
  parted = false;
  for (unsigned i = 0; i < count; ++i) {
    Thread& thread = threads[i];
    thread.index = {i, 0, 0};
    thread.exchanges = 0;
    thread.done = false;
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = stacks.get() + i * STACK;
    thread.context.uc_stack.ss_size = STACK;
    thread.context.uc_link = &scheduler;
    makecontext(&thread.context, begin, 0);
  }
  while (living > 0) {
    const int64_t before = events;
    for (unsigned i : turns) {
      if (threads[i].done) continue;
      running = &threads[i];
      threadIdx = running->index;
      swapcontext(&scheduler, &running->context);
    }
    if (events == before || parted) return false;
  }
  return !parted;
}

}  // namespace

cudaError_t launch(dim3 grid, dim3 block, const std::function<void()>& thread) {
  if (block.x > MOST_THREADS || block.x == 0 || grid.x == 0) return cudaErrorInvalidConfiguration;
  ++launches;
  if (!stacks) stacks.reset(new char[MOST_THREADS * STACK]);
  gridDim = grid;
  blockDim = block;
  code = &thread;
  std::vector<unsigned> turns(grid.x);
  std::iota(turns.begin(), turns.end(), 0u);
  std::shuffle(turns.begin(), turns.end(), order);
  for (unsigned i : turns) {
    blockIdx = {i, 0, 0};
    if (!run_block()) return cudaErrorLaunchFailure;
  }
  return cudaSuccess;
}

void block_barrier() {
  const int64_t next = barriers + 1;
  parted = parted || living < blockDim.x;
  ++at_barrier;
  ++events;
  if (at_barrier == blockDim.x) {
    at_barrier = 0;
    ++barriers;
  }
  while (barriers < next) wait();
}

uint64_t exchange(Kind kind, unsigned mask, uint64_t bits, int lane) {
  Warp& warp = own_warp();
  // A lane is at most one exchange ahead of the others, so two sets of bits are enough.
  const int set = static_cast<int>(running->exchanges & 1);
  const int lanes = lanes_of(running->index.x / LANES);
  const int64_t complete = ++running->exchanges * lanes;
  if (warp.arrivals == complete - lanes) warp.kind[set] = kind;
  parted = parted || mask != 0xFFFFFFFFu || kind != warp.kind[set];
  warp.bits[set][running->index.x % LANES] = bits;
  ++warp.arrivals;
  ++events;
  while (warp.arrivals < complete) wait();
  return warp.bits[set][lane];
}

}  // namespace emulated

// Launches so far.
extern "C" unsigned emulated_launches() { return emulated::launches; }

extern "C" {

cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorName(cudaError_t code) {
  return code == cudaErrorLaunchFailure ? "cudaErrorLaunchFailure" : "cudaErrorUnknown";
}
const char* cudaGetErrorString(cudaError_t) { return "emulated"; }
cudaError_t cudaSetDevice(int) { return cudaSuccess; }
cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = emulated::PROCESSORS;
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int, size_t) {
  *blocks = emulated::TOGETHER;
  return cudaSuccess;
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, const void*) { return cudaSuccess; }

}  // extern "C"
