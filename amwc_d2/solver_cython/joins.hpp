// Joins of whole clusters of pixels.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "detail/adjacency.hpp"
#include "detail/cluster_graph.hpp"
#include "detail/grid.hpp"
#include "detail/labelling.hpp"
#include "detail/sums.hpp"
#include "detail/union_find.hpp"
#include "node_moves.hpp"

namespace amwc {

// Joins of thing clusters with each other and with stuff, best first. Sums of node costs are
// computed when they are asked for: most pairs are settled by their weight alone.
class Joins {
public:
    // Returns the number of joins and changes of class.
    size_t run(const Grid& g, Labelling& l, NodeMoves& moves) {
        if (!graph_.build(g, l)) return 0;
        grid_ = &g;
        adjacency_.build(graph_);
        const uint32_t n = uint32_t(graph_.size.size()), K = uint32_t(g.K);
        into_.resize(n);
        next_.assign(n, kEnd);
        last_.resize(n);
        version_.assign(n, 0);
        offered_.assign(n, 0.0);
        if (sums_.size() < n) sums_.resize(n);
        lowest_.resize(graph_.begin(n));
        own_.assign(n, 0.0);
        saving_.assign(n, 0.0);
        heap_.clear();
        size_t changes = 0;
        for (uint32_t c = 0; c < n; c++) {
            into_[c] = last_[c] = c;
            sums_[c].clear();
            if (large(c)) changes += measure(l, c, moves);
            else if (c >= K && graph_.size[c] == 1) changes += classify(l, c, moves);
        }
        for (uint32_t c = K; c < n; c++)
            if (large(c)) push(l, c);
        while (!heap_.empty()) {
            const Offer top = heap_.front();
            std::pop_heap(heap_.begin(), heap_.end());
            heap_.pop_back();
            if (into_[top.a] != top.a || top.version != version_[top.a]) continue;
            uint32_t b = kEnd;
            const double gain = best(l, top.a, b);
            offered_[top.a] = 0;
            if (!(gain > l.epsilon)) continue;
            if (gain < top.gain) {
                offer(top.a, gain);
                continue;
            }
            join(l, top.a, b);
            changes++;
        }
        for (uint32_t c = K; c < n; c++) {
            const uint32_t top = find(c);
            if (top != c) transfer(moves, c, top);
        }
        return changes;
    }

private:
    static constexpr uint32_t kEnd = 0xffffffffu;
    static constexpr double kAny = std::numeric_limits<double>::infinity();
    struct Offer {
        double gain;
        uint32_t a, version;
        bool operator<(const Offer& o) const {
            return gain < o.gain || (gain == o.gain && a > o.a);
        }
    };
    struct ClassSum {
        int32_t k;
        double value;
    };

    const Grid* grid_ = nullptr;
    ClusterGraph graph_;
    Adjacency adjacency_;
    Sums votes_;
    std::vector<uint32_t> into_, next_, last_, version_, touched_;  // next_: chain of the joined
    std::vector<std::vector<ClassSum>> sums_;
    std::vector<double> own_, saving_;  // cost of the cluster's class; what free choice would save
    std::vector<double> lowest_;        // costs of free choice of every run
    std::vector<double> offered_;  // the offer of each cluster that counts, or 0
    std::vector<Offer> heap_;

    uint32_t find(uint32_t c) {
        return find_root(c, [this](uint32_t i) -> uint32_t& { return into_[i]; });
    }

    bool large(uint32_t c) const {
        return c >= uint32_t(grid_->K) && graph_.size[c] > kTinyCluster;
    }

    // Costs of a cluster; it takes the class that most of its pixels like best if that is cheaper.
    bool measure(Labelling& l, uint32_t c, NodeMoves& moves) {
        votes_.resize(grid_->K);
        votes_.clear();
        double lowest = 0;
        for (uint32_t r = graph_.begin(c); r < graph_.begin(c + 1); r++) {
            const double before = lowest;
            const Run& run = graph_.run(r);
            for (uint32_t p = run.start; p < run.start + run.length; p++) {
                votes_.add(l.cheapest[p], 1);
                lowest += grid_->cost(p, l.cheapest[p]);
            }
            lowest_[r] = lowest - before;
        }
        int32_t& k = l.class_of[c];
        int32_t popular = k;
        for (int32_t v : votes_)
            if (l.thing[v] && votes_[v] > votes_[popular]) popular = v;
        own_[c] = lowest;  // saving nothing, until its class is known
        double own = sum(c, k, kAny);
        const double other = sum(c, popular, own);
        const bool changes = other < own;
        if (changes) {
            k = popular;
            own = other;
            graph_.for_each_member(c, [&](uint32_t p) { moves.changed(p); });
        }
        own_[c] = own;
        saving_[c] = own - lowest;
        return changes;
    }

