// A copy of a grid's costs with noise.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "grid.hpp"

namespace amwc {

class NoisyCopy {
public:
    // Adds uniform noise of this amplitude to every cost, and half of it, with a common sign, to all
    // costs of a class and of an edge layer. The same seed gives the same noise.
    Grid make(const Grid& g, float amplitude, int seed) {
        const size_t n = g.pixels(), layers = edge_slots(g) / n;
        node_.resize(size_t(g.K) * n);
        edge_.resize(layers * n);
        for (size_t k = 0; k < size_t(g.K); k++)
            add(g.node + k * n, &node_[k * n], n, amplitude, uint32_t(seed), uint32_t(k));
        for (size_t e = 0; e < layers; e++)
            add(g.edge + e * n, &edge_[e * n], n, amplitude, uint32_t(seed), uint32_t(g.K + e));
        Grid noisy = g;
        noisy.node = node_.data();
        noisy.edge = edge_.data();
        return noisy;
    }

private:
    std::vector<float> node_, edge_;

    static void add(const float* in, float* out, size_t n, float amplitude, uint32_t seed,
                    uint32_t layer) {
        uint32_t state = (seed + 1) * 2654435769u ^ (layer + 1) * 2246822519u;
        state = (state ^ state >> 15) * 3266489917u | 1;  // xorshift must not start at 0
        const float shift = state & 0x10000 ? 0.5f * amplitude : -0.5f * amplitude;
        const float unit = amplitude * 0x1p-31f;
        for (size_t i = 0; i < n; i++) {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            out[i] = in[i] + (shift + unit * float(int32_t(state)));
        }
    }
};

}  // namespace amwc
