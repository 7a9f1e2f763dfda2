// The class of lowest cost of every pixel, in the one pass that reads all node costs.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "detail/grid.hpp"
#include "detail/objective.hpp"
#include "detail/runs.hpp"
#include "detail/simd.hpp"

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
        lowest_.resize(chunk);
        group_.resize(chunk + 16);
        Float4 sum = splat(0.0f);
        for (size_t start = 0; start < n;) {
            size_t count = std::min(chunk, n - start);
            if (width > kChunk) count = std::min(count, width - start % width);
            int32_t* k = &label[start];
            if (guess) std::copy_n(guess + start, count, k);
            else if (start < width) std::fill_n(k, count, 0);
            else for (size_t i = 0; i < count; i += width)
                std::copy_n(k - width, std::min(width, count - i), k + i);
            for (size_t i = 0; i < count;) {
                const size_t end = end_of_run(k, i, count);
                std::copy_n(g.node + size_t(k[i]) * n + start + i, end - i, &lowest_[i]);
                i = end;
            }
            std::fill(group_.begin(), group_.end(), -1);
            for (int first = 0; first < g.K; first += kGroup) sum += look(g, start, count, first);
            for (size_t i = 0; i < count; i += 16) name(g, start, i);
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
        // The last class ends the search whatever the costs are now: another thread may write to them.
        for (k = 0; k + 1 < g.K && g.cost(p, k) != lowest;) k++;
        return k != before;
    }

private:
    static constexpr size_t kChunk = 1024;  // pixels whose lowest costs stay in the cache
    // Where planes of costs are a multiple of 4 KiB apart, a pixel's costs of all classes compete for
    // one set of a cache, which mostly has 8 lines: these, and one for the lowest.
    static constexpr int kGroup = 7;
    std::vector<float> lowest_;
    std::vector<int32_t> group_;  // the first class of the group that has the lowest cost, or -1: the guess

    // Looks at a group of classes in a chunk of pixels. Returns the sum of their costs. Inlined into
    // find, its inner loop would not find room in the registers.
    __attribute__((noinline)) Float4 look(const Grid& g, size_t start, size_t count, int first) {
        const size_t n = g.pixels();
        const int classes = std::min(kGroup, g.K - first);
        // The next group is on its way to the cache meanwhile.
        const size_t ahead = size_t(std::min(classes, g.K - first - classes)) * n;
        const float* const cost = g.node + size_t(first) * n + start;
        float* const lowest = lowest_.data();
        int32_t* const group = group_.data();
        Float4 sum = splat(0.0f);
        size_t p = 0;
        for (; p + 16 <= count; p += 16)
            sum += look<4>(cost + p, n, classes * n, ahead, first, lowest + p, group + p);
        for (; p + 4 <= count; p += 4)
            sum += look<1>(cost + p, n, classes * n, 0, first, lowest + p, group + p);
        for (; p < count; p++)
            for (int j = 0; j < classes; j++) {
                const float v = cost[p + j * n];
                sum[0] += v;
                if (v < lowest[p]) lowest[p] = v, group[p] = first;
            }
        return sum;
    }

    // The same for 4 N pixels: costs of classes lie n apart, up to end; those to prefetch, ahead.
    template <int N>
    static Float4 look(const float* cost, size_t n, size_t end, size_t ahead, int first,
                       float* lowest, int32_t* group) {
        Float4 least[N], part[N], sum = splat(0.0f);
        __builtin_prefetch(cost + ahead, 0, 2);
        for (int i = 0; i < N; i++) least[i] = part[i] = load(cost + 4 * i);
        for (size_t j = n; j < end; j += n) {
            __builtin_prefetch(cost + j + ahead, 0, 2);
            for (int i = 0; i < N; i++) {
                const Float4 a = load(cost + j + 4 * i);
                part[i] += a;
                least[i] = lower(least[i], a);
            }
        }
        for (int i = 0; i < N; i++) {
            const Float4 before = load(lowest + 4 * i);
            store(group + 4 * i, select(least[i] < before, splat(first), load(group + 4 * i)));
            store(lowest + 4 * i, lower(least[i], before));
            sum += part[i];
        }
        return sum;
    }

    // Finds the classes of 16 pixels from the i-th of the chunk on, where the guess was not the cheapest.
    void name(const Grid& g, size_t start, size_t i) {
        unsigned cheaper = 0;
        for (int j = 0; j < 16; j += 4) cheaper |= (15 & ~negative(load(&group_[i + j]))) << j;
        for (; cheaper; cheaper &= cheaper - 1) {
            const size_t p = i + size_t(__builtin_ctz(cheaper));
            int32_t& k = label[start + p];
            for (k = group_[p]; k + 1 < g.K && g.cost(uint32_t(start + p), k) != lowest_[p];) k++;
        }
    }
};

}  // namespace amwc
