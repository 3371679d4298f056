#include "team.h"

#include <chrono>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace corral {
namespace {

constexpr int kSpins = 1000;  // 20 to 50 us: longer than the gaps within a step, much shorter than a scheduler's tick
constexpr uint64_t kRegion = uint64_t{1} << 32;

uint32_t open_chunks(uint64_t ticket) { return static_cast<uint32_t>(ticket); }

void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

Team::Team(int threads) {
  try {
    for (int thread = 1; thread < threads; ++thread) workers_.emplace_back([this, thread] { work(thread); });
  } catch (...) {  // the system gives no more threads: those that run must end before they are destroyed
    end();
    throw;
  }
}

Team::~Team() { end(); }

void Team::end() {
  stop_.store(true);
  alarm_.fetch_add(1);
  alarm_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void Team::run_region(int chunks, Call call, const void* body) {
  call_ = call;
  body_ = body;
  chunks_ = chunks;
  error_ = nullptr;
  failed_.store(false, std::memory_order_relaxed);
  pending_.store(static_cast<uint32_t>(chunks), std::memory_order_relaxed);
  const uint64_t region = (ticket_.load(std::memory_order_relaxed) & ~(kRegion - 1)) + kRegion;
  ticket_.store(region | static_cast<uint32_t>(chunks));
  if (sleepers_.load() > 0) {
    alarm_.fetch_add(1);
    alarm_.notify_all();
  }
  take_chunks(0);
  if (timed_) {
    const auto begin = std::chrono::steady_clock::now();
    wait_for_others();
    waited_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  } else {
    wait_for_others();
  }
  if (error_) std::rethrow_exception(error_);
}

void Team::wait_for_others() {
  uint32_t left = pending_.load(std::memory_order_acquire);
  for (int spin = 0; left != 0 && spin < kSpins; ++spin) {
    relax();
    left = pending_.load(std::memory_order_acquire);
  }
  while (left != 0) {  // sleep: the thread that holds the last chunks may be waiting for this core
    pending_.wait(left, std::memory_order_acquire);
    left = pending_.load(std::memory_order_acquire);
  }
}

// `pending_` is written once for all chunks taken: each write takes its cache line from another core.
void Team::take_chunks(int thread) {
  uint32_t done = 0;
  while (take_chunk(thread)) ++done;
  if (done > 0 && pending_.fetch_sub(done, std::memory_order_acq_rel) == done) pending_.notify_one();
}

bool Team::take_chunk(int thread) {
  uint64_t ticket = ticket_.load(std::memory_order_acquire);
  do {
    if (open_chunks(ticket) == 0) return false;
  } while (!ticket_.compare_exchange_weak(ticket, ticket - 1, std::memory_order_acq_rel, std::memory_order_acquire));
  // From here until its chunks count as done the region cannot end, so its fields hold still.
  try {
    call_(body_, chunks_ - static_cast<int>(open_chunks(ticket)), thread);
  } catch (...) {
    if (!failed_.exchange(true)) error_ = std::current_exception();
  }
  return true;
}

void Team::work(int thread) {
  while (!stop_.load(std::memory_order_relaxed)) {
    take_chunks(thread);
    wait_for_region();
  }
}

void Team::wait_for_region() {
  for (int spin = 0; spin < kSpins; ++spin) {
    if (open_chunks(ticket_.load(std::memory_order_relaxed)) != 0 || stop_.load(std::memory_order_relaxed)) return;
    relax();
  }
  const uint32_t alarm = alarm_.load();
  sleepers_.fetch_add(1);
  // The caller publishes a ticket and then looks for sleepers; a sleeper counts itself and then looks at the ticket.
  if (open_chunks(ticket_.load()) == 0 && !stop_.load()) alarm_.wait(alarm);
  sleepers_.fetch_sub(1);
}

}  // namespace corral
