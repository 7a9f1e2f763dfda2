// The driver: which steps run, in which order, for each method; and from clusters to an answer, the
// forced join of stuff and ids in the order of first appearance.
#pragma once

#include <chrono>
#include <cmath>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <utility>
#include <vector>

#include "assignment.hpp"
#include "border_moves.hpp"
#include "cheapest.hpp"
#include "detail/graph.hpp"
#include "detail/grid.hpp"
#include "detail/labelling.hpp"
#include "detail/noise.hpp"
#include "detail/objective.hpp"
#include "detail/runs.hpp"
#include "fusion.hpp"
#include "greedy.hpp"
#include "joins.hpp"
#include "label_first.hpp"
#include "local_search.hpp"
#include "node_moves.hpp"
#include "piece_moves.hpp"
#include "region_moves.hpp"
#include "split_moves.hpp"

namespace amwc {

// Renumbers segments 0, 1, ... in the order of their first node.
inline void canonical(int32_t* segments, size_t n, size_t ids, std::vector<int32_t>& scratch) {
    scratch.assign(ids, -1);
    int32_t next = 0;
    for (size_t p = 0; p < n; p++) {
        int32_t& id = scratch[size_t(segments[p])];
        if (id < 0) id = next++;
        segments[p] = id;
    }
}

// The same on a grid, run by run; seen(start, length) is called before a run is renumbered.
template <class F>
void canonical(const Grid& g, int32_t* segments, size_t ids, std::vector<int32_t>& scratch, F seen) {
    scratch.assign(ids, -1);
    int32_t next = 0;
    for_each_run(g, segments, [&](uint32_t p, uint32_t length) {
        int32_t& id = scratch[size_t(segments[p])];
        if (id < 0) id = next++;
        seen(p, length);
        std::fill_n(segments + p, length, id);
    });
}

enum Method { kGreedy = 0, kFast = 1, kBest = 2, kGood = 3 };

// All methods return the objective; NaN, and no solution, if a node cost of a grid is not finite.
class Solver {
public:
    static constexpr size_t kSmall = 2048;  // pixels up to which fast runs Algorithm 2 too
    static constexpr float kEpsilon = 1e-5f;
    static constexpr double kNotFinite = std::numeric_limits<double>::quiet_NaN();
    // Asked now and then in long solves; not zero ends them with an exception.
    int (*interrupted)() = nullptr;
    // Seconds after which the best solution so far is returned; looked at between steps, so that there
    // always is one.
    double time_limit = std::numeric_limits<double>::infinity();

    Solver() {
        moves_.check = [this] { check(); };
    }
    Solver(const Solver&) = delete;

    // init: whether classes and segments hold a start; then only moves that improve it are made.
    double amwc(const Grid& grid, const uint8_t* partitionable, int method, bool init,
                int32_t* classes, int32_t* segments) {
        begin_ = Clock::now();
        if (method == kGreedy)
            return grid.forbids || all_finite(grid.node, size_t(grid.K) * grid.pixels())
                       ? greedy(grid, partitionable, classes, segments)
                       : kNotFinite;
        double value = init ? warm(grid, partitionable, classes, segments)
                            : fast(grid, partitionable, classes, segments);
        if (std::isnan(value) || method == kFast || late()) return value;
        value = good(grid, partitionable, classes, segments, value);
        if (std::isnan(value) || method == kGood || late()) return value;
        const size_t n = grid.pixels();
        other_.resize(2 * n);
        int32_t *other_classes = other_.data(), *other_segments = other_classes + n;
        greedy(grid, partitionable, other_classes, other_segments);
        const Graph graph = copy_.make(grid);
        return best_of(graph, partitionable, classes, segments, other_classes, other_segments);
    }

    double fast(const Grid& g, const uint8_t* thing, int32_t* classes, int32_t* z) {
        const double value = label_first(g, thing, classes, z);
        const size_t n = g.pixels();
        if (n > kSmall || std::isnan(value)) return value;
        // Label first lives on the regularity of images; on a handful of pixels Algorithm 2 may win.
        other_.resize(2 * n);
        int32_t *other_classes = other_.data(), *other_segments = other_classes + n;
        greedy(g, thing, other_classes, other_segments);
        const double other = improve(g, thing, other_classes, other_segments);
        if (!(other < value)) return value;
        std::copy_n(other_classes, n, classes);
        std::copy_n(other_segments, n, z);
        return other;
    }

