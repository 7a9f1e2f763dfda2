// The region graph in the page: corrections, and what the energy says about a labelling.
// It is corrections.py and, below `correct`, energies.py, step for step: a test holds them together.
//
// graph: partitionable[K], class_costs[P][K], areas[P], pairs[E][2] (i <= j; (i, i): the edges
// inside a piece), attraction, repulsion, edges: [E][D], classes[P], segments[P].
// Shape shorthand: K classes, D distances, P pieces, E pairs of pieces.
"use strict";

const NUMBER_OF_PIECES = { merge: 2, split: null, class: 1, carve: 1 };

class GraphState {
  constructor(graph, classOffsets, distanceOffsets) {
    this.graph = graph;
    this.thing = graph.partitionable;
    this.classCosts = graph.class_costs.map((costs, p) =>
      costs.map((cost, k) => cost + graph.areas[p] * classOffsets[k]));
    this.pairCosts = graph.pairs.map((_, e) => {
      let sum = 0;
      for (let d = 0; d < distanceOffsets.length; d++)
        sum += graph.attraction[e][d] + graph.repulsion[e][d] + graph.edges[e][d] * distanceOffsets[d];
      return sum;
    });
    this.classes = graph.classes.slice();
    this.segments = graph.segments.slice();
    this.fixed = graph.classes.map(() => -1); // class given by hand
    this.normalise();
  }

  // A stuff class k is segment k; a thing is segment K + its first piece.
  normalise() {
    const first = new Map();
    this.segments.forEach((s, p) => first.has(s) || first.set(s, p));
    this.segments = this.segments.map((s, p) =>
      this.thing[this.classes[p]] ? this.thing.length + first.get(s) : this.classes[p]);
  }

  numbered() {
    const number = new Map();
    return this.segments.map((s) => {
      if (!number.has(s)) number.set(s, number.size);
      return number.get(s);
    });
  }

  members(segment) {
    const found = [];
    this.segments.forEach((s, p) => s === segment && found.push(p));
    return found;
  }

  objective(classes = this.classes, segments = this.segments) {
    let value = 0;
    classes.forEach((k, p) => (value += this.classCosts[p][k]));
    this.graph.pairs.forEach(([i, j], e) => {
      if (segments[i] !== segments[j]) value += this.pairCosts[e];
    });
    return value;
  }

  solveAgain() {
    const { classes, segments } = greedy(this.classCosts, this.graph.pairs, this.pairCosts, this.thing);
    if (this.objective(classes, segments) < this.objective()) {
      this.classes = classes;
      this.segments = segments;
      this.normalise();
    }
  }

  apply(action) {
    const { tool, pieces } = action;
    const expected = NUMBER_OF_PIECES[tool];
    if (expected === undefined)
      throw new RangeError(`expected a tool among ${Object.keys(NUMBER_OF_PIECES)}, got ${tool}`);
    if (pieces.length !== expected && !(expected === null && pieces.length >= 2))
      throw new RangeError(`'${tool}' needs ${expected || "2 or more"} points, got ${pieces.length}`);
    if (!pieces.every((p) => p >= 0 && p < this.classes.length))
      throw new RangeError(`pieces are 0 to ${this.classes.length - 1}, got ${pieces}`);
    if (tool === "merge") this.merge(...pieces);
    else if (tool === "split") this.split(pieces);
    else {
      const k = action.class;
      if (!(k >= 0 && k < this.thing.length))
        throw new RangeError(`classes are 0 to ${this.thing.length - 1}, got ${k}`);
      const members = tool === "class" ? this.members(this.segments[pieces[0]]) : [pieces[0]];
      for (const p of members) this.fixed[p] = k;
      this.label(members, k);
    }
    this.normalise();
  }

  // Whether an action that was applied is still true.
  holds({ tool, pieces, class: k }) {
    const segments = pieces.map((p) => this.segments[p]);
    if (tool === "merge") return segments[0] === segments[1];
    if (tool === "split") return new Set(segments).size === segments.length;
    return this.classes[pieces[0]] === k;
  }

  // Two things become the cheapest thing; with stuff, a thing becomes that stuff.
  merge(a, b) {
    const [first, second] = [this.segments[a], this.segments[b]];
    if (first === second) throw new RangeError("both points are in one segment already");
    const stuff = [a, b].map((p) => this.classes[p]).filter((k) => !this.thing[k]);
    const members = [];
    this.segments.forEach((s, p) => (s === first || s === second) && members.push(p));
    this.label(members, this.bestClass(members, stuff.length ? stuff : this.things()));
  }

