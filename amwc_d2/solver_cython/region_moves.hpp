// Moves of whole regions to the label that their node costs ask for.
//
// A perturbation of the node costs may want one segment split along a line that no pixel can cross
// alone: each pixel is held by the attraction of the others, while all of them together would pay.
// Joins need no such move, for there the piece that moves is a segment.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "detail/grid.hpp"
#include "detail/labelling.hpp"
#include "detail/runs.hpp"
#include "node_moves.hpp"

namespace amwc {

// Labels of a multiway cut: label and class are one.
class RegionMoves {
public:
    // Moves every 4-connected region of pixels that have one cheapest label, and another label now,
    // to the cheapest one where that lowers the objective. A pixel whose own label is as cheap
    // stays; single pixels are left to NodeMoves. Returns the number of moves.
    size_t run(const Grid& g, Labelling& l, NodeMoves& moves) {
        const size_t n = g.pixels();
        if (!moves.changes.since(looked_)) return 0;
        const uint32_t last = looked_;
        looked_ = moves.changes.mark(g);
        region_.assign(n, 0);
        uint32_t count = 0;
        size_t moved = 0;
        for (size_t i = 0; (i = next_difference(l.z, l.cheapest, i, n)) < n; i++) {
            const uint32_t p = uint32_t(i);
            if (moves.changes.after(last, p) && company(g, l, p) && wants(g, l, p))
                moved += evaluate(g, l, moves, p, ++count);
        }
        return moved;
    }

private:
    uint32_t looked_ = 0;
    std::vector<uint32_t> region_, pixels_;  // region_: its number, from 1

    // Whether a pixel beside p may be of one region with it.
    bool company(const Grid& g, const Labelling& l, uint32_t p) const {
        const int32_t to = l.cheapest[p];
        bool any = false;
        g.for_each_beside(p, [&](uint32_t q) { any |= (l.cheapest[q] == to) & (l.z[q] != to); });
        return any;
    }

    // Whether p is in no region yet and another label is cheaper.
    bool wants(const Grid& g, const Labelling& l, uint32_t p) const {
        return l.z[p] != l.cheapest[p] && !region_[p] &&
               g.cost(p, l.cheapest[p]) < g.cost(p, l.z[p]) - l.epsilon;
    }

    bool evaluate(const Grid& g, Labelling& l, NodeMoves& moves, uint32_t first, uint32_t id) {
        const int32_t to = l.cheapest[first];
        pixels_.assign(1, first);
        region_[first] = id;
        const auto add = [&](uint32_t q) {
            if (l.cheapest[q] != to || !wants(g, l, q)) return;
            region_[q] = id;
            pixels_.push_back(q);
        };
        for (size_t i = 0; i < pixels_.size(); i++) g.for_each_side(pixels_[i], add);
        if (pixels_.size() == 1 || !may_pay(g, l, moves, id)) return false;
        if (!(change(g, l, to, id) < -l.epsilon)) return false;
        for (uint32_t p : pixels_) moves.apply(g, p, to);
        return true;
    }

    // Whether the region may gain: each pixel loses at least its slack by itself, but keeps the
    // attraction of those that move with it, which is counted for both of them.
    bool may_pay(const Grid& g, const Labelling& l, const NodeMoves& moves, uint32_t id) const {
        double gain = 0;
        for (uint32_t p : pixels_) {
            gain += l.epsilon - moves.slack(p);  // with room for rounding
            const auto add = [&](uint32_t q, const float* w) {
                if (region_[q] == id) gain += 2 * std::max(*w, 0.0f);
            };
            g.for_each_arc(p, add, Back::kNone);
        }
        return gain > 0;
    }

    // What the move of the region costs.
    double change(const Grid& g, const Labelling& l, int32_t to, uint32_t id) const {
        double sum = 0;
        for (uint32_t p : pixels_) {
            const int32_t from = l.z[p];
            float cut = 0;  // twice, for edges inside are met from both ends
            g.for_each_neighbour(p, [&](uint32_t q, float w) {
                const bool before = l.z[q] != from;
                if (region_[q] == id) cut -= before ? w : 0.0f;
                else cut += 2 * float(int(l.z[q] != to) - int(before)) * w;
            });
            sum += double(g.cost(p, to)) - g.cost(p, from) + 0.5 * cut;
        }
        return sum;
    }
};

}  // namespace amwc
