// Moves of strips of pixels along the borders of clusters.
//
// Where a border is off by some pixels, each of them is held by the others. Things are made to grow, or
// to shrink, by a bonus for each of their pixels; with the true costs again the pixels settle, and
// every connected region that ended elsewhere moves there if that lowers the objective.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "detail/grid.hpp"
#include "detail/labelling.hpp"
#include "detail/runs.hpp"
#include "node_moves.hpp"

namespace amwc {

class BorderMoves {
public:
    // Pushes borders out and in again, by as many rounds as the size of the grid allows; each costs
    // half as much as all other moves together. Nodes must have settled before.
    void run(const Grid& g, Labelling& l, NodeMoves& moves) {
        const size_t n = g.pixels();
        const int rounds = n <= kFourRounds ? 4 : n <= kTwoRounds ? 2 : 0;
        for (int i = 0; i < rounds; i++) {
            const float bias = kBias * l.scale * float(i < 2 ? 1 : 2);
            push(g, l, moves, i % 2 ? -bias : bias, i < 2 ? kSeed : kOtherSeed);
            moves.run(g, kSettle);
        }
    }

private:
    static constexpr size_t kFourRounds = 1 << 14, kTwoRounds = 1 << 16;  // pixels
    static constexpr float kBias = 3;                 // of the mean |edge cost|
    static constexpr int kSweeps = 2, kSettle = 32;   // sweeps with and without the bonus
    static constexpr uint32_t kSeed = 2654435769u, kOtherSeed = 1183186591u;

    std::vector<int32_t> before_, after_;
    std::vector<float> slacks_;
    std::vector<uint32_t> region_, pixels_;  // region_: its number, from 1

    void push(const Grid& g, Labelling& l, NodeMoves& moves, float bias, uint32_t seed) {
        const size_t n = g.pixels();
        before_.assign(l.z, l.z + n);
        slacks_ = moves.slacks();
        moves.push(g, bias, seed, kSweeps);
        moves.run(g, kSettle);
        after_.assign(l.z, l.z + n);
        std::copy(before_.begin(), before_.end(), l.z);
        moves.restore(slacks_);
        region_.assign(n, 0);
        uint32_t count = 0;
        for (size_t i = 0; (i = next_difference(before_.data(), after_.data(), i, n)) < n; i++)
            if (!region_[i]) evaluate(g, l, moves, uint32_t(i), ++count);
    }

    // Moves the region from a pixel on if that pays.
    void evaluate(const Grid& g, Labelling& l, NodeMoves& moves, uint32_t first, uint32_t id) {
        pixels_.assign(1, first);
        region_[first] = id;
        for (size_t i = 0; i < pixels_.size(); i++)
            g.for_each_side(pixels_[i], [&](uint32_t q) {
                if (region_[q] || before_[q] == after_[q]) return;
                region_[q] = id;
                pixels_.push_back(q);
            });
        double change = 0;
        for (uint32_t p : pixels_) {
            float cut = 0;  // twice, for edges inside are met from both ends
            g.for_each_neighbour(p, [&](uint32_t q, float w) {
                const bool inside = region_[q] == id, was = l.z[q] != l.z[p];
                const bool is = (inside ? after_[q] : l.z[q]) != after_[p];
                cut += float(int(is) - int(was)) * (inside ? w : 2 * w);
            });
            change += double(g.cost(p, l.class_of[after_[p]])) - g.cost(p, l.class_of[l.z[p]]);
            change += 0.5 * cut;
        }
        if (!(change < -l.epsilon)) return;
        for (uint32_t p : pixels_) moves.apply(g, p, after_[p]);
    }
};

}  // namespace amwc
