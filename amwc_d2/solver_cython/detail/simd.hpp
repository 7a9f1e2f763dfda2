// Four lanes of float or int32 by the vector extensions of gcc and clang: SSE2 on x86-64 and NEON on
// aarch64 are part of the baseline, so the same source gives the same bits on both.
#pragma once

#include <cstdint>
#include <cstring>

namespace amwc {

typedef float Float4 __attribute__((vector_size(16)));
typedef int32_t Int4 __attribute__((vector_size(16)));
typedef float Float2 __attribute__((vector_size(8)));
typedef double Double2 __attribute__((vector_size(16)));

inline Float4 load(const float* p) {
    Float4 v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
inline Int4 load(const int32_t* p) {
    Int4 v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
inline void store(float* p, Float4 v) { std::memcpy(p, &v, sizeof v); }
inline void store(int32_t* p, Int4 v) { std::memcpy(p, &v, sizeof v); }
inline Float4 splat(float v) { return Float4{v, v, v, v}; }
inline Int4 splat(int32_t v) { return Int4{v, v, v, v}; }

// Lanes of a where the mask (all ones or all zeros) is set, of b elsewhere.
inline Float4 select(Int4 mask, Float4 a, Float4 b) {
    return (Float4)((mask & (Int4)a) | (~mask & (Int4)b));
}
inline Int4 select(Int4 mask, Int4 a, Int4 b) { return (mask & a) | (~mask & b); }
inline Float4 lower(Float4 a, Float4 b) { return a < b ? a : b; }
inline Float4 higher(Float4 a, Float4 b) { return a > b ? a : b; }
inline float total(Float4 v) { return (v[0] + v[1]) + (v[2] + v[3]); }
inline Float4 keep(Int4 mask, Float4 a) { return (Float4)(mask & (Int4)a); }
inline Float4 drop(Int4 mask, Float4 a) { return (Float4)(~mask & (Int4)a); }

// Bit i: whether lane i is negative.
inline unsigned negative(Int4 v) {
#ifdef __SSE2__
    return unsigned(__builtin_ia32_movmskps((Float4)v));
#else
    const Int4 bit = (v < 0) & Int4{1, 2, 4, 8};
    uint64_t words[2];
    std::memcpy(words, &bit, sizeof bit);
    words[0] |= words[1];
    return unsigned(words[0] | words[0] >> 32);
#endif
}

inline bool any(Int4 mask) {
    uint64_t words[2];
    std::memcpy(words, &mask, sizeof mask);
    return words[0] | words[1];
}

inline bool all(Int4 mask) { return negative(mask) == 15; }

// The bits of all lanes together.
inline uint32_t sideways_or(Int4 v) {
    uint64_t words[2];
    std::memcpy(words, &v, sizeof v);
    words[0] |= words[1];
    return uint32_t(words[0] | words[0] >> 32);
}

// A sum in double precision, in four interleaved partial sums.
class DoubleSum {
public:
    void add(Float4 v) {
        Float2 half[2];
        std::memcpy(half, &v, sizeof v);
        low_ += __builtin_convertvector(half[0], Double2);
        high_ += __builtin_convertvector(half[1], Double2);
    }
    void add(float v) { low_ += Double2{v, 0}; }
    void add(const float* values, uint32_t count) {
        DoubleSum sum = *this;
        uint32_t i = 0;
        for (; i + 4 <= count; i += 4) sum.add(load(values + i));
        for (; i < count; i++) sum.add(values[i]);
        *this = sum;
    }
    void add(const DoubleSum& sum) { low_ += sum.low_, high_ += sum.high_; }
    double value() const { return (low_[0] + low_[1]) + (high_[0] + high_[1]); }

private:
    Double2 low_ = {0, 0}, high_ = {0, 0};
};

}  // namespace amwc
