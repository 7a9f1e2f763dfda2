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
//   ladders  p -> p + b -> p + a + b -> p + a, for every offset b of the grid: a parallel edge;
//   lines    a / b edges of a shorter distance b that divides a.
class GridCycles {
public:
    explicit GridCycles(const Grid& grid) : g_(grid) {
        for (int d = 0; d < g_.D; d++)
            for (int dir = 0; dir < 2; dir++)
                if (g_.dist[d] < (dir ? g_.H : g_.W)) {
                    axes_.push_back({d, dir, g_.dist[d]});
                    longest_ = std::max(longest_, g_.dist[d]);
                }
        path_.resize(size_t(longest_) + 3);
    }

    void pack(std::vector<DualEdge>& edges) {
        for (const Axis& a : axes_)
            for (int y = 0; y < (a.dir ? g_.H - a.length : g_.H); y++)
                for (int x = 0; x < (a.dir ? g_.W : g_.W - a.length); x++) {
                    DualEdge& edge = edges[index(a, y, x)];
                    if (edge.cost < 0 && edge.free() > 0 && !ladders(edges, edge, a, y, x))
                        lines(edges, edge, a, y, x);
                }
    }

private:
    struct Axis {
        int d, dir, length;
    };

    const Grid& g_;
    std::vector<Axis> axes_;
    std::vector<DualEdge*> path_;
    int longest_ = 0;

    size_t index(const Axis& a, int y, int x) const {
        return ((size_t(a.d) * 2 + a.dir) * g_.H + y) * g_.W + x;
    }

    bool ladders(std::vector<DualEdge>& edges, DualEdge& edge, const Axis& a, int y, int x) {
        const int ay = a.dir ? a.length : 0, ax = a.dir ? 0 : a.length;
        for (const Axis& b : axes_) {
            if (b.d == a.d && b.dir == a.dir) continue;
            for (int sign = -1; sign <= 1; sign += 2) {
                const int by = y + (b.dir ? sign * b.length : 0);
                const int bx = x + (b.dir ? 0 : sign * b.length);
                if (by < 0 || bx < 0 || by + ay >= g_.H || bx + ax >= g_.W) continue;
                path_[0] = &edges[index(a, by, bx)];
                path_[1] = &edges[index(b, std::min(y, by), std::min(x, bx))];
                path_[2] = &edges[index(b, std::min(y, by) + ay, std::min(x, bx) + ax)];
                if (pack_cycle(edge, path_.data(), 3)) return true;
            }
        }
        return false;
    }

    void lines(std::vector<DualEdge>& edges, DualEdge& edge, const Axis& a, int y, int x) {
        for (auto b = axes_.rbegin(); b != axes_.rend(); ++b) {
            if (b->dir != a.dir || b->length >= a.length || a.length % b->length) continue;
            const int count = a.length / b->length;
            for (int s = 0; s < count; s++)
                path_[s] = &edges[index(*b, y + (a.dir ? s * b->length : 0),
                                        x + (a.dir ? 0 : s * b->length))];
            if (pack_cycle(edge, path_.data(), count)) return;
        }
    }
};

// On any graph: shortest cycles by breadth-first search over attractive edges with cost left, for
// every repulsive edge, the shortest of all first.
template <class Costs>
class SearchedCycles {
public:
    SearchedCycles(const Costs& costs, int (*interrupted)())
        : g_(costs), interrupted_(interrupted) {
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
                while (edge.cost < 0 && edge.free() > 0 && find(edges, p, q, length))
                    if (pack_cycle(edge, path_.data(), int(path_.size()))) break;
            });
    }

private:
    static constexpr int kLongest = 12;     // attractive edges in a cycle
    static constexpr size_t kVisits = 1000;  // nodes looked at for one cycle

    struct Arc {
        uint32_t to, edge;
    };

    const Costs& g_;
    int (*interrupted_)();
    Csr<Arc> arcs_;  // the attractive edges of a node
    std::vector<Arc> from_;  // node and edge by which a node was reached
    std::vector<uint32_t> seen_, queue_;
    uint32_t search_ = 0;
    std::vector<DualEdge*> path_;

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
                    if (seen_[arc.to] == search_ || !(edges[arc.edge].free() > 0)) continue;
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
