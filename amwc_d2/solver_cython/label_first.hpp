// Label first: the fast solver for grids.
//
// 1. Every pixel takes its cheapest class. A stuff pixel is in the one cluster of its class.
// 2. Thing pixels only: strong unit edges inside small tiles are joined, and Algorithm 2 runs on
//    the graph of the pieces. Pieces of a few pixels are noise: they would be most of its nodes and
//    lead it astray. Their pixels are added to what it finds.
// What follows are pixel moves (node_moves.hpp), joins of clusters (joins.hpp) and moves of small
// connected pieces (piece_moves.hpp).
// No graph of the pixels is built: costs are read where they lie.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "detail/grid.hpp"
#include "detail/labelling.hpp"
#include "detail/quotient.hpp"
#include "detail/runs.hpp"
#include "detail/simd.hpp"
#include "detail/sums.hpp"
#include "greedy.hpp"

namespace amwc {

// Mean |cost| of a fixed sample of the first layers: the scale that thresholds are relative to.
inline float edge_scale(const Grid& g) {
    constexpr size_t kSample = 8192;
    constexpr int kStep = 37;
    double sum = 0;
    size_t count = 0;
    g.for_each_row([&](size_t, size_t, const float* w, int length) {
        if (count > kSample) return;
        for (int x = int(count % kStep); x < length; x += kStep, count++) sum += std::abs(w[x]);
    });
    return count ? float(sum / double(count)) : 0.0f;
}

class LabelFirst {
public:
    // Fills z (clusters) and class_of: stuff class k is cluster k, thing clusters follow from K.
    // things_first: what Algorithm 2 makes stuff of begins as a thing as well.
    // interrupted() is called now and then and may throw. Returns false if no classes were found with
    // which what is to be apart is.
    template <class Stop>
    bool run(const Grid& g, Labelling& l, bool things_first, Stop interrupted) {
        pieces(g, l, kNoise);
        size_t kept = 0;
        for (const Run& run : runs_) kept += run.length;
        if (noise_.size() > 3 * kept) pieces(g, l, 0);  // what most things are is no noise
        aggregate(g, l);
        greedy_.run(quotient_, interrupted);
        if (!greedy_.keep_apart(apart_, [&](int32_t u) { return l.thing[used_[u]]; })) return false;
        if (things_first) label_as_things(l);
        l.class_of.resize(g.K);
        for (int k = 0; k < g.K; k++) l.class_of[k] = k;
        id_.assign(quotient_.N, -1);
        for (uint32_t c = 0; c < quotient_.N; c++) {
            const uint32_t root = greedy_.root(c);
            const int32_t k = used_[greedy_.label[root]];
            if (l.thing[k] && id_[root] < 0) {
                id_[root] = int32_t(l.class_of.size());
                l.class_of.push_back(k);
            }
            id_[c] = l.thing[k] ? id_[root] : k;
        }
        for (uint32_t c = 0; c < quotient_.N; c++)
            for (uint32_t r = begin_[c]; r < begin_[c + 1]; r++)
                std::fill_n(l.z + runs_[r].start, runs_[r].length, id_[c]);
        grow(g, l);
        return true;
    }

private:
    // Gives every cluster of pieces its cheapest class of things.
    void label_as_things(const Labelling& l) {
        const size_t K = size_t(quotient_.K);
        std::vector<double> sums(quotient_.N * K, 0.0);
        for (uint32_t c = 0; c < quotient_.N; c++)
            for (size_t u = 0; u < K; u++)
                sums[greedy_.root(c) * K + u] += quotient_.node[c * K + u];
        for (uint32_t c = 0; c < quotient_.N; c++) {
            int32_t& k = greedy_.label[c];
            const double* const sum = &sums[c * K];
            for (int32_t u = 0; u < int32_t(K); u++)
                if (l.thing[used_[u]] && (!l.thing[used_[k]] || sum[u] < sum[k])) k = u;
        }
    }

    static constexpr int kTile = Grid::kTile, kBlock = 8, kNoise = 3;

