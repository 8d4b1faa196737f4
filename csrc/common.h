// What selection and synthesis share: streams, threads, one transform by several of them.
#pragma once

#include <algorithm>
#include <type_traits>

#include "codebook.h"
#include "parallel.h"

namespace noisebook {

enum Purpose : uint32_t { kRotation = 1, kBasis = 2, kIndependent = 3 };

inline size_t divide_up(size_t a, size_t b) { return (a + b - 1) / b; }

inline Stream stream_of(const Call& call, size_t block, Purpose purpose) {
    return {call.seed, call.step_index, uint32_t(purpose + 256 * (call.first_block + block))};
}

// Philox calls for the p signs of one index: a power of two, because p is one.
inline size_t draws_of(size_t p) { return std::max<size_t>(1, p / kDrawSigns); }

inline int log2_of(size_t power) {
    int log = 0;
    while (power >> (log + 1)) ++log;
    return log;
}

// Room for the words of that many draws: sign_words writes whole vectors.
inline size_t words_room(size_t draws) { return kDrawWords * divide_up(draws, kMaxLanes) * kMaxLanes; }

// To start a thread costs as much as about 2^19 simple operations; it should do more than that.
inline size_t workers_for(const Call& call, size_t tasks, double operations) {
    const double worth = std::min(operations / (1 << 20) + 1, 1e6);
    return std::max<size_t>(1, std::min({call.threads, tasks, size_t(worth)}));
}

// Threads for a loop over tasks: `outer` of them take tasks, or `inner` of them share each task. One of the two is 1.
struct Team {
    size_t outer, inner;
    size_t size() const { return std::max(outer, inner); }
};

// Large tasks are shared where there are few of them. That costs more: threads then start four times per
// task, for the three parts of a transform and for what is done with its result.
inline Team team_for(const Call& call, size_t tasks, double operations) {
    const size_t shared = workers_for(call, kParts, operations / 4 / tasks);
    if (call.padded() >= (size_t(1) << 18) && 2 * tasks <= shared) return {1, shared};
    return {workers_for(call, tasks, operations), 1};
}

template <class T>
void transform(const Kernels& kernels, const T* in, const uint32_t* flips, T* out, size_t n) {
    if constexpr (std::is_same_v<T, float>) {
        kernels.transform_f32(in, flips, out, n);
    } else if constexpr (std::is_same_v<T, int32_t>) {
        kernels.transform_i32(in, flips, out, n);
    } else {
        transform_i64(in, flips, out, n);
    }
}

// The same by several threads, in the same order of additions: each of kParts parts, then twice three stages.
template <class T>
void transform(const Kernels& kernels, const T* in, const uint32_t* flips, T* out, size_t n, size_t workers) {
    if constexpr (sizeof(T) == 4) {
        if (workers > 1) {
            static_assert(kParts == 64);
            parallel_ranges(n, workers, [&](size_t, size_t first, size_t last) {
                transform(kernels, in + first, flips ? flips + first / 32 : nullptr, out + first, last - first);
            });
            for (const size_t part : {n / 8, n}) {
                parallel_ranges(n / 8, workers, [&](size_t, size_t first, size_t last) {
                    T* data = out + first / (part / 8) * part;
                    const size_t column = first % (part / 8);
                    if constexpr (std::is_same_v<T, float>) {
                        kernels.combine_f32(data, part, column, column + last - first);
                    } else {
                        kernels.combine_i32(data, part, column, column + last - first);
                    }
                });
            }
            return;
        }
    }
    transform(kernels, in, flips, out, n);
}

}  // namespace noisebook
