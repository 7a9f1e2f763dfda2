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
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "changes.hpp"
#include "grid.hpp"
#include "simd.hpp"

namespace amwc {

// Sums by cluster id that are cleared in O(1).
class Sums {
public:
    // Room for ids below n.
    void resize(size_t n) {
        if (cells_.size() < n) {
            cells_.resize(n, {0, 0});
            seen_.resize(n + 1);
        }
    }
    void clear() {
        count_ = 0;
        if (++tick_ == 0) {
            for (auto& cell : cells_) cell.tick = 0;
            tick_ = 1;
        }
    }
    void add(int32_t id, float w) {
        Cell& cell = cells_[size_t(id)];
        const bool first = cell.tick != tick_;
        seen_[count_] = id;  // kept only if this is the first
        count_ += first;
        cell.sum = (first ? 0.0f : cell.sum) + w;
        cell.tick = tick_;
    }
    float operator[](int32_t id) const {
        const Cell& cell = cells_[size_t(id)];
        return cell.tick == tick_ ? cell.sum : 0;
    }
    // The ids added to, in order.
    const int32_t* begin() const { return seen_.data(); }
    const int32_t* end() const { return seen_.data() + count_; }

private:
    struct Cell {
        float sum;
        uint32_t tick;
    };
    std::vector<Cell> cells_;
    std::vector<int32_t> seen_;
    size_t count_ = 0;
    uint32_t tick_ = 0;
};

class NodeMoves {
public:
    Changes changes;

    // cheapest: class of lowest cost of every node. home[k]: cluster that a node may always join
    // because it likes class k best, or -1. thorough: the slack also bounds moves to clusters that
    // are no neighbours yet, so that when nothing moves any more a first sweep would not either.
    template <class Costs>
    void start(const Costs& costs, int32_t* z, const int32_t* class_of, size_t clusters,
               const int32_t* cheapest, const int32_t* home, float epsilon, bool thorough) {
        z_ = z;
        class_of_ = class_of;
        cheapest_ = cheapest;
        home_ = home;
        epsilon_ = epsilon;
        thorough_ = thorough;
        sums_.resize(clusters);
        slack_.resize(costs.pixels());
        changes.start(costs.pixels());
        around_.resize(costs.most_neighbours());
        pull_.resize(costs.most_neighbours());
    }

    // The first sweep: bounds a row and moves its nodes while their costs are in the cache. Later
    // rows see the moves of earlier ones, and their own bounds are computed after them.
    size_t first_sweep(const Grid& g) {
        size_t moves = 0;
        for (int y = 0; y < g.H; y++) {
            bound(g, y);
            moves += sweep(g, uint32_t(y) * g.W, uint32_t(y + 1) * g.W);
        }
        return moves;
    }

    // Sweeps until nothing moves, at most max_sweeps times; returns the number of moves.
    template <class Costs>
    size_t run(const Costs& costs, int max_sweeps) {
        size_t total = 0;
        for (int i = 0; i < max_sweeps; i++) {
            const size_t moves = sweep(costs, 0, uint32_t(costs.pixels()));
            total += moves;
            if (!moves) break;
        }
        return total;
    }

    // Has p looked at again.
    void wake(uint32_t p) { slack_[p] = -1; }

    // Bounds anew what moved since changes were last marked: apply lowers its neighbours' slack only.
    template <class Costs>
    void bound_moved(const Costs& costs) {
        for (uint32_t p : changes.moved()) {
            float s = 0;
            costs.for_each_neighbour(p, [&](uint32_t q, float w) { s += pull(z_[p], z_[q], w); });
            slack_[p] = s;
            saved(costs, p);
        }
    }

    // After p changed by other means than apply.
    void changed(uint32_t p) {
        wake(p);
        changes.add(p);
    }

