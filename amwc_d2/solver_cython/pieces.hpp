// Moves of small connected pieces of clusters.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "changes.hpp"
#include "grid.hpp"
#include "labelling.hpp"
#include "moves.hpp"

namespace amwc {

// 4-connected pieces of clusters, found from runs of equal pixels.
class PieceMoves {
public:
    // Moves every piece of at most kLargest pixels to where it lowers the objective most; the main
    // bodies of thing clusters are left to Joins. Returns the number of moves.
    size_t run(const Grid& g, Labelling& l, NodeMoves& moves) {
        find(g, l);
        const uint32_t last = looked_;
        looked_ = moves.changes.mark(g);
        size_t moved = 0;
        for (uint32_t r = 0; r < runs_.size(); r++)
            if (root(r) == r && size_[r] <= kLargest && !main_body(g, l, r) &&
                changed(moves.changes, last, r))
                moved += evaluate(g, l, moves, r);
        return moved;
    }

private:
    static constexpr uint32_t kLargest = 1024;
    static constexpr uint32_t kEnd = 0xffffffffu;
    struct Run {
        uint32_t start, length, parent, next;
    };
    uint32_t looked_ = 0;
    std::vector<Run> runs_;
    std::vector<uint32_t> size_, last_, body_, piece_;
    std::vector<int32_t> classes_;
    std::vector<double> node_, rest_;  // rest_: lowest cost of the runs after each
    Sums sums_, votes_;

    uint32_t root(uint32_t r) {
        while (runs_[r].parent != r) r = runs_[r].parent = runs_[runs_[r].parent].parent;
        return r;
    }

    bool changed(const Changes& changes, uint32_t last, uint32_t piece) const {
        for (uint32_t r = piece; r != kEnd; r = runs_[r].next)
            for (uint32_t i = 0; i < runs_[r].length; i++)
                if (changes.after(last, runs_[r].start + i)) return true;
        return false;
    }

    bool main_body(const Grid& g, const Labelling& l, uint32_t r) const {
        const int32_t c = l.z[runs_[r].start];
        return c >= g.K && size_t(c) < body_.size() && body_[size_t(c)] == r;
    }

    void find(const Grid& g, const Labelling& l) {
        runs_.clear();
        uint32_t above = 0;
        for (int y = 0; y < g.H; y++) {
            const uint32_t first = uint32_t(runs_.size()), row = uint32_t(y) * g.W;
            const int32_t* z = l.z + row;
            for (int x = 0; x < g.W;) {
                int end = x + 1;
                while (end < g.W && z[end] == z[x]) end++;
                const uint32_t id = uint32_t(runs_.size());
                runs_.push_back({row + x, uint32_t(end - x), id, kEnd});
                x = end;
            }
            if (y) {
                uint32_t a = above, b = first;
                while (a < first && b < runs_.size()) {
                    const uint32_t a0 = runs_[a].start + g.W, a1 = a0 + runs_[a].length;
                    const uint32_t b0 = runs_[b].start, b1 = b0 + runs_[b].length;
                    if (a0 < b1 && b0 < a1 && l.z[runs_[a].start] == l.z[b0]) {
                        const uint32_t i = root(a), j = root(b);
                        runs_[std::max(i, j)].parent = std::min(i, j);
                    }
                    if (a1 <= b1) a++;
                    if (b1 <= a1) b++;
                }
            }
            above = first;
        }
        const size_t n = runs_.size();
        size_.assign(n, 0);
        last_.resize(n);
        piece_.resize(g.pixels());
        body_.assign(l.class_of.size(), kEnd);
        for (uint32_t r = 0; r < n; r++) {
            const uint32_t top = root(r);
            if (top != r) runs_[last_[top]].next = r;
            last_[top] = r;
            size_[top] += runs_[r].length;
            std::fill_n(piece_.begin() + runs_[r].start, runs_[r].length, top);
        }
        for (uint32_t r = 0; r < n; r++) {
            if (root(r) != r) continue;
            uint32_t& body = body_[size_t(l.z[runs_[r].start])];
            if (body == kEnd || size_[r] > size_[body]) body = r;
        }
    }