    // Local moves from a start.
    double warm(const Grid& g, const uint8_t* thing, int32_t* classes, int32_t* z) {
        if (!cheapest_.find(g) && !g.forbids) return kNotFinite;
        return improve(g, thing, classes, z);
    }

    // Perturb and fuse: Algorithm 2, and fast on slightly noisy costs, each offer what they found
    // (fusion.hpp) to the best solution so far, which is in classes and z at first. What is fused does
    // not know of constraints: with such the best of the two is improved.
    double good(const Grid& g, const uint8_t* thing, int32_t* classes, int32_t* z, double value) {
        const size_t n = g.pixels();
        sample_labels_.resize(2 * n);
        int32_t *sample_classes = sample_labels_.data(), *sample_z = sample_classes + n;
        check();
        const double greedy_value = greedy(g, thing, sample_classes, sample_z);
        if (greedy_value < value) {
            std::swap_ranges(classes, classes + n, sample_classes);
            std::swap_ranges(z, z + n, sample_z);
            value = greedy_value;
        }
        const int samples = g.constrained() ? 0 : kSamples;
        if (samples) fuse(g, thing, classes, z, value, sample_z);
        for (int s = 0; s < samples && !late(); s++) {
            check();
            const Grid noisy = noisy_.make(g, kNoise * edge_scale(g) * float(1 + s % 2), s);
            label_first(noisy, thing, sample_classes, sample_z);
            fuse(g, thing, classes, z, value, sample_z);
        }
        std::copy_n(classes, n, sample_classes);
        std::copy_n(z, n, sample_z);
        // Those of the noisy costs were found last.
        if (!cheapest_.find(g) && !g.forbids) return kNotFinite;
        const double settled = improve(g, thing, sample_classes, sample_z);
        if (!(settled < value)) return value;
        std::copy_n(sample_classes, n, classes);
        std::copy_n(sample_z, n, z);
        return settled;
    }

    double amwc_graph(const Graph& graph, const uint8_t* partitionable, int method,
                      int32_t* classes, int32_t* segments) {
        begin_ = Clock::now();
        const double value = greedy(graph, partitionable, classes, segments);
        if (method == kGreedy || late()) return value;
        if (method == kFast) {
            search_.run(copy_.make(graph), partitionable, classes, segments, 0, [] { return false; });
            canonical(segments, graph.N, search_.cluster_ids(), scratch_);
            return objective(graph, classes, segments);
        }
        // The second start: every node by itself in its cheapest class.
        other_.resize(2 * graph.N);
        int32_t *other_classes = other_.data(), *other_segments = other_classes + graph.N;
        for (size_t p = 0; p < graph.N; p++) {
            int best = 0;
            for (int k = 1; k < graph.K; k++)
                if (graph.cost(uint32_t(p), k) < graph.cost(uint32_t(p), best)) best = k;
            other_classes[p] = best;
            other_segments[p] = int32_t(p);
        }
        // The second start does not know of links.
        bool links = false;
        for (size_t e = 0; e < graph.E; e++) links |= !std::isfinite(graph.weight[e]);
        if (links) {
            std::copy_n(classes, graph.N, other_classes);
            std::copy_n(segments, graph.N, other_segments);
        }
        return best_of(copy_.make(graph), partitionable, classes, segments, other_classes, other_segments);
    }

