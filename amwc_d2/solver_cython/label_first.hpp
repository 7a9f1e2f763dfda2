// Label first: the fast solver for grids.
//
// 1. Every pixel takes its cheapest class. A stuff pixel is in the one cluster of its class.
// 2. Thing pixels only: strong unit edges inside small tiles are joined, and Algorithm 2 runs on
//    the graph of the pieces.
// 3. Pixel moves (moves.hpp), moves of small connected pieces, joins of clusters, until settled.
// No graph of the pixels is built: costs are read where they lie.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "greedy.hpp"
#include "grid.hpp"
#include "moves.hpp"
#include "simd.hpp"

namespace amwc {

// Class of lowest cost of every pixel (the lowest class of several). Classes are read in groups so
// that the running minimum stays in registers, pixels in chunks so that it stays in the cache. Returns
// whether all costs are finite: this is the one pass that reads them all, and v - v is a zero without
// sign for finite v only.
inline bool cheapest_classes(const Grid& g, int32_t* out) {
    constexpr size_t kChunk = 1024;
    constexpr int kGroup = 6;
    float best[kChunk];
    Int4 odd = splat(0);
    const size_t n = g.pixels();
    for (size_t start = 0; start < n; start += kChunk) {
        const int count = int(std::min(kChunk, n - start));
        int32_t* label = out + start;
        std::fill_n(best, count, INFINITY);
        std::fill_n(label, count, 0);
        for (int first = 0; first < g.K; first += kGroup) {
            const int group = std::min(kGroup, g.K - first);
            const float* cost = g.node + first * n + start;
            auto scan = [&](int members) {  // inlined twice, once with a constant
                int p = 0;
                for (; p + 4 <= count; p += 4) {
                    Float4 lowest = load(best + p);
                    Int4 k = load(label + p);
                    for (int j = 0; j < members; j++) {
                        const Float4 v = load(cost + j * n + p);
                        const Int4 less = v < lowest;
                        odd |= (Int4)(v - v);
                        lowest = select(less, v, lowest);
                        k = select(less, splat(int32_t(first + j)), k);
                    }
                    store(best + p, lowest);
                    store(label + p, k);
                }
                for (; p < count; p++)
                    for (int j = 0; j < members; j++) {
                        const float v = cost[j * n + p];
                        odd |= (Int4)splat(v - v);
                        if (v < best[p]) best[p] = v, label[p] = first + j;
                    }
            };
            if (group == kGroup) scan(kGroup);
            else scan(group);
        }
    }
    return !any(odd);
}

// Mean |cost| of a fixed sample of the first layers: the scale that thresholds are relative to.
inline float edge_scale(const Grid& g) {
    constexpr size_t kSample = 65536;
    double sum = 0;
    size_t count = 0;
    g.for_each_row([&](size_t, size_t, const float* w, int length) {
        if (count > kSample) return;
        for (int x = int(count % 5); x < length; x += 5, count++) sum += std::abs(w[x]);
    });
    return count ? float(sum / double(count)) : 0.0f;
}

class LabelFirst {
public:
    std::vector<int32_t> cheapest;

    // Fills z (clusters) and class_of; stuff class k is cluster k, thing clusters follow from K.
    // kind: classes of one kind (labels that stand for the same class) are joined alike. Returns
    // false, with nothing done, if a cost is not finite.
    bool start(const Grid& g, const uint8_t* thing, const int32_t* kind, int32_t* z,
               std::vector<int32_t>& class_of) {
        cheapest.resize(g.pixels());
        if (!cheapest_classes(g, cheapest.data())) return false;
        pieces(g, thing, kind, z);
        aggregate(g, kind, z);
        greedy_.run(quotient_, [] {});
        class_of.resize(g.K);
        for (int k = 0; k < g.K; k++) class_of[k] = k;
        id_.assign(quotient_.N, -1);
        for (uint32_t c = 0; c < quotient_.N; c++) {
            const uint32_t root = greedy_.root(c);
            const int32_t k = used_[greedy_.label[root]];
            if (thing[k] && id_[root] < 0) {
                id_[root] = int32_t(class_of.size());
                class_of.push_back(k);
            }
            id_[c] = thing[k] ? id_[root] : k;
        }
        for (uint32_t c = 0; c < quotient_.N; c++)
            for (uint32_t i = begin_[c]; i < begin_[c + 1]; i++) z[pixel_[i]] = id_[c];
        return true;
    }

private:
    static constexpr int kTile = 4;

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

    std::vector<uint32_t> pixel_, begin_;  // thing pixels by piece, pieces in the order of tiles
    std::vector<int32_t> used_, id_;
    std::vector<uint32_t> histogram_;
    Quotient quotient_;
    Greedy greedy_;
    Sums sums_;

