// Runs kernels of cuda/ on the host, so that they are tested without a GPU: include this before a .cu file.
//
// Each lane is a coroutine of one thread. At memory accesses, and wherever lanes wait for each other, another lane of any warp
// goes on: a random one, so that every interleaving can come; or the next one, as on a GPU whose warps go in step, so that those
// who try again at the same moment do so for ever. All lanes see one order of all accesses: what is found is wrong logic (lost
// locks, torn rows, keys that are there twice, waiting without end), not a missing fence.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <random>
#include <vector>

namespace emulator {

struct Index {
  uint32_t x;
};

struct Lane;

// What lanes of a warp, or of a block, pass at the same time.
struct Barrier {
  uint32_t size = 0;
  uint32_t arrived = 0;
  uint64_t generation = 0;
  std::vector<Lane*> waiting;
};

struct Warp {
  Barrier barrier;
  // By parity of the generation: who is late still reads the one while others write the other.
  uint64_t values[2][32] = {};
};

struct Lane {
  ucontext_t context{};
  std::unique_ptr<char[]> stack;
  std::function<void()> kernel;
  Warp* warp = nullptr;
  Barrier* block = nullptr;
  Index thread{}, block_index{}, block_size{}, grid{};
  uint64_t sleeps_until = 0;
};

// Who goes on.
enum class Order { kRandom, kInStep };

// Kernels that run at the same time.
class Emulator {
 public:
  explicit Emulator(uint64_t seed, Order order = Order::kRandom) : random_(seed), order_(order) {}

  // Adds a kernel of so many threads, in whole warps, that begins after so many turns.
  void launch(uint32_t num_blocks, uint32_t num_threads, const std::function<void()>& kernel, uint64_t delay = 0) {
    for (uint32_t block = 0; block < num_blocks; ++block) launch_block(block, num_blocks, num_threads, kernel, delay);
  }

  // One block of those. Kernels whose blocks share memory among their threads run one block at a time.
  void launch_block(uint32_t block, uint32_t num_blocks, uint32_t num_threads, const std::function<void()>& kernel,
                    uint64_t delay = 0) {
    blocks_.push_back(std::make_unique<Barrier>());
    blocks_.back()->size = num_threads;
    for (uint32_t thread = 0; thread < num_threads; ++thread) {
      if (thread % 32 == 0) {
        warps_.push_back(std::make_unique<Warp>());
        warps_.back()->barrier.size = 32;
      }
      auto lane = std::make_unique<Lane>();
      lane->kernel = kernel;
      lane->warp = warps_.back().get();
      lane->block = blocks_.back().get();
      lane->thread = {thread};
      lane->block_index = {block};
      lane->block_size = {num_threads};
      lane->grid = {num_blocks};
      prepare(*lane);
      lane->sleeps_until = delay;
      sleeping_.push_back(lane.get());
      lanes_.push_back(std::move(lane));
    }
  }

  // Runs all kernels to their end. False if that takes more than `most` turns.
  bool run(uint64_t most) {
    active = this;
    num_running_ = lanes_.size();
    while (num_running_ > 0) {
      if (++turns_ > most) return false;
      if (ready_.empty()) {
        if (sleeping_.empty()) return false;  // everybody waits for somebody
        turns_ = std::max(turns_, (*std::min_element(sleeping_.begin(), sleeping_.end(), wakes_earlier))->sleeps_until);
      }
      wake_sleepers();
      if (ready_.empty()) continue;
      if (order_ == Order::kRandom) std::swap(ready_[random_() % ready_.size()], ready_.front());
      current_ = ready_.front();
      ready_.pop_front();
      swapcontext(&scheduler_, &current_->context);
    }
    return true;
  }

  // --- for kernels ---

  Lane& lane() { return *current_; }
  uint64_t turns() const { return turns_; }

  // Others may go on.
  void yield() {
    if (order_ == Order::kRandom && random_() % 4 != 0) return;
    ready_.push_back(current_);
    leave();
  }

