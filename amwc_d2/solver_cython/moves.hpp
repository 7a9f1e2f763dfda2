// Node moves: one node at a time goes to the cluster that lowers the objective most.
//
// Each node carries a slack, a lower bound on how far every move of it is from paying off:
//     slack <= [attraction to its own cluster] - [attraction to any other] - [node cost saved].
// The first bound counts all attraction to other clusters as if it came from one, so it needs no
// lists of candidates and is computed row by row with vector instructions. Only nodes of negative
// slack are evaluated, and a move lowers the slack of its neighbours by what it can have changed,
// so that after the first pass only nodes near a change are looked at again. Every move is
// evaluated on the current labelling: the objective falls with each one, and the result is that of
// a sequential sweep, whatever the instruction set.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "grid.hpp"

namespace amwc {

// Sums by cluster id that are cleared in O(1).
class Sums {
public:
    void resize(size_t n) {
        if (cells_.size() < n) cells_.resize(n, {0, 0});
    }
    void clear() {
        seen.clear();
        if (++tick_ == 0) {
            for (auto& cell : cells_) cell.tick = 0;
            tick_ = 1;
        }
    }
    void add(int32_t id, float w) {
        Cell& cell = cells_[size_t(id)];
        if (cell.tick != tick_) {
            cell = {0, tick_};
            seen.push_back(id);
        }
        cell.sum += w;
    }
    float operator[](int32_t id) const {
        const Cell& cell = cells_[size_t(id)];
        return cell.tick == tick_ ? cell.sum : 0;
    }
    std::vector<int32_t> seen;

private:
    struct Cell {
        float sum;
        uint32_t tick;
    };
    std::vector<Cell> cells_;
    uint32_t tick_ = 0;
};

class NodeMoves {
public:
    // cheapest: class of lowest cost of every node. home[k]: cluster that a node may always join
    // because it likes class k best, or -1.
    template <class Costs>
    void start(const Costs& costs, int32_t* z, const int32_t* class_of, size_t clusters,
               const int32_t* cheapest, const int32_t* home, float epsilon) {
        z_ = z;
        class_of_ = class_of;
        cheapest_ = cheapest;
        home_ = home;
        epsilon_ = epsilon;
        sums_.resize(clusters);
        slack_.resize(costs.pixels());
        bound(costs);
    }

    // Sweeps until nothing moves, at most max_sweeps times; returns the number of moves.
    template <class Costs>
    size_t run(const Costs& costs, int max_sweeps) {
        size_t total = 0;
        const uint32_t n = uint32_t(costs.pixels());
        for (int sweep = 0; sweep < max_sweeps; sweep++) {
            size_t moves = 0;
            for (uint32_t p = 0; p < n; p++)
                if (slack_[p] < 0) moves += evaluate(costs, p);
            total += moves;
            if (!moves) break;
        }
        return total;
    }

    // Moves p and lowers the slack of its neighbours by what they may have gained.
    template <class Costs>
    void apply(const Costs& costs, uint32_t p, int32_t to) {
        const int32_t from = z_[p];
        z_[p] = to;
        costs.for_each_neighbour(p, [&](uint32_t q, float w) {
            const int32_t zq = z_[q];
            if (zq == from) slack_[q] -= w + std::max(w, 0.0f);
            else if (zq == to) slack_[q] -= std::max(-w, 0.0f) - w;
            else slack_[q] -= std::abs(w);
        });
    }

    // After clusters were added.
    void grow(const std::vector<int32_t>& class_of) {
        class_of_ = class_of.data();
        sums_.resize(class_of.size());
    }

private:
    int32_t* z_ = nullptr;
    const int32_t *class_of_ = nullptr, *cheapest_ = nullptr, *home_ = nullptr;
    float epsilon_ = 0;
    std::vector<float> slack_;
    Sums sums_;

    template <class Costs>
    bool evaluate(const Costs& costs, uint32_t p) {
        sums_.clear();
        costs.for_each_neighbour(p, [&](uint32_t q, float w) { sums_.add(z_[q], w); });
        const int32_t from = z_[p], home = home_[cheapest_[p]];
        if (home >= 0) sums_.add(home, 0);
        const float stay = sums_[from] - costs.cost(p, class_of_[from]);
        float best = -std::numeric_limits<float>::infinity(), second = best;
        int32_t to = from;
        for (int32_t c : sums_.seen) {
            if (c == from) continue;
            const float value = sums_[c] - costs.cost(p, class_of_[c]);
            if (value > best || (value == best && c < to)) {
                second = best;
                best = value;
                to = c;
            } else {
                second = std::max(second, value);
            }
        }
        if (!(best > stay + epsilon_)) {
            slack_[p] = std::max(stay - best, 0.0f);
            return false;
        }
        apply(costs, p, to);
        slack_[p] = best - std::max(second, stay);
        return true;
    }

    void saved(const Grid& g) {
        for (uint32_t p = 0; p < g.pixels(); p++) {
            const int32_t k = class_of_[z_[p]];
            if (k != cheapest_[p]) slack_[p] -= g.cost(p, k) - g.cost(p, cheapest_[p]);
        }
    }

    // The first bound, a row at a time: the inner loops are plain and vectorise everywhere.
    void bound(const Grid& g) {
        const size_t n = g.pixels();
        std::fill(slack_.begin(), slack_.end(), 0.0f);
        for (int y = 0; y < g.H; y++) {
            const int32_t* z = z_ + size_t(y) * g.W;
            float* s = slack_.data() + size_t(y) * g.W;
            for (int d = 0; d < g.D; d++) {
                const int step = g.dist[d];
                const float* right = g.layer(d, 0) + size_t(y) * g.W;
                const float* down = g.layer(d, 1) + size_t(y) * g.W;
                const ptrdiff_t shift = ptrdiff_t(step) * g.W;
                if (step < g.W) {
                    row(s + step, z + step, z, right, g.W - step);
                    row(s, z, z + step, right, g.W - step);
                }
                if (y >= step) row(s, z, z - shift, down - shift, g.W);
                if (y + step < g.H) row(s, z, z + shift, down, g.W);
            }
        }
        (void)n;
        saved(g);
    }

    static void row(float* __restrict s, const int32_t* z, const int32_t* zq, const float* w,
                    int count) {
        for (int x = 0; x < count; x++) {
            const float other = w[x] > 0 ? -w[x] : 0.0f;
            s[x] += z[x] == zq[x] ? w[x] : other;
        }
    }
};

}  // namespace amwc
