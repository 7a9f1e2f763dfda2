// Largest first: one key a cluster, changed in place, in a tournament of 8.
//
// A key is a similarity t >= 0 and an edge, packed so that integers compare as wanted: larger t
// first, then the lower edge. Every group of 8 keys (a cache line) sends its largest up a level.
// A key that rises stops at the first group that holds a larger one, most often at once; after
// other changes groups are looked at again until one has not changed.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

namespace amwc {

class Tournament {
public:
    static constexpr uint64_t kNone = 0;  // below every key

    static uint64_t pack(float t, uint32_t edge) {
        t += 0.0f;  // -0 becomes 0
        uint32_t bits;
        std::memcpy(&bits, &t, sizeof bits);
        return uint64_t(bits) << 32 | ~edge;
    }
    static float similarity(uint64_t key) {
        const uint32_t bits = uint32_t(key >> 32);
        float t;
        std::memcpy(&t, &bits, sizeof t);
        return t;
    }

    void reset(size_t n) {
        levels_ = 0;
        n = std::max<size_t>(n, 1);
        size_t total = 0, begin[kLevels];
        do {
            n = (n + kGroup - 1) / kGroup * kGroup;
            begin[levels_++] = total;
            total += n;
            n /= kGroup;
        } while (n > 1);
        keys_.assign(total + kGroup, kNone);
        const size_t line = reinterpret_cast<uintptr_t>(keys_.data()) / sizeof(uint64_t) % kGroup;
        for (int l = 0; l < levels_; l++) level_[l] = &keys_[(kGroup - line) % kGroup + begin[l]];
    }

    uint64_t key(uint32_t c) const { return level_[0][c]; }

    void prefetch(uint32_t c) const { __builtin_prefetch(&level_[0][c]); }

    // Sets the key of c, which was lower.
    void raise(uint32_t c, uint64_t key) {
        level_[0][c] = key;
        for (int l = 1; l < levels_; l++) {
            c /= kGroup;
            if (level_[l][c] >= key) break;
            level_[l][c] = key;
        }
    }

    // Sets the key of c.
    void set(uint32_t c, uint64_t key) {
        level_[0][c] = key;
        for (int l = 1; l < levels_; l++) {
            c /= kGroup;
            const uint64_t largest = best(&level_[l - 1][c * kGroup]);
            if (level_[l][c] == largest) break;
            level_[l][c] = largest;
        }
    }

    // The cluster of the largest key; false when there is none.
    bool top(uint32_t& c) const {
        const uint64_t key = best(level_[levels_ - 1]);
        if (key == kNone) return false;
        c = 0;
        for (int l = levels_ - 1; l >= 0; l--)
            for (c *= kGroup; level_[l][c] != key;) c++;
        return true;
    }

private:
    static constexpr int kGroup = 8, kLevels = 12;
    std::vector<uint64_t> keys_;
    uint64_t* level_[kLevels];
    int levels_ = 0;

    static uint64_t best(const uint64_t* group) {
        uint64_t pair[4];
        for (int i = 0; i < 4; i++) pair[i] = std::max(group[i], group[i + 4]);
        return std::max(std::max(pair[0], pair[1]), std::max(pair[2], pair[3]));
    }
};

}  // namespace amwc
