// Full local search on a graph: for oracles, ablations and small problems.
//
// Nodes move to a neighbouring cluster, to any stuff class or to a cluster of their own; clusters
// join or change class; all with exact gains (a thing cluster always has its best class). From the
// local optimum the search goes on by kicks: a connected region is thrown into another cluster, the
// neighbourhood settles again, and what did not lower the objective is taken back. Kicks of any
// size make splits and chains of moves that pay off only together. Random numbers are our own and
// seeded, so that results repeat.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "detail/csr.hpp"
#include "detail/graph.hpp"
#include "detail/sums.hpp"

namespace amwc {

class LocalSearch {
public:
    // Improves classes and segments (any ids in [0, N)) in place, by at most so many kicks;
    // stop() is called now and then: true ends the search, and it may throw.
    template <class Stop>
    void run(const Graph& graph, const uint8_t* thing, int32_t* classes, int32_t* segments,
             size_t kicks, Stop stop) {
        setup(graph, thing, classes, segments);
        settle_all();
        work_ = 0;
        // Ends when it has converged: no kick of a while has helped.
        const size_t patience = 3000 + N_ / 2;
        for (size_t i = 0, last = 0; i < kicks && work_ < kWork && i - last < patience; i++) {
            if ((i & 31) == 31 && stop()) break;
            if (kick()) last = i;
        }
        settle_all();
        for (uint32_t p = 0; p < N_; p++) {
            segments[p] = z_[p];
            classes[p] = class_of_[z_[p]];
        }
    }

    size_t cluster_ids() const { return class_of_.size(); }

private:
    static constexpr size_t kWork = 300000000;  // class costs looked at: about a second
    static constexpr size_t kMostMoves = 1000;     // moves of a node, and rounds of all nodes
    static constexpr double kInfinity = std::numeric_limits<double>::infinity();
    struct Arc {
        uint32_t node;
        float weight;
    };
    struct Change {
        uint32_t node;
        int32_t from;
    };

    uint32_t N_ = 0;
    int K_ = 0;
    const float* node_ = nullptr;
    const uint8_t* thing_ = nullptr;
    double epsilon_ = 0, change_ = 0;  // change_: of the objective since the last commit
    uint64_t state_ = 0;
    size_t work_ = 0;
    std::vector<int> things_, stuffs_;
    Csr<Arc> arcs_;
    std::vector<int32_t> z_, class_of_, empty_;
    std::vector<uint32_t> size_, queue_, region_, next_queue_;
    std::vector<uint8_t> queued_, marked_;
    std::vector<double> sum_;
    std::vector<Change> journal_;
    std::vector<std::vector<uint32_t>> members_;
    Sums pull_;

    uint32_t random(uint32_t below) {
        state_ = state_ * 6364136223846793005u + 1442695040888963407u;
        return uint32_t(((state_ >> 33) * uint64_t(below)) >> 31);
    }

    const float* cost(uint32_t p) const { return node_ + size_t(p) * K_; }
    bool is_stuff(int32_t c) const { return c < K_; }

    void setup(const Graph& graph, const uint8_t* thing, const int32_t* classes,
               const int32_t* segments) {
        N_ = uint32_t(graph.N);
        K_ = graph.K;
        node_ = graph.node;
        thing_ = thing;
        state_ = 0x9e3779b97f4a7c15u;
        things_.clear();
        stuffs_.clear();
        for (int k = 0; k < K_; k++) (thing[k] ? things_ : stuffs_).push_back(k);
        double scale = 0;
        graph.for_each_edge([&](uint32_t, uint32_t, float w, uint32_t) {
            if (std::isfinite(w)) scale += std::abs(w);  // links apart
        });
        epsilon_ = graph.E ? 1e-7 * scale / double(graph.E) : 0;
        arcs_.build(N_, [&](auto put) {
            graph.for_each_edge([&](uint32_t p, uint32_t q, float w, uint32_t) {
                put(p, {q, w});
                put(q, {p, w});
            });
        });
        // Cluster k < K is stuff class k, the others are thing clusters.
        class_of_.resize(K_);
        for (int k = 0; k < K_; k++) class_of_[k] = k;
        z_.resize(N_);
        std::vector<int32_t> id(N_, -1);
        for (uint32_t p = 0; p < N_; p++) {
            if (!thing[classes[p]]) {
                z_[p] = classes[p];
                continue;
            }
            int32_t& c = id[segments[p]];
            if (c < 0) {
                c = int32_t(class_of_.size());
                class_of_.push_back(classes[p]);
            }
            z_[p] = c;
        }
        size_.assign(class_of_.size(), 0);
        sum_.assign(class_of_.size() * K_, 0.0);
        for (uint32_t p = 0; p < N_; p++) {
            size_[z_[p]]++;
            for (int k = 0; k < K_; k++) sum_[size_t(z_[p]) * K_ + k] += cost(p)[k];
        }
        empty_.clear();
        for (int32_t c = K_; c < int32_t(class_of_.size()); c++) relabel(c);
        pull_.resize(class_of_.size());
        queued_.assign(N_, 0);
        marked_.assign(N_, 0);
        queue_.clear();
        journal_.clear();
        change_ = 0;
    }

