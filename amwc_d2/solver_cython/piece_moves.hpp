// Moves of small connected pieces of clusters.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "detail/changes.hpp"
#include "detail/grid.hpp"
#include "detail/labelling.hpp"
#include "detail/runs.hpp"
#include "detail/sums.hpp"
#include "detail/union_find.hpp"
#include "node_moves.hpp"

namespace amwc {

// Pieces of clusters, connected through the sides of pixels, found from runs of equal ones.
class PieceMoves {
public:
    // Moves every piece of at most kLargest pixels to where it lowers the objective most; the main
    // bodies of thing clusters that are not tiny are left to Joins. Returns the number of moves.
    size_t run(const Grid& g, Labelling& l, NodeMoves& moves) {
        if (!moves.changes.since(looked_)) return 0;
        find(g, l);
        const uint32_t last = looked_;
        looked_ = moves.changes.mark(g);
        size_t moved = 0;
        for (uint32_t r = 0; r < runs_.size(); r++)
            if (root(r) == r && size_[r] <= kLargest &&
                (size_[r] <= kTinyCluster || !main_body(g, l, r)) &&
                changed(moves.changes, last, r))
                moved += evaluate(g, l, moves, r);
        return moved;
    }

    // The same for one piece, a set of pixels of one cluster given by its runs.
    bool move(const Grid& g, Labelling& l, NodeMoves& moves, const Run* runs, size_t count) {
        runs_.clear();
        size_.assign(1, 0);
        for (uint32_t r = 0; r < count; r++) {
            runs_.push_back({runs[r], 0, r + 1 < count ? r + 1 : kEnd});
            size_[0] += runs[r].length;
        }
        return evaluate(g, l, moves, 0);
    }

private:
    static constexpr uint32_t kLargest = 1024, kSampled = 64;
    static constexpr uint32_t kEnd = 0xffffffffu;
    struct LinkedRun : Run {
        uint32_t parent, next;
    };
    uint32_t looked_ = 0;
    std::vector<LinkedRun> runs_;
    std::vector<uint32_t> row_, size_, last_, body_;
    std::vector<int32_t> classes_;
    std::vector<uint32_t> part_;  // the runs of a piece that are looked at
    std::vector<double> node_, rest_;  // rest_: lowest cost of the runs after each
    double lowest_ = 0, stay_ = 0;  // cost of free choice, worth of staying but for the edges
    Sums sums_, votes_;

    uint32_t root(uint32_t r) {
        return find_root(r, [this](uint32_t i) -> uint32_t& { return runs_[i].parent; });
    }

    bool changed(const Changes& changes, uint32_t last, uint32_t piece) const {
        for (uint32_t r = piece; r != kEnd; r = runs_[r].next)
            for (uint32_t i = 0; i < runs_[r].length; i++)
                if (changes.after(last, runs_[r].start + i)) return true;
        return false;
    }

    bool linked(const Grid& g, uint32_t piece) const {
        for (uint32_t r = piece; g.group && r != kEnd; r = runs_[r].next)
            for (uint32_t i = 0; i < runs_[r].length; i++)
                if (g.linked(runs_[r].start + i)) return true;
        return false;
    }

    bool main_body(const Grid& g, const Labelling& l, uint32_t r) const {
        const int32_t c = l.z[runs_[r].start];
        return c >= g.K && size_t(c) < body_.size() && body_[size_t(c)] == r;
    }

    void find(const Grid& g, const Labelling& l) {
        runs_.clear();
        row_.assign(size_t(g.H) + 1, 0);  // first run of each row
        for_each_run(g, l.z, [&](uint32_t p, uint32_t length) {
            row_[p / uint32_t(g.W) + 1] = uint32_t(runs_.size()) + 1;
            runs_.push_back({{p, length}, uint32_t(runs_.size()), kEnd});
        });
        for (int row = 0; row < g.H; row++) {
            if (row % g.Y) unite(l, row - 1, row);
            if (row >= g.Y) unite(l, row - g.Y, row);
        }
        const size_t n = runs_.size();
        size_.assign(n, 0);
        last_.resize(n);
        body_.assign(l.class_of.size(), kEnd);
        for (uint32_t r = 0; r < n; r++) {
            const uint32_t top = root(r);
            if (top != r) runs_[last_[top]].next = r;
            last_[top] = r;
            size_[top] += runs_[r].length;
        }
        for (uint32_t r = 0; r < n; r++) {
            if (root(r) != r) continue;
            uint32_t& body = body_[size_t(l.z[runs_[r].start])];
            if (body == kEnd || size_[r] > size_[body]) body = r;
        }
    }

    // Joins runs of equal pixels of two rows that lie side by side.
    void unite(const Labelling& l, int a, int b) {
        const uint32_t shift = runs_[row_[b]].start - runs_[row_[a]].start;
        for (uint32_t i = row_[a], j = row_[b]; i < row_[a + 1] && j < row_[b + 1];) {
            const uint32_t end_i = runs_[i].start + runs_[i].length + shift;
            const uint32_t end_j = runs_[j].start + runs_[j].length;
            if (l.z[runs_[i].start] == l.z[runs_[j].start]) {
                const uint32_t r = root(i), s = root(j);
                runs_[std::max(r, s)].parent = std::min(r, s);
            }
            i += end_i <= end_j;
            j += end_j <= end_i;
        }
    }