  things() {
    return this.thing.map((_, k) => k).filter((k) => this.thing[k]);
  }

  // Share the touched things out among the seeds; of stuff only the seeds' pieces are taken.
  // Clusters, at first the pieces, are joined by Algorithm 2's similarity, the best pair first, but
  // never two with a seed, until every cluster has one.
  split(seeds) {
    if (new Set(seeds).size < seeds.length)
      throw new RangeError("two of the points are in one piece, which cannot be divided here");
    const inRegion = new Set(seeds);
    for (const seed of seeds)
      if (this.thing[this.classes[seed]])
        for (const p of this.members(this.segments[seed])) inRegion.add(p);
    const region = [...inRegion].sort((a, b) => a - b);
    const things = this.things();
    if (!things.length)
      throw new RangeError("there is no thing class, so there are no objects to split");
    const costs = region.map((p) => things.map((k) => this.classCosts[p][k]));
    const weights = this.weights(region);
    const seeded = region.map((p) => seeds.includes(p));
    const cluster = region.map((_, i) => i);
    const alive = region.map(() => true);
    const similarity = region.map(() => region.map(() => -Infinity)); // i < j
    const update = (i) => {
      for (let j = 0; j < region.length; j++) {
        if (j === i || !alive[j]) continue;
        const t = seeded[i] && seeded[j] ? -Infinity : weights[i][j] - penalty(costs[i], costs[j]);
        similarity[Math.min(i, j)][Math.max(i, j)] = t;
      }
    };
    region.forEach((_, i) => update(i));
    for (let left = region.length; left > seeds.length; left--) {
      let [i, j, best] = [0, 0, -Infinity];
      for (let a = 0; a < region.length; a++)
        for (let b = a + 1; b < region.length; b++)
          if (similarity[a][b] > best) [i, j, best] = [a, b, similarity[a][b]];
      cluster.forEach((c, p) => c === j && (cluster[p] = i));
      costs[i] = costs[i].map((cost, k) => cost + costs[j][k]);
      weights[i] = weights[i].map((weight, p) => weight + weights[j][p]);
      weights[i].forEach((weight, p) => (weights[p][i] = weight));
      seeded[i] = seeded[i] || seeded[j];
      alive[j] = false;
      similarity[j].fill(-Infinity);
      for (const row of similarity) row[j] = -Infinity;
      update(i);
    }
    alive.forEach((is, i) => {
      if (!is) return;
      const members = region.filter((_, p) => cluster[p] === i);
      this.label(members, this.bestClass(members, things));
    });
  }

  // Summed costs between the pieces of a region, [R][R].
  weights(region) {
    const place = new Map(region.map((p, i) => [p, i]));
    const weights = region.map(() => new Array(region.length).fill(0));
    this.graph.pairs.forEach(([p, q], e) => {
      const [i, j] = [place.get(p), place.get(q)];
      if (p !== q && i !== undefined && j !== undefined)
        weights[i][j] = weights[j][i] = this.pairCosts[e];
    });
    return weights;
  }

  // The cheapest allowed class of some pieces; one given by hand goes first.
  bestClass(members, allowed) {
    const byHand = allowed.filter((k) => members.some((p) => this.fixed[p] === k));
    const costs = this.sum(members);
    const candidates = (byHand.length ? byHand : allowed.slice()).sort((a, b) => a - b);
    return candidates.reduce((best, k) => (costs[k] < costs[best] ? k : best));
  }

  // Summed class costs of some pieces, [K].
  sum(members) {
    const costs = this.classCosts[members[0]].slice();
    for (const p of members.slice(1)) this.classCosts[p].forEach((cost, k) => (costs[k] += cost));
    return costs;
  }

  // Make pieces one segment of class k, which for stuff is the segment that has it.
  label(members, k) {
    const segment = Math.max(...this.segments) + 1 + this.thing.length;
    for (const p of members) [this.classes[p], this.segments[p]] = [k, segment];
    if (!this.thing[k]) this.classes.forEach((c, p) => c === k && (this.segments[p] = k));
  }
}

// What it costs to give two clusters with these class costs one class.
function penalty(a, b) {
  let together = Infinity;
  for (let k = 0; k < a.length; k++) together = Math.min(together, a[k] + b[k]);
  return together - Math.min(...a) - Math.min(...b);
}

