// A persistent team of threads that runs one region at a time.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <thread>
#include <utility>
#include <vector>

namespace corral {

// Threads take chunks from a shared counter, so a thread that the system has put aside delays only the chunk it
// holds: the caller takes part and finishes the rest alone. Waiting threads spin for some microseconds, then sleep.
class Team {
 public:
  explicit Team(int threads);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int size() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls body(chunk, thread) once for each chunk in [0, chunks), in any order, and returns when all are done.
  // The first exception that a chunk throws is thrown here, after the others have ended. One caller at a time.
  template <class Body>
  void run(int chunks, const Body& body) {
    if (chunks <= 0) return;
    if (chunks == 1 || workers_.empty()) {
      for (int chunk = 0; chunk < chunks; ++chunk) body(chunk, 0);
      return;
    }
    run_region(chunks, [](const void* data, int chunk, int thread) {
      (*static_cast<const Body*>(data))(chunk, thread);
    }, &body);
  }

  // Whether to measure how long callers wait for the others, and the seconds since this was last asked.
  void time_waits(bool on) { timed_ = on, waited_ = 0; }
  double take_waited() { return std::exchange(waited_, 0.0); }

 private:
  using Call = void (*)(const void* body, int chunk, int thread);

  void end();
  void run_region(int chunks, Call call, const void* body);
  void wait_for_others();
  void take_chunks(int thread);
  bool take_chunk(int thread);
  void work(int thread);
  void wait_for_region();

  // Written by the caller only while no chunk is open, read by a thread only while it holds one.
  Call call_ = nullptr;
  const void* body_ = nullptr;
  int chunks_ = 0;
  std::exception_ptr error_;
  bool timed_ = false;
  double waited_ = 0;

  alignas(64) std::atomic<uint64_t> ticket_{0};  // region number << 32 | chunks not yet taken
  alignas(64) std::atomic<uint32_t> pending_{0};  // chunks not yet done
  std::atomic<bool> failed_{false};
  alignas(64) std::atomic<uint32_t> alarm_{0};  // sleepers wait for it to change
  std::atomic<uint32_t> sleepers_{0};
  std::atomic<bool> stop_{false};
  std::vector<std::thread> workers_;
};

}  // namespace corral