    void relabel(const Labelling& l, uint32_t piece, int32_t cluster) const {
        for (uint32_t r = piece; r != kEnd; r = runs_[r].next)
            std::fill_n(l.z + runs_[r].start, runs_[r].length, cluster);
    }

    // Sum of the costs of class k of the runs looked at, kept while they are; or, as soon as it is
    // known to reach a limit, a number between the two.
    double node_cost(const Grid& g, int32_t k, double limit) {
        if (node_.size() < size_t(g.K)) node_.resize(g.K);
        if (std::find(classes_.begin(), classes_.end(), k) != classes_.end()) return node_[k];
        const float* cost = g.node + size_t(k) * g.pixels();
        DoubleSum sum;
        for (size_t i = 0; i < part_.size(); i++) {
            const Run& run = runs_[part_[i]];
            sum.add(cost + run.start, run.length);
            const double bound = sum.value() + rest_[i];
            if (bound >= limit) return bound;
        }
        classes_.push_back(k);
        return node_[k] = sum.value();
    }

    // Chooses every step-th run of a piece.
    void choose(uint32_t piece, size_t step) {
        part_.clear();
        size_t i = 0;
        for (uint32_t r = piece; r != kEnd; r = runs_[r].next)
            if (i++ % step == 0) part_.push_back(r);
    }

    // What a part of a piece, set apart, is worth where it is and elsewhere.
    void weigh(const Grid& g, const Labelling& l, int32_t own) {
        sums_.resize(l.class_of.size() + 1);
        sums_.clear();
        votes_.resize(g.K);
        votes_.clear();
        DoubleSum lowest, stay;
        rest_.clear();
        const float* own_cost = g.node + size_t(own) * g.pixels();
        for (uint32_t r : part_) {
            const uint32_t start = runs_[r].start, end = start + runs_[r].length;
            for (uint32_t p = start; p < end;) {
                const int32_t k = l.cheapest[p];
                const uint32_t before = p;
                const float* cost = g.node + size_t(k) * g.pixels();
                while (p < end && l.cheapest[p] == k) p++;
                lowest.add(cost + before, p - before);
                votes_.add(k, float(p - before));
            }
            stay.add(own_cost + start, end - start);
            rest_.push_back(lowest.value());
            g.for_each_run_of_neighbours(
                start, int(end - start),
                [&](uint32_t q, const float* w, int count) { sums_.add(l.z + q, w, count); });
        }
        lowest_ = lowest.value();
        stay_ = -stay.value();
        for (double& rest : rest_) rest = lowest_ - rest;
    }

    // The cluster where the part is worth most, or apart for one of its own, and then its class;
    // from if none gains more than a threshold.
    int32_t best_cluster(const Grid& g, const Labelling& l, int32_t from, int32_t apart,
                         double threshold, int32_t& fresh) {
        for (int32_t k : votes_)
            if (!l.thing[k]) sums_.add(k, 0);
        double best = stay_ + sums_[from] + threshold;
        int32_t to = from;
        classes_.clear();
        // Sums of node costs are at least lowest: most moves are settled without theirs.
        for (int32_t c : sums_) {
            if (c == from || c == apart || !(sums_[c] - lowest_ > best)) continue;
            const double value = sums_[c] - node_cost(g, l.class_of[c], sums_[c] - best);
            if (value > best) best = value, to = c;
        }
        if (!(-lowest_ > best)) return to;
        for (int32_t c : sums_)
            if (c != apart) votes_.add(l.class_of[c], 0);
        votes_.add(l.class_of[from], 0);
        for (int32_t k : votes_) {
            if (!l.thing[k]) continue;
            const double value = -node_cost(g, k, -best);
            if (value > best) best = value, to = apart, fresh = k;
        }
        return to;
    }

    bool evaluate(const Grid& g, Labelling& l, NodeMoves& moves, uint32_t piece) {
        if (linked(g, piece)) return false;
        const int32_t from = l.z[runs_[piece].start], apart = int32_t(l.class_of.size());
        int32_t to = from, fresh = -1;
        relabel(l, piece, apart);
        const auto look = [&](size_t step, double threshold) {
            choose(piece, step);
            weigh(g, l, l.class_of[from]);
            to = best_cluster(g, l, from, apart, threshold, fresh);
            return to != from;
        };
        // Large pieces seldom move: most are settled by an eighth of their rows, with room for its error.
        if (size_[piece] < kSampled || look(8, -0.125 * l.scale * size_[piece])) look(1, l.epsilon);
        relabel(l, piece, from);
        if (to == from) return false;
        if (to == apart) {
            l.class_of.push_back(fresh);
            moves.grow(l.class_of);
        }
        for (uint32_t r = piece; r != kEnd; r = runs_[r].next)
            moves.apply_run(g, runs_[r].start, runs_[r].length, to);
        return true;
    }
};

}  // namespace amwc