// Algorithm 2 on the pieces, `solve_amwc_graph(method="greedy")`: join the clusters of the largest
// similarity t = c_E(ij) + min c_i + min c_j - min (c_i + c_j) while it is >= 0.
function greedy(classCosts, pairs, pairCosts, thing) {
  const costs = classCosts.map((c) => c.slice());
  const cluster = costs.map((_, p) => p);
  const near = costs.map(() => new Map()); // cluster -> summed costs to its neighbours
  const similarity = costs.map(() => new Map());
  pairs.forEach(([i, j], e) => {
    if (i === j) return;
    near[i].set(j, pairCosts[e]);
    near[j].set(i, pairCosts[e]);
  });
  const update = (i) => {
    for (const [j, weight] of near[i]) {
      const t = weight - penalty(costs[i], costs[j]);
      similarity[Math.min(i, j)].set(Math.max(i, j), t);
    }
  };
  near.forEach((_, i) => update(i));
  for (;;) {
    let [i, j, best] = [-1, -1, -Infinity];
    similarity.forEach((row, a) => {
      for (const [b, t] of row) if (t >= 0 && t > best) [i, j, best] = [a, b, t];
    });
    if (i < 0) break;
    cluster.forEach((c, p) => c === j && (cluster[p] = i));
    costs[i] = costs[i].map((cost, k) => cost + costs[j][k]);
    for (const [h, weight] of near[j]) {
      near[h].delete(j);
      similarity[Math.min(h, j)].delete(Math.max(h, j));
      if (h === i) continue;
      const sum = (near[i].get(h) || 0) + weight;
      near[i].set(h, sum);
      near[h].set(i, sum);
    }
    near[j].clear();
    update(i);
  }
  const classes = cluster.map((c) => costs[c].indexOf(Math.min(...costs[c])));
  const segments = cluster.map((c, p) => (thing[classes[p]] ? thing.length + c : classes[p]));
  return { classes, segments };
}

// Apply offsets and actions; a RangeError says which action is wrong and why.
function correct(graph, actions = [], classOffsets = null, distanceOffsets = null) {
  classOffsets = classOffsets || graph.partitionable.map(() => 0);
  distanceOffsets = distanceOffsets || graph.distances.map(() => 0);
  const state = new GraphState(graph, classOffsets, distanceOffsets);
  if (classOffsets.some(Boolean) || distanceOffsets.some(Boolean)) state.solveAgain();
  actions.forEach((action, number) => {
    try {
      state.apply(action);
      for (let earlier = 0; earlier <= number; earlier++)
        if (!state.holds(actions[earlier]))
          throw new RangeError(`it undoes action ${earlier + 1} (${actions[earlier].tool})`);
    } catch (error) {
      throw new RangeError(`action ${number + 1}: ${error.message}`);
    }
  });
  return state;
}

// ---- what the energy says ------------------------------------------------------------------

// Neighbours of a segment with what merging would need: the increase of the objective, and the
// attraction and repulsion by distance; the easiest first.
function neighbours(state, segment) {
  const { graph } = state;
  const own = new Set(state.members(segment));
  const found = new Map();
  graph.pairs.forEach(([i, j], e) => {
    if (own.has(i) === own.has(j)) return;
    const other = state.segments[own.has(i) ? j : i];
    if (!found.has(other))
      found.set(other, { segment: other, cost: 0, attraction: graph.distances.map(() => 0),
        repulsion: graph.distances.map(() => 0), edges: graph.distances.map(() => 0) });
    const entry = found.get(other);
    entry.cost += state.pairCosts[e];
    graph.distances.forEach((_, d) => {
      entry.attraction[d] += graph.attraction[e][d];
      entry.repulsion[d] += graph.repulsion[e][d];
      entry.edges[d] += graph.edges[e][d];
    });
  });
  const classCost = (members) => state.sum(members)[state.classes[members[0]]];
  const mine = [...own];
  for (const entry of found.values()) {
    const theirs = state.members(entry.segment);
    const all = mine.concat(theirs);
    const stuff = [mine[0], theirs[0]].map((p) => state.classes[p]).filter((k) => !state.thing[k]);
    const sums = state.sum(all);
    const together = Math.min(...(stuff.length ? stuff : state.things()).map((k) => sums[k]));
    entry.energy = together - classCost(mine) - classCost(theirs) - entry.cost;
  }
  return [...found.values()].sort((a, b) => a.energy - b.energy || a.segment - b.segment);
}