    template <class Costs>
    double greedy(const Costs& costs, const uint8_t* partitionable, int32_t* classes,
                  int32_t* segments) {
        greedy_.run(costs, [this] { check(); });
        const size_t n = costs.pixels();
        apart_.clear();
        const auto add = [this](uint32_t p, uint32_t q, float w, uint32_t) {
            if (std::isinf(w) && w < 0) apart_.push_back({p, q});
        };
        links_of(costs, add);
        if (!greedy_.keep_apart(apart_, [&](int32_t k) { return partitionable[k]; }))
            throw std::invalid_argument(
                "constraints: found no classes with which what is to be apart is: of two segments that "
                "are, only one can be of a class that is not partitionable; allow a partitionable class");
        // All clusters of a stuff class are one segment, whether they touch or not.
        for (size_t p = 0; p < n; p++) {
            const uint32_t c = greedy_.root(uint32_t(p));
            const int k = greedy_.label[c];
            classes[p] = k;
            segments[p] = partitionable[k] ? int32_t(costs.K + c) : k;
        }
        canonical(segments, n, n + size_t(costs.K), scratch_);
        return objective(costs, classes, segments);
    }

    // Multiway cut on a grid, one segment a label: z holds the labels, segments numbers them.
    double multiway(const Grid& g, const int32_t* init, int32_t* z, int32_t* segments) {
        guess_.assign(g.pixels(), 0);
        // Copied once, and in range whatever another thread writes there.
        for (size_t p = 0; init && p < g.pixels(); p++)
            guess_[p] = std::min(std::max(init[p], 0), g.K - 1);
        if (!cheapest_.find(g, guess_.data())) return kNotFinite;
        not_thing_.assign(g.K, 0);
        const float scale = edge_scale(g);
        Labelling l{z, {}, cheapest_.label.data(), nullptr, nullptr, scale, kEpsilon * scale};
        if (init) {
            std::copy(guess_.begin(), guess_.end(), z);
        } else {
            // Labels of one class are told apart by clusters: those of labels with a twin are
            // found as if they were things, and each is then given one of the twins.
            kinds(g);
            l.thing = twin_.data();
            l.kind = kind_.data();
            label_first_.run(g, l, false, [this] { check(); });
            assignment_.run(g, l);
        }
        l.thing = not_thing_.data();
        l.class_of.resize(g.K);
        home_.resize(g.K);
        for (int k = 0; k < g.K; k++) l.class_of[k] = home_[k] = k;
        // Repeats until nothing changes, so that the result is its own warm start.
        moves_.start(g, l, home_.data(), true);
        moves_.first_sweep(g);
        for (size_t moved = 1, total = 0; moved && total < 64 * g.pixels(); total += moved) {
            moved = moves_.run(g, 64);
            moved += pieces_.run(g, l, moves_);
            if (!moved) moved = regions_.run(g, l, moves_);
            if (!moved) moved = renew(g, z);
        }
        std::copy(z, z + g.pixels(), segments);
        canonical(g, segments, size_t(g.K), scratch_, [](uint32_t, uint32_t) {});
        return objective(g, z, z);
    }

    std::vector<int32_t> scratch_;

private:
    // The cheapest labels become those that the labelling z as a guess would have led to, so that it
    // is its own warm start; returns how many pixels have to be looked at again for that.
    size_t renew(const Grid& g, const int32_t* z) {
        const size_t n = g.pixels();
        size_t changes = 0;
        for (size_t i = 0; (i = next_difference(z, guess_.data(), i, n)) < n; i++) {
            const uint32_t p = uint32_t(i);
            if (cheapest_.renew(g, p, guess_[p], z[p])) {
                moves_.renewed(g, p);
                changes++;
            }
            guess_[p] = z[p];
        }
        return changes;
    }

    // A labelling to be filled, for the cheapest classes found last.
    Labelling start(const Grid& g, const uint8_t* thing, int32_t* z) {
        kind_.resize(g.K);
        for (int k = 0; k < g.K; k++) kind_[k] = k;
        const float scale = edge_scale(g);
        return {z, {}, cheapest_.label.data(), thing, kind_.data(), scale, kEpsilon * scale};
    }

    // Steps 1 to 4 of fast.
    double label_first(const Grid& g, const uint8_t* thing, int32_t* classes, int32_t* z) {
        if (!cheapest_.find(g) && !g.forbids) return kNotFinite;
        Labelling l = start(g, thing, z);
        const bool things_first = !g.forbids && undecided(g, l);
        if (things_first) trust_things(g, l);
        if (!label_first_.run(g, l, things_first, [this] { check(); })) {
            greedy(g, thing, classes, z);  // the classes of other clusters may do
            return improve(g, thing, classes, z);
        }
        l.cheapest = cheapest_.label.data();
        return settle(g, l, classes);
    }

