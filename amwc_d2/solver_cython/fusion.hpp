// Fusion: the best of two solutions of one problem, region by region.
//
// Pixels that both solutions put into one cluster, and that hang together, are one node of a small
// graph. Local search on it (local_search.hpp), from the better solution, may give every region what
// either of them says, and more. Only edges that one of the two cuts are read.
#pragma once

#include <algorithm>
#include <cstdint>
#include <unordered_map>
#include <vector>

#include "detail/graph.hpp"
#include "detail/grid.hpp"
#include "detail/runs.hpp"
#include "detail/simd.hpp"
#include "detail/union_find.hpp"
#include "local_search.hpp"

namespace amwc {

class Fusion {
public:
    // Improves classes and segments (ids below the number of pixels) by what another partition
    // offers, and returns true; false if no edge is cut. The new ids are below cluster_ids(); the objective may rise by rounding.
    template <class Stop>
    bool run(const Grid& g, const uint8_t* thing, int32_t* classes, int32_t* segments,
             const int32_t* other, Stop interrupted) {
        const size_t n = g.pixels();
        find_atoms(g, segments, other);
        sum_costs(g);
        if (!sum_edges(g)) return false;
        atom_classes_.resize(atoms_);
        atom_segments_.resize(atoms_);
        first_.assign(n, -1);  // by segment: an atom that names it
        for (size_t p = n; p-- > 0;) {
            atom_classes_[size_t(atom_[p])] = classes[p];
            first_[size_t(segments[p])] = atom_[p];
        }
        for (size_t p = 0; p < n; p++)
            atom_segments_[size_t(atom_[p])] = first_[size_t(segments[p])];
        const Graph graph{node_.data(), ends_.data(), weight_.data(), atoms_, weight_.size(), g.K};
        search_.run(graph, thing, atom_classes_.data(), atom_segments_.data(), 0, interrupted);
        for (size_t p = 0; p < n; p++) {
            classes[p] = atom_classes_[size_t(atom_[p])];
            segments[p] = atom_segments_[size_t(atom_[p])];
        }
        return true;
    }

    size_t cluster_ids() const { return search_.cluster_ids(); }

private:
    std::vector<int32_t> atom_, first_, ends_, atom_classes_, atom_segments_;
    std::vector<uint32_t> parent_;
    std::vector<Run> runs_;
    std::vector<float> node_, weight_;
    std::vector<double> sums_, weights_;  // the same in double precision
    std::unordered_map<uint64_t, uint32_t> edge_of_;
    size_t atoms_ = 0;
    LocalSearch search_;

    // Connected regions of pixels whose labels are equal in both labellings.
    void find_atoms(const Grid& g, const int32_t* a, const int32_t* b) {
        const size_t n = g.pixels(), width = size_t(g.W);
        runs_.clear();
        atom_.resize(n);  // run of a pixel, at first
        for (size_t y = 0; y < n; y += width)
            for (size_t x = 0; x < width;) {
                const size_t p = y + x;
                const size_t end = std::min(end_of_run(a, p, y + width), end_of_run(b, p, y + width));
                std::fill(&atom_[p], &atom_[end - 1] + 1, int32_t(runs_.size()));
                runs_.push_back({uint32_t(p), uint32_t(end - p)});
                x = end - y;
            }
        parent_.resize(runs_.size());
        for (uint32_t r = 0; r < runs_.size(); r++) parent_[r] = r;
        const auto root = [&](uint32_t r) {
            return find_root(r, [&](uint32_t i) -> uint32_t& { return parent_[i]; });
        };
        for (const Run& run : runs_)
            for (size_t p = run.start; p < run.start + run.length && p + width < n; p++) {
                const size_t q = p + width;
                if (a[p] != a[q] || b[p] != b[q]) continue;
                const uint32_t i = root(uint32_t(atom_[p])), j = root(uint32_t(atom_[q]));
                parent_[std::max(i, j)] = std::min(i, j);
                p = std::min(run.start + run.length, runs_[size_t(atom_[q])].start +
                             runs_[size_t(atom_[q])].length - uint32_t(width)) - 1;
            }
        atoms_ = 0;
        first_.resize(runs_.size());
        for (uint32_t r = 0; r < runs_.size(); r++) {
            const uint32_t top = root(r);
            first_[r] = top == r ? int32_t(atoms_++) : first_[top];
            std::fill_n(&atom_[runs_[r].start], runs_[r].length, first_[r]);
        }
    }

    void sum_costs(const Grid& g) {
        const size_t K = size_t(g.K);
        sums_.assign(atoms_ * K, 0.0);
        for (size_t k = 0; k < K; k++)
            for (const Run& run : runs_) {
                DoubleSum sum;
                sum.add(g.node + k * g.pixels() + run.start, run.length);
                sums_[size_t(atom_[run.start]) * K + k] += sum.value();
            }
        node_.assign(sums_.begin(), sums_.end());
    }

    // Returns whether there are any.
    bool sum_edges(const Grid& g) {
        edge_of_.clear();
        ends_.clear();
        weights_.clear();
        uint64_t last = ~uint64_t(0);
        uint32_t at = 0;
        g.for_each_row([&](size_t p, size_t q, const float* w, int count) {
            const int32_t *a = &atom_[p], *b = &atom_[q];
            for (size_t i = 0; (i = next_difference(a, b, i, size_t(count))) < size_t(count); i++) {
                const uint64_t low = uint64_t(std::min(a[i], b[i])), high = uint64_t(std::max(a[i], b[i]));
                const uint64_t key = low << 32 | high;
                if (key != last) {
                    last = key;
                    const auto found = edge_of_.emplace(key, uint32_t(weights_.size()));
                    at = found.first->second;
                    if (found.second) {
                        ends_.push_back(int32_t(low));
                        ends_.push_back(int32_t(high));
                        weights_.push_back(0);
                    }
                }
                weights_[at] += w[i];
            }
        });
        weight_.assign(weights_.begin(), weights_.end());
        return !weight_.empty();
    }
};

}  // namespace amwc
