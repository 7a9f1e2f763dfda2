// Splits of thing clusters along the repulsive edges inside them.
//
// No other move takes a cluster apart: pixels leave it one by one, and pieces are what is no longer
// connected. Here the pixels of every cluster that holds much repulsion are clustered once more, by
// Algorithm 2 without classes, and the parts are offered what pieces are: another cluster, stuff or
// one of their own.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "detail/csr.hpp"
#include "detail/grid.hpp"
#include "detail/labelling.hpp"
#include "detail/quotient.hpp"
#include "detail/runs.hpp"
#include "detail/simd.hpp"
#include "greedy.hpp"
#include "node_moves.hpp"
#include "piece_moves.hpp"

namespace amwc {

class SplitMoves {
public:
    // Returns the number of parts that moved.
    size_t run(const Grid& g, Labelling& l, NodeMoves& moves, PieceMoves& pieces) {
        find_runs(g, l);
        graph_.N = 0;
        graph_.K = 1;
        graph_.from.clear();
        graph_.to.clear();
        graph_.weight.clear();
        pixels_.clear();
        if (index_.size() < g.pixels()) index_.resize(g.pixels());
        for (uint32_t c = 0; c < clusters_; c++)
            if (doubtful(g, l, c)) add_cluster(g, l, c);
        if (pixels_.empty()) return 0;
        graph_.N = pixels_.size();
        graph_.node.assign(graph_.N, 0.0f);
        greedy_.run(graph_, [] {});
        return offer(g, l, moves, pieces);
    }

private:
    static constexpr uint32_t kSmallest = 4, kLargest = 4096;  // pixels of a cluster
    static constexpr float kDoubt = 0.03f;  // repulsion over attraction; clusters with less stay

    Csr<Run> runs_;  // of the thing clusters
    std::vector<uint32_t> size_, index_, pixels_;  // index_: node of a pixel, where it has one
    std::vector<Run> found_, part_;
    std::vector<std::pair<uint32_t, uint32_t>> order_;  // root and pixel
    uint32_t clusters_ = 0;
    Quotient graph_;
    Greedy greedy_;

    void find_runs(const Grid& g, const Labelling& l) {
        const uint32_t K = uint32_t(g.K);
        clusters_ = uint32_t(l.class_of.size()) - K;
        size_.assign(clusters_, 0);
        found_.clear();
        for_each_run(g, l.z, [&](uint32_t p, uint32_t length) {
            if (uint32_t(l.z[p]) < K) return;
            found_.push_back({p, length});
            size_[uint32_t(l.z[p]) - K] += length;
        });
        runs_.build(clusters_, [&](auto put) {
            for (const Run& run : found_) put(size_t(l.z[run.start]) - K, run);
        });
    }

    bool doubtful(const Grid& g, const Labelling& l, uint32_t c) const {
        if (size_[c] < kSmallest || size_[c] > kLargest) return false;
        Float4 attraction = splat(0.0f), repulsion = attraction;
        for (size_t r = runs_.begin(c); r < runs_.end(c); r++) {
            const Int4 own = splat(l.z[runs_[r].start]);
            const auto add = [&](Int4 there, Float4 weight) {
                const Float4 inside = keep(there == own, weight);
                attraction += higher(inside, splat(0.0f));
                repulsion -= lower(inside, splat(0.0f));
            };
            const auto row = [&](int, uint32_t q, const float* w, int count) {
                int i = 0;
                for (; i + 4 <= count; i += 4) add(load(l.z + q + i), load(w + i));
                for (; i < count; i++) add(Int4{l.z[q + i], -1, -1, -1}, splat(w[i]));
            };
            g.for_each_run_of_edges(runs_[r].start, int(runs_[r].length), row);
        }
        return total(repulsion) > kDoubt * total(attraction);
    }

    void add_cluster(const Grid& g, const Labelling& l, uint32_t c) {
        for (size_t r = runs_.begin(c); r < runs_.end(c); r++)
            for (uint32_t p = runs_[r].start; p < runs_[r].start + runs_[r].length; p++) {
                index_[p] = uint32_t(pixels_.size());
                pixels_.push_back(p);
            }
        for (size_t r = runs_.begin(c); r < runs_.end(c); r++) {
            const uint32_t p = runs_[r].start;
            const auto row = [&](int first, uint32_t q, const float* w, int count) {
                for (int i = 0; i < count; i++) {
                    if (l.z[q + i] != l.z[p]) continue;
                    graph_.from.push_back(index_[p + first + i]);
                    graph_.to.push_back(index_[q + i]);
                    graph_.weight.push_back(w[i]);
                }
            };
            g.for_each_run_of_edges(p, int(runs_[r].length), row);
        }
    }

    // Offers every part to be moved, but for the largest of a cluster.
    size_t offer(const Grid& g, Labelling& l, NodeMoves& moves, PieceMoves& pieces) {
        order_.clear();
        for (uint32_t i = 0; i < graph_.N; i++) order_.push_back({greedy_.root(i), pixels_[i]});
        std::sort(order_.begin(), order_.end());
        size_t moved = 0;
        // size_ becomes the largest part of each cluster
        std::fill(size_.begin(), size_.end(), 0u);
        const uint32_t K = uint32_t(g.K);
        for (int pass = 0; pass < 2; pass++)
            for (size_t i = 0, end; i < order_.size(); i = end) {
                for (end = i; end < order_.size() && order_[end].first == order_[i].first;) end++;
                const uint32_t count = uint32_t(end - i);
                const uint32_t c = uint32_t(l.z[order_[i].second]) - K;
                if (pass == 0) {
                    size_[c] = std::max(size_[c], count);
                    continue;
                }
                if (size_[c] == count) {
                    size_[c] = 0;
                    continue;
                }
                part_.clear();
                for (size_t j = i; j < end; j++) {
                    const uint32_t p = order_[j].second;
                    if (!part_.empty() && part_.back().start + part_.back().length == p && p % g.W)
                        part_.back().length++;
                    else part_.push_back({p, 1});
                }
                moved += pieces.move(g, l, moves, part_.data(), part_.size());
            }
        return moved;
    }
};

}  // namespace amwc
