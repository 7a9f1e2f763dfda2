// Largest first: a bucket queue of keys t >= 0 with a small heap for the bucket in work.
//
// The top 16 bits of a non-negative float grow with it, so they name 32768 buckets. Keys of lower
// buckets lie in unsorted lists and are dropped unread if they have become stale by the time
// their bucket's turn comes; only the current bucket is a heap.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace amwc {

struct Key {
    float t;
    uint32_t edge, cluster;
    // Larger t first, then the lower edge.
    bool operator<(const Key& o) const { return t < o.t || (t == o.t && edge > o.edge); }
};

class BucketQueue {
public:
    void clear() {
        head_.assign(kBuckets, kNone);
        nodes_.clear();
        heap_.clear();
        free_ = kNone;
        current_ = kBuckets;
    }

    void push(const Key& key) {
        const uint32_t b = bucket(key.t);
        if (b >= current_) {
            heap_.push_back(key);
            std::push_heap(heap_.begin(), heap_.end());
            return;
        }
        uint32_t at = free_;
        if (at != kNone) {
            free_ = nodes_[at].next;
            nodes_[at] = {key, head_[b]};
        } else {
            at = uint32_t(nodes_.size());
            nodes_.push_back({key, head_[b]});
        }
        head_[b] = at;
    }

    // Takes the largest key; false when there is none. live(key) tells which keys still count.
    template <class Live>
    bool pop(Key& key, Live live) {
        while (heap_.empty()) {
            if (!current_) return false;
            uint32_t at = head_[--current_];
            while (at != kNone) {
                Node& node = nodes_[at];
                if (live(node.key)) heap_.push_back(node.key);
                const uint32_t next = node.next;
                node.next = free_;
                free_ = at;
                at = next;
            }
            std::make_heap(heap_.begin(), heap_.end());
        }
        key = heap_.front();
        std::pop_heap(heap_.begin(), heap_.end());
        heap_.pop_back();
        return true;
    }

private:
    static constexpr uint32_t kBuckets = 32768, kNone = 0xffffffffu;
    struct Node {
        Key key;
        uint32_t next;
    };
    std::vector<uint32_t> head_;
    std::vector<Node> nodes_;
    std::vector<Key> heap_;
    uint32_t free_ = kNone, current_ = kBuckets;

    static uint32_t bucket(float t) {
        uint32_t bits;
        std::memcpy(&bits, &t, sizeof bits);
        return (bits >> 16) & (kBuckets - 1);  // the mask is for -0.0
    }
};

}  // namespace amwc
