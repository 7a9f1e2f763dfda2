// The objective of a labelling, in double precision, and the check that costs are finite.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "graph.hpp"
#include "grid.hpp"
#include "runs.hpp"
#include "simd.hpp"

namespace amwc {

// sum_i c_V(i, x_i) + sum_ij c_E(ij) [z_i != z_j] in double precision, in the order of the indices;
// links (edges of infinite cost) count nothing.
inline double objective(const Graph& g, const int32_t* classes, const int32_t* segments) {
    double sum = 0;
    for (size_t p = 0; p < g.N; p++) sum += g.cost(uint32_t(p), classes[p]);
    g.for_each_edge([&](uint32_t p, uint32_t q, float w, uint32_t) {
        sum += segments[p] != segments[q] && std::isfinite(w) ? double(w) : 0.0;
    });
    return sum;
}

// The same in four interleaved partial sums. Most edges are not cut, and their weights not read: of
// blocks of pixels it is kept which segment they are in as a whole, so that for most edges the
// segments need not be compared either. kMasked: pixels of class and segment -1 take no part.
template <bool kMasked = false>
double objective(const Grid& g, const int32_t* classes, const int32_t* segments) {
    constexpr size_t kBlock = 16;
    const size_t n = g.pixels();
    std::vector<int32_t> whole(n / kBlock + 1, -1);
    for (size_t b = 0; b < n / kBlock; b++) {
        const int32_t* z = segments + b * kBlock;
        if (end_of_run(z, 0, kBlock) == kBlock) whole[b] = *z;
    }
    // Whether the block of pixels from i on is within blocks of one segment.
    const auto uniform = [&](size_t i, int32_t z) {
        return whole[i / kBlock] == z && whole[(i + kBlock - 1) / kBlock] == z;
    };
    DoubleSum sum;
    for_each_run(g, classes, [&](uint32_t p, uint32_t length) {
        if (kMasked && classes[p] < 0) return;
        sum.add(g.node + size_t(classes[p]) * n + p, length);
    });
    g.for_each_row([&](size_t p, size_t q, const float* w, int count) {
        const int32_t *a = segments + p, *b = segments + q;
        DoubleSum row;
        int x = 0;
        for (; x + int(kBlock) <= count; x += int(kBlock)) {
            const int32_t z = whole[(p + x) / kBlock];
            if (z >= 0 && uniform(p + x, z) && uniform(q + x, z)) continue;
            Int4 same[4];
            for (int i = 0; i < 4; i++) {
                const Int4 s = load(a + x + 4 * i), t = load(b + x + 4 * i);
                same[i] = s == t;
                if (kMasked) same[i] |= (s | t) < 0;
            }
            if (all(same[0] & same[1] & same[2] & same[3])) continue;
            for (int i = 0; i < 4; i++) row.add(drop(same[i], load(w + x + 4 * i)));
        }
        for (; x < count; x++) {
            const bool cut = a[x] != b[x] && !(kMasked && (a[x] < 0 || b[x] < 0));
            row.add(cut ? w[x] : 0.0f);
        }
        sum.add(row);
    });
    return sum.value();
}

// Whether all values are finite: a finite number times zero is zero, all others give NaN.
inline bool all_finite(const float* values, size_t n) {
    Float4 a = splat(0.0f), b = a, c = a, d = a;
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        a += load(values + i) * 0.0f;
        b += load(values + i + 4) * 0.0f;
        c += load(values + i + 8) * 0.0f;
        d += load(values + i + 12) * 0.0f;
    }
    for (; i < n; i++) a[0] += values[i] * 0.0f;
    a = (a + b) + (c + d);
    return a[0] == 0 && a[1] == 0 && a[2] == 0 && a[3] == 0;
}

}  // namespace amwc
