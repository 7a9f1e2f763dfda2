// From labels of cells to labels of pixels, at any output size.
//
// A pixel lies between four cells, the taps of bilinear interpolation. Where they belong to one
// segment, so does the pixel. Elsewhere it takes, of their at most four segments s, the one with the
// lowest bilinearly interpolated conditional cost
//
//     c(s, i) = c_V(class of s, i) - gamma * sum over short edges ij with j in s of c_E(ij),
//
// what it costs cell i to be in s while all others stay: no label is added, nothing is solved again.
// Pixels are visited block by block, a block being those that lie between the same four cells, so
// that the conditional costs of the at most 4 x 4 pairs are computed once, and only at boundaries.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "detail/grid.hpp"

namespace amwc {

// One axis: for every block b the pixels [first[b], first[b + 1]) lie between cells b and b + 1, the
// second tap with that weight; the last block is clamped to the last cell.
struct Taps {
    std::vector<int> first;
    std::vector<float> weight;

    // Cells of `stride` pixels of an input of length `size`, brought to `out` pixels.
    Taps(int cells, int stride, int size, int out) : first(size_t(cells) + 1), weight(out) {
        int block = 0;
        for (int i = 0; i < out; i++) {
            double at = (i + 0.5) * size / out / stride - 0.5;
            at = std::min(std::max(at, 0.0), double(cells - 1));
            const int b = int(at);
            while (block < b) first[++block] = i;
            weight[i] = float(at - b);
        }
        while (block < cells) first[++block] = out;
    }
};

constexpr int kLongest = 2;  // cells; longer edges say too little about where a boundary is

// Conditional costs of the four cells of a block in each of the segments around it.
class Block {
public:
    Block(const Grid& grid, const int32_t* classes, const int32_t* segments, float gamma)
        : grid_(grid), classes_(classes), segments_(segments), gamma_(gamma) {}

    // Computes them; the cells are (y, x), (y, x + 1), (y + 1, x), (y + 1, x + 1).
    void prepare(const size_t* cells) {
        count_ = 0;
        for (int t = 0; t < 4; t++) {
            int s = 0;
            while (s < count_ && segments_[cells[tap_[s]]] != segments_[cells[t]]) s++;
            if (s == count_) tap_[count_++] = t;
        }
        for (int t = 0; t < 4; t++) {
            float attraction[4] = {0, 0, 0, 0};
            grid_.for_each_short_edge(uint32_t(cells[t]), kLongest, [&](size_t other, float weight) {
                for (int s = 0; s < count_; s++)
                    if (segments_[other] == segments_[cells[tap_[s]]]) attraction[s] += weight;
            });
            for (int s = 0; s < count_; s++)
                cost_[s][t] = grid_.cost(uint32_t(cells[t]), classes_[cells[tap_[s]]]) -
                              gamma_ * attraction[s];
        }
    }

    // The cell (0 to 3) whose segment is cheapest at these weights of the second row and the second
    // column; of equal ones the first.
    int cheapest(float wy, float wx) const {
        int best = 0;
        float lowest = 0;
        for (int s = 0; s < count_; s++) {
            const float* c = cost_[s];
            const float above = c[0] + wx * (c[1] - c[0]), below = c[2] + wx * (c[3] - c[2]);
            const float value = above + wy * (below - above);
            if (s == 0 || value < lowest) lowest = value, best = tap_[s];
        }
        return best;
    }

private:
    Grid grid_;
    const int32_t *classes_, *segments_;
    float gamma_;
    int count_ = 0, tap_[4] = {};  // the segments around the block, each by the first of its cells
    float cost_[4][4] = {};        // [segment][cell]
};

// Fills `out_classes` and `out_segments` (height, width). `image_size` is the height and width of the
// network's input without padding, a cell of the grid holding stride x stride of its pixels.
inline void refine_labels(const Grid& grid, const int32_t* classes, const int32_t* segments,
                          float gamma, int stride, const int32_t* image_size, int height, int width,
                          int32_t* out_classes, int32_t* out_segments) {
    const Taps rows(grid.H, stride, image_size[0], height);
    const Taps columns(grid.W, stride, image_size[1], width);
    Block block(grid, classes, segments, gamma);
    for (int y = 0; y < grid.H; y++) {
        const int top = rows.first[y], bottom = rows.first[y + 1];
        if (top == bottom) continue;
        const size_t up = size_t(y) * grid.W, down = y + 1 < grid.H ? up + grid.W : up;
        auto cells_at = [&](int x, size_t* cells) {
            const int next = std::min(x + 1, grid.W - 1);
            cells[0] = up + x, cells[1] = up + next, cells[2] = down + x, cells[3] = down + next;
        };
        auto lies_in = [&](int x, int32_t segment) {
            size_t cells[4];
            cells_at(x, cells);
            return std::all_of(cells, cells + 4, [&](size_t c) { return segments[c] == segment; });
        };
        for (int x = 0, end; x < grid.W; x = end) {
            size_t cells[4];
            cells_at(x, cells);
            end = x;
            while (end < grid.W && lies_in(end, segments[cells[0]])) end++;
            const bool boundary = end == x;
            if (boundary) end++;
            const int left = columns.first[x], right = columns.first[end];
            if (left == right) continue;
            if (boundary) block.prepare(cells);
            for (int i = top; i < bottom; i++) {
                int32_t *of_class = out_classes + size_t(i) * width,
                        *of_segment = out_segments + size_t(i) * width;
                if (boundary) {
                    for (int j = left; j < right; j++) {
                        const size_t cell =
                            cells[block.cheapest(rows.weight[i], columns.weight[j])];
                        of_class[j] = classes[cell], of_segment[j] = segments[cell];
                    }
                } else {
                    std::fill(of_class + left, of_class + right, classes[cells[0]]);
                    std::fill(of_segment + left, of_segment + right, segments[cells[0]]);
                }
            }
        }
    }
}

}  // namespace amwc
