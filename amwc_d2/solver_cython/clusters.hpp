// Moves of more than one pixel: small connected pieces, and joins of whole clusters.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "adjacency.hpp"
#include "grid.hpp"
#include "moves.hpp"

namespace amwc {

// A labelling under local search. Clusters 0 .. K-1 are the stuff classes (unused for things);
// thing clusters follow. class_of grows when a piece becomes a cluster of its own.
struct Labelling {
    int32_t* z;
    std::vector<int32_t> class_of;
    const int32_t* cheapest;
    const uint8_t* thing;
    const int32_t* kind;  // classes of one kind are counted together
    float epsilon;
};

// 4-connected pieces of clusters, found from runs of equal pixels.
class PieceMoves {
public:
    // Moves every piece of at most kLargest pixels that is not the main body of its cluster to
    // where it lowers the objective most. Returns the number of moves.
    size_t run(const Grid& g, Labelling& l, NodeMoves& moves) {
        find(g, l);
        size_t moved = 0;
        for (uint32_t r = 0; r < runs_.size(); r++)
            if (root(r) == r && size_[r] <= kLargest && body_[size_t(l.z[runs_[r].start])] != r)
                moved += evaluate(g, l, moves, r);
        return moved;
    }

private:
    static constexpr uint32_t kLargest = 1024;
    static constexpr uint32_t kEnd = 0xffffffffu;
    struct Run {
        uint32_t start, length, parent, next;
    };
    std::vector<Run> runs_;
    std::vector<uint32_t> size_, last_, body_, piece_;
    std::vector<int32_t> classes_;
    std::vector<double> node_;
    Sums sums_, votes_;

