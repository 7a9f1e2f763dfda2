// Geometry and costs of a pixel grid with long-range edges, read in place.
//
// node  (K, Z, Y, X) float32: cost of class k at pixel p is node[k * N + p]; an image has Z = 1.
// edge  (L, Z, Y, X) float32: layer l has an offset and holds, at pixel i, the weight of the edge
//       between i and i + offset. Positive = attractive. Entries whose other end lies outside the
//       grid are never read.
//
// Constraints come as links, as forbidden classes, whose node cost is +inf, and as a class of what is
// masked. A link joins two pixels by an edge of cost +inf, which is never cut, or -inf, which always
// is; such edges count nothing in the objective. Pixels that have links form groups, those joined one.
//
// The rows of all planes follow each other: H = Z Y rows of W = X pixels. The first end of an edge is
// the one that comes first in this order, whichever end the weight is stored at.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <vector>

#include "simd.hpp"

namespace amwc {

// The edges of one offset.
struct Layer {
    int dz, dy, dx;         // from the first end of an edge to the second
    int x0, x1, y0, y1, z1; // first ends: x0 <= x < x1, y0 <= y < y1, z < z1
    size_t shift;           // number of the second end less that of the first
    size_t start;           // edge[start + p] is an entry of the layer for every pixel p
    ptrdiff_t weight;       // edge[p + weight] is the weight of the edge whose first end is p
    bool at_first;          // the weight is stored at the first end
    // The first end may be in the same tile as the second, or in a later one, where tiles of side
    // Grid::kTile are numbered in the order of rows.
    bool within, crossing;

    bool first_row(int z, int y) const { return z < z1 && y >= y0 && y < y1; }
    bool second_row(int z, int y) const { return z >= dz && y - dy >= y0 && y - dy < y1; }
    bool first_column(int x) const { return x >= x0 && x < x1; }
    bool second_column(int x) const { return first_column(x - dx); }
    bool exists() const { return x0 < x1 && y0 < y1 && z1 > 0; }
    // Both ends are in one row.
    bool flat() const { return dz == 0 && dy == 0; }
};

// Which of the edges to earlier pixels are wanted: all, those of layers that need not lead to an
// earlier tile, or none.
enum class Back { kAll, kTile, kNone };

struct Grid {
    static constexpr int kTile = 4;
    const float* node = nullptr;
    const float* edge = nullptr;
    int K = 0, Y = 0, H = 0, W = 0;
    std::vector<Layer> layers;
    const int32_t* group = nullptr;  // (N,): group of each pixel, -1 if it has no link; or null
    const int32_t* links = nullptr;  // (joined + apart, 2): pixels
    size_t joined = 0, apart = 0;    // the first links are of cost +inf, the others of -inf
    bool forbids = false;            // node costs may be +inf

    Grid() = default;

    // shape (3,): Z, Y, X. offsets (L, 3): dz, dy, dx, each up to 2^30 in magnitude.
    Grid(const float* node, const float* edge, int K, const int32_t* shape, const int32_t* offsets,
         int L)
        : node(node), edge(edge), K(K), Y(shape[1]), H(shape[0] * shape[1]), W(shape[2]) {
        for (int l = 0; l < L; l++) layers.push_back(make_layer(offsets + 3 * l, size_t(l)));
    }

    size_t pixels() const { return size_t(H) * W; }
    bool constrained() const { return links || forbids; }
    bool linked(uint32_t p) const { return group && group[p] >= 0; }

    // Calls f(p, q, weight, edge index) for every link.
    template <class F>
    void for_each_link(F f) const {
        constexpr float kInfinity = std::numeric_limits<float>::infinity();
        for (size_t i = 0; i < joined + apart; i++)
            f(uint32_t(links[2 * i]), uint32_t(links[2 * i + 1]), i < joined ? kInfinity : -kInfinity,
              uint32_t(layers.size() * pixels() + i));
    }

    // Calls f(p, q, weights, count) for every run of edges (p + i, q + i), i < count, in a row.
    template <class F>
    void for_each_row(F f) const {
        for (const Layer& l : layers)
            for (int row = 0; row < H; row++) edges_of_row(l, row, f);
    }

