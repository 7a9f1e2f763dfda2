// Whole clusters of pixels: joins of thing clusters with each other and with stuff, and the labels of
// a multiway cut.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "adjacency.hpp"
#include "grid.hpp"
#include "labelling.hpp"
#include "moves.hpp"
#include "sums.hpp"

namespace amwc {

// The graph of clusters: pixels of thing clusters and the weights between clusters, but for those
// between two stuff clusters.
class ClusterGraph {
public:
    int K = 0;
    std::vector<uint32_t> size;  // pixels of a thing cluster

    // Calls f(p, length) for every run of pixels in a row of a thing cluster.
    template <class F>
    void for_each_run(uint32_t c, F f) const {
        for (uint32_t r = begin_[c]; r < begin_[c + 1]; r++) f(runs_[r].start, runs_[r].length);
    }

    // Calls f(p) for every pixel of a thing cluster.
    template <class F>
    void for_each_member(uint32_t c, F f) const {
        for_each_run(c, [&](uint32_t start, uint32_t length) {
            for (uint32_t p = start; p < start + length; p++) f(p);
        });
    }

    // Calls f(p) for every pixel of things.
    template <class F>
    void for_each_pixel(F f) const {
        for (uint32_t c = 0; c < size.size(); c++) for_each_member(c, f);
    }

    bool build(const Grid& g, const Labelling& l) {
        K = g.K;
        const size_t clusters = l.class_of.size();
        size.assign(clusters, 0);
        begin_.assign(clusters + 2, 0);
        found_.clear();
        amwc::for_each_run(g, l.z, [&](uint32_t p, uint32_t length) {
            const size_t c = size_t(l.z[p]);
            if (c < size_t(K)) return;
            size[c] += length;
            begin_[c + 2]++;
            found_.push_back({p, length});
        });
        if (found_.empty()) return false;
        for (size_t c = 0; c < clusters; c++) begin_[c + 2] += begin_[c + 1];
        runs_.resize(found_.size());
        for (const Run& run : found_) runs_[begin_[size_t(l.z[run.start]) + 1]++] = run;
        from_.clear();
        to_.clear();
        weight_.clear();
        sums_.resize(clusters);
        for (size_t c = size_t(K); c < clusters; c++) {
            sums_.clear();
            for_each_run(uint32_t(c), [&](uint32_t p, uint32_t length) {
                g.for_each_run_of_neighbours(
                    p, int(length), [&](uint32_t q, const float* w, int count) {
                        sums_.add(l.z + q, w, count);
                    });
            });
            for (int32_t b : sums_) {
                if (b >= int32_t(c)) continue;
                from_.push_back(uint32_t(c));
                to_.push_back(uint32_t(b));
                weight_.push_back(sums_[b]);
            }
        }
        return true;
    }

    // As Adjacency wants it.
    size_t pixels() const { return size.size(); }
    template <class F>
    void for_each_edge(F f) const {
        for (size_t e = 0; e < from_.size(); e++) f(from_[e], to_[e], weight_[e], uint32_t(e));
    }

private:
    struct Run {
        uint32_t start, length;
    };
    std::vector<Run> found_, runs_;  // in the order of the pixels, and by cluster
    std::vector<uint32_t> begin_, from_, to_;
    std::vector<float> weight_;
    Sums sums_;
};

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
            else if (next_[c] != kEnd) gained(moves, c);
        }
        return changes;
    }

