// Geometry and costs of a pixel grid with long-range edges, read in place.
//
// node  (K, H, W) float32: cost of class k at pixel p = y * W + x is node[k * N + p].
// edge  (D, 2, H, W) float32, anchored left / top: [d, 0] joins (y, x) and (y, x + dist[d]),
//       [d, 1] joins (y, x) and (y + dist[d], x). Positive = attractive. Entries whose other end
//       lies outside the grid are never read.
#pragma once

#include <cstddef>
#include <cstdint>

namespace amwc {

struct Grid {
    const float* node;
    const float* edge;
    const int32_t* dist;
    int K, H, W, D;

    size_t pixels() const { return size_t(H) * W; }
    const float* layer(int d, int dir) const { return edge + (size_t(d) * 2 + dir) * pixels(); }

    // Calls f(p, q, weight, edge index) for every edge that exists, in the order of its index.
    template <class F>
    void for_each_edge(F f) const {
        for (int d = 0; d < D; d++)
            for (int dir = 0; dir < 2; dir++) {
                const int step = dist[d];
                if (step >= (dir ? H : W)) continue;
                const float* w = layer(d, dir);
                const size_t shift = dir ? size_t(step) * W : size_t(step);
                const int rows = dir ? H - step : H, columns = dir ? W : W - step;
                const size_t base = (size_t(d) * 2 + dir) * pixels();
                for (int y = 0; y < rows; y++)
                    for (int x = 0; x < columns; x++) {
                        const size_t p = size_t(y) * W + x;
                        f(uint32_t(p), uint32_t(p + shift), w[p], uint32_t(base + p));
                    }
            }
    }

    // Calls f(q, weight) for every edge at p, in a fixed order.
    template <class F>
    void for_each_neighbour(uint32_t p, F f) const {
        const int y = int(p / uint32_t(W)), x = int(p % uint32_t(W));
        const size_t n = pixels();
        const float* right = edge;
        for (int d = 0; d < D; d++, right += 2 * n) {
            const int step = dist[d];
            const float* down = right + n;
            const size_t shift = size_t(step) * W;
            if (x >= step) f(p - step, right[p - step]);
            if (x + step < W) f(p + step, right[p]);
            if (y >= step) f(uint32_t(p - shift), down[p - shift]);
            if (y + step < H) f(uint32_t(p + shift), down[p]);
        }
    }

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

    float cost(uint32_t p, int k) const { return node[size_t(p) * K + k]; }
};

// sum_i c_V(i, x_i) + sum_ij c_E(ij) [z_i != z_j] in double precision, in the order of the indices.
template <class Costs>
double objective(const Costs& costs, const int32_t* classes, const int32_t* segments) {
    double sum = 0;
    for (size_t p = 0; p < costs.pixels(); p++) sum += costs.cost(uint32_t(p), classes[p]);
    costs.for_each_edge([&](uint32_t p, uint32_t q, float w, uint32_t) {
        sum += segments[p] != segments[q] ? double(w) : 0.0;
    });
    return sum;
}

}  // namespace amwc
