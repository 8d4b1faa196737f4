// Synthesis: from tokens to noise, in exact integers until one multiplication.
#include <cmath>

#include "common.h"

namespace noisebook {
namespace {

// body(d, minus) for all d < n, minus = -1 where bit d of `flips` is set, else 0: (x ^ minus) - minus is then the
// flipped integer. Never flip the float: -0 is another bit pattern. A mask instead of a shift lets SSE2 and NEON
// vectorise.
template <class Integer, class Body>
void with_flips(const uint32_t* flips, size_t n, const Body& body) {
    for (size_t first = 0; first < n; first += 32) {
        const uint32_t word = flips[first / 32];
        const uint32_t count = uint32_t(std::min<size_t>(32, n - first));
        for (uint32_t i = 0; i < count; ++i) body(first + i, -Integer((word & (1u << i)) != 0));
    }
}

// The memory in which one worker makes a view, or its share of one. Up to the last transform no entry exceeds the
// tokens of a view, which are fewer than 2^31; after it they may reach M P.
struct Scratch {
    explicit Scratch(size_t p) : sum(p), base(p), words(words_room(draws_of(p))) {}
    Buffer<int32_t> sum, base;
    Buffer<uint32_t> words;
};

// The signs first ... last-1 of one index, at their place among the words of all. A range begins with a whole vector of
// draws.
uint32_t* some_signs(const Call& call, uint32_t* words, size_t block, Purpose purpose, uint64_t index, size_t first,
                     size_t last) {
    const size_t draws = draws_of(last - first);
    uint32_t* const out = words + first / 32;
    call.kernels->sign_words(out, draws, stream_of(call, block, purpose), uint32_t(index), uint32_t(first / kDrawSigns),
                             log2_of(draws));
    return out;
}

// sum += b_j * H(chosen rows of base j). The tokens of the base are given as 2 * (j * P + row) + sign < 2^57, sorted.
void add_base(const Call& call, const uint64_t* begin, const uint64_t* end, size_t block, size_t p, size_t workers,
              Scratch& s) {
    const uint64_t j = *begin / (2 * p);
    parallel_ranges(p, workers, [&](size_t, size_t first, size_t last) {
        std::fill(s.base.get() + first, s.base.get() + last, 0);
        const uint64_t* at = std::lower_bound(begin, end, 2 * (j * p + first));
        for (; at < end && *at < 2 * (j * p + last); ++at) s.base[*at / 2 % p] += *at & 1 ? -1 : 1;
    });
    transform(*call.kernels, s.base.get(), nullptr, s.base.get(), p, workers);
    parallel_ranges(p, workers, [&](size_t, size_t first, size_t last) {
        const uint32_t* flips = some_signs(call, s.words.get(), block, kBasis, j, first, last);
        call.kernels->add_flipped_i32(s.sum.get() + first, s.base.get() + first, flips, last - first);
    });
}

// scratch[0].sum = the combination of rows before the last transform, over all bases in use. Where there are enough
// bases each worker sums a share of them, and the sums of the workers are added at the end.
void add_hadamard(const Call& call, const int64_t* tokens, size_t block, size_t p, size_t workers, Scratch* scratch) {
    std::vector<uint64_t> order(call.count);
    for (size_t m = 0; m < call.count; ++m) {
        const uint64_t atom = uint64_t(tokens[m] >> 1), row = m % call.bins * (p / call.bins) + atom % call.atoms;
        order[m] = 2 * (atom / call.atoms * p + row) + (tokens[m] & 1);
    }
    std::sort(order.begin(), order.end());
    std::vector<size_t> begin;  // of the bases in use
    for (size_t m = 0; m < call.count; ++m)
        if (m == 0 || order[m] / (2 * p) != order[m - 1] / (2 * p)) begin.push_back(m);
    const size_t bases = begin.size(), outer = bases >= 2 * workers ? workers : 1, inner = workers / outer;
    begin.push_back(call.count);

    parallel_for(outer, outer, [&](size_t, size_t worker) { std::fill_n(scratch[worker].sum.get(), p, 0); });
    parallel_for(bases, outer, [&](size_t worker, size_t n) {
        add_base(call, &order[begin[n]], order.data() + begin[n + 1], block, p, inner, scratch[worker]);
    });
    parallel_ranges(p, outer, [&](size_t, size_t first, size_t last) {
        for (size_t worker = 1; worker < outer; ++worker)
            for (size_t d = first; d < last; ++d) scratch[0].sum[d] += scratch[worker].sum[d];
    });
}

void add_independent(const Call& call, const int64_t* tokens, size_t block, size_t p, size_t workers,
                     Scratch* scratch) {
    parallel_ranges(p, workers, [&](size_t, size_t first, size_t last) {
        int32_t* const sum = scratch->sum.get() + first;
        std::fill_n(sum, last - first, 0);
        for (size_t m = 0; m < call.count; ++m) {
            const uint64_t k = m % call.bins * call.atoms + uint64_t(tokens[m] >> 1);
            const uint32_t* flips = some_signs(call, scratch->words.get(), block, kIndependent, k, first, last);
            const int32_t x = tokens[m] & 1 ? -1 : 1;
            with_flips<int32_t>(flips, last - first, [=](size_t d, int32_t minus) { sum[d] += (x ^ minus) - minus; });
        }
    });
}

// The sum of squares reaches D (M P)^2: within 64 bits for every int32 total, and within 128 for the others.
template <class Integer>
void unit_rms(const Call& call, const Integer* total, uint32_t* words, size_t block, size_t p, size_t workers,
              float* noise) {
    using Sum = std::conditional_t<std::is_same_v<Integer, int32_t>, uint64_t, unsigned __int128>;
    Sum parts[kParts] = {};  // of the threads
    parallel_ranges(p, workers, [&](size_t worker, size_t first, size_t last) {
        Sum squares = 0;
        for (size_t i = first; i < std::min(last, call.d); ++i) {
            const int64_t x = total[i];
            const Sum size = uint64_t(x < 0 ? -x : x);
            squares += size * size;
        }
        parts[worker] += squares;
    });
    Sum squares = 0;
    for (const Sum part : parts) squares += part;
    const float factor = squares ? float(std::sqrt(double(call.d) / double(squares))) : 0.0f;
    parallel_ranges(p, workers, [&](size_t, size_t first, size_t last) {
        if (first >= call.d) return;
        const uint32_t* flips = some_signs(call, words, block, kRotation, 0, first, last);
        const Integer* const x = total + first;
        float* const out = noise + first;
        with_flips<Integer>(flips, std::min(last, call.d) - first,
                            [=](size_t i, Integer minus) { out[i] = float((x[i] ^ minus) - minus) * factor; });
    });
}

template <class Add>
void noise_of(const Call& call, const int64_t* tokens, float* noise, double transforms, const Add& add) {
    const size_t p = call.padded(), views = call.batch * call.blocks;
    const Team team = team_for(call, views, transforms * views * p * log2_of(2 * p));
    const bool wide = call.count * p >= uint64_t(1) << 31;
    std::vector<Scratch> scratch;
    for (size_t worker = 0; worker < team.size(); ++worker) scratch.emplace_back(p);
    parallel_for(views, team.outer, [&](size_t worker, size_t view) {
        Scratch& s = scratch[worker];
        const size_t block = view % call.blocks;
        const auto finish = [&](auto* total) {
            transform(*call.kernels, total, nullptr, total, p, team.inner);
            unit_rms(call, total, s.words.get(), block, p, team.inner, noise + view * call.d);
        };
        add(call, tokens + view * call.count, block, p, team.inner, &s);
        if (wide) {
            Buffer<int64_t> total(p);
            std::copy_n(s.sum.get(), p, total.get());
            finish(total.get());
        } else {
            finish(s.sum.get());
        }
    });
}

}  // namespace

void hadamard_noise(const Call& call, const int64_t* tokens, float* noise) {
    noise_of(call, tokens, noise, 1.0 + double(std::min<uint64_t>(call.count, call.bases)), add_hadamard);
}

void independent_noise(const Call& call, const int64_t* tokens, float* noise) {
    noise_of(call, tokens, noise, 1.0 + 0.1 * double(call.count), add_independent);
}

}  // namespace noisebook