  void sleep(uint32_t nanoseconds) {
    current_->sleeps_until = turns_ + nanoseconds;
    sleeping_.push_back(current_);
    leave();
  }

  void wait(Barrier& barrier) {
    if (++barrier.arrived < barrier.size) {
      barrier.waiting.push_back(current_);
      leave();
      return;
    }
    barrier.arrived = 0;
    ++barrier.generation;
    ready_.insert(ready_.end(), barrier.waiting.begin(), barrier.waiting.end());
    barrier.waiting.clear();
  }

  // Gives a value to all lanes of the warp, and what they gave.
  const uint64_t* exchange(uint64_t value) {
    Warp& warp = *current_->warp;
    uint64_t* values = warp.values[warp.barrier.generation % 2];
    values[current_->thread.x % 32] = value;
    wait(warp.barrier);
    return values;
  }

  static Emulator* active;

 private:
  static constexpr size_t kStackBytes = 64 << 10;

  static bool wakes_earlier(const Lane* a, const Lane* b) { return a->sleeps_until < b->sleeps_until; }

  void prepare(Lane& lane) {
    // Not filled: most of it is never used.
    lane.stack = std::unique_ptr<char[]>(new char[kStackBytes]);
    getcontext(&lane.context);
    lane.context.uc_stack.ss_sp = lane.stack.get();
    lane.context.uc_stack.ss_size = kStackBytes;
    lane.context.uc_link = &scheduler_;
    makecontext(&lane.context, &Emulator::enter, 0);
  }

  static void enter() {
    active->current_->kernel();
    --active->num_running_;
  }

  void leave() { swapcontext(&current_->context, &scheduler_); }

  void wake_sleepers() {
    for (size_t i = 0; i < sleeping_.size();) {
      if (sleeping_[i]->sleeps_until <= turns_) {
        ready_.push_back(sleeping_[i]);
        sleeping_[i] = sleeping_.back();
        sleeping_.pop_back();
      } else {
        ++i;
      }
    }
  }

  std::mt19937_64 random_;
  Order order_;
  std::vector<std::unique_ptr<Barrier>> blocks_;
  std::vector<std::unique_ptr<Warp>> warps_;
  std::vector<std::unique_ptr<Lane>> lanes_;
  std::deque<Lane*> ready_;
  std::vector<Lane*> sleeping_;
  Lane* current_ = nullptr;
  ucontext_t scheduler_{};
  uint64_t turns_ = 0;
  size_t num_running_ = 0;
};

inline Emulator* Emulator::active = nullptr;

inline Emulator& now() { return *Emulator::active; }

}  // namespace emulator

// --- CUDA's language -----------------------------------------------------------------------------------------------------------

#define HPS_EMULATED
#define __device__
#define __global__
#define __grid_constant__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
// Of the one block that runs at a time.
#define __shared__ static
#define threadIdx (emulator::now().lane().thread)
#define blockIdx (emulator::now().lane().block_index)
#define blockDim (emulator::now().lane().block_size)
#define gridDim (emulator::now().lane().grid)

using std::max;
using std::min;

struct uint4 {
  uint32_t x, y, z, w;
};

