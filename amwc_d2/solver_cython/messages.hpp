// Messages of the lower bound (lower_bound.hpp): dual block-coordinate ascent on
//     sum_i min_k u_i(k) + sum_{c < 0} (c - g),
// where u_i are the node costs and all messages that node i received:
//   * attractive edge pq: u_p(k) += f(k), u_q(k) -= f(k). The pairwise term stays >= 0 if and only
//     if max f - min f <= c, and every dual solution can be brought to this form. One update
//     balances the truncated costs of both ends and solves the two-node problem exactly.
//   * repulsive edge pq: u_p(k) += g, u_q(k) += g for one stuff class k and 0 <= g <= -c: what the
//     edge costs if both ends take k, and nothing if they do not.
// Each update can only raise the bound. Attractive edges inside quiet regions are left alone: a
// message is made when the two ends disagree or one of them is contested.
//
// Messages are kept in 8 bits a class, so memory stays a small multiple of the input. The value
// returned does not trust the rounded sweeps: `evaluate` reads the messages, clamps each to what is
// valid and sums in double precision, less what those sums can round.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "detail/dual_edge.hpp"
#include "detail/graph.hpp"
#include "detail/grid.hpp"
#include "detail/simd.hpp"

namespace amwc {

inline size_t edge_slots(const Graph& graph) { return graph.E; }

template <class Costs>
class Messages {
public:
    // partitionable: (K,). All of it is read; the costs must outlive the object.
    Messages(const Costs& costs, const uint8_t* partitionable)
        : costs_(costs), thing_(partitionable), stride_((costs.K + kLanes - 1) / kLanes * kLanes) {
        const size_t n = costs.pixels();
        unary_.assign(n * stride_, kAbsent);
        for (int k = 0; k < costs.K; k++)
            for (size_t p = 0; p < n; p++) unary_[p * stride_ + k] = costs.cost(uint32_t(p), k);
        best_.resize(n);
        for (size_t p = 0; p < n; p++) best_[p] = cheapest(unary(p));
        contested_.assign(n, 0);
        edges.resize(edge_slots(costs));
        costs.for_each_edge([&](uint32_t, uint32_t, float w, uint32_t e) { edges[e].cost = w; });
        scratch_.resize(size_t(stride_) * 3);
    }

    // Costs and messages of the edges, by edge index; cycle packing works on them.
    std::vector<DualEdge> edges;

    // One update of every edge that can matter, in the order of the indices.
    void sweep() {
        costs_.for_each_edge([&](uint32_t p, uint32_t q, float, uint32_t e) {
            DualEdge& edge = edges[e];
            if (edge.cost > 0) attract(p, q, edge);
            if (edge.cost < 0) repel(p, q, edge);
        });
    }

    // The bound as the sweeps see it, in their rounding.
    double value() const {
        double sum = 0;
        for (size_t p = 0; p < best_.size(); p++) sum += unary(p)[best_[p]];
        for (const DualEdge& edge : edges)
            if (edge.cost < 0) sum += double(edge.cost) - edge.used;
        return sum;
    }

