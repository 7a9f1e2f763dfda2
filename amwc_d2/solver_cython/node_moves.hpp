// Node moves: one node at a time goes to the cluster that lowers the objective most.
//
// Each node carries a slack, a lower bound on how far every move of it is from paying off:
//     slack <= [attraction to its own cluster] - [attraction to any other] - [node cost saved].
// The first bound counts all attraction to other clusters as if it came from one, so it needs no
// lists of candidates and is computed row by row with vector instructions. Only nodes of negative
// slack are evaluated, and a move lowers the slack of its neighbours by what it can have changed,
// so that after the first pass only nodes near a change are looked at again. Every move is
// evaluated on the current labelling: the objective falls with each one, and the result is that of
// a sequential sweep, whatever the instruction set.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <vector>

#include "detail/arcs.hpp"
#include "detail/changes.hpp"
#include "detail/grid.hpp"
#include "detail/labelling.hpp"
#include "detail/simd.hpp"

namespace amwc {

class NodeMoves {
public:
    Changes changes;
    std::function<void()> check = [] {};  // called now and then; may throw

    // home[k]: cluster that a node may always join because it likes class k best, or -1. thorough:
    // the slack also bounds moves to clusters that are no neighbours yet, so that when nothing moves
    // any more a first sweep would not either.
    void start(const Grid& g, Labelling& l, const int32_t* home, bool thorough) {
        z_ = l.z;
        labelling_ = &l;
        class_of_ = l.class_of.data();
        cheapest_ = l.cheapest;
        home_ = home;
        epsilon_ = l.epsilon;
        thorough_ = thorough;
        kinds_ = size_t(g.K);
        founds_ = !thorough && std::any_of(l.thing, l.thing + g.K, [](uint8_t t) { return t; });
        slack_.assign(g.pixels(), 0.0f);
        term_.resize(g.W);
        stale_.clear();
        changes.start(g.pixels());
        arcs_.build(g);
        label_.resize(arcs_.pairs());
        rest_.resize(arcs_.pairs());
        pull_.resize(arcs_.pairs());
        awake_.assign(g.pixels() / kBlock + 1, 0);
    }

    // The first sweep: bounds a row and moves its nodes while their costs are in the cache. Later
    // rows see the moves of earlier ones, and their own bounds are computed after them.
    size_t first_sweep(const Grid& g) {
        size_t moves = 0;
        ahead_ = Int4{0, -1, 0, -1};  // those that come later
        for (int y = 0; y < g.H; y++) {
            if (y % 64 == 63) check();
            bound(g, y);
            moves += sweep(g, uint32_t(y) * g.W, uint32_t(y + 1) * g.W);
        }
        ahead_ = splat(0);
        return moves;
    }

    // Sweeps until nothing moves, at most max_sweeps times; returns the number of moves.
    size_t run(const Grid& g, int max_sweeps) {
        bound_stale(g);
        size_t total = 0;
        for (int i = 0; i < max_sweeps; i++) {
            const size_t moves = sweep(g);
            total += moves;
            if (!moves) break;
        }
        return total;
    }

    // Sweeps as if a pixel were worth level(c) times bias more in cluster c: thing clusters grow or
    // shrink. Afterwards the slacks are those of the true costs again, and the pixels that moved are
    // to be evaluated.
    void push(const Grid& g, float bias, uint32_t seed, int sweeps) {
        bound_stale(g);
        true_slack_ = slack_;
        bias_ = bias;
        seed_ = seed;
        most_bias_ = std::max(bias, -0.5f * bias);  // levels are in [-1/2, 1]
        for (size_t p = 0; p < slack_.size(); p++) slack_[p] -= most_bias_ - bias * level(z_[p]);
        std::fill(awake_.begin(), awake_.end(), 1);
        pushed_ = true;
        run(g, sweeps);
        pushed_ = false;
        bias_ = most_bias_ = 0;
        slack_.swap(true_slack_);
        std::fill(awake_.begin(), awake_.end(), 1);
    }

    // The slacks, to be put back together with the labelling they belong to.
    const std::vector<float>& slacks() const { return slack_; }
    void restore(const std::vector<float>& slacks) { slack_ = slacks; }

    // After the class of p's cluster changed: p is looked at again.
    void changed(uint32_t p) {
        stale_.push_back(p);
        changes.add(p);
    }

