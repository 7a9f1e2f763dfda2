// Runs: pixels side by side in a row that have one label.
#pragma once

#include <cstddef>
#include <cstdint>

#include "grid.hpp"
#include "simd.hpp"

namespace amwc {

// Pixels side by side in a row.
struct Run {
    uint32_t start, length;
};

// The end of the run of equal labels that begins at i; at most n.
inline size_t end_of_run(const int32_t* labels, size_t i, size_t n) {
    const int32_t label = labels[i];
    const Int4 wanted = splat(label);
    i++;
    while (i + 4 <= n && all(load(labels + i) == wanted)) i += 4;
    while (i < n && labels[i] == label) i++;
    return i;
}

// The first index from i on where two labellings differ; n if there is none.
inline size_t next_difference(const int32_t* a, const int32_t* b, size_t i, size_t n) {
    while (i + 4 <= n && all(load(a + i) == load(b + i))) i += 4;
    while (i < n && a[i] == b[i]) i++;
    return i;
}

// Calls f(p, length) for every run of pixels of one cluster, in the order of the pixels.
template <class F>
void for_each_run(const Grid& g, const int32_t* z, F f) {
    for (int y = 0; y < g.H; y++, z += g.W)
        for (int x = 0; x < g.W;) {
            const int end = int(end_of_run(z, x, g.W));
            f(uint32_t(y) * g.W + x, uint32_t(end - x));
            x = end;
        }
}

}  // namespace amwc
