// What has to be looked at again: nodes that changed cluster, and all that have an edge to one.
//
// A move that did not pay does not pay later either as long as nothing it was weighed against has
// changed. Each kind of move remembers when it last looked and skips what has not changed since.
#pragma once

#include <cstdint>
#include <vector>

#include "grid.hpp"

namespace amwc {

class Changes {
public:
    // Forgets everything: all n nodes have changed.
    void start(size_t n) {
        moved_.clear();
        stamp_.assign(n, ++clock_);
    }

    void add(uint32_t p) { moved_.push_back(p); }

    // Marks p and the pixels beside it: it stays in its cluster, but may now move to another.
    void mark(const Grid& g, uint32_t p) {
        stamp_[p] = ++clock_;
        g.for_each_beside(p, [&](uint32_t q) { stamp_[q] = clock_; });
    }

    // Drops the nodes added so far, while none but new looks will be taken.
    void forget() { moved_.clear(); }

    // Marks the surroundings of the nodes added since the last call; returns the time.
    uint32_t mark(const Grid& g) {
        clock_++;
        for (uint32_t p : moved_) {
            stamp_[p] = clock_;
            g.for_each_beside(p, [&](uint32_t q) { stamp_[q] = clock_; });
            g.for_each_neighbour(p, [&](uint32_t q, float) { stamp_[q] = clock_; });
        }
        moved_.clear();
        return clock_;
    }

    // Whether anything has changed after a time.
    bool since(uint32_t time) const { return clock_ > time || !moved_.empty(); }

    // Whether p was marked after a time.
    bool after(uint32_t time, uint32_t p) const { return stamp_[p] > time; }

private:
    uint32_t clock_ = 0;
    std::vector<uint32_t> moved_, stamp_;
};

}  // namespace amwc
