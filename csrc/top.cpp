// Choices over one bin: its best atoms, and the best of score + bias.
#include <cmath>
#include <limits>
#include <mutex>

#include "scan.h"

namespace noisebook {
namespace {

constexpr size_t kFar = 512;       // scores compared with the limit at once
constexpr size_t kNear = 64;       // and where one of them passes, by these smaller parts
constexpr size_t kCandidates = 8;  // of `independent_biased`, by int8 scores

template <class Key>
struct Entry {
    Key key;
    int64_t token;
    bool operator<(const Entry& other) const {  // better: the larger key, then the smaller token
        return key > other.key || (key == other.key && token < other.token);
    }
};

// The `count` best entries of each view so far, shared by all workers. Which entries those are does not depend on the
// order in which they come. A view has room for some more than `count` entries; when it is full, all but the best
// `count` go, and from then on an entry must beat the last of these.
template <class Key>
class Best {
  public:
    using Limit = std::numeric_limits<Key>;
    static constexpr Key lowest = Limit::has_infinity ? -Limit::infinity() : Limit::lowest();

    Best(size_t views, size_t count)
        : count_(count), room_(count + count / 2 + kNear), entries_(views * room_), views_(new View[views]) {}

    // entry(i) for first <= i < last; most(i, n) is the largest key of n of them from i on.
    template <class Most, class Make>
    void offer(size_t view, size_t first, size_t last, const Most& most, const Make& entry) {
        const std::atomic<Key>& least = views_[view].least;
        for (size_t far = first; far < last; far += kFar) {
            const size_t end = std::min(far + kFar, last);
            if (most(far, end - far) < least.load(std::memory_order_relaxed)) continue;
            for (size_t near = far; near < end; near += kNear) {
                const size_t n = std::min(kNear, end - near);
                if (!(most(near, n) < least.load(std::memory_order_relaxed))) take(view, near, near + n, entry);
            }
        }
    }

    // The best of a view, best first; at least `count` must have been offered.
    Entry<Key>* sorted(size_t view) {
        Entry<Key>* const all = entries_.get() + view * room_;
        std::nth_element(all, all + count_ - 1, all + views_[view].size);
        std::sort(all, all + count_);
        return all;
    }

    void tokens(const Call& call, int64_t* out) {
        const size_t views = call.batch * call.blocks;
        parallel_for(views, workers_for(call, views, 64.0 * views * count_), [&](size_t, size_t view) {
            const Entry<Key>* const best = sorted(view);
            for (size_t i = 0; i < count_; ++i) out[view * count_ + i] = best[i].token;
        });
    }

  private:
    struct View {
        std::mutex mutex;
        size_t size = 0;
        Entry<Key> last{lowest, std::numeric_limits<int64_t>::max()};
        std::atomic<Key> least{lowest};  // last.key, to be read without the lock
    };
    template <class Make>
    void take(size_t view, size_t first, size_t last, const Make& entry) {
        View& v = views_[view];
        Entry<Key>* const all = entries_.get() + view * room_;
        const std::lock_guard<std::mutex> lock(v.mutex);
        Entry<Key> worst = v.last;
        size_t size = v.size, hits = 0, hit[kNear];
        for (size_t i = first; i < last; ++i)
            hit[hits] = i, hits += !(entry(i).key < worst.key);  // no branch to mispredict
        for (size_t h = 0; h < hits; ++h) {
            const Entry<Key> e = entry(hit[h]);
            if (!(e < worst)) continue;
            all[size++] = e;
            if (size < room_) continue;
            std::nth_element(all, all + count_ - 1, all + size);
            size = count_;
            v.last = worst = all[count_ - 1];
            v.least.store(worst.key, std::memory_order_relaxed);
        }
        v.size = size;
    }

