// The edges at a pixel of a grid, as offsets. Which of them exist depends only on how far the pixel is
// from the four sides: columns fall into zones with the same horizontal edges, rows into zones with
// the same vertical ones.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "grid.hpp"
#include "simd.hpp"

namespace amwc {

class Arcs {
public:
    struct Arc {
        ptrdiff_t edge;  // weight of the edge at pixel p: grid.edge[p + edge], some entry if none
        int32_t node;    // its other end: p + node; 0: no such edge
    };
    // Two arcs a distance, back and forth, and a mask of those that do not exist: lanes 0 and 1 of a
    // column's, lanes 2 and 3 of a row's.
    struct Zone {
        const Arc* arcs;
        const Int4* missing;
    };

    void build(const Grid& g) {
        D_ = g.D;
        arcs_.clear();
        missing_.clear();
        build(g, 0, g.W, 1, column_);
        build(g, 1, g.H, g.W, row_);
    }

    Zone of_column(int x) const { return zone(column_[x]); }
    Zone of_row(int y) const { return zone(row_[y]); }

private:
    int D_ = 0;
    std::vector<Arc> arcs_;
    std::vector<Int4> missing_;
    std::vector<uint32_t> column_, row_;  // number of the zone

    Zone zone(uint32_t i) const { return {&arcs_[2 * size_t(D_) * i], &missing_[size_t(D_) * i]}; }

    void build(const Grid& g, int dir, int length, int stride, std::vector<uint32_t>& zones) {
        zones.resize(size_t(length));
        const ptrdiff_t n = ptrdiff_t(g.pixels());
        for (int i = 0; i < length; i++) {
            bool same = i > 0;
            for (int d = 0; same && d < D_; d++)
                same = g.dist[d] != i && g.dist[d] != length - i;  // else the zone changes here
            if (same) {
                zones[i] = zones[i - 1];
                continue;
            }
            zones[i] = D_ ? uint32_t(missing_.size() / D_) : 0;
            for (int d = 0; d < D_; d++) {
                const int step = g.dist[d];
                const bool back = i >= step, forth = step < length - i;
                const ptrdiff_t layer = (2 * d + dir) * n, shift = ptrdiff_t(step) * stride;
                arcs_.push_back({back ? layer - shift : layer, back ? int32_t(-shift) : 0});
                arcs_.push_back({layer, forth ? int32_t(shift) : 0});
                Int4 missing = splat(0);
                missing[2 * dir] = -int(!back);
                missing[2 * dir + 1] = -int(!forth);
                missing_.push_back(missing);
            }
        }
    }
};

}  // namespace amwc
