// Synthesis: from tokens to noise, in exact integers until one multiplication.
//
// A view is made in runs of neighbours that stay in the cache. Integer additions may come in any order, so the last
// transform does its low stages on a run as soon as that is summed, and its high stages across runs.
#include <cmath>

#include "common.h"

namespace noisebook {
namespace {

constexpr size_t kRun = 8192;                   // entries of a run, about
constexpr uint64_t kInt32 = uint64_t(1) << 31;  // what an int32 must stay below

// What one thread needs to make a run.
struct Room {
    explicit Room(size_t run) : base(run), words(words_room(draws_of(run))) {}
    Buffer<int32_t> base;
    Buffer<uint32_t> words;

    // The signs first ... first+n-1 of one index; a run begins with a whole draw.
    const uint32_t* signs(const Call& call, size_t block, Purpose purpose, uint64_t index, size_t first, size_t n) {
        const size_t draws = draws_of(n);
        call.kernels->sign_words(words.get(), draws, stream_of(call, block, purpose), uint32_t(index),
                                 uint32_t(first / kDrawSigns), log2_of(draws));
        return words.get();
    }
};

// The chosen rows of a view, by base. H of a row is a row of +-1 whose part of n entries is that of H_n, or its
// negative: so a run needs one transform of n entries a base, whatever P is, and one addition a token.
class HadamardRows {
  public:
    HadamardRows(const Call& call, const int64_t* tokens, size_t block)
        : call_(call), block_(block), p_(call.padded()), shift_(1 + log2_of(call.padded())) {
        rows_.resize(call.count);
        for (size_t m = 0; m < call.count; ++m) {
            const uint64_t atom = uint64_t(tokens[m] >> 1), row = m % call.bins * (p_ / call.bins) + atom % call.atoms;
            rows_[m] = 2 * (atom / call.atoms * p_ + row) + (tokens[m] & 1);  // < 2^57
        }
        std::sort(rows_.begin(), rows_.end());
    }

    // sum[0 ... n-1] = entries first ... first+n-1 of the sum over bases of b_j * H(its rows)
    void fill(size_t first, size_t n, Room& room, int32_t* sum) const {
        const Kernels& kernels = *call_.kernels;
        const uint64_t part = first / n;
        const int shift = log2_of(n);
        std::fill_n(sum, n, 0);
        for (auto at = rows_.begin(); at < rows_.end();) {
            const uint64_t base = *at >> shift_;
            std::fill_n(room.base.get(), n, 0);
            for (; at < rows_.end() && *at >> shift_ == base; ++at) {
                const uint64_t row = *at / 2 & (p_ - 1);
                const auto minus = int32_t(__builtin_parityll(row >> shift & part) ^ int(*at & 1));
                room.base[row & (n - 1)] += 1 - 2 * minus;
            }
            kernels.transform_i32(room.base.get(), nullptr, room.base.get(), n);
            kernels.add_flipped_i32(sum, room.base.get(), room.signs(call_, block_, kBasis, base, first, n), n);
        }
    }

  private:
    const Call& call_;
    size_t block_, p_;
    int shift_;                   // of a base in rows_
    std::vector<uint64_t> rows_;  // 2 * (base * P + row) + sign, sorted
};

class IndependentRows {
  public:
    IndependentRows(const Call& call, const int64_t* tokens, size_t block)
        : call_(call), tokens_(tokens), block_(block) {}

    void fill(size_t first, size_t n, Room& room, int32_t* sum) const {
        std::fill_n(sum, n, 0);
        for (size_t m = 0; m < call_.count; ++m) {
            const uint64_t k = m % call_.bins * call_.atoms + uint64_t(tokens_[m] >> 1);
            const uint32_t* flips = room.signs(call_, block_, kIndependent, k, first, n);
            call_.kernels->add_signs_i32(sum, tokens_[m] & 1 ? -1 : 1, flips, n);
        }
    }

  private:
    const Call& call_;
    const int64_t* tokens_;
    size_t block_;
};

// How long the runs of a view are: shorter ones stay in a nearer cache, but each takes an addition a token.
size_t run_of(const Call& call, size_t p, size_t workers, size_t rows_of_a_base) {
    size_t run = p;
    while (run > kRun && (run / 8 >= rows_of_a_base || (workers > 1 && run > p / kParts))) run /= 8;
    return run;
}

// One view by several threads, in int32.
template <class Rows>
class Maker {
  public:
    Maker(const Call& call, const Rows& rows, size_t p, size_t run, size_t workers, std::vector<Room>& rooms,
          int32_t* total)
        : call_(call), rows_(rows), p_(p), run_(run), workers_(workers), rooms_(rooms.data()), total_(total) {}

    // Makes the total, all P entries. False where some entry or sum on the way may not fit an int32.
    bool totals() {
        checked_ = call_.count * p_ >= kInt32;  // M P bounds every entry; below it there is nothing to find
        parallel_ranges(p_, workers_,
                        [&](size_t worker, size_t first, size_t last) { make(worker, first, last - first); });
        uint64_t most = 0;
        for (const uint64_t part : most_) most += part;
        if (checked_ && most >= kInt32) return false;
        if (workers_ > 1) {
            static_assert(kParts == 64);  // twice three stages
            for (const size_t part : {p_ / 8, p_}) {
                parallel_ranges(p_ / 8, workers_, [&](size_t, size_t first, size_t last) {
                    const size_t column = first % (part / 8);
                    int32_t* data = total_ + first / (part / 8) * part;
                    call_.kernels->combine_i32(data, part, column, column + last - first);
                });
            }
        }
        return true;
    }

