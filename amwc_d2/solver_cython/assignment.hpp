// Labels for the clusters of a multiway cut.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "detail/adjacency.hpp"
#include "detail/cluster_graph.hpp"
#include "detail/grid.hpp"
#include "detail/labelling.hpp"

namespace amwc {

// Each cluster takes the label that pays most given those of the others, largest first, until none
// changes. Then every label is one cluster.
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