    // After another label became the cheapest of p.
    void renewed(const Grid& g, uint32_t p) {
        stale_.push_back(p);
        changes.mark(g, p);
    }

    // Moves p and lowers the slack of its neighbours by what they may have gained.
    void apply(const Grid& g, uint32_t p, int32_t to) {
        shift(p, to, look(g, p));
        stale_.push_back(p);
    }

    // Moves a run of pixels of one cluster that moves with its piece.
    void apply_run(const Grid& g, uint32_t p, uint32_t length, int32_t to) {
        const Int4 from4 = splat(z_[p]), to4 = splat(to);
        g.for_each_run_of_neighbours(p, int(length), [&](uint32_t q, const float* w, int count) {
            int i = 0;
            for (; i + 4 <= count; i += 4) {
                const Float4 drop = spent(load(z_ + q + i), from4, to4, load(w + i), splat(0));
                store(&slack_[q + i], load(&slack_[q + i]) - drop);
            }
            for (; i < count; i++)
                slack_[q + i] -= spent(splat(z_[q + i]), from4, to4, splat(w[i]), splat(0))[0];
            for (uint32_t b = q / kBlock; b <= (q + count - 1) / kBlock; b++) awake_[b] = 1;
        });
        std::fill_n(z_ + p, length, to);
        for (uint32_t i = p; i < p + length; i++) changed(i);
    }

    // A lower bound on what any move of p costs, of no use before p's own last move is bounded.
    float slack(uint32_t p) const { return slack_[p]; }

    // After clusters were added.
    void grow(const std::vector<int32_t>& class_of) { class_of_ = class_of.data(); }

private:
    static constexpr uint32_t kBlock = 64;

    int32_t* z_ = nullptr;
    Labelling* labelling_ = nullptr;
    const int32_t *class_of_ = nullptr, *cheapest_ = nullptr, *home_ = nullptr;
    float epsilon_ = 0;
    bool thorough_ = false, founds_ = false;
    size_t kinds_ = 0;  // K
    bool pushed_ = false;
    float bias_ = 0, most_bias_ = 0;
    uint32_t seed_ = 0;
    // Things in [1/2, 1], stuff in [-1/2, 0]; a hash tells apart those of a kind.
    float level(int32_t c) const {
        const float hash = 0.5f * float((uint32_t(c) * seed_) >> 16) / 65536.0f;
        return size_t(c) < kinds_ ? -hash : 0.5f + hash;
    }
    float bias(int32_t c) const { return bias_ * level(c); }
    std::vector<float> slack_, term_, true_slack_;
    std::vector<uint32_t> stale_;  // nodes whose slack is to be bounded anew
    std::vector<uint8_t> awake_;   // blocks of nodes that may hold a negative slack
    Arcs arcs_;
    Int4 ahead_ = splat(0);  // the neighbours whose slack is still the first bound

    // The node looked at: for each pair of layers the clusters of its four neighbours (-1 where there
    // is none) and the weights to them, and those clusters that are still to be dealt with.
    std::vector<Int4> label_, rest_;
    std::vector<Float4> pull_;
    struct Look {
        Arcs::Zone zone;
        float own, others;  // pull of its own cluster, attraction to all others
    };

    // Gathers the surroundings of p. Its own cluster is dealt with.
    Look look(const Grid& g, uint32_t p) {
        const uint32_t width = uint32_t(g.W);
        const Arcs::Zone zone = arcs_.at(int(p / width), int(p % width));
        const int32_t* z = z_ + p;
        const float* e = g.edge + p;
        const Int4 from = splat(*z);
        Int4 *const label = label_.data(), *const rest = rest_.data();
        Float4 *const pull = pull_.data(), own = splat(0.0f), others = own;
        for (size_t d = 0, pairs = arcs_.pairs(); d < pairs; d++) {
            const Arcs::Arc* a = zone.arcs + 4 * d;
            const Int4 missing = zone.missing[d];
            const Int4 there = {z[a[0].node], z[a[1].node], z[a[2].node], z[a[3].node]};
            const Float4 weight = {e[a[0].edge], e[a[1].edge], e[a[2].edge], e[a[3].edge]};
            const Int4 done = missing | (there == from);
            label[d] = there | missing;
            rest[d] = there | done;
            pull[d] = drop(missing, weight);
            own += keep(done, pull[d]);
            others += drop(done, higher(weight, splat(0.0f)));
        }
        return {zone, total(own), total(others)};
    }