    std::vector<Run> runs_;
    std::vector<uint32_t> begin_, noise_;  // runs by piece, pieces in the order of tiles
    std::vector<int32_t> used_, id_;
    std::vector<uint32_t> histogram_;
    Quotient quotient_;  // the pieces, with node costs for the classes in use
    Greedy greedy_;
    std::vector<std::pair<uint32_t, uint32_t>> apart_;  // pieces
    Sums sums_;
    // Weights of the edges to the next pixel right and down, by first end; null if there are none.
    const float *right_ = nullptr, *down_ = nullptr;

    // Tiles of thing pixels to pieces; z = class for stuff and noise, K + piece for things.
    // Pieces of up to largest_noise pixels are left out.
    void pieces(const Grid& g, Labelling& l, int largest_noise) {
        find_unit_edges(g);
        std::copy_n(l.cheapest, g.pixels(), l.z);
        runs_.clear();
        begin_.clear();
        noise_.clear();
        for (int top = 0; top < g.H; top += g.Y)
            for (int y = 0; y < g.Y; y += kBlock)
                for (int x = 0; x < g.W; x += kBlock) {
                    if (whole(g, l, top, y, x, kBlock)) continue;
                    for (int i = y; i < std::min(y + kBlock, g.Y); i += kTile)
                        for (int j = x; j < std::min(x + kBlock, g.W); j += kTile)
                            if (!whole(g, l, top, i, j, kTile)) split(g, l, top, i, j, largest_noise);
                }
        quotient_.N = begin_.size();
        begin_.push_back(uint32_t(runs_.size()));
    }

    // The last piece gets a run.
    void add_run(const Grid& g, Labelling& l, uint32_t start, uint32_t length) {
        std::fill_n(l.z + start, length, g.K + int32_t(begin_.size()) - 1);
        runs_.push_back({start, length});
    }

    // Deals with a square of side n if it is all stuff of a class, or all things of a class whose edges
    // attract: unit edges in a tile, in larger squares all edges, and strongly. Row y is that of the
    // plane whose first row is top.
    bool whole(const Grid& g, Labelling& l, int top, int y, int x, int n) {
        if (y + n > g.Y || x + n > g.W) return false;
        const uint32_t p = uint32_t(top + y) * g.W + x;
        for (int i = 0; g.group && i < n * n; i++)
            if (g.linked(p + uint32_t(i / n * g.W + i % n))) return false;
        const Int4 wanted = splat(l.cheapest[p]);
        Int4 same = splat(-1);
        for (int i = 0; i < n; i++)
            for (int j = 0; j < n; j += 4)
                same &= load(l.cheapest + p + i * size_t(g.W) + j) == wanted;
        if (!all(same)) return false;
        if (!l.thing[l.cheapest[p]]) return true;
        if (!right_ || !down_) return false;
        // Larger squares must be beyond doubt: what is merged here is not split again.
        const float least = n == kTile ? 0.0f : 0.5f * l.scale;
        Int4 repels = splat(0);
        for (const Layer& layer : g.layers) {
            if (layer.dz || layer.dy >= n || std::abs(layer.dx) >= n) continue;
            if (n == kTile && layer.dy + std::abs(layer.dx) > 1) continue;
            // From the end that holds the weight to the other.
            const int dy = layer.at_first ? layer.dy : -layer.dy;
            const int dx = layer.at_first ? layer.dx : -layer.dx;
            for (int i = std::max(0, -dy); i < n - std::max(0, dy); i++)
                for (int j = 0; j < n; j += 4) {
                    const Int4 other = Int4{0, 1, 2, 3} + (j + dx);
                    const Float4 w = load(g.edge + layer.start + p + i * size_t(g.W) + j);
                    repels |= (w < least) & (other >= 0) & (other < n);
                }
        }
        if (any(repels)) return false;
        begin_.push_back(uint32_t(runs_.size()));
        for (int i = 0; i < n; i++) add_run(g, l, p + i * g.W, n);
        return true;
    }

