// Selection: from residuals to the best signed atom of every bin.
#include <cmath>

#include "scan.h"

namespace noisebook {
namespace {

// The best |score| so far and its token, per worker, view and bin. Ties go to the smaller token: they are of different
// atoms, so that is the smaller atom.
template <class Score>
class Winners {
  public:
    Winners(const Call& call, size_t workers)
        : bins_(call.bins),
          cells_(call.batch * call.blocks * call.bins),
          workers_(workers),
          score_(workers * cells_),
          token_(workers * cells_) {
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
                if (score_[other] > score_[best] || (score_[other] == score_[best] && token_[other] < token_[best]))
                    best = other;
            out[cell] = token_[best];
        }
    }

  private:
    size_t bins_, cells_, workers_;
    Buffer<Score> score_;
    Buffer<int64_t> token_;
};

}  // namespace

void hadamard_select(const Call& call, const float* residual, int64_t* tokens) {
    if (call.batch == 0 || call.blocks == 0) return;
    const Rotated rotated = rotate(call, residual);
    const Team team = hadamard_team(call);
    const Winners<float> winners(call, team.size());
    const size_t rows = call.padded() / call.bins;
    scan_hadamard(call, rotated, team,
                  [&](size_t worker, size_t view, uint64_t base, const float* scores, size_t first, size_t last) {
                      float* best = winners.scores(worker, view);
                      int64_t* token = winners.tokens(worker, view);
                      for (size_t m = first / rows; m * rows < last; ++m) {
                          const size_t from = std::max(first, m * rows), to = std::min(last, m * rows + call.atoms);
                          if (from >= to) continue;
                          const float most = call.kernels->max_abs(scores + from, to - from);
                          if (!(most > best[m])) continue;
                          size_t i = from;  // seldom: about ln(bases) times
                          while (std::fabs(scores[i]) != most) ++i;
                          best[m] = most;
                          token[m] = int64_t(2 * (base * call.atoms + i - m * rows) + (scores[i] < 0));
                      }
                  });
    winners.merge(tokens);
}

void independent_select(const Call& call, const float* residual, int64_t* tokens) {
    if (call.batch == 0 || call.blocks == 0) return;
    const Quantised quantised = quantise(call, rotate(call, residual));
    const size_t workers = independent_workers(call);
    const Winners<int32_t> winners(call, workers);
    scan_independent(call, quantised, workers,
                     [&](size_t worker, size_t view, uint64_t first, size_t count, const int32_t* scores) {
                         int32_t* best = winners.scores(worker, view);
                         int64_t* token = winners.tokens(worker, view);
                         uint64_t m = first / call.atoms, atom = first % call.atoms;
                         for (size_t k = 0; k < count; ++k) {
                             const int32_t size = std::abs(scores[k]);
                             if (size > best[m]) best[m] = size, token[m] = int64_t(2 * atom + (scores[k] < 0));
                             if (++atom == call.atoms) atom = 0, ++m;
                         }
                     });
    winners.merge(tokens);
}

}  // namespace noisebook
