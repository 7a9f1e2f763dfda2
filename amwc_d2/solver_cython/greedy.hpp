// Exact Algorithm 2 (greedy additive edge contraction for the asymmetric multiway cut).
//
// Two clusters i, j have similarity  t(ij) = c_E(ij) - pen(ij),  pen(ij) = min_k [r_i(k) + r_j(k)],
// where r_i(k) = c_i(k) - min c_i are reduced node costs. Algorithm 2 merges the pair of largest t
// while it is >= 0. Re-evaluating every edge of a merged cluster, as it is written, is quadratic;
// what makes lazy evaluation exact:
//   * pen >= 0, so only edges of weight >= 0 matter; pen = 0 when both clusters prefer one class.
//   * Merging clusters of one class adds their reduced costs: every other pen can only grow, so an
//     older similarity is an upper bound and is checked when it reaches the top of the queue.
//   * Merging clusters of different classes lowers reduced costs. A neighbour h can gain only if
//     r_h(x) > margin, x being the (unchanged) class and margin the second best reduced cost of
//     the merged cluster. Clusters are kept in buckets of max_k r(k) to find those few.
// The queue holds one key a cluster: the best edge it answers for. Every edge is answered for by
// one end (the one with fewer neighbours when it was last looked at), so that a rescan is cheap.
// Ties: larger t first, then the lowest edge index, then the lowest class.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "detail/adjacency.hpp"
#include "detail/tournament.hpp"
#include "detail/union_find.hpp"

namespace amwc {

class Greedy {
public:
    // Results: cluster of every node (any id < N) and class of every cluster.
    std::vector<uint32_t> parent;
    std::vector<int32_t> label;

    // interrupted() is called now and then and may throw.
    template <class Costs, class Stop>
    void run(const Costs& costs, Stop interrupted) {
        setup(costs);
        uint32_t c;
        for (uint32_t step = 1; queue_.top(c); step++) {
            if (!(step & 0xfff)) interrupted();
            const uint32_t h = key_other_[c];
            if (confirmed(c, h)) {
                merge(c, h);
            } else {
                rescan(c);
            }
        }
    }

    uint32_t root(uint32_t p) {
        return find_root(p, [this](uint32_t c) -> uint32_t& { return parent[c]; });
    }

    // Clusters that are to be apart cannot be of one class of stuff, which is one segment. Gives those
    // in `pairs` (of nodes) classes with which they are: in the order in which they come up there, each
    // takes the cheapest class that no earlier one has which it is to be apart from. Returns false if
    // that cannot be done, or takes too many trials. is_thing(k): whether class k is of things.
    template <class IsThing>
    bool keep_apart(const std::vector<std::pair<uint32_t, uint32_t>>& pairs, IsThing is_thing) {
        bool conflict = false;
        for (const auto& [p, q] : pairs) {
            const uint32_t a = root(p), b = root(q);
            if (a == b) return false;
            conflict |= label[a] == label[b] && !is_thing(label[a]);
        }
        if (!conflict) return true;
        std::vector<uint32_t> order;
        std::vector<int32_t> rank(parent.size(), -1);
        const auto rank_of = [&](uint32_t c) {
            if (rank[c] < 0) rank[c] = int32_t(order.size()), order.push_back(c);
            return rank[c];
        };
        std::vector<std::vector<int32_t>> earlier;  // clusters to be apart from, by rank
        for (const auto& [p, q] : pairs) {
            const int32_t a = rank_of(root(p)), b = rank_of(root(q));
            earlier.resize(order.size());
            earlier[size_t(std::max(a, b))].push_back(std::min(a, b));
        }
        // Depth first: the classes of a cluster by cost, those that cannot be left out.
        std::vector<std::vector<int32_t>> left(order.size());
        size_t depth = 0, trials = 0;
        const auto enter = [&](size_t i) {
            const float* r = reduced(order[i]);
            std::vector<int32_t>& list = left[i];
            list.clear();
            for (int32_t k = 0; k < K_; k++) {
                bool free = r[k] < INFINITY;
                for (int32_t e : earlier[i]) free &= is_thing(k) || label[order[size_t(e)]] != k;
                if (free) list.push_back(k);
            }
            std::stable_sort(list.begin(), list.end(), [r](int32_t k, int32_t m) { return r[k] < r[m]; });
            std::reverse(list.begin(), list.end());
        };
        enter(0);
        while (true) {
            if (left[depth].empty()) {
                if (depth-- == 0) return false;
                continue;
            }
            if (++trials > 100000) return false;
            label[order[depth]] = left[depth].back();
            left[depth].pop_back();
            if (++depth == order.size()) return true;
            enter(depth);
        }
    }

private:
    // Lowest, second lowest and largest of a row of costs.
    struct Extremes {
        Float4 low = splat(INFINITY), next = low, high = -low;
        void add(Float4 v) {
            next = lower(next, higher(low, v));
            low = lower(low, v);
            high = higher(high, v);
        }
        void add_first(float v) {
            next[0] = std::min(next[0], std::max(low[0], v));
            low[0] = std::min(low[0], v);
            high[0] = std::max(high[0], v);
        }
        void combine(float& lowest, float& second, float& largest) const {
            lowest = second = INFINITY, largest = -INFINITY;
            for (int i = 0; i < 4; i++) {
                second = std::min(std::min(second, next[i]), std::max(lowest, low[i]));
                lowest = std::min(lowest, low[i]);
                largest = std::max(largest, high[i]);
            }
        }
    };

