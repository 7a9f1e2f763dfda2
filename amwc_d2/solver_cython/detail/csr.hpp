// Lists of items by row, one after the other in one array.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace amwc {

template <class Item>
class Csr {
public:
    // each(put) calls put(row, item) for every item and is run twice, to count and to fill; the items
    // of a row keep that order.
    template <class Each>
    void build(size_t rows, Each each) {
        begin_.assign(rows + 2, 0);
        each([&](size_t row, const Item&) { begin_[row + 2]++; });
        for (size_t r = 0; r < rows; r++) begin_[r + 2] += begin_[r + 1];
        items_.resize(begin_[rows + 1]);
        each([&](size_t row, const Item& item) { items_[begin_[row + 1]++] = item; });
    }

    // The items of a row are those from begin(row) on and before end(row).
    size_t begin(size_t row) const { return begin_[row]; }
    size_t end(size_t row) const { return begin_[row + 1]; }
    size_t count(size_t row) const { return end(row) - begin(row); }
    const Item& operator[](size_t i) const { return items_[i]; }

private:
    std::vector<size_t> begin_;
    std::vector<Item> items_;
};

}  // namespace amwc
