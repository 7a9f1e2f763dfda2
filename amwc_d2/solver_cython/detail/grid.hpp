// Geometry and costs of a pixel grid with long-range edges, read in place.
//
// node  (K, H, W) float32: cost of class k at pixel p = y * W + x is node[k * N + p].
// edge  (D, 2, H, W) float32, anchored left / top: [d, 0] joins (y, x) and (y, x + dist[d]),
//       [d, 1] joins (y, x) and (y + dist[d], x). Positive = attractive. Entries whose other end
//       lies outside the grid are never read.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "simd.hpp"

namespace amwc {

struct Grid {
    static constexpr int kAnyLength = std::numeric_limits<int>::max();
    const float* node;
    const float* edge;
    const int32_t* dist;
    int K, H, W, D;

    size_t pixels() const { return size_t(H) * W; }
    const float* layer(int d, int dir) const { return edge + (size_t(d) * 2 + dir) * pixels(); }

    // Calls f(p, q, weights, count) for every run of edges (p + i, q + i), i < count, in a row.
    template <class F>
    void for_each_row(F f) const {
        for (int d = 0; d < D; d++)
            for (int dir = 0; dir < 2; dir++)
                for (int y = 0; y < H; y++) row(d, dir, y, f);
    }

    // The same for the edges right and down of the pixels of row y.
    template <class F>
    void for_each_row_at(int y, F f) const {
        for (int d = 0; d < D; d++)
            for (int dir = 0; dir < 2; dir++) row(d, dir, y, f);
    }

    // The same for those of one layer.
    template <class F>
    void row(int d, int dir, int y, F f) const {
        const int step = dist[d];
        if (step >= (dir ? H - y : W)) return;
        const size_t p = size_t(y) * W, shift = dir ? size_t(step) * W : size_t(step);
        f(p, p + shift, layer(d, dir) + p, dir ? W : W - step);
    }

    // Calls f(p, q, weight, edge index) for every edge that exists, in the order of its index.
    template <class F>
    void for_each_edge(F f) const {
        for_each_row([&](size_t p, size_t q, const float* w, int count) {
            const size_t base = size_t(w - edge);
            for (int x = 0; x < count; x++)
                f(uint32_t(p + x), uint32_t(q + x), w[x], uint32_t(base + x));
        });
    }

    // Calls f(q, weight) for every edge at p, in a fixed order; of the edges up and left for those
    // of at most this length only.
    template <class F>
    void for_each_neighbour(uint32_t p, F f, int longest_back = kAnyLength) const {
        for_each_arc(p, [&](uint32_t q, const float* w) { f(q, *w); }, longest_back);
    }

    // The same for edges of at most this length.
    template <class F>
    void for_each_short_edge(uint32_t p, int longest, F f) const {
        const int y = int(p / uint32_t(W)), x = int(p % uint32_t(W));
        for (int d = 0; d < D; d++) {
            const int step = dist[d];
            if (step > longest) continue;
            const float *right = layer(d, 0) + p, *down = layer(d, 1) + p;
            const size_t shift = size_t(step) * W;
            if (x >= step) f(size_t(p) - step, right[-step]);
            if (x + step < W) f(size_t(p) + step, *right);
            if (y >= step) f(p - shift, *(down - shift));
            if (y + step < H) f(p + shift, *down);
        }
    }

    // Calls f(q) for the pixels next to p in memory and in its column: its four neighbours, and at
    // the ends of rows one that is none, which does no harm to whoever looks for what may change.
    template <class F>
    void for_each_beside(uint32_t p, F f) const {
        const uint32_t n = uint32_t(pixels()), width = uint32_t(W);
        if (p >= 1) f(p - 1);
        if (p + 1 < n) f(p + 1);
        if (p >= width) f(p - width);
        if (p + width < n) f(p + width);
    }

    // As for_each_neighbour, with a pointer into the edge costs.
    template <class F>
    void for_each_arc(uint32_t p, F f, int longest_back = kAnyLength) const {
        const int y = int(p / uint32_t(W)), x = int(p % uint32_t(W));
        const size_t n = pixels();
        for (int d = 0; d < D; d++) {
            const int step = dist[d];
            const float *right = layer(d, 0) + p, *down = right + n;
            const size_t shift = size_t(step) * W;
            const bool back = step <= longest_back;
            if (back && x >= step) f(p - step, right - step);
            if (x + step < W) f(p + step, right);
            if (back && y >= step) f(uint32_t(p - shift), down - shift);
            if (y + step < H) f(uint32_t(p + shift), down);
        }
    }

    // Calls f(q, weights, count) for every run of edges that join successive pixels of the run of
    // pixels p + i, i < length, in a row, to q, q + 1, ..., in a fixed order, but for those that join
    // two pixels of the run; of the edges up and left for those of at most this length only.
    template <class F>
    void for_each_run_of_neighbours(uint32_t p, int length, F f,
                                    int longest_back = kAnyLength) const {
        const int y = int(p / uint32_t(W)), x = int(p % uint32_t(W));
        const size_t n = pixels();
        for (int d = 0; d < D; d++) {
            const int step = dist[d];
            const float *right = layer(d, 0) + p, *down = right + n;
            const size_t shift = size_t(step) * W;
            const bool back = step <= longest_back;
            int first = std::max(0, step - x), last = std::min(length, step);
            if (back && first < last) f(p + first - step, right + first - step, last - first);
            first = std::max(0, length - step), last = std::min(length, W - step - x);
            if (first < last) f(p + first + step, right + first, last - first);
            if (back && y >= step) f(uint32_t(p - shift), down - shift, length);
            if (y + step < H) f(uint32_t(p + shift), down, length);
        }
    }

    // Calls f(q, weights) for every edge right or down that all pixels of a square of side n from p on
    // have, with those of the pixel p; false where some have one and others do not.
    template <class F>
    bool for_each_square_of_neighbours(uint32_t p, int n, F f) const {
        const int y = int(p / uint32_t(W)), x = int(p % uint32_t(W));
        for (int d = 0; d < D; d++) {
            const int right = W - dist[d] - x, down = H - dist[d] - y;
            if ((right > 0 && right < n) || (down > 0 && down < n)) return false;
        }
        for (int d = 0; d < D; d++) {
            if (x + dist[d] < W) f(p + dist[d], layer(d, 0) + p);
            if (y + dist[d] < H) f(uint32_t(p + size_t(dist[d]) * W), layer(d, 1) + p);
        }
        return true;
    }

    // Writes the costs of every node to a row of out, then calls f(p); a block of rows at a time, so
    // that it is still in the cache.
    template <class F>
    void for_each_row_of_nodes(float* out, size_t stride, F f) const {
        constexpr size_t kBlock = 32;
        const size_t n = pixels();
        for (size_t start = 0; start < n; start += kBlock) {
            const size_t count = std::min(kBlock, n - start);
            float* row = out + start * stride;
            const float* cost = node + start;
            int k = 0;
            for (; k + 4 <= K; k += 4, cost += 4 * n)
                for (size_t i = 0; i < count; i++)
                    store(row + i * stride + k,
                          Float4{cost[i], cost[n + i], cost[2 * n + i], cost[3 * n + i]});
            for (; k < K; k++, cost += n)
                for (size_t i = 0; i < count; i++) row[i * stride + k] = cost[i];
            for (size_t i = 0; i < count; i++) f(start + i);
        }
    }

    size_t most_neighbours() const { return 4 * size_t(D); }
    float cost(uint32_t p, int k) const { return node[size_t(k) * pixels() + p]; }
};

}  // namespace amwc