private:
    static constexpr uint32_t kEnd = 0xffffffffu;
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
    std::vector<double> offered_;  // the offer of each cluster that counts, or 0
    std::vector<Offer> heap_;

    uint32_t find(uint32_t c) {
        while (into_[c] != c) c = into_[c] = into_[into_[c]];
        return c;
    }

    bool large(uint32_t c) const {
        return c >= uint32_t(grid_->K) && graph_.size[c] > kTinyCluster;
    }

    // Costs of a cluster; it takes the class that most of its pixels like best if that is cheaper.
    bool measure(Labelling& l, uint32_t c, NodeMoves& moves) {
        votes_.resize(grid_->K);
        votes_.clear();
        double lowest = 0;
        graph_.for_each_member(c, [&](uint32_t p) {
            votes_.add(l.cheapest[p], 1);
            lowest += grid_->cost(p, l.cheapest[p]);
        });
        int32_t& k = l.class_of[c];
        int32_t popular = k;
        for (int32_t v : votes_)
            if (l.thing[v] && votes_[v] > votes_[popular]) popular = v;
        own_[c] = sum(c, k);
        const int32_t before = k;
        auto consider = [&](int32_t other) {
            const double cost = sum(c, other);
            if (cost < own_[c]) own_[c] = cost, k = other;
        };
        if (popular != k) consider(popular);
        const bool changed = k != before;
        if (changed) graph_.for_each_member(c, [&](uint32_t p) { moves.changed(p); });
        saving_[c] = own_[c] - lowest;
        return changed;
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

    double sum(uint32_t c, int32_t k) {
        for (const ClassSum& known : sums_[c])
            if (known.k == k) return known.value;
        double value = 0;
        const float* cost = grid_->node + size_t(k) * grid_->pixels();
        for (uint32_t part = c; part != kEnd; part = next_[part])
            graph_.for_each_member(part, [&](uint32_t p) { value += cost[p]; });
        sums_[c].push_back({k, value});
        return value;
    }

    // The cheaper of the classes of a and b for both together.
    double joint(const Labelling& l, uint32_t a, uint32_t b, int32_t& k) {
        const int32_t ka = l.class_of[a], kb = l.class_of[b];
        k = std::min(ka, kb);
        if (ka == kb) return own_[a] + own_[b];
        const double with_a = own_[a] + sum(b, ka), with_b = own_[b] + sum(a, kb);
        k = with_a < with_b ? ka : with_b < with_a ? kb : k;
        return std::min(with_a, with_b);
    }

    // What joining thing cluster a with b gains along edges of weight w in all, if more than a limit.
    double gain(const Labelling& l, uint32_t a, uint32_t b, double w, double limit) {
        if (b < uint32_t(grid_->K))
            return w + saving_[a] > limit ? w + own_[a] - sum(a, int32_t(b)) : limit;
        if (w <= limit || !large(b)) return limit;
        int32_t k;
        return w + own_[a] + own_[b] - joint(l, a, b, k);
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
            const double cost = joint(l, a, b, k);
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

    // A cluster that others joined: its class and which of its pieces is largest may have changed.
    void gained(NodeMoves& moves, uint32_t c) {
        graph_.for_each_member(c, [&](uint32_t p) { moves.changes.add(p); });
    }

    // Members of c take their new cluster.
    void transfer(NodeMoves& moves, uint32_t c, uint32_t top) {
        graph_.for_each_run(c, [&](uint32_t p, uint32_t length) {
            moves.apply_run(*grid_, p, length, int32_t(top));
        });
    }
};

// Labels for the clusters of a multiway cut: each takes the label that pays most given those of the
// others, largest first, until none changes. Then every label is one cluster.
class Assignment {
public:
    void run(const Grid& g, Labelling& l) {
        if (!graph_.build(g, l)) return;
        node_sums(g, l);
        adjacency_.build(graph_);
        const size_t K = size_t(g.K), clusters = graph_.size.size(), u = used_.size();
        order_.clear();
        choice_.assign(clusters, -1);
        for (size_t c = 0; c < clusters; c++) {
            if (c < K) choice_[c] = int32_t(c);
            else if (graph_.size[c]) order_.push_back(uint32_t(c));
        }
        std::stable_sort(order_.begin(), order_.end(), [&](uint32_t a, uint32_t b) {
            return graph_.size[a] > graph_.size[b];
        });
        pull_.assign(K, 0.0);
        bool changed = true;
        for (int sweep = 0; changed && sweep < 20; sweep++) {
            changed = false;
            for (uint32_t c : order_) {
                const auto& list = adjacency_.lists[c];
                for (uint32_t s = 0; s < list.size; s++)
                    if (choice_[list.ids[s]] >= 0) pull_[choice_[list.ids[s]]] += list.links()[s].weight;
                int32_t to = choice_[c];
                double best = -std::numeric_limits<double>::infinity();
                if (to >= 0) best = pull_[to] - node_[(c - K) * u + index_[to]] + l.epsilon;
                for (size_t i = 0; i < u; i++) {
                    const double value = pull_[used_[i]] - node_[(c - K) * u + i];
                    if (value > best) best = value, to = used_[i];
                }
                for (uint32_t s = 0; s < list.size; s++)
                    if (choice_[list.ids[s]] >= 0) pull_[choice_[list.ids[s]]] = 0;
                changed |= to != choice_[c];
                choice_[c] = to;
            }
        }
        graph_.for_each_pixel([&](uint32_t p) { l.z[p] = choice_[l.z[p]]; });
    }

private:
    ClusterGraph graph_;
    Adjacency adjacency_;
    std::vector<uint32_t> order_;
    std::vector<int32_t> used_, index_, count_, choice_;
    std::vector<double> node_, pull_;

    // Sums over every thing cluster for the labels whose kind some of its pixels like best.
    void node_sums(const Grid& g, const Labelling& l) {
        count_.assign(g.K, 0);
        graph_.for_each_pixel([&](uint32_t p) { count_[l.kind[l.cheapest[p]]]++; });
        for (size_t c = size_t(g.K); c < graph_.size.size(); c++)
            if (graph_.size[c]) count_[l.kind[l.class_of[c]]] += 8;
        used_.clear();
        index_.assign(g.K, -1);
        for (int k = 0; k < g.K; k++) {
            if (g.K > 32 && count_[l.kind[k]] < 8) continue;
            index_[k] = int32_t(used_.size());
            used_.push_back(k);
        }
        const size_t K = size_t(g.K), u = used_.size();
        node_.assign((graph_.size.size() - K) * u, 0.0);
        for (size_t i = 0; i < u; i++) {
            const float* cost = g.node + size_t(used_[i]) * g.pixels();
            for (size_t c = K; c < graph_.size.size(); c++) {
                double sum = 0;
                graph_.for_each_member(uint32_t(c), [&](uint32_t p) { sum += cost[p]; });
                node_[(c - K) * u + i] = sum;
            }
        }
    }
};

}  // namespace amwc