    static constexpr uint32_t kNone = Adjacency::kNone;
    static constexpr int kBuckets = 256;  // exponents of a float

    int K_ = 0, stride_ = 0;
    std::vector<float> reduced_, margin_, heaviest_;
    Adjacency adjacency_;
    Tournament queue_;  // the best edge that each cluster answers for
    std::vector<uint32_t> key_other_;
    std::vector<uint32_t> next_, previous_;  // bucket lists, intrusive
    uint32_t first_[kBuckets], count_[kBuckets];
    std::vector<uint32_t> touched_;

    template <class Costs>
    void setup(const Costs& costs) {
        const size_t n = costs.pixels();
        K_ = costs.K;
        stride_ = (K_ + 3) / 4 * 4;
        reduced_.resize(n * stride_);
        parent.resize(n);
        label.resize(n);
        margin_.resize(n);
        heaviest_.resize(n);
        next_.resize(n);
        previous_.resize(n);
        key_other_.resize(n);
        queue_.reset(n);
        std::fill(first_, first_ + kBuckets, kNone);
        std::fill(count_, count_ + kBuckets, 0u);
        costs.for_each_row_of_nodes(reduced_.data(), stride_, [this](size_t p) {
            parent[p] = uint32_t(p);
            reduce(uint32_t(p));
            link(uint32_t(p));
        });
        adjacency_.build(costs);
        for (size_t p = 0; p < n; p++) {
            const auto& list = adjacency_.lists[p];
            for (uint32_t s = 0; s < list.size; s++) {
                const float w = list.links()[s].weight;
                if (w < 0 || !owns(uint32_t(p), list.ids[s])) continue;
                offer(uint32_t(p), list.ids[s], w, list.links()[s].edge);
            }
        }
    }

    const float* reduced(uint32_t c) const { return &reduced_[size_t(c) * stride_]; }

    // Makes the lowest cost of c zero; label, margin and largest reduced cost follow.
    void reduce(uint32_t c) {
        float* r = &reduced_[size_t(c) * stride_];
        Extremes e;
        int k = 0;
        for (; k + 4 <= K_; k += 4) e.add(load(r + k));
        for (; k < K_; k++) e.add_first(r[k]);
        float best, second, largest;
        e.combine(best, second, largest);
        const Float4 all = splat(best);
        for (k = 0; k + 4 <= K_ && !any(load(r + k) == all);) k += 4;
        while (k + 1 < K_ && r[k] != best) k++;
        label[c] = std::min(k, K_ - 1);  // costs that were overwritten may equal nothing
        for (k = 0; k + 4 <= K_; k += 4) store(r + k, load(r + k) - all);
        for (; k < K_; k++) r[k] -= best;
        margin_[c] = second - best;
        heaviest_[c] = largest - best;
    }

    // Adds the reduced costs of j to those of i.
    void add(uint32_t i, uint32_t j) {
        float* ri = &reduced_[size_t(i) * stride_];
        const float* rj = reduced(j);
        if (label[i] != label[j]) {
            for (int k = 0; k < K_; k++) ri[k] += rj[k];
            reduce(i);
            return;
        }
        // The class both like best stays at zero: no other pass is needed.
        Extremes e;
        int k = 0;
        for (; k + 4 <= K_; k += 4) {
            const Float4 v = load(ri + k) + load(rj + k);
            store(ri + k, v);
            e.add(v);
        }
        for (; k < K_; k++) e.add_first(ri[k] += rj[k]);
        float best;
        e.combine(best, margin_[i], heaviest_[i]);
    }

    float penalty(uint32_t i, uint32_t j) const {
        const int xi = label[i], xj = label[j];
        if (xi == xj) return 0;
        const float *ri = reduced(i), *rj = reduced(j);
        if (rj[xi] <= margin_[i]) return rj[xi];
        if (ri[xj] <= margin_[j]) return ri[xj];
        Float4 low = splat(INFINITY);
        int k = 0;
        for (; k + 4 <= K_; k += 4) low = lower(low, load(ri + k) + load(rj + k));
        for (; k < K_; k++) low[0] = std::min(low[0], ri[k] + rj[k]);
        return std::min(std::min(low[0], low[1]), std::min(low[2], low[3]));
    }

    bool owns(uint32_t c, uint32_t h) const {
        const uint32_t a = adjacency_.lists[c].size, b = adjacency_.lists[h].size;
        return a < b || (a == b && c < h);
    }

