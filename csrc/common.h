// What selection and synthesis share: streams, thread counts.
#pragma once

#include <algorithm>

#include "codebook.h"

namespace noisebook {

enum Purpose : uint32_t { kRotation = 1, kBasis = 2, kIndependent = 3 };

inline size_t divide_up(size_t a, size_t b) { return (a + b - 1) / b; }

inline Stream stream_of(const Call& call, size_t unit, Purpose purpose) {
    return {call.seed, call.step, uint32_t(purpose + 256 * (call.unit + unit))};
}

// Philox calls for the p signs of one index: a power of two, because p is one.
inline size_t blocks_of(size_t p) { return std::max<size_t>(1, p / kBlockSigns); }

inline int log2_of(size_t power) {
    int log = 0;
    while (power >> (log + 1)) ++log;
    return log;
}

// Room for the words of so many blocks: sign_words writes whole vectors.
inline size_t words_room(size_t blocks) { return kBlockWords * divide_up(blocks, kMaxLanes) * kMaxLanes; }

// A thread costs as much as some 2^19 simple operations to start; it should do more than that.
inline size_t workers_for(const Call& call, size_t tasks, double operations) {
    const double worth = std::min(operations / (1 << 20) + 1, 1e6);
    return std::max<size_t>(1, std::min({call.threads, tasks, size_t(worth)}));
}

}  // namespace noisebook