    size_t count_, room_;
    Buffer<Entry<Key>> entries_;
    std::unique_ptr<View[]> views_;
};

}  // namespace

void hadamard_top(const Call& call, const float* residual, int64_t* tokens) {
    const size_t views = call.batch * call.blocks;
    if (!views) return;
    const Rotated rotated = rotate(call, residual);
    Best<float> best(views, call.count);
    const auto visit = [&](size_t, size_t view, uint64_t base, const float* s, size_t first, size_t last) {
        const uint64_t atom = base * call.atoms;
        best.offer(
            view, first, std::min<size_t>(last, call.atoms),
            [&](size_t i, size_t n) { return call.kernels->max_abs(s + i, n); },
            [=](size_t i) { return Entry<float>{std::fabs(s[i]), int64_t(2 * (atom + i) + (s[i] < 0))}; });
    };
    scan_hadamard(call, rotated, hadamard_team(call), visit);
    best.tokens(call, tokens);
}

void independent_top(const Call& call, const float* residual, int64_t* tokens) {
    const size_t views = call.batch * call.blocks;
    if (!views) return;
    const Quantised quantised = quantise(call, rotate(call, residual));
    Best<int32_t> best(views, call.count);
    const auto visit = [&](size_t, size_t view, uint64_t first, size_t count, const int32_t* s) {
        const auto most = [&](size_t i, size_t n) {
            int32_t size = 0;
            for (size_t k = i; k < i + n; ++k) size = std::max(size, std::abs(s[k]));
            return size;
        };
        best.offer(view, 0, count, most,
                   [=](size_t k) { return Entry<int32_t>{std::abs(s[k]), int64_t(2 * (first + k) + (s[k] < 0))}; });
    };
    scan_independent(call, quantised, independent_workers(call), visit);
    best.tokens(call, tokens);
}

void hadamard_biased(const Call& call, const float* residual, const float* bias, int64_t* tokens) {
    const size_t views = call.batch * call.blocks;
    if (!views) return;
    const Rotated rotated = rotate(call, residual);
    Best<double> best(views, 1);
    const auto visit = [&](size_t, size_t view, uint64_t base, const float* s, size_t first, size_t last) {
        const double factor = rotated.factors[view];
        const uint64_t atom = base * call.atoms;
        const float* b = bias + view % call.blocks * call.bases * call.atoms + atom;
        best.offer(
            view, first, std::min<size_t>(last, call.atoms),
            [&](size_t i, size_t n) { return call.kernels->max_biased(s + i, b + i, factor, n); },
            [=](size_t i) { return Entry<double>{factor * double(s[i]) + double(b[i]), int64_t(2 * (atom + i))}; });
    };
    scan_hadamard(call, rotated, hadamard_team(call), visit);
    best.tokens(call, tokens);
}

// int8 scores miss by about 1 % of |r|, as much as the winner may be worse than the best. So a few candidates are
// scored again without quantisation.
void independent_biased(const Call& call, const float* residual, const float* bias, int64_t* tokens) {
    const size_t p = call.padded(), views = call.batch * call.blocks;
    const size_t candidates = std::min<uint64_t>(call.atoms, kCandidates);
    if (!views) return;
    const Rotated rotated = rotate(call, residual);
    const Quantised quantised = quantise(call, rotated);
    Best<double> best(views, candidates);
    const auto visit = [&](size_t, size_t view, uint64_t first, size_t count, const int32_t* s) {
        const float* b = bias + view % call.blocks * call.atoms + first;
        double keys[kChunk];
        for (size_t k = 0; k < count; ++k) keys[k] = quantised.factors[view] * s[k] + double(b[k]);
        best.offer(
            view, 0, count, [&](size_t i, size_t n) { return *std::max_element(keys + i, keys + i + n); },
            [&](size_t k) { return Entry<double>{keys[k], int64_t(2 * (first + k))}; });
    };
    scan_independent(call, quantised, independent_workers(call), visit);

    const size_t workers = workers_for(call, views, 4.0 * views * p * candidates), room = words_room(draws_of(p));
    const Buffer<uint32_t> words(workers * room);
    parallel_for(views, workers, [&](size_t worker, size_t view) {
        const size_t block = view % call.blocks;
        const float* v = rotated.rows.get() + view * p;
        uint32_t* sign = words.get() + worker * room;
        Entry<double>* const found = best.sorted(view);
        for (size_t i = 0; i < candidates; ++i) {
            const uint64_t k = uint64_t(found[i].token) / 2;
            call.kernels->sign_words(sign, draws_of(p), stream_of(call, block, kIndependent), uint32_t(k), 0,
                                     log2_of(draws_of(p)));
            double sum = 0;
            for (size_t d = 0; d < p; ++d) sum += sign[d / 32] >> (d % 32) & 1 ? -double(v[d]) : double(v[d]);
            found[i].key = rotated.factors[view] * sum + double(bias[block * call.atoms + k]);
        }
        tokens[view] = std::min_element(found, found + candidates)->token;
    });
}

}  // namespace noisebook