    // Moves p, which was looked at, and lowers the slack of its neighbours.
    void shift(uint32_t p, int32_t to, const Look& here) {
        const Int4 from4 = splat(z_[p]), to4 = splat(to);
        const auto lower_slack = [&](const Arcs::Arc& a, float drop) {
            const uint32_t q = p + a.node;
            slack_[q] -= drop;
            awake_[q / kBlock] = 1;
            if (pushed_) true_slack_[q] -= drop;
        };
        for (size_t d = 0; d < pull_.size(); d++) {
            const Float4 drop = spent(label_[d], from4, to4, pull_[d], ahead_);
            for (int i = 0; i < 4; i++) lower_slack(here.zone.arcs[4 * d + i], drop[i]);
        }
        z_[p] = to;
        changes.add(p);
        if (pushed_) true_slack_[p] = -1;  // to be evaluated
    }

    // What nodes of clusters z may lose of their slack when a neighbour moves. Those whose slack is
    // the first bound lose nothing to attraction that passes from one other cluster to another.
    static Float4 spent(Int4 z, Int4 from, Int4 to, Float4 w, Int4 first) {
        const Float4 up = higher(w, splat(0.0f)), passed = drop(first, higher(w, -w));
        return select(z == to, passed - up - w, select(z == from, up + w, passed));
    }

    struct Pull {
        float sum, attraction;  // of all edges, and of those that attract
    };

    // The pull of a cluster, none of whose edges are of the first distances. It is then dealt with.
    Pull pull_of(int32_t c, size_t first) {
        const Int4 wanted = splat(c);
        Float4 sum = splat(0.0f), attraction = sum;
        Int4* const rest = rest_.data();
        const Float4* const pull = pull_.data();
        for (size_t d = first, D = rest_.size(); d < D; d++) {
            const Int4 same = rest[d] == wanted;
            const Float4 w = keep(same, pull[d]);
            sum += w;
            attraction += higher(w, splat(0.0f));
            rest[d] |= same;
        }
        return {total(sum), total(attraction)};
    }

    // Moves p to the cluster where it is worth most, if that is not its own.
    bool evaluate(const Grid& g, uint32_t p) {
        const int32_t from = z_[p], home = home_[cheapest_[p]];
        const Look here = look(g, p);
        const float stay = here.own - g.cost(p, class_of_[from]) + bias(from);
        const float lowest = g.cost(p, cheapest_[p]) - most_bias_;
        float best = -std::numeric_limits<float>::infinity(), second = best;
        int32_t to = from;
        // Costs of other classes lie far apart in memory: those that cannot matter are not read.
        const auto consider = [&](int32_t c, float pull) {
            if (pull - lowest < std::max(second, std::min(best, stay))) return;
            const float value = pull - g.cost(p, class_of_[c]) + bias(c);
            if (value > best || (value == best && c < to)) {
                second = best;
                best = value;
                to = c;
            } else {
                second = std::max(second, value);
            }
        };
        // Nearest clusters first, until no other can attract p enough.
        float others = here.others;
        bool at_home = home < 0 || home == from, founded = false;
        for (size_t d = 0; d < rest_.size(); d++)
            while (const unsigned left = 15 & ~negative(rest_[d])) {
                if (others - lowest < std::max(best, stay)) goto settled;
                const int32_t c = rest_[d][__builtin_ctz(left)];
                const Pull pull = pull_of(c, d);
                others -= pull.attraction;
                consider(c, pull.sum);
                at_home |= c == home;
            }
        if (!at_home) consider(home, 0.0f);
        if (founds_ && -lowest > std::max(best, stay)) founded = found(g, p, best, second, to);
        others = 0;
    settled:
        second = std::max(second, others - lowest);
        const bool moves = best > stay + epsilon_;
        if (founded && moves) begin_cluster(g, p);
        if (moves) shift(p, to, here);
        slack_[p] = moves ? best - std::max(second, stay) : std::max(stay - std::max(best, second), 0.0f);
        if (thorough_) slack_[p] = std::min(slack_[p], std::max(best, stay) + lowest);
        return moves;
    }