    // The same for the edges of which a pixel of one row is the first end.
    template <class F>
    void for_each_row_at(int row, F f) const {
        for (const Layer& l : layers) edges_of_row(l, row, f);
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

    // Calls f(q, weight) for every edge at p, in a fixed order.
    template <class F>
    void for_each_neighbour(uint32_t p, F f) const {
        for_each_arc(p, [&](uint32_t q, const float* w) { f(q, *w); });
    }

    // The same for edges of at most this length, the largest step along an axis.
    template <class F>
    void for_each_short_edge(uint32_t p, int longest, F f) const {
        const Position at(*this, p);
        for (const Layer& l : layers) {
            if (std::max(l.dz, std::max(std::abs(l.dy), std::abs(l.dx))) > longest) continue;
            const float* w = edge + p + l.weight;
            if (l.second_column(at.x) && l.second_row(at.z, at.y)) f(p - l.shift, *(w - l.shift));
            if (l.first_column(at.x) && l.first_row(at.z, at.y)) f(p + l.shift, *w);
        }
    }

    // Calls f(q) for the pixels next to p in memory, column and plane: its neighbours, and at the ends
    // of rows and planes some that are none, which does no harm to whoever looks for what
    // may change.
    template <class F>
    void for_each_beside(uint32_t p, F f) const {
        const uint32_t n = uint32_t(pixels()), width = uint32_t(W), plane = width * uint32_t(Y);
        if (p >= 1) f(p - 1);
        if (p + 1 < n) f(p + 1);
        if (p >= width) f(p - width);
        if (p + width < n) f(p + width);
        if (p >= plane) f(p - plane);
        if (p + plane < n) f(p + plane);
    }

    // Calls f(q) for the pixels that share a side with p, of which a volume's first and last rows
    // count those of the planes beside.
    template <class F>
    void for_each_side(uint32_t p, F f) const {
        const size_t n = pixels(), width = size_t(W), plane = width * size_t(Y), x = p % width;
        if (x) f(p - 1);
        if (x + 1 < width) f(p + 1);
        if (p >= width) f(uint32_t(p - width));
        if (p + width < n) f(uint32_t(p + width));
        if (plane == n) return;
        if (p >= plane) f(uint32_t(p - plane));
        if (p + plane < n) f(uint32_t(p + plane));
    }

    // As for_each_neighbour, with a pointer into the edge costs.
    template <class F>
    void for_each_arc(uint32_t p, F f, Back back = Back::kAll) const {
        const Position at(*this, p);
        for (const Layer& l : layers) {
            const float* w = edge + p + l.weight;
            if (wanted(l, back) && l.second_column(at.x) && l.second_row(at.z, at.y))
                f(uint32_t(p - l.shift), w - l.shift);
            if (l.first_column(at.x) && l.first_row(at.z, at.y)) f(uint32_t(p + l.shift), w);
        }
    }

    // Calls f(q, weights, count) for every run of edges that join successive pixels of the run of
    // pixels p + i, i < length, in a row, to q, q + 1, ..., in a fixed order, but for those that join
    // two pixels of the run.
    template <class F>
    void for_each_run_of_neighbours(uint32_t p, int length, F f, Back back = Back::kAll) const {
        const Position at(*this, p);
        for (const Layer& l : layers) {
            const float* w = edge + p + l.weight;
            if (wanted(l, back) && l.second_row(at.z, at.y)) {
                const int first = std::max(0, l.x0 + l.dx - at.x);
                const int last = std::min(l.flat() ? std::min(length, l.dx) : length,
                                          l.x1 + l.dx - at.x);
                if (first < last) f(uint32_t(p + first - l.shift), w + first - l.shift, last - first);
            }
            if (l.first_row(at.z, at.y)) {
                const int first = std::max(l.flat() ? std::max(0, length - l.dx) : 0, l.x0 - at.x);
                const int last = std::min(length, l.x1 - at.x);
                if (first < last) f(uint32_t(p + first + l.shift), w + first, last - first);
            }
        }
    }

    // Calls f(i, q, weights, count) for every run of edges that join pixel p + i and those after it, in
    // the run of pixels from p on, to q, q + 1, ..., as their first ends.
    template <class F>
    void for_each_run_of_edges(uint32_t p, int length, F f) const {
        const Position at(*this, p);
        for (const Layer& l : layers) {
            if (!l.first_row(at.z, at.y)) continue;
            const int first = std::max(0, l.x0 - at.x), last = std::min(length, l.x1 - at.x);
            if (first < last)
                f(first, uint32_t(p + first + l.shift), edge + p + l.weight + first, last - first);
        }
    }

    // Calls f(q, weights) for every edge that all pixels of a square of side n from p on have to later
    // tiles, with that of the pixel p; false where some have one and others do not.
    template <class F>
    bool for_each_square_of_neighbours(uint32_t p, int n, F f) const {
        const Position at(*this, p);
        const auto share = [n](int x, int y, const Layer& l) {  // 0: none has the edge, 2: all
            if (x >= l.x1 || x + n <= l.x0 || y >= l.y1 || y + n <= l.y0) return 0;
            return x >= l.x0 && x + n <= l.x1 && y >= l.y0 && y + n <= l.y1 ? 2 : 1;
        };
        const auto forth = [&](const Layer& l) { return at.z < l.z1 ? share(at.x, at.y, l) : 0; };
        const auto back = [&](const Layer& l) {
            return l.crossing ? share(at.x - l.dx, at.y - l.dy, l) : 0;
        };
        for (const Layer& l : layers)
            if (forth(l) == 1 || back(l) == 1) return false;
        for (const Layer& l : layers) {
            const float* w = edge + p + l.weight;
            if (back(l)) f(uint32_t(p - l.shift), w - l.shift);
            if (forth(l)) f(uint32_t(p + l.shift), w);
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

    size_t most_neighbours() const { return 2 * layers.size(); }
    float cost(uint32_t p, int k) const { return node[size_t(k) * pixels() + p]; }

private:
    struct Position {
        int x, y, z;
        Position(const Grid& g, uint32_t p) : x(int(p % uint32_t(g.W))), y(int(p / uint32_t(g.W))), z(0) {
            if (y < g.Y) return;
            z = y / g.Y;
            y %= g.Y;
        }
    };

    static bool wanted(const Layer& l, Back back) {
        return back == Back::kAll || (back == Back::kTile && (l.within || l.crossing));
    }

    template <class F>
    void edges_of_row(const Layer& l, int row, F f) const {
        const bool first = row < Y ? l.first_row(0, row) : l.first_row(row / Y, row % Y);
        if (!first || l.x0 >= l.x1) return;
        const size_t p = size_t(row) * W + l.x0;
        f(p, p + l.shift, edge + p + l.weight, l.x1 - l.x0);
    }

    Layer make_layer(const int32_t* offset, size_t number) const {
        Layer l;
        l.dz = offset[0], l.dy = offset[1], l.dx = offset[2];
        l.at_first = l.dz > 0 || (l.dz == 0 && (l.dy > 0 || (l.dy == 0 && l.dx > 0)));
        if (!l.at_first) l.dz = -l.dz, l.dy = -l.dy, l.dx = -l.dx;
        l.x0 = std::max(0, -l.dx), l.x1 = W - std::max(0, l.dx);
        l.y0 = std::max(0, -l.dy), l.y1 = Y - std::max(0, l.dy);
        l.z1 = H / Y - l.dz;
        const ptrdiff_t shift = (ptrdiff_t(l.dz) * Y + l.dy) * W + l.dx;
        l.shift = size_t(shift);
        l.start = number * pixels();
        l.weight = ptrdiff_t(l.start) + (l.at_first ? 0 : shift);
        l.within = l.dz == 0 && l.dy < kTile && std::abs(l.dx) < kTile;
        l.crossing = l.dz == 0 && l.dx < 0;
        return l;
    }
};

// Entries of the edge costs.
inline size_t edge_slots(const Grid& grid) { return grid.layers.size() * grid.pixels(); }

}  // namespace amwc