    // The bound that is proven; four classes at a time, so that doubles need little memory.
    double evaluate() const {
        const size_t n = best_.size();
        std::vector<double> u(n * kLanes), least(n, INFINITY);
        double magnitude = 0, sum = 0;
        for (int first = 0; first < costs_.K; first += kLanes) {
            const int classes = std::min(kLanes, costs_.K - first);
            for (size_t p = 0; p < n; p++)
                for (int k = 0; k < classes; k++)
                    u[p * kLanes + k] = costs_.cost(uint32_t(p), first + k);
            costs_.for_each_edge([&](uint32_t p, uint32_t q, float, uint32_t e) {
                const DualEdge& edge = edges[e];
                if (!(edge.used > 0)) return;
                double *up = &u[p * kLanes], *uq = &u[q * kLanes];
                const double used = std::min<double>(edge.used, std::fabs(edge.cost));
                if (edge.cost > 0) {
                    const uint8_t* f = message(edge.slot) + first;
                    for (int k = 0; k < classes; k++) {
                        up[k] += used / 255 * f[k];
                        uq[k] -= used / 255 * f[k];
                    }
                } else if (edge.slot >= first && edge.slot < first + classes) {
                    up[edge.slot - first] += used;
                    uq[edge.slot - first] += used;
                }
            });
            for (size_t p = 0; p < n; p++)
                for (int k = 0; k < classes; k++) least[p] = std::min(least[p], u[p * kLanes + k]);
        }
        for (size_t p = 0; p < n; p++) sum += least[p], magnitude += std::fabs(least[p]);
        costs_.for_each_edge([&](uint32_t, uint32_t, float w, uint32_t e) {
            const DualEdge& edge = edges[e];
            magnitude += std::fabs(double(w));
            if (edge.cost < 0) sum += edge.cost;
            if (edge.cost < 0 && edge.used > 0) sum -= std::min(edge.used, -edge.cost);
        });
        // n additions in double precision lose at most n 2^-53 of the terms' magnitude, and the
        // terms are themselves sums of few.
        const double bound = sum - magnitude * 0x1p-52 * (32.0 + std::sqrt(double(n + edges.size())));
        return std::isfinite(bound) ? bound : trivial();
    }

private:
    // The bound without messages and cycles, where those overflow.
    double trivial() const {
        double sum = 0, magnitude = 0;
        for (size_t p = 0; p < best_.size(); p++) {
            double least = INFINITY;
            for (int k = 0; k < costs_.K; k++)
                least = std::min(least, double(costs_.cost(uint32_t(p), k)));
            sum += least, magnitude += std::fabs(least);
        }
        costs_.for_each_edge([&](uint32_t, uint32_t, float w, uint32_t) {
            sum += std::min(double(w), 0.0), magnitude += std::fabs(double(w));
        });
        return sum - magnitude * 0x1p-26;
    }

    static constexpr int kLanes = 4;
    static constexpr float kAbsent = INFINITY;  // cost of the classes that pad a row
    static constexpr int kBlock = 4096;          // messages allocated at once

    const Costs& costs_;
    const uint8_t* thing_;
    const int stride_;
    std::vector<float> unary_;  // (N, stride): node costs and all messages received
    std::vector<int32_t> best_;
    std::vector<uint8_t> contested_;  // the node once disagreed with an attractive neighbour
    std::vector<std::unique_ptr<uint8_t[]>> blocks_;
    int32_t messages_ = 0;
    std::vector<float> scratch_;

    float* unary(size_t p) { return &unary_[p * stride_]; }
    const float* unary(size_t p) const { return &unary_[p * stride_]; }

    uint8_t* message(int32_t slot) const {
        return &blocks_[slot / kBlock][size_t(slot % kBlock) * stride_];
    }

    int32_t new_message() {
        if (messages_ % kBlock == 0) blocks_.emplace_back(new uint8_t[size_t(kBlock) * stride_]());
        return messages_++;
    }

    static Float4 lower(Float4 a, Float4 b) { return select(b < a, b, a); }
    static Float4 upper(Float4 a, Float4 b) { return select(b > a, b, a); }
    static float lowest(Float4 v) {
        return std::min(std::min(v[0], v[1]), std::min(v[2], v[3]));
    }

    int32_t cheapest(const float* u) const {
        int32_t best = 0;
        for (int k = 1; k < costs_.K; k++)
            if (u[k] < u[best]) best = k;
        return best;
    }

    // Lowest class of least cost, from lanes that hold the least of every fourth class.
    static int32_t pick(Float4 value, Int4 index) {
        int lane = 0;
        for (int l = 1; l < kLanes; l++)
            if (value[l] < value[lane] || (value[l] == value[lane] && index[l] < index[lane]))
                lane = l;
        return index[lane];
    }