    template <class F>
    void for_each_pixel(uint32_t piece, F f) const {
        for (uint32_t r = piece; r != kEnd; r = runs_[r].next)
            for (uint32_t i = 0; i < runs_[r].length; i++) f(runs_[r].start + i);
    }

    // Sum of a piece's costs of class k, kept while the piece is evaluated; or, as soon as it is
    // known to reach a limit, a number between the two.
    double node_cost(const Grid& g, uint32_t piece, int32_t k, double limit) {
        if (node_.size() < size_t(g.K)) node_.resize(g.K);
        if (std::find(classes_.begin(), classes_.end(), k) != classes_.end()) return node_[k];
        const float* cost = g.node + size_t(k) * g.pixels();
        double sum = 0;
        size_t i = 0;
        for (uint32_t r = piece; r != kEnd; r = runs_[r].next) {
            for (uint32_t p = runs_[r].start; p < runs_[r].start + runs_[r].length; p++)
                sum += cost[p];
            const double bound = sum + rest_[i++];
            if (bound >= limit) return bound;
        }
        classes_.push_back(k);
        return node_[k] = sum;
    }

    // Adds the weights of edges to pixels q + i outside the piece to the sums of their clusters.
    void pull(const int32_t* z, uint32_t piece, uint32_t q, const float* w, int count) {
        const int32_t from = z[runs_[piece].start];
        for (int i = 0; i < count;) {
            const int32_t c = z[q + i];
            float sum = 0;
            if (c != from) {
                do sum += w[i];
                while (++i < count && z[q + i] == c);
            } else {
                do sum += piece_[q + i] == piece ? 0.0f : w[i];
                while (++i < count && z[q + i] == c);
            }
            sums_.add(c, sum);
        }
    }

    bool evaluate(const Grid& g, Labelling& l, NodeMoves& moves, uint32_t piece) {
        sums_.resize(l.class_of.size());
        sums_.clear();
        votes_.resize(g.K);
        votes_.clear();
        const int32_t from = l.z[runs_[piece].start], own = l.class_of[from];
        double lowest = 0, stay = 0;
        rest_.clear();
        for (uint32_t r = piece; r != kEnd; r = runs_[r].next) {
            for (uint32_t p = runs_[r].start; p < runs_[r].start + runs_[r].length; p++) {
                votes_.add(l.cheapest[p], 1);
                lowest += g.cost(p, l.cheapest[p]);
                stay -= g.cost(p, own);
            }
            rest_.push_back(lowest);
            g.for_each_run_of_neighbours(
                runs_[r].start, int(runs_[r].length),
                [&](uint32_t q, const float* w, int count) { pull(l.z, piece, q, w, count); });
        }
        for (double& rest : rest_) rest = lowest - rest;
        for (int32_t k : votes_)
            if (!l.thing[k]) sums_.add(k, 0);
        stay += sums_[from];
        double best = stay + l.epsilon;
        int32_t to = from, fresh = -1;
        classes_.clear();
        // Sums of node costs are at least lowest: most moves are settled without theirs.
        for (int32_t c : sums_) {
            if (c == from || !(sums_[c] - lowest > best)) continue;
            const double value = sums_[c] - node_cost(g, piece, l.class_of[c], sums_[c] - best);
            if (value > best) best = value, to = c;
        }
        for (int32_t c : sums_) votes_.add(l.class_of[c], 0);
        votes_.add(own, 0);
        for (int32_t k : votes_) {
            if (!l.thing[k] || !(-lowest > best)) continue;
            const double value = -node_cost(g, piece, k, -best);
            if (value > best) best = value, fresh = k;
        }
        if (fresh >= 0) {
            to = int32_t(l.class_of.size());
            l.class_of.push_back(fresh);
            moves.grow(l.class_of);
        }
        if (to == from) return false;
        for_each_pixel(piece, [&](uint32_t p) { moves.apply(g, p, to); });
        return true;
    }
};

}  // namespace amwc
