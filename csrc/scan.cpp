// Residuals rotated, and quantised for kind `independent`.
#include "scan.h"

#include <cmath>
#include <cstring>
#include <stdexcept>

namespace noisebook {
namespace {

// The largest |x| of a row as its bit pattern: for the same sign, patterns sort like the numbers, NaN and Inf on top.
uint32_t max_pattern(const float* x, size_t n) {
    uint32_t most = 0;
    for (size_t d = 0; d < n; ++d) {
        uint32_t bits;
        std::memcpy(&bits, x + d, 4);
        most = std::max(most, bits & 0x7FFFFFFFu);
    }
    return most;
}

}  // namespace

Rotated rotate(const Call& call, const float* residual) {
    const size_t p = call.padded(), views = call.batch * call.blocks, room = words_room(draws_of(p));
    Rotated rotated{Buffer<float>(views * p), Buffer<double>(views)};
    Buffer<uint32_t> flips(call.blocks * room);
    for (size_t u = 0; u < call.blocks; ++u)
        call.kernels->sign_words(flips.get() + u * room, draws_of(p), stream_of(call, u, kRotation), 0, 0,
                                 log2_of(draws_of(p)));

    std::atomic<bool> finite{true};
    const Team team = team_for(call, views, 16.0 * views * p);
    parallel_for(views, team.outer, [&](size_t, size_t view) {
        const float* from = residual + view * call.d;
        float* row = rotated.rows.get() + view * p;
        uint32_t mosts[kParts] = {};  // of the threads
        parallel_ranges(p, team.inner, [&](size_t worker, size_t first, size_t last) {
            last = std::min(last, call.d);
            if (first < last) mosts[worker] = std::max(mosts[worker], max_pattern(from + first, last - first));
        });
        const uint32_t most = *std::max_element(mosts, mosts + kParts);
        if (most >= 0x7F800000u) {
            finite = false;
            return;
        }
        float largest;
        std::memcpy(&largest, &most, 4);
        const float scale = most ? std::ldexp(1.0f, std::clamp(-std::ilogb(largest), -126, 126)) : 1.0f;
        rotated.factors[view] = 1 / (double(scale) * std::sqrt(double(p)));
        parallel_ranges(p, team.inner, [&](size_t, size_t first, size_t last) {
            const size_t end = std::clamp(call.d, first, last);
            for (size_t d = first; d < end; ++d) row[d] = from[d] * scale;
            std::fill(row + end, row + last, 0.0f);
        });
        transform(*call.kernels, row, flips.get() + view % call.blocks * room, row, p, team.inner);
    });
    if (!finite) throw std::invalid_argument("the residual is not finite");
    return rotated;
}

Layout::Layout(size_t p, size_t batch) {
    dims = std::min(divide_up(p, kDimsStep) * kDimsStep, kDimsPanel);
    for (lanes = 1; lanes < kMaxRows && lanes < batch;) lanes *= 2;
    images = divide_up(batch, lanes) * lanes;
    size = std::max(p, dims) * images;
}

// Rounds in float32, ties to even. Entries beyond p are zero, and a zero row stays zero.
Quantised quantise(const Call& call, const Rotated& rotated) {
    const size_t p = call.padded(), views = call.batch * call.blocks;
    const Layout layout(p, call.batch);
    Quantised quantised{layout, Buffer<int8_t>(call.blocks * layout.size), Buffer<int32_t>(views),
                        Buffer<double>(views)};
    parallel_for(views, workers_for(call, views, 4.0 * views * p), [&](size_t, size_t view) {
        const float* v = rotated.rows.get() + view * p;
        int8_t* rows = quantised.rows.get() + view % call.blocks * layout.size;
        const float most = call.kernels->max_abs(v, p);
        const float even = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
        int32_t total = 0;
        for (size_t first = 0; first < p; first += kDimsStep) {
            int8_t* out = rows + layout.at(view / call.blocks, first);
            const size_t count = std::min(p, kDimsStep);
            for (size_t d = 0; d < count; ++d) {
                const float x = most > 0 ? (127.0f * v[first + d]) / most : 0.0f;
                const int q = int((x + even) - even);
                out[d] = int8_t(q);
                total += q;  // |total| <= 127 * 2^24 < 2^31
            }
            std::fill(out + count, out + kDimsStep, int8_t(0));
        }
        quantised.totals[view] = total;
        quantised.factors[view] = rotated.factors[view] * double(most) / 127;
    });
    return quantised;
}

}  // namespace noisebook