    void attract(uint32_t p, uint32_t q, DualEdge& edge) {
        if (best_[p] != best_[q]) contested_[p] = contested_[q] = 1;
        if (edge.slot < 0) {
            if (!contested_[p] && !contested_[q]) return;
            edge.slot = new_message();
        }
        uint8_t* f = message(edge.slot);
        float *up = unary(p), *uq = unary(q);
        float *ap = &scratch_[0], *aq = ap + stride_, *balanced = aq + stride_;
        Float4 least_p = splat(INFINITY), least_q = least_p;
        const Float4 old_scale = splat(edge.used / 255);
        for (int k = 0; k < stride_; k += kLanes) {  // both ends without this edge
            const Float4 old = old_scale * Float4{float(f[k]), float(f[k + 1]), float(f[k + 2]),
                                                float(f[k + 3])};
            const Float4 vp = load(up + k) - old, vq = load(uq + k) + old;
            least_p = lower(least_p, vp);
            least_q = lower(least_q, vq);
            store(ap + k, vp);
            store(aq + k, vq);
        }
        const Float4 mp = splat(lowest(least_p)), mq = splat(lowest(least_q)), c = splat(edge.cost);
        Float4 low = splat(INFINITY), high = splat(-INFINITY);
        for (int k = 0; k < stride_; k += kLanes) {
            const Float4 v = 0.5f * (lower(load(aq + k) - mq, c) - lower(load(ap + k) - mp, c));
            low = lower(low, v);
            high = upper(high, v);
            store(balanced + k, v);
        }
        const float base = lowest(low), range = -lowest(-high) - base;
        edge.used = std::min(range, edge.cost);
        const Float4 scale = splat(edge.used / 255), start = splat(base);
        const Float4 inverse = splat(edge.used > 0 ? 255 / edge.used : 0);
        Float4 new_p = splat(INFINITY), new_q = new_p;
        Int4 index = {0, 1, 2, 3}, best_p = index, best_q = index;
        for (int k = 0; k < stride_; k += kLanes, index += kLanes) {
            const Float4 level = lower((load(balanced + k) - start) * inverse + 0.5f, splat(255.0f));
            const Int4 bits = __builtin_convertvector(level, Int4);
            for (int l = 0; l < kLanes; l++) f[k + l] = uint8_t(bits[l]);
            const Float4 now = scale * __builtin_convertvector(bits, Float4);
            const Float4 vp = load(ap + k) + now, vq = load(aq + k) - now;
            store(up + k, vp);
            store(uq + k, vq);
            best_p = select(vp < new_p, index, best_p);
            best_q = select(vq < new_q, index, best_q);
            new_p = lower(new_p, vp);
            new_q = lower(new_q, vq);
        }
        best_[p] = pick(new_p, best_p);
        best_[q] = pick(new_q, best_q);
    }

    void repel(uint32_t p, uint32_t q, DualEdge& edge) {
        if (edge.used > 0) {
            unary(p)[edge.slot] -= edge.used;
            unary(q)[edge.slot] -= edge.used;
            best_[p] = cheapest(unary(p));
            best_[q] = cheapest(unary(q));
            edge.used = 0;
        }
        const int32_t k = best_[p];
        if (k != best_[q] || thing_[k]) return;
        const float g = std::min(-edge.cost, std::min(margin(p), margin(q)));
        if (!(g > 0)) return;
        edge.slot = k;
        edge.used = g;
        unary(p)[k] += g;
        unary(q)[k] += g;
    }

    // How much the best class of p may rise before another one is as good.
    float margin(uint32_t p) {
        float* u = unary(p);
        const float own = u[best_[p]];
        u[best_[p]] = INFINITY;
        Float4 second = splat(INFINITY);
        for (int k = 0; k < stride_; k += kLanes) second = lower(second, load(u + k));
        u[best_[p]] = own;
        return lowest(second) - own;
    }
};

}  // namespace amwc
