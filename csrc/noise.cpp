// Synthesis: from tokens to noise, in exact integers until one multiplication.
#include <cmath>
#include <type_traits>
#include <utility>

#include "common.h"
#include "parallel.h"

namespace noisebook {
namespace {

template <class Integer>
void transform(const Kernels& kernels, const Integer* in, Integer* out, size_t n) {
    if constexpr (std::is_same_v<Integer, int32_t>) {
        kernels.transform_i32(in, nullptr, out, n);
    } else {
        transform_i64(in, nullptr, out, n);
    }
}

// body(d, minus) for all d, minus = -1 where bit d of `flips` is set, else 0: (x ^ minus) - minus is then the flipped
// integer. Never flip the float: -0 is another bit pattern. A mask instead of a shift lets SSE2 and NEON vectorise.
template <class Integer, class Body>
void with_flips(const uint32_t* flips, size_t n, const Body& body) {
    for (size_t first = 0; first < n; first += 32) {
        const uint32_t word = flips[first / 32];
        const uint32_t count = uint32_t(std::min<size_t>(32, n - first));
        for (uint32_t i = 0; i < count; ++i) body(first + i, -Integer((word & (1u << i)) != 0));
    }
}

template <class Integer>
void add_flipped(Integer* sum, const Integer* x, const uint32_t* flips, size_t n) {
    with_flips<Integer>(flips, n, [=](size_t d, Integer minus) { sum[d] += (x[d] ^ minus) - minus; });
}

// What one thread works with.
template <class Integer>
struct Scratch {
    Scratch(size_t p, size_t bins)
        : sum(p), base(p), words(words_room(blocks_of(p))), order(bins) {}
    Buffer<Integer> sum, base;
    Buffer<uint32_t> words;
    Buffer<std::pair<uint64_t, size_t>> order;  // (base, bin)
};

// sum = the combination of rows before the last transform: over the bases j in use, b_j * H(chosen rows of j).
template <class Integer>
void add_hadamard(const Call& call, const int64_t* tokens, size_t unit, size_t p, Scratch<Integer>& s) {
    for (size_t m = 0; m < call.bins; ++m) s.order[m] = {uint64_t(tokens[m] >> 1) / call.atoms, m};
    std::sort(s.order.get(), s.order.get() + call.bins);
    for (size_t n = 0; n < call.bins;) {
        const uint64_t j = s.order[n].first;
        std::fill_n(s.base.get(), p, Integer(0));
        for (; n < call.bins && s.order[n].first == j; ++n) {
            const size_t m = s.order[n].second;
            s.base[m * (p / call.bins) + uint64_t(tokens[m] >> 1) % call.atoms] = tokens[m] & 1 ? -1 : 1;
        }
        transform(*call.kernels, s.base.get(), s.base.get(), p);
        call.kernels->sign_words(s.words.get(), blocks_of(p), stream_of(call, unit, kBasis), uint32_t(j), 0, log2_of(blocks_of(p)));
        add_flipped(s.sum.get(), s.base.get(), s.words.get(), p);
    }
}

template <class Integer>
void add_independent(const Call& call, const int64_t* tokens, size_t unit, size_t p, Scratch<Integer>& s) {
    for (size_t m = 0; m < call.bins; ++m) {
        std::fill_n(s.base.get(), p, Integer(tokens[m] & 1 ? -1 : 1));
        const uint64_t k = m * call.atoms + uint64_t(tokens[m] >> 1);
        call.kernels->sign_words(s.words.get(), blocks_of(p), stream_of(call, unit, kIndependent), uint32_t(k), 0, log2_of(blocks_of(p)));
        add_flipped(s.sum.get(), s.base.get(), s.words.get(), p);
    }
}

// The sum of squares reaches D (M P)^2: within 64 bits for every int32 total, and within 128 for the others.
template <class Integer>
void unit_rms(const Integer* total, const uint32_t* flips, size_t d, float* noise) {
    using Sum = std::conditional_t<std::is_same_v<Integer, int32_t>, uint64_t, unsigned __int128>;
    Sum squares = 0;
    for (size_t i = 0; i < d; ++i) {
        const int64_t x = total[i];
        const Sum size = uint64_t(x < 0 ? -x : x);
        squares += size * size;
    }
    if (!squares) {
        std::fill_n(noise, d, 0.0f);
        return;
    }
    const float factor = float(std::sqrt(double(d) / double(squares)));
    with_flips<Integer>(flips, d, [=](size_t i, Integer minus) { noise[i] = float((total[i] ^ minus) - minus) * factor; });
}

template <class Integer, class Add>
void noise_of(const Call& call, const int64_t* tokens, float* noise, double transforms, const Add& add) {
    const size_t p = call.padded(), views = call.batch * call.units;
    const size_t workers = workers_for(call, views, transforms * views * p * log2_of(2 * p));
    std::vector<Scratch<Integer>> scratch;
    for (size_t worker = 0; worker < workers; ++worker) scratch.emplace_back(p, call.bins);
    parallel_for(views, workers, [&](size_t worker, size_t view) {
        Scratch<Integer>& s = scratch[worker];
        const size_t unit = view % call.units;
        std::fill_n(s.sum.get(), p, Integer(0));
        add(call, tokens + view * call.bins, unit, p, s);
        transform(*call.kernels, s.sum.get(), s.sum.get(), p);
        call.kernels->sign_words(s.words.get(), blocks_of(p), stream_of(call, unit, kRotation), 0, 0, log2_of(blocks_of(p)));
        unit_rms(s.sum.get(), s.words.get(), call.d, noise + view * call.d);
    });
}

}  // namespace

void hadamard_noise(const Call& call, const int64_t* tokens, float* noise) {
    const double transforms = 1.0 + double(std::min(call.bins, call.bases));
    if (call.bins * call.padded() < (uint64_t(1) << 31)) {
        noise_of<int32_t>(call, tokens, noise, transforms, add_hadamard<int32_t>);
    } else {
        noise_of<int64_t>(call, tokens, noise, transforms, add_hadamard<int64_t>);
    }
}

void independent_noise(const Call& call, const int64_t* tokens, float* noise) {
    const double transforms = 1.0 + 0.1 * double(call.bins);
    if (call.bins * call.padded() < (uint64_t(1) << 31)) {
        noise_of<int32_t>(call, tokens, noise, transforms, add_independent<int32_t>);
    } else {
        noise_of<int64_t>(call, tokens, noise, transforms, add_independent<int64_t>);
    }
}

}  // namespace noisebook