    // Whether the classes of a sample of stuff pixels say little: some thing is as good for many.
    bool undecided(const Grid& g, const Labelling& l) const {
        constexpr size_t kSample = 64;
        size_t stuff = 0, doubtful = 0;
        for (size_t s = 0; s < kSample; s++) {
            const uint32_t p = uint32_t((2 * s + 1) * g.pixels() / (2 * kSample));
            if (l.thing[l.cheapest[p]]) continue;
            stuff++;
            doubtful += cheapest_thing(g, l, p) >= 0;
        }
        return 10 * doubtful > 9 * stuff;
    }

    // The cheapest class of things of a stuff pixel if it costs hardly more, else -1.
    int32_t cheapest_thing(const Grid& g, const Labelling& l, uint32_t p) const {
        const float hardly_more = 0.15f * l.scale;
        float least = g.cost(p, l.cheapest[p]) + hardly_more;
        int32_t best = -1;
        for (int32_t k = 0; k < g.K; k++)
            if (l.thing[k] && g.cost(p, k) <= least && (best < 0 || g.cost(p, k) < least))
                best = k, least = g.cost(p, k);
        return best;
    }

    // Stuff is one segment a class, so that edges can say nothing inside it. Where classes say little,
    // pixels begin as things; joins will make stuff of what is stuff.
    void trust_things(const Grid& g, Labelling& l) {
        trusted_.assign(l.cheapest, l.cheapest + g.pixels());
        for (uint32_t p = 0; p < g.pixels(); p++) {
            if (l.thing[trusted_[p]]) continue;
            const int32_t k = cheapest_thing(g, l, p);
            if (k >= 0) trusted_[p] = k;
        }
        l.cheapest = trusted_.data();
    }

    // Local moves from a solution, in its place.
    double improve(const Grid& g, const uint8_t* thing, int32_t* classes, int32_t* segments) {
        Labelling l = start(g, thing, segments);
        l.class_of.resize(g.K);
        for (int k = 0; k < g.K; k++) l.class_of[k] = k;
        scratch_.assign(g.pixels(), -1);  // by segment
        for (size_t p = 0; p < g.pixels(); p++) {
            const int32_t k = classes[p];
            int32_t& id = scratch_[size_t(segments[p])];
            if (thing[k] && id < 0) {
                id = int32_t(l.class_of.size());
                l.class_of.push_back(k);
            }
            segments[p] = thing[k] ? id : k;
        }
        return settle(g, l, classes);
    }

    // Local moves until they settle; then the classes and the numbers of the segments.
    double settle(const Grid& g, Labelling& l, int32_t* classes) {
        home_.resize(g.K);
        for (int k = 0; k < g.K; k++) home_[k] = l.thing[k] ? -1 : k;
        moves_.start(g, l, home_.data(), false);
        moves_.first_sweep(g);
        moves_.run(g, 32);
        check();
        joins_.run(g, l, moves_);
        check();
        splits_.run(g, l, moves_, pieces_);
        moves_.changes.forget();  // nothing has looked at pieces yet
        pieces_.run(g, l, moves_);
        moves_.run(g, 32);
        check();
        borders_.run(g, l, moves_);
        canonical(g, l.z, l.class_of.size(), scratch_, [&](uint32_t p, uint32_t length) {
            std::fill_n(classes + p, length, l.class_of[l.z[p]]);
        });
        return objective(g, classes, l.z);
    }

    void check() const {
        if (interrupted && interrupted()) throw std::runtime_error("interrupted");
    }

    bool late() const {
        return std::chrono::duration<double>(Clock::now() - begin_).count() > time_limit;
    }

    template <class F>
    static void links_of(const Grid& g, F f) {
        g.for_each_link(f);
    }
    template <class F>
    static void links_of(const Graph& g, F f) {
        g.for_each_edge(f);
    }

