// A graph of pieces: node costs of some classes, and edges.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

namespace amwc {

struct Quotient {
    size_t N = 0;
    int K = 0;
    std::vector<float> node, weight;  // node: (N, K)
    std::vector<uint32_t> from, to;
    std::vector<std::pair<uint32_t, uint32_t>> joined, apart;  // links of cost +inf, -inf

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
    template <class F>
    void for_each_link(F f) const {
        constexpr float kInfinity = std::numeric_limits<float>::infinity();
        uint32_t e = uint32_t(from.size());
        for (const auto& [a, b] : joined) f(a, b, kInfinity, e++);
        for (const auto& [a, b] : apart) f(a, b, -kInfinity, e++);
    }
};

}  // namespace amwc
