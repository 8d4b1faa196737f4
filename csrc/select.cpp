// Selection: from residuals to tokens.
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "common.h"
#include "parallel.h"

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

// H(a * pad(r)) for every view: float [batch, units, P]. Each row is first scaled by a power of two, which is exact and
// moves no maximum, so that sums over 2^24 entries neither overflow nor vanish.
Buffer<float> rotated(const Call& call, const float* residual) {
    const size_t p = call.padded(), views = call.batch * call.units, room = words_room(blocks_of(p));
    Buffer<float> rows(views * p);
    Buffer<uint32_t> flips(call.units * room);
    for (size_t u = 0; u < call.units; ++u)
        call.kernels->sign_words(flips.get() + u * room, blocks_of(p), stream_of(call, u, kRotation), 0, 0, log2_of(blocks_of(p)));

    std::atomic<bool> finite{true};
    parallel_for(views, workers_for(call, views, 16.0 * views * p), [&](size_t, size_t view) {
        const float* from = residual + view * call.d;
        float* row = rows.get() + view * p;
        const uint32_t most = max_pattern(from, call.d);
        if (most >= 0x7F800000u) {
            finite = false;
            return;
        }
        float largest;
        std::memcpy(&largest, &most, 4);
        const float scale = most ? std::ldexp(1.0f, std::clamp(-std::ilogb(largest), -126, 126)) : 1.0f;
        for (size_t d = 0; d < call.d; ++d) row[d] = from[d] * scale;
        std::fill(row + call.d, row + p, 0.0f);
        call.kernels->transform_f32(row, flips.get() + view % call.units * room, row, p);
    });
    if (!finite) throw std::invalid_argument("the residual is not finite");
    return rows;
}

// The best |score| so far and its token, per worker, view and bin. Ties go to the smaller token: they are of different
// atoms, so that is the smaller atom.
template <class Score>
class Winners {
  public:
    Winners(const Call& call, size_t workers)
        : bins_(call.bins), cells_(call.batch * call.units * call.bins), workers_(workers), score_(workers * cells_), token_(workers * cells_) {
        std::fill_n(score_.get(), workers * cells_, Score(-1));
        std::fill_n(token_.get(), workers * cells_, int64_t(0));
    }
    size_t at(size_t worker, size_t view) const { return worker * cells_ + view * bins_; }
    Score* scores(size_t worker, size_t view) const { return score_.get() + at(worker, view); }
    int64_t* tokens(size_t worker, size_t view) const { return token_.get() + at(worker, view); }
    void merge(int64_t* out) const {
        for (size_t cell = 0; cell < cells_; ++cell) {
            size_t best = cell;
            for (size_t other = cell + cells_; other < workers_ * cells_; other += cells_)
                if (score_[other] > score_[best] || (score_[other] == score_[best] && token_[other] < token_[best])) best = other;
            out[cell] = token_[best];
        }
    }

  private:
    size_t bins_, cells_, workers_;
    Buffer<Score> score_;
    Buffer<int64_t> token_;
};

// Looks through the scores of one base, bin after bin.
void scan_base(const Call& call, const float* scores, size_t p, uint64_t base, float* best, int64_t* tokens) {
    const size_t rows = p / call.bins;
    for (size_t m = 0; m < call.bins; ++m) {
        const float* bin = scores + m * rows;
        const float most = call.kernels->max_abs(bin, call.atoms);
        if (!(most > best[m])) continue;
        size_t i = 0;  // seldom: about ln(bases) times
        while (std::fabs(bin[i]) != most) ++i;
        best[m] = most;
        tokens[m] = int64_t(2 * (base * call.atoms + i) + (bin[i] < 0));
    }
}

// The quantised rows of one unit, [block of kDimsBlock dimensions, group of images, step, lane, kDimsStep]: what the inner
// loop reads together lies together, not a power of two apart, where rows would evict each other from the cache.
struct Layout {
    size_t dims, lanes, images, size;  // of a block; images with padding; bytes of a unit
    Layout(size_t p, size_t batch) {
        dims = std::min(divide_up(p, kDimsStep) * kDimsStep, kDimsBlock);
        for (lanes = 1; lanes < kMaxRows && lanes < batch;) lanes *= 2;
        images = divide_up(batch, lanes) * lanes;
        size = std::max(p, dims) * images;
    }
    size_t at(size_t b, size_t d) const {  // d is a multiple of kDimsStep
        return d / dims * dims * images + b / lanes * lanes * dims + d % dims * lanes + b % lanes * kDimsStep;
    }
};

// rint(127 v / max|v|), in float32, ties to even, zero beyond p; a zero row stays zero. Returns the sum of the row.
int32_t quantise(const Kernels& kernels, const float* v, size_t p, int8_t* unit, const Layout& layout, size_t b) {
    const float most = kernels.max_abs(v, p), even = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
    int32_t total = 0;
    for (size_t first = 0; first < p; first += kDimsStep) {
        int8_t* out = unit + layout.at(b, first);
        const size_t count = std::min(p, kDimsStep);
        for (size_t d = 0; d < count; ++d) {
            const float x = most > 0 ? (127.0f * v[first + d]) / most : 0.0f;
            const int q = int((x + even) - even);
            out[d] = int8_t(q);
            total += q;  // |total| <= 127 * 2^24 < 2^31
        }
        std::fill(out + count, out + kDimsStep, int8_t(0));
    }
    return total;
}

}  // namespace