    // Whether edge (c, h) is worth more than key; if so key becomes its key.
    bool better(uint32_t c, uint32_t h, float w, uint32_t e, uint64_t& key) const {
        if (Tournament::pack(w, e) <= key) return false;
        const float t = w - penalty(c, h);
        if (!(t >= 0)) return false;
        const uint64_t offered = Tournament::pack(t, e);
        if (offered <= key) return false;
        key = offered;
        return true;
    }

    // Raises the key of the end that answers for an edge of weight w >= 0, if it is better.
    void offer(uint32_t c, uint32_t h, float w, uint32_t e) {
        if (!owns(c, h)) std::swap(c, h);
        uint64_t key = queue_.key(c);
        if (!better(c, h, w, e, key)) return;
        key_other_[c] = h;
        queue_.raise(c, key);
    }

    // Whether the key of c is what its edge is worth now.
    bool confirmed(uint32_t c, uint32_t h) const {
        if (parent[h] != h) return false;
        const auto& list = adjacency_.lists[c];
        const uint32_t s = adjacency_.find(list, h);
        if (s == kNone) return false;
        return Tournament::pack(list.links()[s].weight - penalty(c, h), list.links()[s].edge) ==
               queue_.key(c);
    }

    void rescan(uint32_t c) {
        uint64_t key = Tournament::kNone;
        const auto& list = adjacency_.lists[c];
        for (uint32_t s = 0; s < list.size; s++) {
            const float w = list.links()[s].weight;
            if (w < 0) continue;
            const uint32_t h = list.ids[s], e = list.links()[s].edge;
            if (!owns(c, h)) {
                offer(h, c, w, e);
            } else if (better(c, h, w, e, key)) {
                key_other_[c] = h;
            }
        }
        queue_.set(c, key);
    }

    void merge(uint32_t a, uint32_t b) {
        const uint32_t da = adjacency_.lists[a].size, db = adjacency_.lists[b].size;
        const bool a_stays = da > db || (da == db && a < b);
        const uint32_t i = a_stays ? a : b, j = a_stays ? b : a;
        const bool same = label[i] == label[j];
        const int old_label = label[i];
        unlink(i);
        unlink(j);
        parent[j] = i;
        prefetch(i, j);
        adjacency_.contract(i, j, touched_);
        add(i, j);
        link(i);
        queue_.set(j, Tournament::kNone);
        if (a == i) {
            rescan(i);  // the edge it answered with is gone
        } else {
            const auto& list = adjacency_.lists[i];
            for (uint32_t s : touched_)
                if (list.links()[s].weight >= 0)
                    offer(i, list.ids[s], list.links()[s].weight, list.links()[s].edge);
        }
        if (!same) revisit(i, label[i] == old_label);
    }

    // What is needed after a contraction, asked for before it.
    void prefetch(uint32_t i, uint32_t j) const {
        for (int k = 0; k < K_; k += 16) {
            __builtin_prefetch(reduced(i) + k);
            __builtin_prefetch(reduced(j) + k);
        }
        const auto& list = adjacency_.lists[j];
        for (uint32_t s = 0; s < list.size; s++) {
            __builtin_prefetch(&label[list.ids[s]]);
            queue_.prefetch(list.ids[s]);
        }
    }

    // After a merge of different classes: neighbours whose similarity to i may have risen.
    void revisit(uint32_t i, bool same_label) {
        const auto& list = adjacency_.lists[i];
        uint32_t heavy = 0;
        const int from = same_label ? bucket(margin_[i]) : 0;
        for (int b = from; b < kBuckets; b++) heavy += count_[b];
        if (!same_label || heavy >= list.size) {
            for (uint32_t s = 0; s < list.size; s++)
                if (list.links()[s].weight >= 0 && heaviest_[list.ids[s]] > (same_label ? margin_[i] : -1))
                    offer(i, list.ids[s], list.links()[s].weight, list.links()[s].edge);
            return;
        }
        for (int b = from; b < kBuckets; b++)
            for (uint32_t h = first_[b]; h != kNone; h = next_[h]) {
                if (h == i) continue;
                const uint32_t s = adjacency_.find(list, h);
                if (s != kNone && list.links()[s].weight >= 0)
                    offer(i, h, list.links()[s].weight, list.links()[s].edge);
            }
    }

    static int bucket(float heaviest) {
        uint32_t bits;
        std::memcpy(&bits, &heaviest, 4);
        return int(bits >> 23) & 255;
    }

    void link(uint32_t c) {
        const int b = bucket(heaviest_[c]);
        next_[c] = first_[b];
        previous_[c] = kNone;
        if (first_[b] != kNone) previous_[first_[b]] = c;
        first_[b] = c;
        count_[b]++;
    }

    void unlink(uint32_t c) {
        const int b = bucket(heaviest_[c]);
        if (previous_[c] != kNone) next_[previous_[c]] = next_[c];
        else first_[b] = next_[c];
        if (next_[c] != kNone) previous_[next_[c]] = previous_[c];
        count_[b]--;
    }
};

}  // namespace amwc
