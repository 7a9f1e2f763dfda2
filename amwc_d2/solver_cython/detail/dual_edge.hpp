// The state of an edge in the lower bound, and the exchange of weight along a cycle.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

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

}  // namespace amwc