void hadamard_select(const Call& call, const float* residual, int64_t* tokens) {
    const size_t p = call.padded(), blocks = blocks_of(p), views = call.batch * call.units;
    if (!views) return;
    const Buffer<float> rows = rotated(call, residual);

    // A task: a few bases, enough to fill the lanes of Philox, for a share of the images of one unit. The signs of a base
    // are made once per task; images are shared out only where there are too few bases to keep the threads busy.
    const size_t group = std::min<uint64_t>(call.bases, std::max<size_t>(1, 2 * kMaxLanes / blocks));
    const size_t groups = divide_up(call.bases, group);
    const double operations = double(call.bases) * views * p * log2_of(2 * p);
    const size_t wanted = workers_for(call, call.bases * views, operations);
    const size_t shares = std::clamp<size_t>(wanted > 1 ? divide_up(4 * wanted, groups * call.units) : 1, 1, call.batch);
    const size_t tasks = groups * shares * call.units, workers = std::min(wanted, tasks);

    const size_t words = kBlockWords * blocks, room = words_room(group * blocks);
    const Winners<float> winners(call, workers);
    const Buffer<float> scores(workers * p);
    const Buffer<uint32_t> flips(workers * room);
    parallel_for(tasks, workers, [&](size_t worker, size_t task) {
        const size_t unit = task / groups / shares, share = task / groups % shares;
        const uint64_t first = task % groups * group, last = std::min<uint64_t>(first + group, call.bases);
        uint32_t* flip = flips.get() + worker * room;
        float* score = scores.get() + worker * p;
        call.kernels->sign_words(flip, (last - first) * blocks, stream_of(call, unit, kBasis), uint32_t(first), 0, log2_of(blocks));
        for (uint64_t j = first; j < last; ++j) {
            for (size_t b = share * call.batch / shares; b < (share + 1) * call.batch / shares; ++b) {
                const size_t view = b * call.units + unit;
                call.kernels->transform_f32(rows.get() + view * p, flip + (j - first) * words, score, p);
                scan_base(call, score, p, j, winners.scores(worker, view), winners.tokens(worker, view));
            }
        }
    });
    winners.merge(tokens);
}

void independent_select(const Call& call, const float* residual, int64_t* tokens) {
    const size_t p = call.padded(), blocks = blocks_of(p), views = call.batch * call.units;
    if (!views) return;
    const Layout layout(p, call.batch);
    const Buffer<int8_t> rows(call.units * layout.size);
    const Buffer<int32_t> totals(views);  // [unit, image]
    {
        const Buffer<float> rotation = rotated(call, residual);
        parallel_for(views, workers_for(call, views, 4.0 * views * p), [&](size_t, size_t view) {
            const size_t unit = view % call.units, b = view / call.units;
            totals[unit * call.batch + b] =
                quantise(*call.kernels, rotation.get() + view * p, p, rows.get() + unit * layout.size, layout, b);
        });
    }

    // A task: the signs of `chunk` codewords are made once, block of dimensions by block, and meet all images.
    constexpr size_t chunk = 64;
    const uint64_t codewords = call.bins * call.atoms;
    const size_t chunks = divide_up(codewords, chunk), tasks = chunks * call.units;
    const size_t workers = workers_for(call, tasks, double(codewords) * call.units * p * (0.05 + 0.05 * call.batch));
    const size_t dims_blocks = blocks_of(std::min(p, kDimsBlock));
    const size_t words = kBlockWords * dims_blocks, room = words_room(chunk * dims_blocks);
    const Winners<int64_t> winners(call, workers);
    const Buffer<uint32_t> signs(workers * room);
    const Buffer<int32_t> sums(workers * chunk * call.batch);
    parallel_for(tasks, workers, [&](size_t worker, size_t task) {
        const size_t unit = task / chunks;
        const uint64_t first = task % chunks * chunk, count = std::min<uint64_t>(chunk, codewords - first);
        uint32_t* sign = signs.get() + worker * room;
        int32_t* sum = sums.get() + worker * chunk * call.batch;
        const int8_t* unit_rows = rows.get() + unit * layout.size;
        std::fill_n(sum, chunk * call.batch, 0);
        for (size_t block = 0; block < blocks; block += dims_blocks) {
            call.kernels->sign_words(sign, chunk * dims_blocks, stream_of(call, unit, kIndependent), uint32_t(first), uint32_t(block),
                                     log2_of(dims_blocks));
            call.kernels->sign_sums(sign, words, chunk, unit_rows + layout.at(0, block * kBlockSigns), call.batch, layout.lanes, layout.dims, sum);
        }
        for (size_t b = 0; b < call.batch; ++b) {
            const int64_t total = totals[unit * call.batch + b];
            int64_t* best = winners.scores(worker, b * call.units + unit);
            int64_t* token = winners.tokens(worker, b * call.units + unit);
            uint64_t m = first / call.atoms, atom = first % call.atoms;
            for (size_t k = 0; k < count; ++k) {
                const int64_t score = total - 2 * int64_t(sum[k * call.batch + b]), size = score < 0 ? -score : score;
                if (size > best[m]) best[m] = size, token[m] = int64_t(2 * atom + (score < 0));
                if (++atom == call.atoms) atom = 0, ++m;
            }
        }
    });
    winners.merge(tokens);
}

}  // namespace noisebook
