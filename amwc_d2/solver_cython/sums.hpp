// Sums by cluster.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "simd.hpp"

namespace amwc {

// Sums by cluster id that are cleared in O(1). Each has four lanes: additions in turn to one and the
// same wait for each other, and neighbours mostly are of one cluster.
class Sums {
public:
    // Room for ids below n.
    void resize(size_t n) {
        if (tick_of_.size() < n) {
            cells_.resize(4 * n);
            tick_of_.resize(n, 0);
        }
    }
    void clear() {
        seen_.clear();
        if (++tick_ == 0) {
            std::fill(tick_of_.begin(), tick_of_.end(), 0u);
            tick_ = 1;
        }
    }
    void add(int32_t id, float w) {
        if (__builtin_expect(tick_of_[size_t(id)] != tick_, 0)) start(id);
        cells_[4 * size_t(id)] += w;
    }
    // Adds weights to the sums of their ids.
    void add(const int32_t* ids, const float* w, int count) {
        const uint32_t *const tick_of = tick_of_.data(), tick = tick_;
        float* const cells = cells_.data();
        const auto step = [&](int i, int lane) {
            const size_t id = size_t(ids[i]);
            if (__builtin_expect(tick_of[id] != tick, 0)) start(int32_t(id));
            cells[4 * id + lane] += w[i];
        };
        int i = 0;
        for (; i + 4 <= count; i += 4)
            for (int lane = 0; lane < 4; lane++) step(i + lane, lane);
        for (int lane = 0; i < count; i++) step(i, lane++);
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
        const size_t id = size_t(*ids);
        if (__builtin_expect(tick_of_[id] != tick_, 0)) start(*ids);
        Float4 sum = load(&cells_[4 * id]);
        for (int i = 0; i < 4; i++) sum += load(w + i * stride);
        store(&cells_[4 * id], sum);
    }
    float operator[](int32_t id) const {
        if (tick_of_[size_t(id)] != tick_) return 0;
        return total(load(&cells_[4 * size_t(id)]));
    }
    // The ids added to, in order.
    const int32_t* begin() const { return seen_.data(); }
    const int32_t* end() const { return seen_.data() + seen_.size(); }

private:
    std::vector<float> cells_;  // four lanes an id
    std::vector<uint32_t> tick_of_;
    std::vector<int32_t> seen_;
    uint32_t tick_ = 0;

    __attribute__((noinline)) void start(int32_t id) {
        tick_of_[size_t(id)] = tick_;
        store(&cells_[4 * size_t(id)], splat(0.0f));
        seen_.push_back(id);
    }
};

}  // namespace amwc
