// The class of lowest cost of every pixel, in the one pass that reads all node costs.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "grid.hpp"
#include "simd.hpp"

namespace amwc {

class Cheapest {
public:
    std::vector<int32_t> label;

    // Starts from a guess, the labels given or those of the row above, and keeps it where no class is
    // cheaper; of several cheaper ones it takes the lowest. Returns whether all costs are finite.
    bool find(const Grid& g, const int32_t* guess = nullptr) {
        const size_t n = g.pixels(), width = size_t(g.W);
        const size_t chunk = std::max(kChunk / width * width, std::min(kChunk, width));
        label.resize(n);
        best_.resize(chunk);
        Float4 sum = splat(0.0f);
        for (size_t start = 0; start < n;) {
            size_t count = std::min(chunk, n - start);
            if (width > kChunk) count = std::min(count, width - start % width);
            int32_t* k = &label[start];
            if (guess) std::copy_n(guess + start, count, k);
            else if (start < width) std::fill_n(k, count, 0);
            else for (size_t i = 0; i < count; i += width)
                std::copy_n(k - width, std::min(width, count - i), k + i);
            for (size_t i = 0; i < count; i++) best_[i] = g.node[size_t(k[i]) * n + start + i];
            for (int first = 0; first < g.K; first += kGroup) {
                const float* cost = g.node + first * n + start;
                if (first + kGroup <= g.K) sum += look(cost, n, kGroup, first, count, k);
                else sum += look(cost, n, g.K - first, first, count, k);
            }
            start += count;
        }
        // A sum of finite costs may still overflow.
        return std::isfinite(total(sum)) || all_finite(g.node, size_t(g.K) * n);
    }

    // What find would have found from another guess for p. Returns whether that is another class, and
    // not the guess.
    bool renew(const Grid& g, uint32_t p, int32_t before, int32_t guess) {
        int32_t& k = label[p];
        const float lowest = g.cost(p, k);
        if (g.cost(p, guess) == lowest) {
            k = guess;
            return false;
        }
        if (k != before) return false;  // the lowest already
        for (k = 0; g.cost(p, k) != lowest;) k++;
        return k != before;
    }

private:
    static constexpr size_t kChunk = 1024;  // pixels whose minimum stays in the cache
    static constexpr int kGroup = 8;
    std::vector<float> best_;

    // Looks at some classes of a chunk: only where one is cheaper it is asked which. Returns the sum of
    // their costs. Inlined twice, once with a constant number of classes.
    inline __attribute__((always_inline)) Float4 look(const float* cost, size_t n, int classes,
                                                      int first, size_t count, int32_t* k) {
        float* const best = best_.data();
        Float4 sum = splat(0.0f);
        size_t p = 0;
        for (; p + 4 <= count; p += 4) {
            Float4 lowest = load(best + p), least = lowest, part = splat(0.0f);
            const float* v = cost + p;
            int j = 0;
            for (; j + 4 <= classes; j += 4, v += 4 * n) {
                const Float4 a = load(v), b = load(v + n), c = load(v + 2 * n), d = load(v + 3 * n);
                part += (a + b) + (c + d);
                least = lower(least, lower(lower(a, b), lower(c, d)));
            }
            for (; j < classes; j++, v += n) {
                part += load(v);
                least = lower(load(v), least);
            }
            sum += part;
            if (!any(least < lowest)) continue;
            Int4 index = load(k + p);
            v = cost + p;
            for (j = 0; j < classes; j++, v += n) {
                index = select(load(v) < lowest, splat(int32_t(first + j)), index);
                lowest = lower(load(v), lowest);
            }
            store(best + p, lowest);
            store(k + p, index);
        }
        for (; p < count; p++)
            for (int j = 0; j < classes; j++) {
                const float v = cost[j * n + p];
                sum[0] += v;
                if (v < best[p]) best[p] = v, k[p] = first + j;
            }
        return sum;
    }
};

}  // namespace amwc
