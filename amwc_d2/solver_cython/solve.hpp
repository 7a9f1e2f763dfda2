// From clusters to an answer: the forced join of stuff, and ids in the order of first appearance.
#pragma once

#include <cstdint>
#include <vector>

#include "clusters.hpp"
#include "greedy.hpp"
#include "grid.hpp"
#include "label_first.hpp"
#include "moves.hpp"

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

enum Method { kGreedy = 0, kFast = 1, kBest = 2 };

class Solver {
public:
    double amwc(const Grid& grid, const uint8_t* partitionable, int method, int32_t* classes,
                int32_t* segments) {
        if (method != kFast) return greedy(grid, partitionable, classes, segments);
        return fast(grid, partitionable, classes, segments);
    }

    double fast(const Grid& g, const uint8_t* thing, int32_t* classes, int32_t* z) {
        Labelling l{z, {}, nullptr, thing, 1e-5f * edge_scale(g)};
        label_first_.start(g, thing, z, l.class_of);
        l.cheapest = label_first_.cheapest.data();
        home_.resize(g.K);
        for (int k = 0; k < g.K; k++) home_[k] = thing[k] ? -1 : k;
        joins_.run(g, l);
        for (int round = 0; round < 2; round++) {
            moves_.start(g, z, l.class_of.data(), l.class_of.size(), l.cheapest, home_.data(),
                         l.epsilon);
            moves_.run(g, 32);
            if (pieces_.run(g, l, moves_)) moves_.run(g, 32);
            if (!joins_.run(g, l)) break;
        }
        const size_t n = g.pixels();
        for (size_t p = 0; p < n; p++) classes[p] = l.class_of[z[p]];
        canonical(z, n, l.class_of.size(), scratch_);
        return objective(g, classes, z);
    }

    double amwc_graph(const Graph& graph, const uint8_t* partitionable, int method,
                      int32_t* classes, int32_t* segments) {
        (void)method;
        return greedy(graph, partitionable, classes, segments);
    }

    template <class Costs>
    double greedy(const Costs& costs, const uint8_t* partitionable, int32_t* classes,
                  int32_t* segments) {
        greedy_.run(costs);
        const size_t n = costs.pixels();
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

    // Multiway cut on a grid, one segment a label. Minimal version: pixel moves from the start.
    double multiway(const Grid& g, const int32_t* init, int32_t* classes) {
        const size_t n = g.pixels();
        if (init) {
            std::copy(init, init + n, classes);
        } else {
            for (size_t p = 0; p < n; p++) classes[p] = cheapest(g, p);
        }
        std::vector<double> gain(size_t(g.K), 0.0);
        std::vector<int32_t> seen;
        for (int sweep = 0; sweep < 20; sweep++) {
            size_t moved = 0;
            for (size_t p = 0; p < n; p++) {
                seen.clear();
                const int y = int(p / g.W), x = int(p % g.W);
                auto neighbour = [&](size_t q, float w) {
                    const int32_t l = classes[q];
                    if (gain[l] == 0) seen.push_back(l);
                    gain[l] += w;
                };
                for (int d = 0; d < g.D; d++) {
                    const int s = g.dist[d];
                    const float *right = g.layer(d, 0), *down = g.layer(d, 1);
                    if (x >= s) neighbour(p - s, right[p - s]);
                    if (x + s < g.W) neighbour(p + s, right[p]);
                    if (y >= s) neighbour(p - size_t(s) * g.W, down[p - size_t(s) * g.W]);
                    if (y + s < g.H) neighbour(p + size_t(s) * g.W, down[p]);
                }
                const int32_t old = classes[p];
                double best = gain[old] - g.cost(uint32_t(p), old) ;
                const double margin = 1e-6 * (1e-12 + std::abs(best));
                best += margin;
                int32_t to = old;
                auto consider = [&](int32_t l) {
                    const double v = gain[l] - g.cost(uint32_t(p), l);
                    if (v > best || (v == best && to != old && l < to)) best = v, to = l;
                };
                for (int32_t l : seen) consider(l);
                if (g.K <= 32 || sweep < 2) consider(cheapest(g, p));
                for (int32_t l : seen) gain[l] = 0;
                classes[p] = to;
                moved += to != old;
            }
            if (!moved) break;
        }
        return objective(g, classes, classes);
    }

    std::vector<int32_t> scratch_;

private:
    Greedy greedy_;
    LabelFirst label_first_;
    NodeMoves moves_;
    PieceMoves pieces_;
    Joins joins_;
    std::vector<int32_t> home_;

    static int32_t cheapest(const Grid& g, size_t p) {
        int32_t best = 0;
        for (int k = 1; k < g.K; k++)
            if (g.cost(uint32_t(p), k) < g.cost(uint32_t(p), best)) best = k;
        return best;
    }
};

}  // namespace amwc
