#pragma once

#include <cstdint>
#include <vector>

namespace amwc {

// Thing clusters of up to this many pixels move as pieces, larger ones join.
constexpr uint32_t kTinyCluster = 2;

// A labelling under local search. Clusters 0 .. K-1 are the stuff classes (unused for things);
// thing clusters follow. class_of grows when a piece becomes a cluster of its own.
struct Labelling {
    int32_t* z;
    std::vector<int32_t> class_of;
    const int32_t* cheapest;  // class of lowest cost of every pixel
    const uint8_t* thing;
    const int32_t* kind;  // classes of one kind (labels that stand for the same class) count as one
    float scale;    // mean |edge cost|
    float epsilon;  // gains up to this are rounding
};

}  // namespace amwc