// The strongest chain inside a set of pieces: a maximum spanning forest of their pairs.
function strongestLinks(state, members) {
  const inside = new Set(members);
  const root = new Map(members.map((p) => [p, p]));
  const find = (p) => {
    while (root.get(p) !== p) p = root.get(p);
    return p;
  };
  const order = state.graph.pairs.map((_, e) => e).filter((e) => {
    const [i, j] = state.graph.pairs[e];
    return i !== j && inside.has(i) && inside.has(j);
  });
  order.sort((a, b) => state.pairCosts[b] - state.pairCosts[a] || a - b);
  return order.filter((e) => {
    const [i, j] = state.graph.pairs[e].map(find);
    root.set(i, j);
    return i !== j;
  });
}

// Dividing a thing in two, at each of its strongest links or of some of them: {energy, weight: grid
// edges between the parts, parts, pieces: the two ends of the link}.
function splits(state, segment, among = null) {
  const members = state.members(segment);
  if (!state.thing[state.classes[members[0]]]) return [];
  const { pairs, edges } = state.graph;
  const links = strongestLinks(state, members);
  const before = state.sum(members)[state.classes[members[0]]];
  const cheapest = (part) => {
    const sums = state.sum(part);
    return Math.min(...state.things().map((k) => sums[k]));
  };
  return (among || links).map((link) => {
    const part = new Set(reach(pairs, links, pairs[link][0], link));
    const rest = new Set(members.filter((p) => !part.has(p)));
    const found = { change: "split", weight: 0, parts: [[...part], [...rest]],
      energy: cheapest([...part]) + cheapest([...rest]) - before, pieces: pairs[link] };
    pairs.forEach(([i, j], e) => {
      if (!(part.has(i) && rest.has(j)) && !(part.has(j) && rest.has(i))) return;
      found.energy += state.pairCosts[e];
      found.weight += edges[e].reduce((sum, n) => sum + n, 0);
    });
    return found;
  });
}

// Pieces that links other than one reach from a piece.
function reach(pairs, links, from, without) {
  const found = [from];
  const seen = new Set(found);
  for (const p of found)
    for (const e of links) {
      if (e === without || !pairs[e].includes(p)) continue;
      const q = pairs[e][0] === p ? pairs[e][1] : pairs[e][0];
      if (!seen.has(q)) seen.add(q), found.push(q);
    }
  return found;
}

// The chain between two pieces whose weakest link is strongest, inside their segment if they share
// one: pairs, in order. Empty: none.
function chain(state, from, to) {
  const together = state.segments[from] === state.segments[to];
  const links = strongestLinks(state, together ? state.members(state.segments[from])
    : state.classes.map((_, p) => p));
  const previous = new Map([[from, null]]);
  const queue = [from];
  for (const p of queue)
    for (const e of links) {
      const [i, j] = state.graph.pairs[e];
      if (i !== p && j !== p) continue;
      const q = i === p ? j : i;
      if (!previous.has(q)) previous.set(q, e), queue.push(q);
    }
  if (!previous.has(to)) return [];
  const found = [];
  for (let p = to; p !== from; ) {
    const e = previous.get(p);
    found.unshift(e);
    const [i, j] = state.graph.pairs[e];
    p = i === p ? j : i;
  }
  return found;
}

// The easiest change of a segment, {change: "merge", "split", "class" or "none", energy, weight,
// ...}: of merging it with a segment that touches it, dividing it and giving it another class, the
// one of least energy for each edge or cell, so that large segments compare with small ones.
function easiestChange(state, segment) {
  const members = state.members(segment);
  const own = state.classes[members[0]];
  const sums = state.sum(members);
  const cells = members.reduce((sum, p) => sum + state.graph.areas[p], 0);
  const changes = neighbours(state, segment).filter((entry) => entry.edges[0] > 0)
    .map((entry) => ({ ...entry, change: "merge", weight: entry.edges.reduce((a, b) => a + b) }));
  changes.sort((a, b) => a.segment - b.segment);
  changes.push(...splits(state, segment));
  state.thing.forEach((isThing, k) => {
    if (k !== own && isThing === state.thing[own])
      changes.push({ change: "class", class: k, energy: sums[k] - sums[own], weight: cells });
  });
  return easiest(changes) || { change: "none", energy: Infinity, weight: 1 };
}

// The first change of least energy for each edge or cell; null of none.
function easiest(changes) {
  return changes.reduce((a, b) =>
    (a === null || b.energy / b.weight < a.energy / a.weight ? b : a), null);
}