inline uint32_t __umulhi(uint32_t a, uint32_t b) { return static_cast<uint32_t>(uint64_t{a} * b >> 32); }
inline float __uint_as_float(uint32_t x) {
  float number;
  std::memcpy(&number, &x, sizeof(number));
  return number;
}
inline uint32_t __float_as_uint(float number) {
  uint32_t x;
  std::memcpy(&x, &number, sizeof(x));
  return x;
}
inline int __popc(uint32_t x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline uint32_t __vcmpeq2(uint32_t a, uint32_t b) {
  return ((a & 0xffffu) == (b & 0xffffu) ? 0xffffu : 0u) | ((a >> 16) == (b >> 16) ? 0xffff0000u : 0u);
}

inline void __syncthreads() { emulator::now().wait(*emulator::now().lane().block); }
inline void __syncwarp() { emulator::now().exchange(0); }
inline void __nanosleep(uint32_t nanoseconds) { emulator::now().sleep(nanoseconds); }

inline uint32_t __ballot_sync(uint32_t, bool holds) {
  const uint64_t* all = emulator::now().exchange(holds);
  uint32_t lanes = 0;
  for (uint32_t i = 0; i < 32; ++i) lanes |= static_cast<uint32_t>(all[i]) << i;
  return lanes;
}
inline bool __any_sync(uint32_t mask, bool holds) { return __ballot_sync(mask, holds) != 0; }
inline bool __all_sync(uint32_t mask, bool holds) { return __ballot_sync(mask, holds) == 0xffffffffu; }
template <typename T>
T __shfl_sync(uint32_t, T value, int lane) {
  return static_cast<T>(emulator::now().exchange(static_cast<uint64_t>(value))[lane & 31]);
}
template <typename T>
T __shfl_xor_sync(uint32_t, T value, int distance) {
  const uint32_t lane = threadIdx.x % 32;
  return static_cast<T>(emulator::now().exchange(static_cast<uint64_t>(value))[lane ^ static_cast<uint32_t>(distance)]);
}

// An access to memory that others may change: they get their turn before.
template <typename T, typename Change>
T emulated_atomic(T* p, Change change) {
  emulator::now().yield();
  const T old = *p;
  *p = change(old);
  return old;
}
template <typename T, typename V>
T atomicAdd(T* p, V v) {
  return emulated_atomic(p, [&](T old) { return static_cast<T>(old + v); });
}
template <typename T>
T atomicOr(T* p, T v) {
  return emulated_atomic(p, [&](T old) { return old | v; });
}
template <typename T>
T atomicAnd(T* p, T v) {
  return emulated_atomic(p, [&](T old) { return old & v; });
}
template <typename T>
T atomicXor(T* p, T v) {
  return emulated_atomic(p, [&](T old) { return old ^ v; });
}
template <typename T>
T atomicExch(T* p, T v) {
  return emulated_atomic(p, [&](T) { return v; });
}
template <typename T>
T atomicCAS(T* p, T expected, T v) {
  return emulated_atomic(p, [&](T old) { return old == expected ? v : old; });
}
template <typename T>
T emulated_load(const T* p) {
  emulator::now().yield();
  return *p;
}
template <typename T>
void emulated_store(T* p, const T& v) {
  emulator::now().yield();
  *p = v;
}

// What device.cuh has in the words of PTX.
inline void fence() { emulator::now().yield(); }
inline void fence_system() { emulator::now().yield(); }
template <typename T>
T load_acquire(const T* p) {
  return emulated_load(p);
}
template <typename T>
T load_relaxed(const T* p) {
  return emulated_load(p);
}
template <typename T>
T load_once(const T* p) {
  return emulated_load(p);
}
template <bool kPasses, typename T>
T load_passing(const T* p) {
  return load_once(p);
}
// There is no second-level cache.
struct Hint {};
inline Hint evict_first() { return {}; }
inline Hint evict_last_if(bool) { return {}; }
template <typename T>
T load_once(const T* p, Hint) {
  return load_once(p);
}
inline uint64_t load_relaxed(const uint64_t* p, Hint) { return load_relaxed(p); }
inline void store_relaxed(uint64_t* p, uint64_t v) { emulated_store(p, v); }
inline void store_release_system(uint64_t* p, uint64_t v) { emulated_store(p, v); }
template <typename T>
void store_streaming(T* p, const T& v) {
  emulated_store(p, v);
}
inline uint32_t dice(uint32_t salt) {
  return (static_cast<uint32_t>(emulator::now().turns()) + salt * 0x9e3779b1u) * 0x85ebca77u;
}
