// The class of lowest cost of every pixel, in the one pass that reads all node costs.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "grid.hpp"
#include "simd.hpp"

namespace amwc {

// Class of lowest cost of every pixel (the lowest class of several). Classes are read in groups so
// that the running minimum stays in registers, pixels in chunks so that it stays in the cache. Returns
// whether all costs are finite: this is the one pass that reads them all, and v - v is a zero without
// sign for finite v only.
inline bool cheapest_classes(const Grid& g, int32_t* out) {
    constexpr size_t kChunk = 1024;
    constexpr int kGroup = 6;
    float best[kChunk];
    Int4 odd = splat(0);
    const size_t n = g.pixels();
    for (size_t start = 0; start < n; start += kChunk) {
        const int count = int(std::min(kChunk, n - start));
        int32_t* label = out + start;
        std::fill_n(best, count, INFINITY);
        std::fill_n(label, count, 0);
        for (int first = 0; first < g.K; first += kGroup) {
            const int group = std::min(kGroup, g.K - first);
            const float* cost = g.node + first * n + start;
            auto scan = [&](int members) {  // inlined twice, once with a constant
                int p = 0;
                for (; p + 4 <= count; p += 4) {
                    Float4 lowest = load(best + p);
                    Int4 k = load(label + p);
                    for (int j = 0; j < members; j++) {
                        const Float4 v = load(cost + j * n + p);
                        const Int4 less = v < lowest;
                        odd |= (Int4)(v - v);
                        lowest = select(less, v, lowest);
                        k = select(less, splat(int32_t(first + j)), k);
                    }
                    store(best + p, lowest);
                    store(label + p, k);
                }
                for (; p < count; p++)
                    for (int j = 0; j < members; j++) {
                        const float v = cost[j * n + p];
                        odd |= (Int4)splat(v - v);
                        if (v < best[p]) best[p] = v, label[p] = first + j;
                    }
            };
            if (group == kGroup) scan(kGroup);
            else scan(group);
        }
    }
    return !any(odd);
}

}  // namespace amwc
