// A valid lower bound on the optimum of the asymmetric multiway cut: dual block-coordinate ascent.
//
// The problem is relaxed twice. Edges in a conflicted cycle (one repulsive edge, the rest
// attractive) are paid for by cycle packing (cycles.hpp): moving a weight w from the attractive
// edges to the repulsive one is free, because no partition cuts exactly one edge of a cycle. What
// is left is relaxed edge by edge to a labelling problem with pairwise terms
//     c [k != l]               attractive, c > 0
//     c [k != l  or  k thing]  repulsive, c < 0 (two things of a class may be two segments)
// and bounded by  sum_i min_k u_i(k) + sum_{c < 0} (c - g),  where u are the node costs and the messages
// that a node received (messages.hpp).
// The two alternate: what the messages do not need of an edge's cost is there for cycles. Each
// update can only raise the bound.
#pragma once

#include <cstdint>

#include "cycles.hpp"
#include "detail/graph.hpp"
#include "detail/grid.hpp"
#include "messages.hpp"

namespace amwc {

// Message sweeps, with cycles packed between them by pack(number of the sweep). Ends after `most`
// sweeps, or when one has closed less than `tolerance` of what has been closed so far; throws when
// interrupted() is not zero.
template <class Costs, class Pack>
double ascend(Messages<Costs>& bound, int most, double tolerance, int (*interrupted)(),
              Pack pack) {
    const double trivial = bound.value();
    double before = trivial;
    for (int sweep = 0; sweep < most; sweep++) {
        check(interrupted);
        bound.sweep();
        pack(sweep);
        const double now = bound.value();
        if (sweep >= 4 && now - before <= tolerance * (now - trivial)) break;
        before = now;
    }
    return bound.evaluate();
}

// tight = false: triangles, ladders and lines only, in time and memory linear in the input.
// tight = true: searched cycles too and more sweeps; for small grids.
// segments: null, or a good solution's: until the last sweeps only cycles that it lets pay are packed,
// and longer ones are searched inside its segments. The bound is valid whatever they are.
inline double lower_bound(const Grid& grid, const uint8_t* partitionable, bool tight,
                          const int32_t* segments, int (*interrupted)()) {
    Messages<Grid> bound(grid, partitionable);
    Guide guide;
    if (segments) {
        guide.cut.assign(edge_slots(grid), 0);
        grid.for_each_edge([&](uint32_t p, uint32_t q, float, uint32_t e) {
            guide.cut[e] = segments[p] != segments[q];
        });
    }
    GridCycles cycles(grid, guide);
    if (!tight && !segments) {
        return ascend(bound, 12, 5e-4, interrupted, [&](int sweep) {
            if (sweep < 3 || sweep % 4 == 0) cycles.pack(bound.edges);
        });
    }
    SearchedCycles<Grid> longer(grid, guide, interrupted);
    if (!tight) {
        return ascend(bound, 16, 5e-4, interrupted, [&](int sweep) {
            if (sweep >= 14) guide.cut.clear();
            if (sweep < 3 || sweep % 4 == 0 || sweep >= 14) cycles.pack(bound.edges);
            if (sweep == 1 || sweep == 5 || sweep == 9) longer.pack(bound.edges);
        });
    }
    return ascend(bound, 100, 1e-6, interrupted, [&](int sweep) {
        if (sweep >= 20) guide.cut.clear();
        cycles.pack(bound.edges);
        if (sweep >= 2 && (sweep & (sweep - 1)) == 0) longer.pack(bound.edges);
    });
}

inline double lower_bound(const Graph& graph, const uint8_t* partitionable, int (*interrupted)()) {
    Messages<Graph> bound(graph, partitionable);
    const Guide guide;
    SearchedCycles<Graph> cycles(graph, guide, interrupted);
    return ascend(bound, 100, 1e-6, interrupted, [&](int sweep) {
        if (sweep < 20) cycles.pack(bound.edges);
    });
}

}  // namespace amwc