    // A pixel by itself takes the cheapest class of things.
    bool classify(Labelling& l, uint32_t c, NodeMoves& moves) {
        const int32_t before = l.class_of[c];
        graph_.for_each_member(c, [&](uint32_t p) {
            for (int32_t k = 0; k < grid_->K; k++)
                if (l.thing[k] && grid_->cost(p, k) < grid_->cost(p, l.class_of[c]))
                    l.class_of[c] = k;
            if (l.class_of[c] != before) moves.changed(p);
        });
        return l.class_of[c] != before;
    }

    // The costs of class k in cluster c, kept while it is; or, as soon as they are known to reach a
    // limit, a number between the two.
    double sum(uint32_t c, int32_t k, double limit) {
        for (const ClassSum& known : sums_[c])
            if (known.k == k) return known.value;
        DoubleSum total;
        double rest = own_[c] - saving_[c];  // of free choice, in the runs to come
        const float* cost = grid_->node + size_t(k) * grid_->pixels();
        for (uint32_t part = c; part != kEnd; part = next_[part])
            for (uint32_t r = graph_.begin(part); r < graph_.begin(part + 1); r++) {
                total.add(cost + graph_.run(r).start, graph_.run(r).length);
                rest -= lowest_[r];
                if (total.value() + rest >= limit) return total.value() + rest;
            }
        sums_[c].push_back({k, total.value()});
        return total.value();
    }

    // The cheaper of the classes of a and b for both together, and its costs, if below a limit.
    double joint(const Labelling& l, uint32_t a, uint32_t b, int32_t& k, double limit) {
        const int32_t ka = l.class_of[a], kb = l.class_of[b];
        k = std::min(ka, kb);
        if (ka == kb) return own_[a] + own_[b];
        const double with_a = own_[a] + sum(b, ka, limit - own_[a]);
        const double with_b = own_[b] + sum(a, kb, limit - own_[b]);
        k = with_a < with_b ? ka : with_b < with_a ? kb : k;
        return std::min(with_a, with_b);
    }

    // What joining thing cluster a with b gains along edges of weight w in all, if more than a limit.
    double gain(const Labelling& l, uint32_t a, uint32_t b, double w, double limit) {
        if (b < uint32_t(grid_->K))
            return w + saving_[a] > limit
                       ? w + own_[a] - sum(a, int32_t(b), w + own_[a] - limit)
                       : limit;
        if (w <= limit || !large(b)) return limit;
        int32_t k;
        const double apart = w + own_[a] + own_[b];
        return apart - joint(l, a, b, k, apart - limit);
    }

    // Best partner of thing cluster a.
    double best(const Labelling& l, uint32_t a, uint32_t& partner) {
        const auto& list = adjacency_.lists[a];
        double most = l.epsilon;
        for (uint32_t s = 0; s < list.size; s++) {
            const double value = gain(l, a, list.ids[s], list.links()[s].weight, most);
            if (value > most) most = value, partner = list.ids[s];
        }
        return most;
    }

    // Offers are upper bounds: they are looked at again when they are the highest.
    void offer(uint32_t a, double gain) {
        version_[a]++;
        offered_[a] = gain;
        heap_.push_back({gain, a, version_[a]});
        std::push_heap(heap_.begin(), heap_.end());
    }

    void push(const Labelling& l, uint32_t a) {
        uint32_t b = kEnd;
        const double most = best(l, a, b);
        offered_[a] = 0;
        if (b != kEnd) offer(a, most);
    }

    void join(Labelling& l, uint32_t a, uint32_t b) {
        const bool stuff = b < uint32_t(grid_->K);
        if (!stuff && adjacency_.lists[b].size < adjacency_.lists[a].size) std::swap(a, b);
        if (!stuff) {
            int32_t k;
            const double cost = joint(l, a, b, k, kAny);
            saving_[b] = saving_[a] + saving_[b] + cost - own_[a] - own_[b];
            own_[b] = cost;
            l.class_of[b] = k;
            size_t kept = 0;
            for (const ClassSum& ours : sums_[b])
                for (const ClassSum& theirs : sums_[a])
                    if (ours.k == theirs.k)
                        sums_[b][kept++] = {ours.k, ours.value + theirs.value};
            sums_[b].resize(kept);
            next_[last_[b]] = a;
            last_[b] = last_[a];
        }
        into_[a] = b;
        adjacency_.contract(b, a, touched_);
        if (!stuff) push(l, b);
        // The offers of neighbours may have risen.
        for (uint32_t s : touched_) {
            const uint32_t h = adjacency_.lists[b].ids[s];
            if (!large(h)) continue;
            const double limit = std::max<double>(offered_[h], l.epsilon);
            const double value = gain(l, h, b, adjacency_.lists[b].links()[s].weight, limit);
            if (value > limit) offer(h, value);
        }
    }

    // Members of c take their new cluster.
    void transfer(NodeMoves& moves, uint32_t c, uint32_t top) {
        graph_.for_each_run(c, [&](uint32_t p, uint32_t length) {
            moves.apply_run(*grid_, p, length, int32_t(top));
        });
    }
};

}  // namespace amwc
