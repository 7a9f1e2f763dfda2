// Neighbour lists of a graph under contraction.
//
// A cluster's list is two arrays in one block: neighbour ids, and for each the weight and the lowest
// original edge between the two clusters, which breaks ties. Short lists are searched without a
// branch; lists longer than kShort also keep an open-addressing table id -> position.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "grid.hpp"
#include "simd.hpp"

namespace amwc {

// Blocks of 2^n words, recycled by size; memory is kept for the next problem.
class WordPool {
public:
    void reset() {
        chunk_ = 0;
        used_ = 0;
        for (auto& list : free_) list.clear();
    }

    uint32_t* take(int log2) {
        if (!free_[log2].empty()) {
            uint32_t* block = free_[log2].back();
            free_[log2].pop_back();
            return block;
        }
        return bump(size_t(1) << log2);
    }

    void give(uint32_t* block, int log2) { free_[log2].push_back(block); }

    uint32_t* bump(size_t words) {
        while (chunk_ < chunks_.size() && used_ + words > chunks_[chunk_].size) {
            chunk_++;
            used_ = 0;
        }
        if (chunk_ == chunks_.size()) {
            const size_t size = std::max(words, size_t(1) << 20);
            chunks_.push_back({std::unique_ptr<uint32_t[]>(new uint32_t[size]), size});
        }
        uint32_t* block = chunks_[chunk_].words.get() + used_;
        used_ += words;
        return block;
    }

private:
    struct Chunk {
        std::unique_ptr<uint32_t[]> words;
        size_t size;
    };
    std::vector<Chunk> chunks_;
    std::vector<uint32_t*> free_[40];
    size_t chunk_ = 0, used_ = 0;
};

class Adjacency {
public:
    static constexpr uint32_t kNone = 0xffffffffu;
    static constexpr uint32_t kShort = 24;

    struct Link {
        float weight;
        uint32_t edge;
    };
    struct List {
        uint32_t* ids;    // then capacity links
        uint32_t* table;  // pairs (id, position), or null
        uint32_t size, capacity;
        int8_t log2_block, log2_table;  // log2_block < 0: part of the initial block, not recycled

        Link* links() const { return reinterpret_cast<Link*>(ids + capacity); }
    };

    std::vector<List> lists;

    // A grid is read once, pixel by pixel: in the order of the edges every list would be visited
    // for every layer.
    void build(const Grid& grid) {
        const size_t n = grid.pixels();
        pool_.reset();
        uint32_t* block = pool_.bump(3 * n * grid.most_neighbours() + kShort);
        lists.resize(n);
        links_.resize(grid.most_neighbours());
        for (uint32_t p = 0; p < n; p++) {
            uint32_t degree = 0;
            grid.for_each_arc(p, [&](uint32_t q, const float* w) {
                block[degree] = q;
                links_[degree++] = {*w, uint32_t(w - grid.edge)};
            });
            lists[p] = List{block, nullptr, degree, degree, -1, -1};
            std::copy_n(links_.data(), degree, lists[p].links());
            if (degree > kShort) make_table(lists[p]);
            block += 3 * size_t(degree);
        }
        add_links(grid);
    }

    template <class Costs>
    void build(const Costs& costs) {
        pool_.reset();
        const size_t n = costs.pixels();
        lists.assign(n, List{nullptr, nullptr, 0, 0, -1, -1});
        size_t half_edges = 0;
        costs.for_each_edge([&](uint32_t p, uint32_t q, float, uint32_t) {
            lists[p].capacity++;
            lists[q].capacity++;
            half_edges += 2;
        });
        uint32_t* block = pool_.bump(3 * half_edges + kShort);  // searches read past the end
        for (auto& list : lists) {
            list.ids = block;
            block += 3 * size_t(list.capacity);
        }
        costs.for_each_edge([&](uint32_t p, uint32_t q, float w, uint32_t e) {
            put(lists[p], q, {w, e});
            put(lists[q], p, {w, e});
        });
        for (auto& list : lists)
            if (list.size > kShort) make_table(list);
        add_links(costs);
    }

    uint32_t find(const List& list, uint32_t id) const {
        if (!list.table) return find_short(list, id);
        const uint32_t mask = (1u << list.log2_table) - 1;
        for (uint32_t s = slot(list, id);; s = (s + 1) & mask) {
            if (list.table[2 * s] == id) return list.table[2 * s + 1];
            if (list.table[2 * s] == kNone) return kNone;
        }
    }

    uint32_t append(List& list, uint32_t id, Link link) {
        if (list.size == list.capacity) grow(list);
        const uint32_t p = list.size;
        put(list, id, link);
        if (list.table) table_insert(list, id, p);
        else if (list.size > kShort) make_table(list);
        return p;
    }

    void remove(List& list, uint32_t position) {
        const uint32_t last = --list.size;
        if (list.table) table_erase(list, list.ids[position]);
        if (position == last) return;
        list.ids[position] = list.ids[last];
        list.links()[position] = list.links()[last];
        if (list.table) list.table[2 * table_slot(list, list.ids[position]) + 1] = position;
    }

    void rename(List& list, uint32_t position, uint32_t id) {
        if (list.table) {
            table_erase(list, list.ids[position]);
            table_insert(list, id, position);
        }
        list.ids[position] = id;
    }

    void clear(List& list) {
        release(list);
        list = List{nullptr, nullptr, 0, 0, -1, -1};
    }

