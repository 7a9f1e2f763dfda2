// Sums by cluster.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "simd.hpp"

namespace amwc {

// Sums by cluster id. Each has four lanes: additions in turn to one and the same wait for each other,
// and neighbours mostly are of one cluster.
class Sums {
public:
    // Room for ids below n.
    void resize(size_t n) {
        if (known_.size() >= n) return;
        cells_.resize(4 * n, 0.0f);
        known_.resize(n, 0);
        seen_.resize(n + 1);
    }
    void clear() {
        for (int32_t id : *this) {
            known_[size_t(id)] = 0;
            store(&cells_[4 * size_t(id)], splat(0.0f));
        }
        count_ = 0;
    }
    void add(int32_t id, float w) {
        see(id);
        cells_[4 * size_t(id)] += w;
    }
    // Adds weights to the sums of their ids.
    void add(const int32_t* ids, const float* w, int count) {
        float* const cells = cells_.data();
        int32_t* const seen = seen_.data();
        uint8_t* const known = known_.data();
        size_t n = count_;
        // In short runs it cannot be foretold which ids are new; in long ones few are.
        if (count < 8)
            for (int i = 0; i < count; i++) {
                const size_t id = size_t(ids[i]);
                seen[n] = ids[i];
                n += 1u - known[id];
                known[id] = 1;
                cells[4 * id + (i & 3)] += w[i];
            }
        else
            for (int i = 0; i < count; i++) {
                const size_t id = size_t(ids[i]);
                if (!known[id]) {
                    seen[n++] = ids[i];
                    known[id] = 1;
                }
                cells[4 * id + (i & 3)] += w[i];
            }
        count_ = n;
    }
    // The same for four rows of four, stride apart.
    void add_square(const int32_t* ids, const float* w, size_t stride) {
        const Int4 wanted = splat(*ids);
        Int4 same = splat(-1);
        for (int i = 0; i < 4; i++) same &= load(ids + i * stride) == wanted;
        if (!all(same)) {
            for (int i = 0; i < 4; i++) add(ids + i * stride, w + i * stride, 4);
            return;
        }
        see(*ids);
        float* const cell = &cells_[4 * size_t(*ids)];
        Float4 sum = load(cell);
        for (int i = 0; i < 4; i++) sum += load(w + i * stride);
        store(cell, sum);
    }
    float operator[](int32_t id) const { return total(load(&cells_[4 * size_t(id)])); }
    // The ids added to, in order.
    const int32_t* begin() const { return seen_.data(); }
    const int32_t* end() const { return seen_.data() + count_; }

private:
    std::vector<float> cells_;    // four lanes an id, zero but for the ids seen
    std::vector<uint8_t> known_;  // whether an id is among those seen
    std::vector<int32_t> seen_;
    size_t count_ = 0;

    void see(int32_t id) {
        seen_[count_] = id;
        count_ += 1u - known_[size_t(id)];
        known_[size_t(id)] = 1;
    }
};

}  // namespace amwc