    double value(int32_t c) const {
        return size_[c] ? sum_[size_t(c) * K_ + class_of_[c]] : 0.0;
    }

    void relabel(int32_t c) {
        if (is_stuff(c)) return;
        const double* s = &sum_[size_t(c) * K_];
        int best = things_[0];
        for (int k : things_)
            if (s[k] < s[best]) best = k;
        class_of_[c] = best;
    }

    int32_t fresh() {
        while (!empty_.empty()) {
            const int32_t c = empty_.back();
            if (!size_[c]) return c;
            empty_.pop_back();
        }
        const int32_t c = int32_t(class_of_.size());
        class_of_.push_back(things_[0]);
        size_.push_back(0);
        sum_.resize(sum_.size() + K_, 0.0);
        pull_.resize(class_of_.size());
        empty_.push_back(c);
        return c;
    }

    // Change of the node costs of cluster c when p joins (sign 1) or leaves (sign -1).
    double node_change(int32_t c, uint32_t p, double sign) const {
        if (is_stuff(c)) return sign * cost(p)[c];
        if (sign < 0 && size_[c] == 1) return -value(c);
        const double* s = &sum_[size_t(c) * K_];
        double best = kInfinity;
        for (int k : things_) best = std::min(best, s[k] + sign * cost(p)[k]);
        return best - value(c);
    }

    void move(uint32_t p, int32_t to, double delta) {
        const int32_t from = z_[p];
        journal_.push_back({p, from});
        change_ += delta;
        shift(p, to);
    }

    void shift(uint32_t p, int32_t to) {
        const int32_t from = z_[p];
        double *a = &sum_[size_t(from) * K_], *b = &sum_[size_t(to) * K_];
        if (--size_[from] == 0) {
            std::fill_n(a, K_, 0.0);
            if (!is_stuff(from)) empty_.push_back(from);
        } else {
            for (int k = 0; k < K_; k++) a[k] -= cost(p)[k];
            relabel(from);
        }
        for (int k = 0; k < K_; k++) b[k] += cost(p)[k];
        size_[to]++;
        z_[p] = to;
        relabel(to);
    }

    void pull_at(uint32_t p) {
        pull_.clear();
        for (size_t i = arcs_.begin(p); i < arcs_.end(p); i++)
            pull_.add(z_[arcs_[i].node], arcs_[i].weight);
    }

    double move_change(uint32_t p, int32_t to) {
        return pull_[z_[p]] - pull_[to] + node_change(z_[p], p, -1) + node_change(to, p, 1);
    }

    void push(uint32_t p) {
        if (queued_[p]) return;
        queued_[p] = 1;
        queue_.push_back(p);
    }

    // Node moves until the queue is empty.
    void settle() {
        // Sums that overflow could make it go on for ever.
        size_t moves_left = kMostMoves * size_t(N_) + kMostMoves;
        for (size_t head = 0; head < queue_.size(); head++) {
            const uint32_t p = queue_[head];
            queued_[p] = 0;
            if (moves_left && best_move(p) && moves_left--)
                for (size_t i = arcs_.begin(p); i < arcs_.end(p); i++) push(arcs_[i].node);
        }
        queue_.clear();
    }

    bool best_move(uint32_t p) {
        pull_at(p);
        work_ += arcs_.count(p) + (3 + size_t(pull_.end() - pull_.begin())) * K_;
        const int32_t from = z_[p];
        const double leave = pull_[from] + node_change(from, p, -1);
        double best = -epsilon_;
        int32_t to = from;
        auto consider = [&](int32_t c) {
            if (c == from) return;
            const double delta = leave - pull_[c] + node_change(c, p, 1);
            if (delta < best) best = delta, to = c;
        };
        for (int32_t c : pull_) consider(c);
        for (int k : stuffs_) consider(k);
        if (!things_.empty() && !(size_[from] == 1 && !is_stuff(from))) consider(fresh());
        if (to == from) return false;
        move(p, to, best);
        return true;
    }

