// What the rules of choice share: the residuals rotated once, then the scores of all atoms, some at a time.
#pragma once

#include "common.h"

namespace noisebook {

// H(a * pad(r)) of every view. Each row is first scaled by a power of two, which is exact and moves no maximum, so that
// sums over 2^24 entries neither overflow nor vanish.
struct Rotated {
    Buffer<float> rows;      // [batch, blocks, P]
    Buffer<double> factors;  // [batch, blocks]: a row's product with an atom times this is the score as defined
};
Rotated rotate(const Call& call, const float* residual);

// Where the quantised rows of one block lie: [panel of kDimsPanel dimensions, group of images, step, lane, kDimsStep].
// What the inner loop reads together lies together, not a power of two apart, where rows would evict each other from
// the cache.
struct Layout {
    size_t dims, lanes, images, size;  // of a panel; images with padding; bytes of a block
    Layout(size_t p, size_t batch);
    size_t at(size_t b, size_t d) const {  // d is a multiple of kDimsStep
        return d / dims * dims * images + b / lanes * lanes * dims + d % dims * lanes + b % lanes * kDimsStep;
    }
};

// rint(127 v / max|v|) of the rotated rows v.
struct Quantised {
    Layout layout;
    Buffer<int8_t> rows;     // [blocks, layout]
    Buffer<int32_t> totals;  // [batch, blocks]: the sum of each row
    Buffer<double> factors;  // [batch, blocks]: the integer score times this is about the score as defined
};
Quantised quantise(const Call& call, const Rotated& rotated);

inline Team hadamard_team(const Call& call) {
    const size_t p = call.padded(), views = call.batch * call.blocks;
    return team_for(call, call.bases * views, double(call.bases) * views * p * log2_of(2 * p));
}

// visit(worker, view, base, scores, first, last): the scores of rows first ... last-1 of one base. The calls of one
// worker for one view come in increasing order.
template <class Visit>
void scan_hadamard(const Call& call, const Rotated& rotated, const Team& team, const Visit& visit) {
    const size_t p = call.padded(), draws = draws_of(p);

    // A task: a few bases, enough to fill the lanes of Philox, for a share of the images of one block. The signs of a
    // base are made once per task; images are shared out only where there are too few bases to keep the threads busy.
    const size_t group = std::min<uint64_t>(call.bases, std::max<size_t>(1, 2 * kMaxLanes / draws));
    const size_t groups = divide_up(call.bases, group);
    const size_t shares =
        std::clamp<size_t>(team.outer > 1 ? divide_up(4 * team.outer, groups * call.blocks) : 1, 1, call.batch);
    const size_t tasks = groups * shares * call.blocks, workers = std::min(team.outer, tasks);

    const size_t words = kDrawWords * draws, room = words_room(group * draws);
    const Buffer<float> scores(workers * p);
    const Buffer<uint32_t> flips(workers * room);
    parallel_for(tasks, workers, [&](size_t worker, size_t task) {
        const size_t block = task / groups / shares, share = task / groups % shares;
        const uint64_t first = task % groups * group, last = std::min<uint64_t>(first + group, call.bases);
        uint32_t* flip = flips.get() + worker * room;
        float* score = scores.get() + worker * p;
        call.kernels->sign_words(flip, (last - first) * draws, stream_of(call, block, kBasis), uint32_t(first), 0,
                                 log2_of(draws));
        for (uint64_t j = first; j < last; ++j) {
            for (size_t b = share * call.batch / shares; b < (share + 1) * call.batch / shares; ++b) {
                const size_t view = b * call.blocks + block;
                transform(*call.kernels, rotated.rows.get() + view * p, flip + (j - first) * words, score, p,
                          team.inner);
                parallel_ranges(p, team.inner, [&](size_t part_worker, size_t from, size_t to) {
                    visit(worker + part_worker, view, j, score, from, to);
                });
            }
        }
    });
}

constexpr size_t kChunk = 64;  // codewords whose signs are made together

inline size_t independent_workers(const Call& call) {
    const uint64_t codewords = call.bins * call.atoms;
    const double operations = double(codewords) * call.blocks * call.padded() * (0.05 + 0.05 * call.batch);
    return workers_for(call, divide_up(codewords, kChunk) * call.blocks, operations);
}

// visit(worker, view, first, count, scores): the integer scores of codewords first ... first+count-1, count <= kChunk,
// in the same order.
template <class Visit>
void scan_independent(const Call& call, const Quantised& quantised, size_t workers, const Visit& visit) {
    // A task: the signs of a chunk of codewords are made once, panel by panel of dimensions, and meet all images.
    const Layout& layout = quantised.layout;
    const size_t p = call.padded(), draws = draws_of(p), panel_draws = draws_of(std::min(p, kDimsPanel));
    const uint64_t codewords = call.bins * call.atoms;
    const size_t chunks = divide_up(codewords, kChunk);
    const size_t words = kDrawWords * panel_draws, room = words_room(kChunk * panel_draws);
    const Buffer<uint32_t> signs(workers * room);
    const Buffer<int32_t> sums(workers * kChunk * call.batch);
    parallel_for(chunks * call.blocks, workers, [&](size_t worker, size_t task) {
        const size_t block = task / chunks;
        const uint64_t first = task % chunks * kChunk, count = std::min<uint64_t>(kChunk, codewords - first);
        uint32_t* sign = signs.get() + worker * room;
        int32_t* sum = sums.get() + worker * kChunk * call.batch;
        const int8_t* rows = quantised.rows.get() + block * layout.size;
        std::fill_n(sum, kChunk * call.batch, 0);
        for (size_t draw = 0; draw < draws; draw += panel_draws) {
            call.kernels->sign_words(sign, kChunk * panel_draws, stream_of(call, block, kIndependent), uint32_t(first),
                                     uint32_t(draw), log2_of(panel_draws));
            call.kernels->sign_sums(sign, words, kChunk, rows + layout.at(0, draw * kDrawSigns), call.batch,
                                    layout.lanes, layout.dims, sum);
        }
        for (size_t b = 0; b < call.batch; ++b) {
            const size_t view = b * call.blocks + block;
            int32_t scores[kChunk];  // |score| <= 127 * 2^24 < 2^31, though twice a sum may be more
            for (size_t k = 0; k < count; ++k)
                scores[k] = int32_t(quantised.totals[view] - 2 * int64_t(sum[k * call.batch + b]));
            visit(worker, view, first, size_t(count), scores);
        }
    });
}

}  // namespace noisebook