    // Considers a cluster of its own for p: nothing pulls it there.
    bool found(const Grid& g, uint32_t p, float& best, float& second, int32_t& to) const {
        const float value = -g.cost(p, cheapest_thing(g, p)) + bias(int32_t(labelling_->class_of.size()));
        if (!(value > best)) {
            second = std::max(second, value);
            return false;
        }
        second = best;
        best = value;
        to = int32_t(labelling_->class_of.size());
        return true;
    }

    void begin_cluster(const Grid& g, uint32_t p) {
        labelling_->class_of.push_back(cheapest_thing(g, p));
        class_of_ = labelling_->class_of.data();
    }

    int32_t cheapest_thing(const Grid& g, uint32_t p) const {
        const uint8_t* const thing = labelling_->thing;
        int32_t best = cheapest_[p];
        if (thing[best]) return best;
        bool any = false;
        for (int32_t k = 0; k < g.K; k++)
            if (thing[k] && (!any || g.cost(p, k) < g.cost(p, best))) best = k, any = true;
        return best;
    }

    size_t sweep(const Grid& g) {
        size_t moves = 0;
        for (uint32_t b = 0; b < awake_.size(); b++) {
            if (b % 2048 == 2047) check();
            if (!awake_[b]) continue;
            awake_[b] = 0;
            moves += sweep(g, b * kBlock, std::min((b + 1) * kBlock, uint32_t(g.pixels())));
        }
        return moves;
    }

    // Evaluates the nodes of negative slack in order.
    size_t sweep(const Grid& g, uint32_t begin, uint32_t end) {
        size_t moves = 0;
        for (uint32_t p = begin; p < end;) {
            if (p + 16 <= end && none_negative(&slack_[p])) {
                p += 16;
                continue;
            }
            for (const uint32_t stop = std::min(p + 16, end); p < stop; p++)
                if (slack_[p] < 0) moves += evaluate(g, p);
        }
        return moves;
    }

    // No sign bit among 16 values.
    static bool none_negative(const float* s) {
        uint64_t words[8];
        std::memcpy(words, s, sizeof words);
        uint64_t bits = 0;
        for (uint64_t word : words) bits |= word;
        return !(bits & 0x8000000080000000u);
    }

    void saved(const Grid& g, uint32_t p) {
        if (g.linked(p)) {  // stays where it is
            slack_[p] = std::numeric_limits<float>::infinity();
            return;
        }
        if (z_[p] == cheapest_[p]) return;  // stuff that likes its class best
        const int32_t k = class_of_[z_[p]];
        if (k != cheapest_[p]) slack_[p] -= g.cost(p, k) - g.cost(p, cheapest_[p]);
    }

    void bound_stale(const Grid& g) {
        for (uint32_t p : stale_) bound_one(g, p);
        stale_.clear();
    }

    void bound_one(const Grid& g, uint32_t p) {
        const Look here = look(g, p);
        slack_[p] = here.own - here.others;
        saved(g, p);
        awake_[p / kBlock] = 1;
    }

    // The first bound of a row. Its edges are counted for both their ends, those up by the rows above.
    void bound(const Grid& g, int y) {
        const auto add = [&](size_t p, size_t q, const float* w, int count) {
            const int32_t *a = z_ + p, *b = z_ + q;
            float *const near = &slack_[p], *const far = &slack_[q], *const term = term_.data();
            const bool apart = q >= p + count;  // no pixel is an end of two of them, as of those down
            int x = 0;
            for (; x + 4 <= count; x += 4) {
                const Float4 t = bound(load(a + x), load(b + x), load(w + x));
                store(near + x, load(near + x) + t);
                if (apart) store(far + x, load(far + x) + t);
                else store(term + x, t);
            }
            const int done = apart ? x : 0;
            for (; x < count; x++) near[x] += term[x] = bound(a[x], b[x], w[x]);
            for (x = done; x < count; x++) far[x] += term[x];
        };
        g.for_each_row_at(y, add);
        for (uint32_t p = uint32_t(y) * g.W, end = p + g.W; p < end; p++) saved(g, p);
    }

    // What an edge adds to the slack: w where z and zq agree, -max(w, 0) elsewhere.
    static Float4 bound(Int4 z, Int4 zq, Float4 w) {
        return select(z == zq, w, lower(-w, splat(0.0f)));
    }
    static float bound(int32_t z, int32_t zq, float w) { return z == zq ? w : std::min(-w, 0.0f); }
};

}  // namespace amwc