    // Alternates node moves and cluster moves until neither helps.
    void settle_all() {
        size_t rounds_left = kMostMoves;
        do {
            for (uint32_t p = 0; p < N_; p++) push(p);
            settle();
        } while (rounds_left-- && cluster_moves());
        journal_.clear();
        change_ = 0;
    }

    // Joins of clusters and changes of the class of stuff; true if any paid off.
    bool cluster_moves() {
        bool any = false;
        members_.resize(class_of_.size());
        for (auto& list : members_) list.clear();
        for (uint32_t p = 0; p < N_; p++) members_[z_[p]].push_back(p);
        for (int32_t a = 0; a < int32_t(members_.size()); a++) {
            if (members_[a].empty()) continue;
            pull_.clear();
            for (uint32_t p : members_[a])
                for (size_t i = arcs_.begin(p); i < arcs_.end(p); i++)
                    if (z_[arcs_[i].node] != a) pull_.add(z_[arcs_[i].node], arcs_[i].weight);
            const double* s = &sum_[size_t(a) * K_];
            double best = -epsilon_;
            int32_t to = a;
            auto consider = [&](int32_t b) {
                if (b == a) return;
                double joint = kInfinity;
                if (is_stuff(b)) {
                    joint = sum_[size_t(b) * K_ + b] + s[b];
                } else {
                    for (int k : things_) joint = std::min(joint, sum_[size_t(b) * K_ + k] + s[k]);
                }
                const double delta = joint - value(a) - value(b) - pull_[b];
                if (delta < best) best = delta, to = b;
            };
            for (int32_t b : pull_) consider(b);
            for (int k : stuffs_) consider(k);
            if (is_stuff(a) && !things_.empty()) {
                const size_t before = class_of_.size();
                consider(fresh());
                if (class_of_.size() > before) {
                    members_.resize(class_of_.size());
                    s = &sum_[size_t(a) * K_];
                }
            }
            if (to == a) continue;
            any = true;
            for (uint32_t p : members_[a]) shift(p, to);
            members_[to].insert(members_[to].end(), members_[a].begin(), members_[a].end());
            members_[a].clear();
        }
        return any;
    }

    // Throws a random connected region into another cluster; keeps the outcome, and returns true, if it
    // is better.
    bool kick() {
        const uint32_t seed = random(N_);
        const uint32_t largest = 1u << random(1 + std::min(8u, log2(N_)));
        const uint32_t mode = random(3);  // grow anywhere, inside the cluster, along attraction
        region_.assign(1, seed);
        marked_[seed] = 1;
        for (size_t head = 0; head < region_.size() && region_.size() < largest; head++) {
            const uint32_t p = region_[head];
            for (size_t i = arcs_.begin(p); i < arcs_.end(p) && region_.size() < largest; i++) {
                const Arc arc = arcs_[i];
                if (marked_[arc.node] || (mode == 1 && z_[arc.node] != z_[seed]) ||
                    (mode == 2 && arc.weight <= 0) || random(4) == 0)
                    continue;
                marked_[arc.node] = 1;
                region_.push_back(arc.node);
            }
        }
        for (uint32_t p : region_) marked_[p] = 0;
        int32_t to;
        const uint32_t choice = random(3);
        if (choice == 0 && !things_.empty()) {
            to = fresh();
        } else if (choice == 1 && !stuffs_.empty()) {
            to = stuffs_[random(uint32_t(stuffs_.size()))];
        } else {
            const uint32_t p = region_[random(uint32_t(region_.size()))];
            const size_t degree = arcs_.count(p);
            to = degree ? z_[arcs_[arcs_.begin(p) + random(uint32_t(degree))].node] : z_[seed];
        }
        for (uint32_t p : region_) {
            if (z_[p] == to) continue;
            pull_at(p);
            move(p, to, move_change(p, to));
        }
        // The region itself only moves back if that pays; its surroundings settle first.
        for (size_t r = region_.size(); r-- > 0;) {
            const uint32_t p = region_[r];
            for (size_t i = arcs_.begin(p); i < arcs_.end(p); i++) push(arcs_[i].node);
        }
        for (uint32_t p : region_) push(p);
        settle();
        const bool better = change_ < -epsilon_;
        if (!better) {
            for (size_t i = journal_.size(); i-- > 0;) shift(journal_[i].node, journal_[i].from);
        }
        journal_.clear();
        change_ = 0;
        return better;
    }

    static uint32_t log2(uint32_t n) {
        uint32_t bits = 0;
        while (n >>= 1) bits++;
        return bits;
    }
};

}  // namespace amwc