    // Pieces of the tile from (y, x) on; pixel i % 4 of row i / 4 is bit i.
    void split(const Grid& g, Labelling& l, int top, int y, int x, int largest_noise) {
        const uint32_t p = uint32_t(top + y) * g.W + x;
        const int h = std::min(kTile, g.Y - y), w = std::min(kTile, g.W - x);
        int32_t kind[kTile * kTile];
        unsigned things = 0, right = 0, down = 0, linked = 0;  // right, down: joined with the next
        for (int i = 0; i < h * kTile; i++) {
            if (i % kTile >= w) continue;
            const uint32_t q = p + i / kTile * g.W + i % kTile;
            const int32_t k = l.cheapest[q];
            kind[i] = l.kind[k];
            things |= unsigned(l.thing[k]) << i;
            if (g.linked(q)) linked |= 1u << i;
        }
        things |= linked;
        for (unsigned left = things; left; left &= left - 1) {
            const int i = __builtin_ctz(left);
            const uint32_t q = p + i / kTile * g.W + i % kTile;
            const auto joined = [&](int j, const float* weight) {
                if (linked >> i & 1 || linked >> j & 1)  // pixels of a group are joined, no others
                    return (things >> j & 1) && g.group[q] == g.group[q + (j - i == 1 ? 1 : g.W)];
                return weight && things >> j & 1 && kind[i] == kind[j] && weight[q] >= 0;
            };
            if (i % kTile + 1 < kTile) right |= unsigned(joined(i + 1, right_)) << i;
            if (i + kTile < kTile * kTile) down |= unsigned(joined(i + kTile, down_)) << i;
        }
        while (things) {
            unsigned piece = things & -things, before = 0;
            while (piece != before) {
                before = piece;
                piece |= (piece & right) << 1 | (piece >> 1 & right);
                piece |= (piece & down) << kTile | (piece >> kTile & down);
            }
            things &= ~piece;
            const bool noise = __builtin_popcount(piece) <= largest_noise && !(piece & linked);
            if (!noise) begin_.push_back(uint32_t(runs_.size()));
            while (piece) {
                const int i = __builtin_ctz(piece);
                const uint32_t start = p + i / kTile * g.W + i % kTile;
                const unsigned row = piece >> i & ((1u << (kTile - i % kTile)) - 1);
                const uint32_t length = uint32_t(__builtin_ctz(~row));
                piece &= ~(((1u << length) - 1) << i);
                if (!noise) add_run(g, l, start, length);
                else for (uint32_t j = 0; j < length; j++) noise_.push_back(start + j);
            }
        }
    }

    // Adds noise to the clusters beside it: a pixel goes with the neighbour of its class that attracts
    // it most; what has none after two passes begins a new cluster.
    void grow(const Grid& g, Labelling& l) {
        const auto assigned = [&](uint32_t q) { return l.z[q] >= g.K; };
        const auto join = [&](uint32_t p) {
            if (assigned(p)) return;
            const int32_t kind = l.kind[l.cheapest[p]];
            const uint32_t width = uint32_t(g.W), x = p % width, y = p / width % uint32_t(g.Y);
            float strongest = 0;
            const auto consider = [&](uint32_t q, float w) {
                if (!assigned(q) || !(w > strongest) || l.kind[l.class_of[l.z[q]]] != kind) return;
                if (g.forbids && !(g.cost(p, l.class_of[l.z[q]]) < INFINITY)) return;
                strongest = w;
                l.z[p] = l.z[q];
            };
            if (right_ && x) consider(p - 1, right_[p - 1]);
            if (right_ && x + 1 < width) consider(p + 1, right_[p]);
            if (down_ && y) consider(p - width, down_[p - width]);
            if (down_ && y + 1 < uint32_t(g.Y)) consider(p + width, down_[p]);
        };
        for (uint32_t p : noise_) join(p);
        for (uint32_t p : noise_) {
            join(p);
            if (assigned(p)) continue;
            l.z[p] = int32_t(l.class_of.size());
            l.class_of.push_back(l.cheapest[p]);
        }
    }

