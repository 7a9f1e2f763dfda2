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

// Costs of any graph: node (N, K), edges (E, 2), weight (E,).
struct Graph {
    const float* node;
    const int32_t* edges;
    const float* weight;
    size_t N, E;
    int K;

    size_t pixels() const { return N; }

    template <class F>
    void for_each_edge(F f) const {
        for (size_t e = 0; e < E; e++)
            f(uint32_t(edges[2 * e]), uint32_t(edges[2 * e + 1]), weight[e], uint32_t(e));
    }

    template <class F>
    void for_each_row_of_nodes(float* out, size_t stride, F f) const {
        for (size_t p = 0; p < N; p++) {
            std::copy_n(node + p * K, K, out + p * stride);
            f(p);
        }
    }

    float cost(uint32_t p, int k) const { return node[size_t(p) * K + k]; }
};

// A grid as a graph, copied.
class GraphCopy {
public:
    Graph make(const Grid& g) {
        const size_t n = g.pixels();
        node_.resize(n * g.K);
        for (int k = 0; k < g.K; k++)
            for (size_t p = 0; p < n; p++) node_[p * g.K + k] = g.cost(uint32_t(p), k);
        edges_.clear();
        weight_.clear();
        g.for_each_edge([&](uint32_t p, uint32_t q, float w, uint32_t) {
            edges_.push_back(int32_t(p));
            edges_.push_back(int32_t(q));
            weight_.push_back(w);
        });
        Graph graph;
        graph.node = node_.data();
        graph.edges = edges_.data();
        graph.weight = weight_.data();
        graph.N = n;
        graph.E = weight_.size();
        graph.K = g.K;
        return graph;
    }

private:
    std::vector<float> node_, weight_;
    std::vector<int32_t> edges_;
};

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

// sum_i c_V(i, x_i) + sum_ij c_E(ij) [z_i != z_j] in double precision, in the order of the indices.
inline double objective(const Graph& g, const int32_t* classes, const int32_t* segments) {
    double sum = 0;
    for (size_t p = 0; p < g.N; p++) sum += g.cost(uint32_t(p), classes[p]);
    g.for_each_edge([&](uint32_t p, uint32_t q, float w, uint32_t) {
        sum += segments[p] != segments[q] ? double(w) : 0.0;
    });
    return sum;
}

// The same in four interleaved partial sums. Most edges are not cut, and their weights not read.
inline double objective(const Grid& g, const int32_t* classes, const int32_t* segments) {
    DoubleSum sum;
    for_each_run(g, classes, [&](uint32_t p, uint32_t length) {
        sum.add(g.node + size_t(classes[p]) * g.pixels() + p, length);
    });
    g.for_each_row([&](size_t p, size_t q, const float* w, int count) {
        const int32_t *a = segments + p, *b = segments + q;
        DoubleSum row;
        int x = 0;
        for (; x + 16 <= count; x += 16) {
            Int4 same[4];
            for (int i = 0; i < 4; i++) same[i] = load(a + x + 4 * i) == load(b + x + 4 * i);
            if (all(same[0] & same[1] & same[2] & same[3])) continue;
            for (int i = 0; i < 4; i++) row.add(drop(same[i], load(w + x + 4 * i)));
        }
        for (; x < count; x++) row.add(a[x] != b[x] ? w[x] : 0.0f);
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