    // Local search from two starts; the better end is left in classes and segments.
    double best_of(const Graph& graph, const uint8_t* thing, int32_t* classes, int32_t* segments,
                   int32_t* other_classes, int32_t* other_segments) {
        const size_t kicks = std::min<size_t>(2000 + 30 * graph.N, 50000);
        auto stop = [this] {
            check();
            return late();
        };
        search_.run(graph, thing, classes, segments, kicks, stop);
        canonical(segments, graph.N, search_.cluster_ids(), scratch_);
        const double first = objective(graph, classes, segments);
        if (late()) return first;
        search_.run(graph, thing, other_classes, other_segments, kicks, stop);
        canonical(other_segments, graph.N, search_.cluster_ids(), scratch_);
        const double second = objective(graph, other_classes, other_segments);
        if (!(second < first)) return first;
        std::copy(other_classes, other_classes + graph.N, classes);
        std::copy(other_segments, other_segments + graph.N, segments);
        return second;
    }

    static constexpr int kSamples = 8;       // noisy solves of good
    static constexpr float kNoise = 0.5f;    // their noise over the mean |edge cost|, and twice as much
    using Clock = std::chrono::steady_clock;
    Clock::time_point begin_;
    std::vector<std::pair<uint32_t, uint32_t>> apart_;
    std::vector<int32_t> other_, sample_labels_;
    GraphCopy copy_;
    NoisyCopy noisy_;
    Fusion fusion_;

    // Offers a partition to a solution, and keeps what became of it if that is better.
    void fuse(const Grid& g, const uint8_t* thing, int32_t* classes, int32_t* z, double& value,
              const int32_t* offered) {
        const size_t n = g.pixels();
        other_.resize(2 * n);
        int32_t *new_classes = other_.data(), *new_z = new_classes + n;
        std::copy_n(classes, n, new_classes);
        std::copy_n(z, n, new_z);
        if (!fusion_.run(g, thing, new_classes, new_z, offered, [this] {
                check();
                return false;
            })) return;
        canonical(new_z, n, fusion_.cluster_ids(), scratch_);
        const double found = objective(g, new_classes, new_z);
        if (!(found < value)) return;
        value = found;
        std::copy_n(new_classes, n, classes);
        std::copy_n(new_z, n, z);
    }

    // Labels of one kind have all but equal costs at most of a sample of pixels.
    void kinds(const Grid& g) {
        constexpr size_t kSample = 64;
        const size_t n = g.pixels(), count = std::min(n, kSample);
        sample_.resize(size_t(g.K) * count);
        double scale = 0;
        for (size_t s = 0; s < count; s++) {
            const uint32_t p = uint32_t((2 * s + 1) * n / (2 * count));
            float lowest = g.cost(p, 0);
            double mean = 0;
            for (int k = 0; k < g.K; k++) {
                const float cost = g.cost(p, k);
                sample_[k * count + s] = cost;
                lowest = std::min(lowest, cost);
                mean += cost / g.K;
            }
            scale += (mean - lowest) / double(count);
        }
        const float close = float(0.02 * scale);
        kind_.resize(g.K);
        twin_.assign(g.K, 0);
        representative_.clear();
        for (int k = 0; k < g.K; k++) {
            kind_[k] = k;
            for (int r : representative_) {
                size_t apart = 0;
                for (size_t s = 0; s < count && 3 * apart <= count; s++)
                    apart += !(std::abs(sample_[k * count + s] - sample_[r * count + s]) <= close);
                if (3 * apart > count) continue;
                kind_[k] = r;
                twin_[k] = twin_[r] = 1;
                break;
            }
            if (kind_[k] == k) representative_.push_back(k);
        }
    }

    std::vector<float> sample_;
    std::vector<int32_t> kind_, representative_;
    std::vector<uint8_t> twin_, not_thing_;

    Cheapest cheapest_;
    Greedy greedy_;
    LabelFirst label_first_;
    NodeMoves moves_;
    PieceMoves pieces_;
    RegionMoves regions_;
    BorderMoves borders_;
    SplitMoves splits_;
    Joins joins_;
    Assignment assignment_;
    LocalSearch search_;
    std::vector<int32_t> home_, guess_, trusted_;
};

}  // namespace amwc
