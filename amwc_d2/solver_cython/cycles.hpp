// Conflicted cycles for the lower bound (lower_bound.hpp): one repulsive edge, the rest attractive.
//
// A cycle of n attractive edges takes its weight from each of them, so short cycles come first.
#pragma once

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "detail/csr.hpp"
#include "detail/dual_edge.hpp"
#include "detail/grid.hpp"

namespace amwc {

inline void check(int (*interrupted)()) {
    if (interrupted()) throw std::runtime_error("interrupted");
}

// On a grid, cycles need no search. A repulsive edge from p to p + a is closed by
//   triangles  p -> p + b -> p + a, where a - b is an offset of the grid too, in another direction;
//   ladders    p -> p + b -> p + a + b -> p + a, for every offset b of the grid: a parallel edge;
//   lines      a / b edges of a shorter offset b that divides a.
// Offsets are followed either way.
class GridCycles {
public:
    GridCycles(const Grid& grid, const Guide& guide) : g_(grid), guide_(guide) {
        for (const Layer& l : g_.layers) {
            if (!l.exists()) continue;
            layers_.push_back(&l);
            longest_ = std::max(longest_, std::max(l.dz, std::max(l.dy, std::abs(l.dx))));
        }
        path_.resize(size_t(longest_) + 3);
        for (const Layer* a : layers_) triangles_.push_back(find_triangles(*a));
    }

    void pack(std::vector<DualEdge>& edges) {
        for (size_t i = 0; i < layers_.size(); i++) {
            const Layer& a = *layers_[i];
            for (int row = 0; row < g_.H; row++) {
                const int z = row / g_.Y, y = row % g_.Y;
                if (!a.first_row(z, y)) continue;
                for (int x = a.x0; x < a.x1; x++) {
                    const size_t p = size_t(row) * g_.W + x;
                    DualEdge& edge = edges[p + a.weight];
                    if (!(edge.cost < 0 && edge.free() > 0)) continue;
                    if (triangles(edges, edge, triangles_[i], p, z, y, x)) continue;
                    if (!ladders(edges, edge, a, p, z, y, x)) lines(edges, edge, a, p);
                }
            }
        }
    }

private:
    // A layer, followed from first to second ends (sign 1) or back (sign -1).
    struct Step {
        const Layer* layer;
        int sign;
        int dz() const { return sign * layer->dz; }
        int dy() const { return sign * layer->dy; }
        int dx() const { return sign * layer->dx; }
        // Number of a pixel after the step, and the first end of the edge between the two.
        size_t after(size_t p) const { return sign > 0 ? p + layer->shift : p - layer->shift; }
        size_t first(size_t p) const { return sign > 0 ? p : p - layer->shift; }
    };
    struct Triangle {
        Step b, c;
    };

    // Packs the cycle of an edge and the path, if it may pay; true if nothing of the edge is left.
    bool pack(std::vector<DualEdge>& edges, DualEdge& edge, int length) {
        return guide_.allows(edges, edge, path_.data(), length) &&
               pack_cycle(edge, path_.data(), length);
    }

    const Grid& g_;
    const Guide& guide_;
    std::vector<const Layer*> layers_;
    std::vector<std::vector<Triangle>> triangles_;  // by layer
    std::vector<DualEdge*> path_;
    int longest_ = 0;

    static DualEdge* at(std::vector<DualEdge>& edges, const Step& s, size_t p) {
        return &edges[s.first(p) + s.layer->weight];
    }

    bool inside(int z, int y, int x) const {
        return z >= 0 && z < g_.H / g_.Y && y >= 0 && y < g_.Y && x >= 0 && x < g_.W;
    }

    // b and c with a = b + c; parallel ones are left to the lines.
    std::vector<Triangle> find_triangles(const Layer& a) const {
        std::vector<Triangle> found;
        for (const Layer* b : layers_)
            for (const Layer* c : layers_)
                for (int signs = 0; signs < 4; signs++) {
                    const Step s{b, signs & 1 ? -1 : 1}, t{c, signs & 2 ? -1 : 1};
                    const bool sum = s.dz() + t.dz() == a.dz && s.dy() + t.dy() == a.dy &&
                                     s.dx() + t.dx() == a.dx;
                    const bool parallel = int64_t(a.dz) * b->dy == int64_t(a.dy) * b->dz &&
                                          int64_t(a.dy) * b->dx == int64_t(a.dx) * b->dy &&
                                          int64_t(a.dz) * b->dx == int64_t(a.dx) * b->dz;
                    if (sum && !parallel) found.push_back({s, t});
                }
        return found;
    }

    bool triangles(std::vector<DualEdge>& edges, DualEdge& edge, const std::vector<Triangle>& list,
                   size_t p, int z, int y, int x) {
        for (const Triangle& t : list) {
            if (!inside(z + t.b.dz(), y + t.b.dy(), x + t.b.dx())) continue;
            path_[0] = at(edges, t.b, p);
            path_[1] = at(edges, t.c, t.b.after(p));
            if (pack(edges, edge, 2)) return true;
        }
        return false;
    }

