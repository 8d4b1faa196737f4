// Threads for one call and scratch memory. Threads are started per call: some 20 us each, but nothing survives a fork
// and two Python threads never wait for each other's pool.
#pragma once

#include <atomic>
#include <cstddef>
#include <memory>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include "kernels.h"

namespace noisebook {

// Calls body(worker, task) for every task; tasks of one worker come in increasing order. The body must not throw.
template <class Body>
void parallel_for(size_t tasks, size_t workers, const Body& body) {
    std::atomic<size_t> next{0};
    const auto work = [&](size_t worker) {
        for (size_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) body(worker, task);
    };
    std::vector<std::thread> others;
    others.reserve(workers);
    for (size_t worker = 1; worker < workers && worker < tasks; ++worker) {
        try {
            others.emplace_back(work, worker);
        } catch (const std::system_error&) {
            break;  // the system has no more threads to give: those that run do all the tasks
        }
    }
    work(0);
    for (std::thread& thread : others) thread.join();
}

// body(worker, first, last) over kParts ranges of n entries, or over all of them at once where there is one worker.
template <class Body>
void parallel_ranges(size_t n, size_t workers, const Body& body) {
    const size_t part = workers > 1 ? n / kParts : n;
    parallel_for(n / part, workers, [&](size_t worker, size_t task) { body(worker, task * part, (task + 1) * part); });
}

// Asks for large pages: to clear a buffer's 4 KiB pages one by one takes longer than what is then done with it. Where
// the system has none it stays as it is.
inline void prefer_large_pages(void* memory, size_t bytes) {
#ifdef __linux__
    constexpr size_t kPage = 1 << 16, kLarge = 1 << 22;  // a multiple of every system's page; where it begins to pay
    if (bytes < kLarge) return;
    const size_t before = (kPage - reinterpret_cast<uintptr_t>(memory) % kPage) % kPage;
    madvise(static_cast<char*>(memory) + before, (bytes - before) / kPage * kPage, MADV_HUGEPAGE);
#else
    (void)memory, (void)bytes;
#endif
}

// Uninitialised memory on cache-line boundaries.
template <class T>
class Buffer {
  public:
    explicit Buffer(size_t size) : data_(static_cast<T*>(::operator new(size * sizeof(T), std::align_val_t(64)))) {
        prefer_large_pages(data_.get(), size * sizeof(T));
    }
    T* get() const { return data_.get(); }
    T& operator[](size_t i) const { return data_.get()[i]; }

  private:
    struct Free {
        void operator()(T* p) const { ::operator delete(p, std::align_val_t(64)); }
    };
    std::unique_ptr<T, Free> data_;
};

}  // namespace noisebook
