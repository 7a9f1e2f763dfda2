// Label first: the fast solver for grids.
//
// 1. Every pixel takes its cheapest class. A stuff pixel is in the one cluster of its class.
// 2. Thing pixels only: strong unit edges inside small tiles are joined, and Algorithm 2 runs on
//    the graph of the pieces. Pieces of a few pixels are noise: they would be most of its nodes and
//    lead it astray, so their pixels start as clusters of their own.
// 3. Pixel moves (moves.hpp), moves of small connected pieces, joins of clusters, until settled.
// No graph of the pixels is built: costs are read where they lie.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "greedy.hpp"
#include "grid.hpp"
#include "labelling.hpp"
#include "moves.hpp"
#include "simd.hpp"
#include "sums.hpp"

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
    void run(const Grid& g, Labelling& l) {
        pieces(g, l);
        aggregate(g, l);
        greedy_.run(quotient_, [] {});
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
        for (uint32_t p : noise_) {
            l.z[p] = int32_t(l.class_of.size());
            l.class_of.push_back(l.cheapest[p]);
        }
    }

private:
    static constexpr int kTile = 4, kNoise = 3;

    // Pieces in contraction: a graph with node costs for the classes in use.
    struct Quotient {
        size_t N = 0;
        int K = 0;
        std::vector<float> node, weight;
        std::vector<uint32_t> from, to;
        size_t pixels() const { return N; }
        template <class F>
        void for_each_row_of_nodes(float* out, size_t stride, F f) const {
            for (size_t c = 0; c < N; c++) {
                std::copy_n(&node[c * K], K, out + c * stride);
                f(c);
            }
        }
        template <class F>
        void for_each_edge(F f) const {
            for (size_t e = 0; e < from.size(); e++) f(from[e], to[e], weight[e], uint32_t(e));
        }
    };

    struct Run {  // pixels of a piece in a row of its tile
        uint32_t start;
        int length;
    };
    std::vector<Run> runs_;
    std::vector<uint32_t> begin_, noise_;  // runs by piece, pieces in the order of tiles
    std::vector<int32_t> used_, id_;
    std::vector<uint32_t> histogram_;
    Quotient quotient_;
    Greedy greedy_;
    Sums sums_;

    // Tiles of thing pixels to pieces; z = class for stuff and noise, K + piece for things.
    void pieces(const Grid& g, Labelling& l) {
        const int unit = unit_layer(g);
        std::copy_n(l.cheapest, g.pixels(), l.z);
        runs_.clear();
        begin_.clear();
        noise_.clear();
        for (int y = 0; y < g.H; y += kTile)
            for (int x = 0; x < g.W; x += kTile) {
                const uint32_t p = uint32_t(y) * g.W + x;
                const int h = std::min(kTile, g.H - y), w = std::min(kTile, g.W - x);
                if (h == kTile && w == kTile && one_class(g, l.cheapest + p)) {
                    if (!l.thing[l.cheapest[p]]) continue;
                    if (unit >= 0 && attractive(g, unit, p)) {
                        begin_.push_back(uint32_t(runs_.size()));
                        for (int i = 0; i < kTile; i++) add_run(g, l, p + i * g.W, kTile);
                        continue;
                    }
                }
                split(g, l, unit, p, h, w);
            }
        quotient_.N = begin_.size();
        begin_.push_back(uint32_t(runs_.size()));
    }

    // The last piece gets a run.
    void add_run(const Grid& g, Labelling& l, uint32_t start, int length) {
        std::fill_n(l.z + start, length, g.K + int32_t(begin_.size()) - 1);
        runs_.push_back({start, length});
    }

    static bool one_class(const Grid& g, const int32_t* label) {
        const Int4 wanted = splat(*label);
        Int4 same = splat(-1);
        for (int i = 0; i < kTile; i++) same &= load(label + i * size_t(g.W)) == wanted;
        return all(same);
    }

    // Whether all unit edges inside a tile attract.
    static bool attractive(const Grid& g, int unit, uint32_t p) {
        const float *right = g.layer(unit, 0) + p, *down = g.layer(unit, 1) + p;
        Int4 repels = splat(0);
        for (int i = 0; i < kTile; i++) {
            repels |= (load(right + i * size_t(g.W)) < 0.0f) & Int4{-1, -1, -1, 0};
            if (i + 1 < kTile) repels |= load(down + i * size_t(g.W)) < 0.0f;
        }
        return !any(repels);
    }

    // Pieces of a tile of h x w pixels from p on.
    void split(const Grid& g, Labelling& l, int unit, uint32_t p, int h, int w) {
        int8_t parent[kTile * kTile], size[kTile * kTile] = {};
        const auto pixel = [&](int i) { return p + uint32_t(i / kTile) * g.W + uint32_t(i % kTile); };
        const auto root = [&](int i) {
            while (parent[i] != i) i = parent[i];
            return i;
        };
        const auto unite = [&](int i, int j, const float* weight) {
            const uint32_t a = pixel(i);
            if (l.kind[l.cheapest[a]] != l.kind[l.cheapest[pixel(j)]] || !(weight[a] >= 0)) return;
            const int ri = root(i), rj = root(j);
            parent[std::max(ri, rj)] = int8_t(std::min(ri, rj));
        };
        for (int i = 0; i < h * kTile; i++) {
            const bool thing = i % kTile < w && l.thing[l.cheapest[pixel(i)]];
            parent[i] = thing ? int8_t(i) : int8_t(-1);
        }
        for (int i = 0; unit >= 0 && i < h * kTile; i++) {
            if (parent[i] < 0) continue;
            if (i % kTile + 1 < w && parent[i + 1] >= 0) unite(i, i + 1, g.layer(unit, 0));
            if (i + kTile < h * kTile && parent[i + kTile] >= 0)
                unite(i, i + kTile, g.layer(unit, 1));
        }
        for (int i = 0; i < h * kTile; i++)
            if (parent[i] >= 0) size[parent[i] = int8_t(root(i))]++;
        for (int r = 0; r < h * kTile; r++) {
            if (parent[r] != r) continue;
            if (size[r] > kNoise) begin_.push_back(uint32_t(runs_.size()));
            for (int i = r; i < h * kTile;) {
                int length = 0;
                while (i + length < (i / kTile + 1) * kTile && parent[i + length] == r) length++;
                if (size[r] > kNoise) {
                    if (length) add_run(g, l, pixel(i), length);
                } else {
                    for (int j = 0; j < length; j++) noise_.push_back(pixel(i + j));
                }
                i += std::max(length, 1);
            }
        }
    }

    static int unit_layer(const Grid& g) {
        for (int d = 0; d < g.D; d++)
            if (g.dist[d] == 1) return d;
        return -1;
    }

    // Sums of costs over pieces and pairs of pieces.
    void aggregate(const Grid& g, const Labelling& l) {
        histogram_.assign(g.K, 0);
        for (const Run& run : runs_)
            for (int i = 0; i < run.length; i++) histogram_[l.kind[l.cheapest[run.start + i]]]++;
        used_.clear();
        for (int k = 0; k < g.K; k++)
            if (g.K <= 32 || histogram_[l.kind[k]] >= 8) used_.push_back(k);
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
                    if (runs_[r].length == 4) four += load(v);
                    else for (int i = 0; i < runs_[r].length; i++) rest += v[i];
                }
                q.node[c * q.K + u] = (four[0] + four[1]) + (four[2] + four[3]) + rest;
            }
        }
        q.from.clear();
        q.to.clear();
        q.weight.clear();
        sums_.resize(size_t(g.K) + q.N);
        // Pieces are numbered by tile, so that a forward edge into another tile always goes to a
        // higher piece; backward edges are only looked at where both ends may share a tile.
        for (int32_t c = 0; c < int32_t(q.N); c++) {
            sums_.clear();
            for (uint32_t r = begin_[c]; r < begin_[c + 1]; r++)
                g.for_each_run_of_neighbours(
                    runs_[r].start, runs_[r].length,
                    [&](uint32_t p, const float* w, int count) { sums_.add(l.z + p, w, count); },
                    kTile - 1);
            for (int32_t id : sums_) {
                if (id - g.K <= c) continue;
                q.from.push_back(uint32_t(c));
                q.to.push_back(uint32_t(id - g.K));
                q.weight.push_back(sums_[id]);
            }
        }
    }
};

}  // namespace amwc