    void find_unit_edges(const Grid& g) {
        right_ = down_ = nullptr;
        for (const Layer& layer : g.layers) {
            if (layer.dz || layer.dy + std::abs(layer.dx) != 1 || !layer.exists()) continue;
            (layer.dy ? down_ : right_) = g.edge + layer.weight;
        }
    }

    // Sums of costs over pieces and pairs of pieces.
    void aggregate(const Grid& g, const Labelling& l) {
        histogram_.assign(g.K, 0);
        for (const Run& run : runs_)
            for (uint32_t i = 0; i < run.length; i++) histogram_[l.kind[l.cheapest[run.start + i]]]++;
        used_.clear();
        for (int k = 0; k < g.K; k++)
            if (g.K <= 32 || g.forbids || histogram_[l.kind[k]] >= 8) used_.push_back(k);
        if (used_.empty()) used_.push_back(0);
        Quotient& q = quotient_;
        q.K = int(used_.size());
        q.node.resize(q.N * q.K);
        for (int u = 0; u < q.K; u++) {
            const float* cost = g.node + size_t(used_[u]) * g.pixels();
            size_t r = 0;
            for (size_t c = 0; c < q.N; c++) {
                Float4 four = splat(0.0f);
                float rest = 0;
                for (; r < begin_[c + 1]; r++) {
                    const float* v = cost + runs_[r].start;
                    uint32_t i = 0;
                    for (; i + 4 <= runs_[r].length; i += 4) four += load(v + i);
                    for (; i < runs_[r].length; i++) rest += v[i];
                }
                q.node[c * q.K + u] = total(four) + rest;
            }
        }
        q.from.clear();
        q.to.clear();
        q.weight.clear();
        sums_.resize(size_t(g.K) + q.N);
        // Pieces are numbered by tile, so that a forward edge into another tile goes to a higher piece,
        // unless it crosses to the left; backward edges are only looked at where they must be.
        for (int32_t c = 0; c < int32_t(q.N); c++) {
            sums_.clear();
            if (const int side = side_of_square(c)) {
                for (int i = 0; i < side; i += 4)
                    for (int j = 0; j < side; j += 4) add_square(g, l, runs_[begin_[c] + i].start + j);
            } else {
                for (uint32_t r = begin_[c]; r < begin_[c + 1]; r++)
                    add_run_of_neighbours(g, l, runs_[r].start, runs_[r].length);
            }
            for (int32_t id : sums_) {
                if (id - g.K <= c) continue;
                q.from.push_back(uint32_t(c));
                q.to.push_back(uint32_t(id - g.K));
                q.weight.push_back(sums_[id]);
            }
        }
        q.joined.clear();
        q.apart.clear();
        apart_.clear();
        g.for_each_link([&](uint32_t i, uint32_t j, float w, uint32_t) {
            const uint32_t a = uint32_t(l.z[i] - g.K), b = uint32_t(l.z[j] - g.K);
            if (a != b) (w > 0 ? q.joined : q.apart).push_back({a, b});
            if (w < 0) apart_.push_back({a, b});
        });
    }

    // The side of a piece that is a square, else 0.
    int side_of_square(int32_t c) const {
        const uint32_t first = begin_[c], rows = begin_[c + 1] - first;
        if (rows < 4) return 0;
        for (uint32_t r = first; r < first + rows; r++)
            if (runs_[r].length != rows) return 0;
        return int(rows);
    }

    void add_run_of_neighbours(const Grid& g, const Labelling& l, uint32_t start, uint32_t length) {
        const auto add = [&](uint32_t q, const float* w, int count) { sums_.add(l.z + q, w, count); };
        g.for_each_run_of_neighbours(start, int(length), add, Back::kTile);
    }

    // The edges of a square of four pixels: most squares they lead to are of one piece too.
    void add_square(const Grid& g, const Labelling& l, uint32_t start) {
        const size_t width = size_t(g.W);
        const auto add = [&](uint32_t q, const float* w) { sums_.add_square(l.z + q, w, width); };
        if (g.for_each_square_of_neighbours(start, 4, add)) return;
        for (int i = 0; i < 4; i++) add_run_of_neighbours(g, l, start + i * g.W, 4);
    }
};

}  // namespace amwc