    // Only what the last transform is applied to.
    void sums() {
        parallel_ranges(p_, workers_, [&](size_t worker, size_t first, size_t last) {
            for (; first < last; first += run_) rows_.fill(first, run_, rooms_[worker], total_ + first);
        });
    }

  private:
    // n entries with the stages within them, depth first, as in fwht.h.
    void make(size_t worker, size_t first, size_t n) {
        int32_t* const out = total_ + first;
        if (n > run_) {
            for (size_t part = 0; part < 8; ++part) make(worker, first + part * (n / 8), n / 8);
            if (!checked_ || most_[worker] < kInt32) call_.kernels->combine_i32(out, n, 0, n / 8);
            return;
        }
        rows_.fill(first, n, rooms_[worker], out);
        if (checked_ && call_.kernels->max_abs_i32(out, n) * uint64_t(n) >= kInt32) most_[worker] = kInt32;
        if (checked_ && most_[worker] >= kInt32) return;
        call_.kernels->transform_i32(out, nullptr, out, n);
        // No later sum takes more than one entry of each run.
        if (checked_) most_[worker] += call_.kernels->max_abs_i32(out, n);
    }

    const Call& call_;
    const Rows& rows_;
    size_t p_, run_, workers_;
    Room* rooms_;
    int32_t* total_;
    bool checked_ = false;
    uint64_t most_[kParts] = {};  // of each thread's runs, the sum of their largest entries
};

// The sum of squares as it is, up to D (M P)^2, and then one factor.
float factor_of(const Call& call, unsigned __int128 squares) {
    return squares ? float(std::sqrt(double(call.d) / double(squares))) : 0.0f;
}

void unit_rms(const Call& call, const int32_t* total, size_t block, size_t p, size_t run, size_t workers,
              std::vector<Room>& rooms, float* noise) {
    uint64_t parts[kParts][2] = {};  // of the threads
    parallel_ranges(p, workers, [&](size_t worker, size_t first, size_t last) {
        if (first < call.d) call.kernels->add_squares(total + first, std::min(last, call.d) - first, parts[worker]);
    });
    unsigned __int128 squares = 0;
    for (const auto& part : parts) squares += ((unsigned __int128)part[1] << 32) + part[0];
    const float factor = factor_of(call, squares);
    parallel_ranges(p, workers, [&](size_t worker, size_t first, size_t last) {
        last = std::min(last, call.d);
        for (; first < last; first += run) {
            const uint32_t* flips = rooms[worker].signs(call, block, kRotation, 0, first, run);
            call.kernels->scale_flipped(total + first, flips, factor, noise + first, std::min(run, last - first));
        }
    });
}

// The same where int32 may not do: tokens that repeat each other, seldom anything else.
void unit_rms_i64(const Call& call, const int32_t* sum, size_t block, size_t p, size_t run, Room& room, float* noise) {
    Buffer<int64_t> total(p);
    std::copy_n(sum, p, total.get());
    transform_i64(total.get(), nullptr, total.get(), p);
    unsigned __int128 squares = 0;
    for (size_t d = 0; d < call.d; ++d) {
        const auto size = (unsigned __int128)uint64_t(total[d] < 0 ? -total[d] : total[d]);
        squares += size * size;
    }
    const float factor = factor_of(call, squares);
    for (size_t d = 0; d < call.d; ++d) {
        if (d % run == 0) room.signs(call, block, kRotation, 0, d, run);
        const bool minus = room.words[d % run / 32] >> (d % 32) & 1;
        noise[d] = float(minus ? -total[d] : total[d]) * factor;
    }
}

// rows: how many of them share a transform of their run; transforms: work of a view, for the number of threads.
template <class Rows>
void noise_of(const Call& call, const int64_t* tokens, float* noise, size_t rows, double transforms) {
    const size_t p = call.padded(), views = call.batch * call.blocks;
    const Team team = team_for(call, views, transforms * views * p * log2_of(2 * p));
    const size_t run = run_of(call, p, team.inner, rows);
    std::vector<std::vector<Room>> rooms(team.outer);
    std::vector<Buffer<int32_t>> totals;
    for (std::vector<Room>& some : rooms) {
        for (size_t worker = 0; worker < team.inner; ++worker) some.emplace_back(run);
        totals.emplace_back(p);
    }
    parallel_for(views, team.outer, [&](size_t worker, size_t view) {
        const size_t block = view % call.blocks;
        float* const out = noise + view * call.d;
        int32_t* const total = totals[worker].get();
        const Rows chosen(call, tokens + view * call.count, block);
        Maker<Rows> maker(call, chosen, p, run, team.inner, rooms[worker], total);
        if (maker.totals()) {
            unit_rms(call, total, block, p, run, team.inner, rooms[worker], out);
        } else {
            maker.sums();
            unit_rms_i64(call, total, block, p, run, rooms[worker][0], out);
        }
    });
}

}  // namespace

void hadamard_noise(const Call& call, const int64_t* tokens, float* noise) {
    const auto bases = size_t(std::min<uint64_t>(call.count, call.bases));
    noise_of<HadamardRows>(call, tokens, noise, call.count / bases, 1.0 + double(bases));
}

void independent_noise(const Call& call, const int64_t* tokens, float* noise) {
    noise_of<IndependentRows>(call, tokens, noise, 0, 1.0 + 0.1 * double(call.count));
}

}  // namespace noisebook
