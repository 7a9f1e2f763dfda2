// The state of an edge in the lower bound, and the exchange of weight along a cycle.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

namespace amwc {

// State of an edge: what is left of its cost, and how much of it the messages use.
struct DualEdge {
    float cost = 0;     // never above the original less what cycles took
    float used = 0;     // attractive: max f - min f; repulsive: g
    int32_t slot = -1;  // attractive: number of its message; repulsive: its class k

    float free() const { return (cost < 0 ? -cost : cost) - used; }
};

// Largest float that is not above x: costs may be lowered freely, since cuts are never negative.
inline float below(double x) {
    const float f = float(x);
    return double(f) > x ? std::nextafterf(f, -std::numeric_limits<float>::infinity()) : f;
}

// Moves as much as possible of a repulsive edge onto a path of attractive ones; true if all of it.
inline bool pack_cycle(DualEdge& repulsive, DualEdge* const* path, int length) {
    float w = repulsive.free();
    for (int s = 0; s < length; s++) {
        w = std::min(w, path[s]->cost > 0 ? path[s]->free() : 0.0f);
        if (!(w > 0)) return false;
    }
    repulsive.cost = below(double(repulsive.cost) + w);
    for (int s = 0; s < length; s++) path[s]->cost = below(double(path[s]->cost) - w);
    return !(repulsive.free() > 0);
}

// Which cycles a solution lets pay. An optimal dual solution gives weight only to cycles that are tight
// in the optimum (complementary slackness): no edge of the path is cut where the repulsive edge is
// joined, exactly one where it is cut. With a good solution these are the cycles worth packing.
struct Guide {
    std::vector<uint8_t> cut;  // by edge; empty: every cycle may pay

    bool allows(const std::vector<DualEdge>& edges, const DualEdge& repulsive,
                DualEdge* const* path, int length) const {
        if (cut.empty()) return true;
        int count = 0;
        for (int s = 0; s < length; s++) count += cut[size_t(path[s] - edges.data())];
        return count == cut[size_t(&repulsive - edges.data())];
    }
};

}  // namespace amwc