    // Contracts j into i: parallel edges are summed, j loses all. touched = positions in i's list
    // of the neighbours that j brought or shared.
    void contract(uint32_t i, uint32_t j, std::vector<uint32_t>& touched) {
        const uint32_t direct = find(lists[i], j);
        if (direct != kNone) remove(lists[i], direct);
        const List gone = lists[j];
        touched.resize(gone.size);
        // The lists of the neighbours are scattered over memory: fetch them while i's is searched.
        for (uint32_t s = 0; s < gone.size; s++) {
            __builtin_prefetch(&lists[gone.ids[s]]);
            if (lists[i].table) __builtin_prefetch(&lists[i].table[2 * slot(lists[i], gone.ids[s])]);
        }
        for (uint32_t s = 0; s < gone.size; s++) {
            const List& list = lists[gone.ids[s]];
            __builtin_prefetch(list.ids);
            __builtin_prefetch(list.ids + 16);
            __builtin_prefetch(list.ids + list.capacity + 2 * list.size - 2);
            touched[s] = find(lists[i], gone.ids[s]);
            if (touched[s] != kNone) __builtin_prefetch(&lists[i].links()[touched[s]]);
        }
        uint32_t count = 0;
        for (uint32_t s = 0; s < gone.size; s++) {
            const uint32_t h = gone.ids[s];
            if (h == i) continue;
            uint32_t at = touched[s];
            if (at == kNone) {
                rename(lists[h], find(lists[h], j), i);
                at = append(lists[i], h, gone.links()[s]);
            } else {
                Link& link = lists[i].links()[at];
                link.weight += gone.links()[s].weight;
                link.edge = std::min(link.edge, gone.links()[s].edge);
                lists[h].links()[find(lists[h], i)] = link;
                remove(lists[h], find(lists[h], j));
            }
            touched[count++] = at;
        }
        touched.resize(count);
        clear(lists[j]);
    }

private:
    WordPool pool_;
    std::vector<Link> links_;

    // The position of an id among the first kShort, all compared at once.
    static uint32_t find_short(const List& list, uint32_t id) {
        const Int4 wanted = splat(int32_t(id)), size = splat(int32_t(list.size));
        Int4 position = {0, 1, 2, 3}, found = splat(0);
        for (uint32_t p = 0; p < kShort; p += 4) {
            const Int4 same = load(reinterpret_cast<const int32_t*>(list.ids + p)) == wanted;
            found |= same & (position < size) & ~position;
            position += 4;
        }
        return ~sideways_or(found);
    }

    template <class Costs>
    void add_links(const Costs& costs) {
        const auto add = [this](List& list, uint32_t id, float w, uint32_t e) {
            const uint32_t at = find(list, id);
            if (at == kNone) append(list, id, {w, e});
            else list.links()[at].weight += w;
        };
        costs.for_each_link([&](uint32_t p, uint32_t q, float w, uint32_t e) {
            add(lists[p], q, w, e);
            add(lists[q], p, w, e);
        });
    }

    static void put(List& list, uint32_t id, Link link) {
        const uint32_t p = list.size++;
        list.ids[p] = id;
        list.links()[p] = link;
    }

    void release(List& list) {
        if (list.log2_block >= 0) pool_.give(list.ids, list.log2_block);
        if (list.table) pool_.give(list.table, list.log2_table + 1);
    }

    void grow(List& list) {
        int log2 = 5;  // a block of 2^log2 words holds 2^log2 / 3 neighbours
        while ((1u << log2) / 3 < 2 * list.capacity) log2++;
        List larger{pool_.take(log2), nullptr, 0, (1u << log2) / 3, int8_t(log2), -1};
        std::memcpy(larger.ids, list.ids, 4 * size_t(list.size));
        std::memcpy(larger.links(), list.links(), sizeof(Link) * list.size);
        larger.size = list.size;
        release(list);
        list = larger;
        if (list.size > kShort) make_table(list);
    }

    void make_table(List& list) {
        int log2 = 5;
        while ((1u << log2) < 2 * list.capacity) log2++;
        list.log2_table = int8_t(log2);
        list.table = pool_.take(log2 + 1);
        for (uint32_t s = 0; s < (1u << log2); s++) list.table[2 * s] = kNone;
        for (uint32_t p = 0; p < list.size; p++) table_insert(list, list.ids[p], p);
    }

    static uint32_t slot(const List& list, uint32_t id) {
        return (id * 2654435769u) >> (32 - list.log2_table);
    }

    static uint32_t table_slot(const List& list, uint32_t id) {
        const uint32_t mask = (1u << list.log2_table) - 1;
        uint32_t s = slot(list, id);
        while (list.table[2 * s] != id) s = (s + 1) & mask;
        return s;
    }

    static void table_insert(List& list, uint32_t id, uint32_t position) {
        const uint32_t mask = (1u << list.log2_table) - 1;
        uint32_t s = slot(list, id);
        while (list.table[2 * s] != kNone) s = (s + 1) & mask;
        list.table[2 * s] = id;
        list.table[2 * s + 1] = position;
    }

    // Linear probing without tombstones: later entries of the run move back into the hole.
    static void table_erase(List& list, uint32_t id) {
        const uint32_t mask = (1u << list.log2_table) - 1;
        uint32_t hole = table_slot(list, id);
        for (uint32_t s = (hole + 1) & mask; list.table[2 * s] != kNone; s = (s + 1) & mask) {
            const uint32_t home = slot(list, list.table[2 * s]);
            if (((s - home) & mask) >= ((s - hole) & mask)) {
                list.table[2 * hole] = list.table[2 * s];
                list.table[2 * hole + 1] = list.table[2 * s + 1];
                hole = s;
            }
        }
        list.table[2 * hole] = kNone;
    }
};

}  // namespace amwc
