// The graph of the clusters that pixels form.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "csr.hpp"
#include "grid.hpp"
#include "labelling.hpp"
#include "runs.hpp"
#include "sums.hpp"

namespace amwc {

// Pixels of thing clusters, and the weights between clusters but for those between two of stuff.
class ClusterGraph {
public:
    int K = 0;
    std::vector<uint32_t> size;  // pixels of a thing cluster

    // The runs of pixels in a row of a thing cluster c: those from begin(c) on and before begin(c + 1).
    uint32_t begin(size_t c) const { return uint32_t(runs_.begin(c)); }
    const Run& run(uint32_t r) const { return runs_[r]; }

    // Calls f(p, length) for every one of them.
    template <class F>
    void for_each_run(uint32_t c, F f) const {
        for (uint32_t r = begin(c); r < begin(c + 1); r++) f(runs_[r].start, runs_[r].length);
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
        found_.clear();
        amwc::for_each_run(g, l.z, [&](uint32_t p, uint32_t length) {
            const size_t c = size_t(l.z[p]);
            if (c < size_t(K)) return;
            size[c] += length;
            found_.push_back({p, length});
        });
        if (found_.empty()) return false;
        runs_.build(clusters, [&](auto put) {
            for (const Run& run : found_) put(size_t(l.z[run.start]), run);
        });
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
        apart_.clear();
        g.for_each_link([&](uint32_t p, uint32_t q, float w, uint32_t) {
            const uint32_t a = uint32_t(l.z[p]), b = uint32_t(l.z[q]);
            if (w < 0 && std::max(a, b) >= uint32_t(K)) apart_.push_back({a, b});
        });
        return true;
    }

    // As Adjacency wants it.
    size_t pixels() const { return size.size(); }
    template <class F>
    void for_each_edge(F f) const {
        for (size_t e = 0; e < from_.size(); e++) f(from_[e], to_[e], weight_[e], uint32_t(e));
    }

    // Clusters that are to be apart.
    template <class F>
    void for_each_link(F f) const {
        for (size_t i = 0; i < apart_.size(); i++)
            f(apart_[i].first, apart_[i].second, -std::numeric_limits<float>::infinity(),
              uint32_t(from_.size() + i));
    }

private:
    std::vector<std::pair<uint32_t, uint32_t>> apart_;
    std::vector<Run> found_;  // in the order of the pixels
    Csr<Run> runs_;           // by cluster
    std::vector<uint32_t> from_, to_;
    std::vector<float> weight_;
    Sums sums_;
};

}  // namespace amwc
