#pragma once

#include <cstdint>
#include <vector>

namespace amwc {

// A labelling under local search. Clusters 0 .. K-1 are the stuff classes (unused for things);
// thing clusters follow. class_of grows when a piece becomes a cluster of its own.
struct Labelling {
    int32_t* z;
    std::vector<int32_t> class_of;
    const int32_t* cheapest;
    const uint8_t* thing;
    const int32_t* kind;  // classes of one kind are counted together
    float epsilon;
};

}  // namespace amwc