    uint32_t root(uint32_t r) {
        while (runs_[r].parent != r) r = runs_[r].parent = runs_[runs_[r].parent].parent;
        return r;
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

    bool evaluate(const Grid& g, Labelling& l, NodeMoves& moves, uint32_t piece) {
        sums_.resize(l.class_of.size());
        sums_.clear();
        votes_.resize(g.K);
        votes_.clear();
        for_each_pixel(piece, [&](uint32_t p) {
            votes_.add(l.cheapest[p], 1);
            g.for_each_neighbour(p, [&](uint32_t q, float w) {
                if (piece_[q] != piece) sums_.add(l.z[q], w);
            });
        });
        const int32_t from = l.z[runs_[piece].start];
        for (int32_t k : votes_)
            if (!l.thing[k]) sums_.add(k, 0);
        for (int32_t c : sums_) votes_.add(l.class_of[c], 0);
        votes_.add(l.class_of[from], 0);
        if (node_.size() < size_t(g.K)) node_.resize(g.K);
        for (int32_t k : votes_) {
            double sum = 0;
            for_each_pixel(piece, [&](uint32_t p) { sum += g.cost(p, k); });
            node_[k] = sum;
        }
        const double stay = sums_[from] - node_[l.class_of[from]];
        double best = stay + l.epsilon;
        int32_t to = from, fresh = -1;
        for (int32_t c : sums_) {
            const double value = sums_[c] - node_[l.class_of[c]];
            if (value > best) best = value, to = c;
        }
        for (int32_t k : votes_)
            if (l.thing[k] && -node_[k] > best) best = -node_[k], fresh = k;
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

// Joins of thing clusters with each other and with stuff.
class Joins {
public:
    // Joins, best first, while that lowers the objective; gives every thing cluster its best class.
    // Returns the number of joins and changes of class.
    size_t run(const Grid& g, Labelling& l, NodeMoves& moves) {
        members(g, l);
        if (pixels_.empty()) return 0;
        sums(g, l);
        adjacency_.build(*this);
        size_t changes = 0;
        const uint32_t n = uint32_t(l.class_of.size());
        into_.resize(n);
        heap_.clear();
        for (uint32_t c = 0; c < n; c++) {
            into_[c] = c;
            if (c >= uint32_t(g.K) && size_[c]) {
                changes += relabel(l, c);
                push(l, c);
            }
        }
        while (!heap_.empty()) {
            const Offer top = heap_.front();
            std::pop_heap(heap_.begin(), heap_.end());
            heap_.pop_back();
            if (into_[top.a] != top.a || top.version != version_[top.a]) continue;
            uint32_t b;
            const double gain = best(l, top.a, b);
            if (!(gain > l.epsilon)) continue;
            if (gain < top.gain) {
                heap_.push_back({gain, top.a, top.version});
                std::push_heap(heap_.begin(), heap_.end());
                continue;
            }
            join(l, top.a, b);
            changes++;
        }
        for (size_t c = size_t(K_); c < clusters_; c++) {
            const uint32_t top = find(uint32_t(c));
            if (top == c) continue;
            for (uint32_t s = begin_[c]; s < begin_[c] + size_[c]; s++) {
                const uint32_t p = pixels_[s];
                l.z[p] = int32_t(top);
                moves.wake(p);
                if (p >= 1) moves.wake(p - 1);
                if (p + 1 < g.pixels()) moves.wake(p + 1);
                if (p >= uint32_t(g.W)) moves.wake(p - g.W);
                if (p + g.W < g.pixels()) moves.wake(p + g.W);
            }
        }
        return changes;
    }

    // Multiway cut: gives every thing cluster a label, the one that pays most given the labels of
    // the others, until none changes; then every label is one cluster.
    void assign(const Grid& g, Labelling& l) {
        members(g, l);
        if (pixels_.empty()) return;
        sums(g, l);
        adjacency_.build(*this);
        const size_t u = used_.size();
        order_.clear();
        choice_.assign(clusters_, -1);
        for (size_t c = 0; c < clusters_; c++) {
            if (c < size_t(K_)) choice_[c] = int32_t(c);
            else if (size_[c]) order_.push_back(uint32_t(c));
        }
        std::stable_sort(order_.begin(), order_.end(),
                         [&](uint32_t a, uint32_t b) { return size_[a] > size_[b]; });
        pull_.assign(K_, 0.0);
        for (int sweep = 0; sweep < 20; sweep++) {
            bool changed = false;
            for (uint32_t c : order_) {
                const auto& list = adjacency_.lists[c];
                for (uint32_t s = 0; s < list.size; s++)
                    if (choice_[list.ids[s]] >= 0) pull_[choice_[list.ids[s]]] += list.weights()[s];
                int32_t to = choice_[c];
                double best = to >= 0 ? pull_[to] - node_[c * u + index_[to]] + l.epsilon
                                      : -std::numeric_limits<double>::infinity();
                for (size_t i = 0; i < u; i++) {
                    const double value = pull_[used_[i]] - node_[c * u + i];
                    if (value > best) best = value, to = used_[i];
                }
                changed |= to != choice_[c];
                choice_[c] = to;
                for (uint32_t s = 0; s < list.size; s++)
                    if (choice_[list.ids[s]] >= 0) pull_[choice_[list.ids[s]]] = 0;
                pull_[to] = 0;
            }
            if (!changed) break;
        }
        for (uint32_t p : pixels_) l.z[p] = choice_[l.z[p]];
    }

    // The graph of clusters, for Adjacency.
    size_t pixels() const { return clusters_; }
    template <class F>
    void for_each_edge(F f) const {
        for (size_t e = 0; e < from_.size(); e++) f(from_[e], to_[e], weight_[e], uint32_t(e));
    }

private:
    struct Offer {
        double gain;
        uint32_t a, version;
        bool operator<(const Offer& o) const {
            return gain < o.gain || (gain == o.gain && a > o.a);
        }
    };
    int K_ = 0;
    size_t clusters_ = 0;
    std::vector<uint32_t> pixels_, begin_, size_, from_, to_, into_, version_, touched_,
        order_;
    std::vector<float> weight_;
    std::vector<int32_t> used_, index_, count_, choice_;
    std::vector<double> node_, pull_;
    std::vector<Offer> heap_;
    Adjacency adjacency_;
    Sums sums_;

    uint32_t find(uint32_t c) {
        while (into_[c] != c) c = into_[c] = into_[into_[c]];
        return c;
    }

    // Pixels of thing clusters, sorted by cluster.
    void members(const Grid& g, const Labelling& l) {
        K_ = g.K;
        clusters_ = l.class_of.size();
        size_.assign(clusters_, 0);
        const size_t n = g.pixels();
        for (size_t p = 0; p < n; p++) size_[l.z[p]]++;
        begin_.resize(clusters_ + 1);
        uint32_t total = 0;
        for (size_t c = size_t(K_); c < clusters_; c++) {
            begin_[c] = total;
            total += size_[c];
        }
        pixels_.resize(total);
        for (size_t p = 0; p < n; p++)
            if (l.z[p] >= K_) pixels_[begin_[l.z[p]]++] = uint32_t(p);
        for (size_t c = size_t(K_); c < clusters_; c++) begin_[c] -= size_[c];
    }

    void sums(const Grid& g, const Labelling& l) {
        // Classes in use: of clusters, and those that some thing pixels like best.
        index_.assign(K_, 0);
        count_.assign(K_, 0);
        for (uint32_t p : pixels_) count_[l.kind[l.cheapest[p]]]++;
        for (int k = 0; k < K_; k++) index_[k] = K_ <= 32 || count_[l.kind[k]] >= 8;
        for (size_t c = 0; c < clusters_; c++)
            if (size_[c] && c >= size_t(K_)) index_[l.class_of[c]] = 1;
        used_.clear();
        for (int k = 0; k < K_; k++) {
            if (index_[k]) {
                index_[k] = int32_t(used_.size());
                used_.push_back(k);
            } else {
                index_[k] = -1;
            }
        }
        const size_t u = used_.size();
        node_.assign(clusters_ * u, 0.0);
        for (size_t i = 0; i < u; i++) {
            const float* cost = g.node + size_t(used_[i]) * g.pixels();
            for (size_t c = size_t(K_); c < clusters_; c++) {
                double sum = 0;
                for (uint32_t s = 0; s < size_[c]; s++) sum += cost[pixels_[begin_[c] + s]];
                node_[c * u + i] = sum;
            }
        }
        from_.clear();
        to_.clear();
        weight_.clear();
        sums_.resize(clusters_);
        for (size_t c = size_t(K_); c < clusters_; c++) {
            sums_.clear();
            for (uint32_t s = 0; s < size_[c]; s++)
                g.for_each_neighbour(pixels_[begin_[c] + s], [&](uint32_t q, float w) {
                    const int32_t b = l.z[q];
                    if (b < int32_t(c)) sums_.add(b, w);
                });
            for (int32_t b : sums_) {
                from_.push_back(uint32_t(c));
                to_.push_back(uint32_t(b));
                weight_.push_back(sums_[b]);
            }
        }
        version_.assign(clusters_, 0);
    }

    bool relabel(Labelling& l, uint32_t c) const {
        const size_t u = used_.size();
        int32_t k = l.class_of[c];
        double lowest = node_[c * u + index_[k]];
        const int32_t old = k;
        for (size_t i = 0; i < u; i++)
            if (l.thing[used_[i]] && node_[c * u + i] < lowest) {
                lowest = node_[c * u + i];
                k = used_[i];
            }
        l.class_of[c] = k;
        return k != old;
    }

    double cost(const Labelling& l, uint32_t c) const {
        return node_[c * used_.size() + index_[l.class_of[c]]];
    }

    // Best partner of thing cluster a.
    double best(const Labelling& l, uint32_t a, uint32_t& partner) const {
        const size_t u = used_.size();
        const auto& list = adjacency_.lists[a];
        double gain = -std::numeric_limits<double>::infinity();
        for (uint32_t s = 0; s < list.size; s++) {
            const uint32_t b = list.ids[s];
            const double w = list.weights()[s];
            double value;
            if (b < uint32_t(K_)) {
                if (index_[b] < 0) continue;
                value = w + cost(l, a) - node_[a * u + index_[b]];
            } else {
                if (w <= l.epsilon || w < gain) continue;  // a joint class can only cost more
                double joint = std::numeric_limits<double>::infinity();
                for (size_t i = 0; i < u; i++)
                    if (l.thing[used_[i]])
                        joint = std::min(joint, node_[a * u + i] + node_[b * u + i]);
                value = w + cost(l, a) + cost(l, b) - joint;
            }
            if (value > gain || (value == gain && b < partner)) gain = value, partner = b;
        }
        return gain;
    }

    void push(const Labelling& l, uint32_t c) {
        uint32_t b;
        const double gain = best(l, c, b);
        version_[c]++;
        if (!(gain > l.epsilon)) return;
        heap_.push_back({gain, c, version_[c]});
        std::push_heap(heap_.begin(), heap_.end());
    }

    void join(Labelling& l, uint32_t a, uint32_t b) {
        if (b >= uint32_t(K_) && adjacency_.lists[b].size < adjacency_.lists[a].size)
            std::swap(a, b);
        into_[a] = b;
        adjacency_.contract(b, a, touched_);
        if (b >= uint32_t(K_)) {
            const size_t u = used_.size();
            for (size_t i = 0; i < u; i++) node_[b * u + i] += node_[a * u + i];
            relabel(l, b);
            push(l, b);
        }
        // The offers of neighbours may have risen.
        for (uint32_t s : touched_) {
            const uint32_t h = adjacency_.lists[b].ids[s];
            if (h >= uint32_t(K_)) push(l, h);
        }
    }
};

}  // namespace amwc