    bool ladders(std::vector<DualEdge>& edges, DualEdge& edge, const Layer& a, size_t p, int z, int y,
                 int x) {
        for (const Layer* b : layers_) {
            if (b == &a) continue;
            for (int sign = -1; sign <= 1; sign += 2) {
                const Step s{b, sign};
                const int bz = z + s.dz(), by = y + s.dy(), bx = x + s.dx();
                if (!inside(bz, by, bx) || !inside(bz + a.dz, by + a.dy, bx + a.dx)) continue;
                path_[0] = &edges[s.after(p) + a.weight];
                path_[1] = at(edges, s, p);
                path_[2] = at(edges, s, p + a.shift);
                if (pack(edges, edge, 3)) return true;
            }
        }
        return false;
    }

    void lines(std::vector<DualEdge>& edges, DualEdge& edge, const Layer& a, size_t p) {
        for (auto i = layers_.rbegin(); i != layers_.rend(); ++i) {
            const Layer& b = **i;
            const int count = times(b, a);
            if (count < 2) continue;
            for (int s = 0; s < count; s++) path_[size_t(s)] = &edges[p + s * b.shift + b.weight];
            if (pack(edges, edge, count)) return;
        }
    }

    // How many edges of b in a line make one of a; 0 if none do.
    static int times(const Layer& b, const Layer& a) {
        const int count = b.dz ? a.dz / b.dz : b.dy ? a.dy / b.dy : a.dx / b.dx;
        const bool equal = count * b.dz == a.dz && count * b.dy == a.dy && count * b.dx == a.dx;
        return equal ? count : 0;
    }
};

// On any graph: shortest cycles by breadth-first search over attractive edges with cost left, for
// every repulsive edge, the shortest of all first.
template <class Costs>
class SearchedCycles {
public:
    // Of the guide, only joined repulsive edges are looked at, and only paths inside a segment.
    SearchedCycles(const Costs& costs, const Guide& guide, int (*interrupted)())
        : g_(costs), guide_(guide), interrupted_(interrupted) {
        arcs_.build(g_.pixels(), [&](auto put) {
            g_.for_each_edge([&](uint32_t p, uint32_t q, float w, uint32_t e) {
                if (w > 0) put(p, {q, e}), put(q, {p, e});
            });
        });
        from_.resize(g_.pixels());
        seen_.assign(g_.pixels(), 0);
    }

    void pack(std::vector<DualEdge>& edges) {
        for (int length : {3, 6, kLongest})
            g_.for_each_edge([&](uint32_t p, uint32_t q, float, uint32_t e) {
                DualEdge& edge = edges[e];
                if (cut(e)) return;
                for (int i = 0; i < kTries && edge.cost < 0 && edge.free() > 0; i++)
                    if (!find(edges, p, q, length) ||
                        pack_cycle(edge, path_.data(), int(path_.size())))
                        break;
            });
    }

private:
    static constexpr int kLongest = 12;     // attractive edges in a cycle
    static constexpr int kTries = 1000;      // cycles of an edge, where rounding stops all progress
    static constexpr size_t kVisits = 1000;  // nodes looked at for one cycle

    struct Arc {
        uint32_t to, edge;
    };

    const Costs& g_;
    const Guide& guide_;
    int (*interrupted_)();
    Csr<Arc> arcs_;  // the attractive edges of a node
    std::vector<Arc> from_;  // node and edge by which a node was reached
    std::vector<uint32_t> seen_, queue_;
    uint32_t search_ = 0;
    std::vector<DualEdge*> path_;

    bool cut(uint32_t e) const { return !guide_.cut.empty() && guide_.cut[e]; }

    // Fills path_ with the edges of a shortest path from p to q of at most `length` edges.
    bool find(std::vector<DualEdge>& edges, uint32_t p, uint32_t q, int length) {
        if ((++search_ & 1023) == 0) check(interrupted_);
        queue_.assign(1, p);
        seen_[p] = search_;
        size_t head = 0, level = 1;
        for (int depth = 0; depth < length && head < queue_.size(); depth++, level = queue_.size())
            for (; head < level; head++)
                for (size_t s = arcs_.begin(queue_[head]); s < arcs_.end(queue_[head]); s++) {
                    const Arc arc = arcs_[s];
                    if (seen_[arc.to] == search_ || !(edges[arc.edge].free() > 0) || cut(arc.edge))
                        continue;
                    seen_[arc.to] = search_;
                    from_[arc.to] = {queue_[head], arc.edge};
                    if (arc.to == q) return trace(edges, p, q);
                    queue_.push_back(arc.to);
                    if (queue_.size() > kVisits) return false;
                }
        return false;
    }

    bool trace(std::vector<DualEdge>& edges, uint32_t p, uint32_t q) {
        path_.clear();
        for (; q != p; q = from_[q].to) path_.push_back(&edges[from_[q].edge]);
        return true;
    }
};

}  // namespace amwc
