// Neighbour lists of a graph under contraction.
//
// A cluster's list is three arrays in one block: neighbour ids, weights, edge indices (the lowest
// original edge between the two clusters, which breaks ties). Short lists are searched linearly;
// lists longer than kLinear also keep an open-addressing table id -> position.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

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
    static constexpr uint32_t kLinear = 24;

    struct List {
        uint32_t* ids;     // then capacity weights, then capacity edge indices
        uint32_t* table;   // pairs (id, position), or null
        uint32_t size, capacity;
        int8_t log2_block, log2_table;  // log2_block < 0: part of the initial block, not recycled

        float* weights() const { return reinterpret_cast<float*>(ids + capacity); }
        uint32_t* edges() const { return ids + 2 * size_t(capacity); }
    };

    std::vector<List> lists;

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
        uint32_t* block = pool_.bump(std::max<size_t>(3 * half_edges, 1));
        for (auto& list : lists) {
            list.ids = block;
            block += 3 * size_t(list.capacity);
        }
        costs.for_each_edge([&](uint32_t p, uint32_t q, float w, uint32_t e) {
            put(lists[p], q, w, e);
            put(lists[q], p, w, e);
        });
        for (auto& list : lists)
            if (list.size > kLinear) make_table(list);
    }

    uint32_t find(const List& list, uint32_t id) const {
        if (!list.table) {
            const Int4 wanted = splat(int32_t(id));
            uint32_t p = 0;
            for (; p + 8 <= list.size; p += 8) {
                const Int4 a = load(reinterpret_cast<const int32_t*>(list.ids + p)) == wanted;
                const Int4 b = load(reinterpret_cast<const int32_t*>(list.ids + p + 4)) == wanted;
                if (any(a | b)) break;
            }
            for (; p < list.size; p++)
                if (list.ids[p] == id) return p;
            return kNone;
        }
        const uint32_t mask = (1u << list.log2_table) - 1;
        for (uint32_t s = slot(list, id);; s = (s + 1) & mask) {
            if (list.table[2 * s] == id) return list.table[2 * s + 1];
            if (list.table[2 * s] == kNone) return kNone;
        }
    }

    uint32_t append(List& list, uint32_t id, float w, uint32_t e) {
        if (list.size == list.capacity) grow(list);
        const uint32_t p = list.size;
        put(list, id, w, e);
        if (list.table) table_insert(list, id, p);
        return p;
    }

    void remove(List& list, uint32_t position) {
        const uint32_t last = --list.size;
        if (list.table) table_erase(list, list.ids[position]);
        if (position == last) return;
        list.ids[position] = list.ids[last];
        list.weights()[position] = list.weights()[last];
        list.edges()[position] = list.edges()[last];
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
        touched.clear();
        const uint32_t direct = find(lists[i], j);
        if (direct != kNone) remove(lists[i], direct);
        const List gone = lists[j];
        for (uint32_t s = 0; s < gone.size; s++) {
            // The neighbours' lists are scattered over memory: fetch ahead.
            if (s + 6 < gone.size) __builtin_prefetch(&lists[gone.ids[s + 6]]);
            if (s + 3 < gone.size) {
                const List& ahead = lists[gone.ids[s + 3]];
                __builtin_prefetch(ahead.ids);
                __builtin_prefetch(ahead.ids + 16);
            }
            const uint32_t h = gone.ids[s];
            if (h == i) continue;
            float w = gone.weights()[s];
            uint32_t e = gone.edges()[s];
            const uint32_t back = find(lists[h], j);
            uint32_t at = find(lists[i], h);
            if (at == kNone) {
                at = append(lists[i], h, w, e);
                rename(lists[h], back, i);
            } else {
                w = lists[i].weights()[at] += w;
                e = lists[i].edges()[at] = std::min(lists[i].edges()[at], e);
                remove(lists[h], back);
                const uint32_t mirror = find(lists[h], i);
                lists[h].weights()[mirror] = w;
                lists[h].edges()[mirror] = e;
            }
            touched.push_back(at);
        }
        clear(lists[j]);
    }

private:
    WordPool pool_;

    static void put(List& list, uint32_t id, float w, uint32_t e) {
        const uint32_t p = list.size++;
        list.ids[p] = id;
        list.weights()[p] = w;
        list.edges()[p] = e;
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
        std::memcpy(larger.weights(), list.weights(), 4 * size_t(list.size));
        std::memcpy(larger.edges(), list.edges(), 4 * size_t(list.size));
        larger.size = list.size;
        release(list);
        list = larger;
        if (list.capacity > kLinear) make_table(list);
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