    // Tiles of thing pixels to pieces; z = class for stuff, K + piece for things.
    void pieces(const Grid& g, const uint8_t* thing, const int32_t* kind, int32_t* z) {
        const bool unit = g.D > 0 && unit_layer(g) >= 0;
        const float* right = unit ? g.layer(unit_layer(g), 0) : nullptr;
        const float* down = unit ? g.layer(unit_layer(g), 1) : nullptr;
        pixel_.clear();
        begin_.clear();
        int32_t count = 0;
        for (int y0 = 0; y0 < g.H; y0 += kTile)
            for (int x0 = 0; x0 < g.W; x0 += kTile) {
                const int h = std::min(kTile, g.H - y0), w = std::min(kTile, g.W - x0);
                int8_t parent[kTile * kTile];
                int things = 0;
                for (int y = 0; y < h; y++)
                    for (int x = 0; x < w; x++) {
                        const size_t p = size_t(y0 + y) * g.W + x0 + x;
                        const int32_t k = cheapest[p];
                        z[p] = k;
                        const int i = y * kTile + x;
                        parent[i] = thing[k] ? int8_t(i) : int8_t(-1);
                        things += thing[k];
                    }
                if (!things) continue;
                auto same = [&](size_t p, size_t q) {
                    return kind[cheapest[p]] == kind[cheapest[q]];
                };
                auto root = [&](int i) {
                    while (parent[i] != i) i = parent[i];
                    return i;
                };
                auto unite = [&](int i, int j) {
                    const int a = root(i), b = root(j);
                    parent[std::max(a, b)] = int8_t(std::min(a, b));
                };
                for (int y = 0; unit && y < h; y++)
                    for (int x = 0; x < w; x++) {
                        const size_t p = size_t(y0 + y) * g.W + x0 + x;
                        const int i = y * kTile + x;
                        if (parent[i] < 0) continue;
                        if (x + 1 < w && same(p, p + 1) && right[p] >= 0)
                            unite(i, i + 1);
                        if (y + 1 < h && same(p, p + g.W) && down[p] >= 0)
                            unite(i, i + kTile);
                    }
                for (int r = 0; r < kTile * kTile; r++) {
                    const int ry = r / kTile, rx = r % kTile;
                    if (ry >= h || rx >= w || parent[r] != r) continue;
                    begin_.push_back(uint32_t(pixel_.size()));
                    for (int i = r; i < h * kTile; i++) {
                        if (i % kTile >= w || parent[i] < 0 || root(i) != r) continue;
                        const size_t p = size_t(y0 + i / kTile) * g.W + x0 + i % kTile;
                        pixel_.push_back(uint32_t(p));
                        z[p] = g.K + count;
                    }
                    count++;
                }
            }
        begin_.push_back(uint32_t(pixel_.size()));
        quotient_.N = size_t(count);
    }

    static int unit_layer(const Grid& g) {
        for (int d = 0; d < g.D; d++)
            if (g.dist[d] == 1) return d;
        return -1;
    }

    // Sums of costs over pieces and pairs of pieces.
    void aggregate(const Grid& g, const int32_t* kind, const int32_t* z) {
        used_.clear();
        histogram_.assign(g.K, 0);
        for (uint32_t p : pixel_) histogram_[kind[cheapest[p]]]++;
        for (int k = 0; k < g.K; k++)
            if (g.K <= 32 || histogram_[kind[k]] >= 8) used_.push_back(k);
        if (used_.empty()) used_.push_back(0);
        Quotient& q = quotient_;
        q.K = int(used_.size());
        q.node.assign(q.N * q.K, 0.0f);
        for (int u = 0; u < q.K; u++) {
            const float* cost = g.node + size_t(used_[u]) * g.pixels();
            size_t i = 0;
            for (size_t c = 0; c < q.N; c++) {
                float sum = 0;
                for (; i < begin_[c + 1]; i++) sum += cost[pixel_[i]];
                q.node[c * q.K + u] = sum;
            }
        }
        q.from.clear();
        q.to.clear();
        q.weight.clear();
        sums_.resize(q.N);
        // Pieces are numbered by tile, so that a forward edge into another tile always goes to a
        // higher piece; backward edges are only looked at where both ends may share a tile.
        size_t i = 0;
        for (int32_t c = 0; c < int32_t(q.N); c++) {
            sums_.clear();
            for (; i < begin_[c + 1]; i++) {
                const uint32_t p = pixel_[i];
                const auto add = [&](uint32_t other, float w) {
                    const int32_t b = z[other] - g.K;
                    if (b > c) sums_.add(b, w);
                };
                g.for_each_neighbour(p, add, kTile - 1);
            }
            for (int32_t b : sums_) {
                q.from.push_back(uint32_t(c));
                q.to.push_back(uint32_t(b));
                q.weight.push_back(sums_[b]);
            }
        }
    }
};

}  // namespace amwc
