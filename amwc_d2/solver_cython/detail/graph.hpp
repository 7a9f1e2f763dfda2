// Costs of any graph, and a grid as one.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "grid.hpp"

namespace amwc {

// Costs of any graph: node (N, K), edges (E, 2), weight (E,).
struct Graph {
    const float* node;
    const int32_t* edges;
    const float* weight;
    size_t N, E;
    int K;

    size_t pixels() const { return N; }

    template <class F>
    void for_each_edge(F f) const {
        for (size_t e = 0; e < E; e++)
            f(uint32_t(edges[2 * e]), uint32_t(edges[2 * e + 1]), weight[e], uint32_t(e));
    }

    // Edges of infinite cost are links: what Grid has besides its edges.
    template <class F>
    void for_each_link(F) const {}

    template <class F>
    void for_each_row_of_nodes(float* out, size_t stride, F f) const {
        for (size_t p = 0; p < N; p++) {
            std::copy_n(node + p * K, K, out + p * stride);
            f(p);
        }
    }

    float cost(uint32_t p, int k) const { return node[size_t(p) * K + k]; }
};

// A grid as a graph, copied, or another graph. Forbidden classes get finite costs, larger than what any
// labelling without them can gain.
class GraphCopy {
public:
    template <class Costs>
    Graph make(const Costs& g) {
        const size_t n = g.pixels();
        node_.resize(n * g.K);
        for (int k = 0; k < g.K; k++)
            for (size_t p = 0; p < n; p++) node_[p * g.K + k] = g.cost(uint32_t(p), k);
        edges_.clear();
        weight_.clear();
        const auto add = [&](uint32_t p, uint32_t q, float w, uint32_t) {
            edges_.push_back(int32_t(p));
            edges_.push_back(int32_t(q));
            weight_.push_back(w);
        };
        g.for_each_edge(add);
        g.for_each_link(add);
        double magnitude = 1;
        for (float c : node_) magnitude += std::isfinite(c) ? std::abs(c) : 0;
        for (float w : weight_) magnitude += std::isfinite(w) ? std::abs(w) : 0;
        for (float& c : node_)
            if (!std::isfinite(c)) c = float(std::min(2 * magnitude, 1e30));
        Graph graph;
        graph.node = node_.data();
        graph.edges = edges_.data();
        graph.weight = weight_.data();
        graph.N = n;
        graph.E = weight_.size();
        graph.K = g.K;
        return graph;
    }

private:
    std::vector<float> node_, weight_;
    std::vector<int32_t> edges_;
};

}  // namespace amwc