    // Moves p and lowers the slack of its neighbours by what they may have gained.
    template <class Costs>
    void apply(const Costs& costs, uint32_t p, int32_t to) {
        const int32_t from = z_[p];
        z_[p] = to;
        changes.add(p);
        costs.for_each_neighbour(p, [&](uint32_t q, float w) { spend(q, w, from, to); });
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
    bool thorough_ = false;
    std::vector<float> slack_;
    Sums sums_;

    std::vector<uint32_t> around_;
    std::vector<float> pull_;

    void spend(uint32_t q, float w, int32_t from, int32_t to) {
        const int32_t zq = z_[q];
        float drop = std::abs(w);
        drop = zq == from ? w + std::max(w, 0.0f) : drop;
        drop = zq == to ? std::max(-w, 0.0f) - w : drop;
        slack_[q] -= drop;
    }

    template <class Costs>
    bool evaluate(const Costs& costs, uint32_t p) {
        uint32_t* const around = around_.data();
        float* const pull = pull_.data();
        size_t degree = 0;
        costs.for_each_neighbour(p, [&](uint32_t q, float w) {
            around[degree] = q;
            pull[degree++] = w;
        });
        sums_.clear();
        for (size_t i = 0; i < degree; i++) sums_.add(z_[around[i]], pull[i]);
        const int32_t from = z_[p], home = home_[cheapest_[p]];
        if (home >= 0) sums_.add(home, 0);
        const float stay = sums_[from] - costs.cost(p, class_of_[from]);
        float best = -std::numeric_limits<float>::infinity(), second = best;
        int32_t to = from;
        // Costs of other classes lie far apart in memory: those that cannot matter are not read.
        const float lowest = costs.cost(p, cheapest_[p]);
        for (int32_t c : sums_) {
            if (c == from || sums_[c] - lowest < std::max(second, std::min(best, stay))) continue;
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
            if (thorough_) slack_[p] = std::min(slack_[p], stay + lowest);
            return false;
        }
        z_[p] = to;
        changes.add(p);
        for (size_t i = 0; i < degree; i++) spend(around[i], pull[i], from, to);
        slack_[p] = best - std::max(second, stay);
        if (thorough_) slack_[p] = std::min(slack_[p], best + lowest);
        return true;
    }

    template <class Costs>
    size_t sweep(const Costs& costs, uint32_t begin, uint32_t end) {
        constexpr uint32_t kBlock = 16;
        size_t moves = 0;
        for (uint32_t p = begin; p < end;) {
            if (p + kBlock <= end && none_negative(&slack_[p])) {
                p += kBlock;
                continue;
            }
            for (const uint32_t stop = std::min(p + kBlock, end); p < stop; p++)
                if (slack_[p] < 0) moves += evaluate(costs, p);
        }
        return moves;
    }

    // No sign bit among 16 values.
    static bool none_negative(const float* s) {
        uint64_t words[8];
        std::memcpy(words, s, sizeof words);
        uint64_t bits = 0;
        for (uint64_t word : words) bits |= word;
        return !(bits & 0x8000000080000000u);
    }

    template <class Costs>
    void saved(const Costs& costs, uint32_t p) {
        if (z_[p] == cheapest_[p]) return;  // stuff that likes its class best
        const int32_t k = class_of_[z_[p]];
        if (k != cheapest_[p]) slack_[p] -= costs.cost(p, k) - costs.cost(p, cheapest_[p]);
    }

    // The first bound of a row.
    void bound(const Grid& g, int y) {
        const size_t row = size_t(y) * g.W;
        const int32_t* z = z_ + row;
        float* s = slack_.data() + row;
        std::fill_n(s, g.W, 0.0f);
        for (int d = 0; d < g.D; d++) {
            const int step = g.dist[d];
            const ptrdiff_t shift = ptrdiff_t(step) * g.W;
            const float *right = g.layer(d, 0) + row, *down = g.layer(d, 1) + row;
            if (step < g.W) {
                pull(s + step, z + step, z, right, g.W - step);
                pull(s, z, z + step, right, g.W - step);
            }
            if (y >= step && y + step < g.H) {
                pull(s, z, z - shift, down - shift, z + shift, down, g.W);
            } else {
                if (y >= step) pull(s, z, z - shift, down - shift, g.W);
                if (y + step < g.H) pull(s, z, z + shift, down, g.W);
            }
        }
        for (uint32_t p = uint32_t(row); p < uint32_t(row) + g.W; p++) saved(g, p);
    }

    // w where z and zq agree, -max(w, 0) elsewhere.
    static Float4 pull(Int4 z, Int4 zq, Float4 w) {
        const Float4 other = -w < splat(0.0f) ? -w : splat(0.0f);
        return select(z == zq, w, other);
    }
    static float pull(int32_t z, int32_t zq, float w) { return z == zq ? w : w > 0 ? -w : 0.0f; }

    static void pull(float* s, const int32_t* z, const int32_t* zq, const float* w, int count) {
        int x = 0;
        for (; x + 4 <= count; x += 4)
            store(s + x, load(s + x) + pull(load(z + x), load(zq + x), load(w + x)));
        for (; x < count; x++) s[x] += pull(z[x], zq[x], w[x]);
    }

    static void pull(float* s, const int32_t* z, const int32_t* za, const float* wa,
                     const int32_t* zb, const float* wb, int count) {
        int x = 0;
        for (; x + 4 <= count; x += 4) {
            const Int4 own = load(z + x);
            store(s + x, load(s + x) + pull(own, load(za + x), load(wa + x)) +
                             pull(own, load(zb + x), load(wb + x)));
        }
        for (; x < count; x++) s[x] = s[x] + pull(z[x], za[x], wa[x]) + pull(z[x], zb[x], wb[x]);
    }
};

}  // namespace amwc
