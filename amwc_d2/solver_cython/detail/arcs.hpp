// The edges at a pixel of a grid, as offsets. Which of them exist depends only on how far the pixel is
// from the sides: columns, rows and planes fall into zones of pixels that have the same edges.
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
    // Layers go in pairs, to fill four lanes: two arcs a layer, back and forth, and a mask of those
    // that do not exist.
    struct Zone {
        const Arc* arcs;
        const Int4* missing;
    };

    // The number of pairs.
    size_t pairs() const { return pairs_; }

    void build(const Grid& g) {
        pairs_ = (g.layers.size() + 1) / 2;
        const int planes = g.H / g.Y;
        split(g, g.W, [](const Layer& l) { return Side{l.x0, l.x1, l.dx}; }, column_, columns_);
        split(g, g.Y, [](const Layer& l) { return Side{l.y0, l.y1, l.dy}; }, row_, rows_);
        split(g, planes, [](const Layer& l) { return Side{0, l.z1, l.dz}; }, plane_, planes_);
        arcs_.clear();
        missing_.clear();
        for (int z : planes_)
            for (int y : rows_)
                for (int x : columns_) add_zone(g, z, y, x);
        // From the rows of a plane to all rows.
        row_.resize(size_t(g.H));
        for (int row = g.H; row-- > 0;) {
            const size_t zone = plane_[row / g.Y] * rows_.size() + row_[row % g.Y];
            row_[row] = uint32_t(zone * columns_.size());
        }
    }

    Zone at(int row, int column) const {
        const size_t zone = size_t(row_[row]) + column_[column];
        return {arcs_.data() + 4 * pairs_ * zone, missing_.data() + pairs_ * zone};
    }

private:
    struct Side {
        int first, last, step;  // first ends along an axis, and from those to the second ends
    };

    size_t pairs_ = 0;
    std::vector<Arc> arcs_;
    std::vector<Int4> missing_;
    std::vector<uint32_t> column_, row_, plane_;  // number of the zone; row_: that of its first column
    std::vector<int> columns_, rows_, planes_;    // the first of each zone

    // Zones of an axis: they begin where an end of some layer does.
    template <class SideOf>
    static void split(const Grid& g, int length, SideOf side_of, std::vector<uint32_t>& zone,
                      std::vector<int>& begin) {
        zone.assign(size_t(length), 0);
        for (const Layer& l : g.layers) {
            const Side s = side_of(l);
            for (int i : {s.first, s.last, s.first + s.step, s.last + s.step})
                if (i > 0 && i < length) zone[size_t(i)] = 1;
        }
        begin.assign(1, 0);
        for (int i = 1; i < length; i++) {
            if (zone[size_t(i)]) begin.push_back(i);
            zone[size_t(i)] = uint32_t(begin.size() - 1);
        }
    }

    void add_zone(const Grid& g, int z, int y, int x) {
        for (size_t i = 0; i < pairs_; i++) {
            Int4 missing = splat(-1);
            for (size_t lane = 0; lane < 4; lane += 2) {
                if (2 * i + lane / 2 == g.layers.size()) {
                    arcs_.insert(arcs_.end(), 2, {ptrdiff_t(g.layers.back().start), 0});
                    continue;
                }
                const Layer& l = g.layers[2 * i + lane / 2];
                const ptrdiff_t shift = ptrdiff_t(l.shift), start = ptrdiff_t(l.start);
                const bool back = l.second_row(z, y) && l.second_column(x);
                const bool forth = l.first_row(z, y) && l.first_column(x);
                arcs_.push_back({back ? l.weight - shift : start, back ? int32_t(-shift) : 0});
                arcs_.push_back({forth ? l.weight : start, forth ? int32_t(shift) : 0});
                missing[lane] = -int(!back);
                missing[lane + 1] = -int(!forth);
            }
            missing_.push_back(missing);
        }
    }
};

}  // namespace amwc
