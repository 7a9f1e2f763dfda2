// The page: draws the image with the state of the region graph, and turns clicks into actions.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const { graph, width, height, classes } = data;
const $$ = (id) => document.getElementById(id);

// Colours that differ for all common kinds of colour vision (Okabe and Ito), and for certainty the
// ends of "cividis".
const PALETTE = [[230, 159, 0], [86, 180, 233], [0, 158, 115], [240, 228, 66], [0, 114, 178],
  [213, 94, 0], [204, 121, 167]];
const STUFF_COLOUR = [120, 120, 120];
const CERTAIN = [[0, 32, 77], [124, 123, 120], [255, 234, 70]];
const TRUTH_COLOUR = { found: [255, 255, 255], fused: [230, 159, 0], split: [86, 180, 233],
  missed: [255, 0, 255] };
const TRUTH_DASH = { found: 0, fused: 6, split: 3, missed: 2 };

const pieceOf = decode(data.runs);
const truthOf = data.truth && decode(data.truth.runs);
const anchor = anchors(); // an inner point of every piece
const scale = Math.max(1, Math.min(4, Math.round(1000 / width)));

let clicks = []; // {tool, points: [[x, y], ...], class}: what is saved
let offsets = { classes: classes.map(() => 0), distances: graph.distances.map(() => 0) };
let pending = []; // points of an action that is not complete
let open = false; // whether the last click is a split that takes more points
let selected = null; // a piece of the segment that is shown
let link = null; // what the chain tool shows
let cursor = [width >> 1, height >> 1];
let state = null;
let certain = new Map(); // segment -> its easiest change
let saved = true;

// ---- maps ------------------------------------------------------------------------------------

function decode(runs) {
  const map = new Int32Array(width * height);
  for (let i = 0, at = 0; i < runs.length; i += 2) map.fill(runs[i], at, (at += runs[i + 1]));
  return map;
}

// The middle of the longest run of each piece.
function anchors() {
  const longest = new Map();
  for (let y = 0; y < height; y++)
    for (let x = 0, start = 0; x < width; x++) {
      const piece = pieceOf[y * width + x];
      if (x + 1 < width && pieceOf[y * width + x + 1] === piece) continue;
      const length = x + 1 - start;
      if (!longest.has(piece) || longest.get(piece)[0] < length)
        longest.set(piece, [length, (start + x) >> 1, y]);
      start = x + 1;
    }
  return graph.areas.map((_, p) => (longest.has(p) ? longest.get(p).slice(1) : null));
}

const pieceAt = ([x, y]) => pieceOf[y * width + x];
const segmentOf = (piece) => state.segments[piece];
const name = (segment) => {
  const k = state.classes[state.members(segment)[0]];
  return state.thing[k] ? `${classes[k].name} ${segment - classes.length}` : classes[k].name;
};
// A piece of a segment that has pixels: a segment of few cells can have none.
const innerPiece = (segment) => state.members(segment).find((p) => anchor[p]);
const number = (value) => (Math.abs(value) < 9.95 ? value.toFixed(1) : value.toFixed(0));

// ---- the state -------------------------------------------------------------------------------

function toAction({ tool, points, class: k }) {
  const action = { tool, pieces: points.map(pieceAt) };
  return k === undefined ? action : { ...action, class: k };
}

function solve(candidates) {
  return correct(graph, candidates.map(toAction), offsets.classes, offsets.distances);
}

// Take these clicks if they can be applied; says why not otherwise.
function update(candidates, message) {
  try {
    state = solve(candidates);
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    say(error.message.replace(/^action (\d+): /, (_, n) =>
      Number(n) === candidates.length ? "Not possible: " : `Not possible with action ${n}: `), true);
    if (state === null) throw error;
    return false;
  }
  saved = candidates.length === 0;
  clicks = candidates;
  certain = new Map([...new Set(state.segments)].map((s) => [s, easiestChange(state, s)]));
  if (message) say(message);
  refresh();
  return true;
}

function say(message, wrong = false) {
  $$("status").textContent = message;
  $$("status").classList.toggle("wrong", wrong);
}

function refresh() {
  const count = certain.size;
  $$("summary").textContent = `${count} segments of ${graph.areas.length} pieces, energy ` +
    `${state.objective().toFixed(1)}, ${clicks.length} correction${clicks.length === 1 ? "" : "s"}`;
  $$("undo").disabled = clicks.length === 0 && pending.length === 0;
  listReview();
  if (link) describeChain();
  else describeSegment();
  draw();
}

// ---- clicks ----------------------------------------------------------------------------------

const tool = () => document.querySelector("input[name=tool]:checked").value;

function click(point) {
  const piece = pieceAt(point);
  cursor = point;
  if (tool() === "inspect") {
    select(piece);
  } else if (tool() === "carve") {
    const k = Number($$("carve-class").value);
    selected = piece;
    update([...clicks, { tool: "carve", points: [point], class: k }], `New ${classes[k].name}.`);
  } else if (tool() === "split" && open) {
    const last = clicks[clicks.length - 1];
    const more = { ...last, points: [...last.points, point] };
    update([...clicks.slice(0, -1), more], `Split into ${more.points.length}.`);
  } else {
    pending.push(point);
    if (pending.length === 2) finish();
    else {
      say(tool() === "split" ? "Now a click in the next object." : "Now the second point.");
      $$("undo").disabled = false;
      draw();
    }
  }
}

function finish() {
  const points = pending;
  pending = [];
  selected = pieceAt(points[0]);
  if (tool() === "chain") {
    link = { from: pieceAt(points[0]), to: pieceAt(points[1]) };
    say("");
    refresh();
  } else if (tool() === "merge") {
    update([...clicks, { tool: "merge", points }], "Merged.") || draw();
  } else {
    const done = update([...clicks, { tool: "split", points }],
      "Split into 2; another click makes one more.");
    open = done;
    if (!done) draw();
  }
}

function select(piece) {
  clear();
  selected = piece;
  refresh();
}

function clear() {
  pending = [];
  open = false;
  link = null;
}

function undo() {
  if (pending.length) {
    pending = [];
    refresh();
    say("Undone.");
    return;
  }
  if (!clicks.length) return;
  const last = clicks[clicks.length - 1];
  clear();
  update(clicks.slice(0, -1), `Undone: ${last.tool}.`);
}

// ---- the segment -----------------------------------------------------------------------------

function element(tag, content = [], attributes = {}) {
  const made = Object.assign(document.createElement(tag), attributes);
  made.append(...[content].flat().filter((part) => part !== null));
  return made;
}

function table(head, rows) {
  const cells = (tag, row) => element("tr", row.map((cell) => element(tag, cell)));
  const body = element("tbody", rows.map((row) => cells("td", row)));
  return element("div", element("table", [element("thead", cells("th", head)), body]),
    { className: "scroll" });
}

function button(text, action) {
  return element("button", text, { type: "button", onclick: action });
}

const swatch = (segment) => {
  const made = element("span", [], { className: "swatch" });
  made.style.background = `rgb(${colours().get(segment)})`;
  return made;
};

function describeSegment() {
  if (selected === null) return;
  const segment = segmentOf(selected);
  const members = state.members(segment);
  const own = state.classes[selected];
  const sums = state.sum(members);
  const lowest = Math.min(...sums);
  $$("detail-title").replaceChildren(swatch(segment), name(segment));
  const sure = certain.get(segment);
  const parts = [element("p", [`${members.length} piece${members.length === 1 ? "" : "s"}, ` +
    `${members.reduce((sum, p) => sum + graph.areas[p], 0)} cells. `, sentence(sure)])];

  const most = Math.max(...sums) - lowest || 1;
  parts.push(element("h3", "Class costs, above the lowest"), table(["class", "cost", ""],
    classes.map(({ name: of }, k) => {
      const bar = element("span", [], { className: "bar" });
      bar.style.width = `${(6 * (sums[k] - lowest)) / most}rem`;
      return [k === own ? element("strong", `${of} (chosen)`) : of, number(sums[k] - lowest), bar];
    })));
  const choice = element("select", classes.map((c, k) =>
    element("option", c.name, { value: k, selected: k === own })), { ariaLabel: "Class" });
  parts.push(element("p", [choice, " ", button("Set class", () => update([...clicks,
    { tool: "class", points: [anchor[selected]], class: Number(choice.value) }], "Class set."))]));

  const weakest = easiest(splits(state, segment));
  if (weakest) {
    parts.push(element("p", [button("Split at the weakest link", () => {
      const points = weakest.parts.map((part, i) =>
        anchor[weakest.pieces[i]] || anchor[part.find((p) => anchor[p])]);
      if (!points[0] || !points[1]) say("One part has no pixel to click.", true);
      else update([...clicks, { tool: "split", points }], "Split into 2.");
    }), ` energy ${signed(weakest.energy)}`]));
  }

  const near = neighbours(state, segment);
  parts.push(element("h3", "Neighbours, the easiest to merge first"));
  const ranked = near.filter((entry) => innerPiece(entry.segment) !== undefined).slice(0, 8);
  parts.push(table(["neighbour", "energy to merge", ...graph.distances.map((d) => `dist. ${d}`)],
    ranked.map((entry) => [
      [swatch(entry.segment), name(entry.segment), " ", button("Merge", () => {
        const points = [anchor[selected], anchor[innerPiece(entry.segment)]];
        update([...clicks, { tool: "merge", points }], "Merged.");
      })],
      signed(entry.energy),
      ...byDistance(entry),
    ])));
  parts.push(element("p", "By distance: attraction and repulsion between the two.",
    { className: "hint" }));
  $$("detail").replaceChildren(...parts);
}

// Attraction and repulsion at every distance, as text; a dash where there is no edge.
const byDistance = ({ edges, attraction, repulsion }) => graph.distances.map((_, d) => edges[d]
  ? `+${number(attraction[d])} \u2212${number(-repulsion[d])}` : "\u2013");

const signed = (value, digits) => (value < 0 ? "\u2212" : "+") +
  (digits ? Math.abs(value).toFixed(digits) : number(Math.abs(value)));

function sentence(sure) {
  const by = `energy ${signed(sure.energy)}`;
  if (sure.change === "merge") return `Easiest change: merge with ${name(sure.segment)}, ${by}.`;
  if (sure.change === "split") return `Easiest change: split in two, ${by}.`;
  if (sure.change === "class") return `Easiest change: become ${classes[sure.class].name}, ${by}.`;
  return "Nothing could change it.";
}

// ---- the chain -------------------------------------------------------------------------------

function describeChain() {
  const { from, to } = link;
  const found = chain(state, from, to);
  link.pairs = found;
  $$("detail-title").textContent = "The strongest chain";
  if (from === to || !found.length) {
    $$("detail").replaceChildren(element("p", from === to
      ? "Both pixels are in one piece: nothing in the costs hints at a border between them."
      : "No edge of the graph leads from one pixel to the other, at any distance."));
    return;
  }
  const costs = found.map((e) => state.pairCosts[e]);
  link.weakest = found[costs.indexOf(Math.min(...costs))];
  const rows = found.map((e, step) => [
    `${step + 1}: ${segmentOf(graph.pairs[e][0]) === segmentOf(graph.pairs[e][1]) ? "joined" : "cut"}`,
    signed(state.pairCosts[e]),
    ...byDistance({ edges: graph.edges[e], attraction: graph.attraction[e], repulsion: graph.repulsion[e] }),
  ]);
  const shown = table(["link", "sum", ...graph.distances.map((d) => `distance ${d}`)], rows);
  shown.querySelectorAll("tbody tr")[found.indexOf(link.weakest)].className = "weakest";
  $$("detail").replaceChildren(element("p", verdict(from, to, found)), shown,
    element("p", "Bold: the weakest link. A chain is as strong as that.", { className: "hint" }));
}

function verdict(from, to, found) {
  const segments = [from, to].map(segmentOf);
  if (segments[0] !== segments[1]) {
    const entry = neighbours(state, segments[0]).find((n) => n.segment === segments[1]);
    const ends = `${name(segments[0])} and ${name(segments[1])} are two segments. `;
    if (!entry) return `${ends}They are not neighbours at any distance.`;
    return `${ends}To merge them, ${change(entry.energy)}: ` +
      `their edges sum to ${signed(entry.cost)}, and sharing a class adds ` +
      `${number(entry.energy + entry.cost)}.`;
  }
  if (!state.thing[state.classes[from]])
    return "Both pixels are of one stuff class, which is one segment, joined or not.";
  const split = splits(state, segments[0], found).reduce((a, b) => (b.energy < a.energy ? b : a));
  const needed = split.energy / Math.max(split.weight, 1);
  return `Both pixels are in ${name(segments[0])}. To separate them, ${change(split.energy)}` +
    (needed > 0 ? `; the ${split.weight} edges between the two parts would have to be ` +
      `${needed.toFixed(2)} lower on average.` : ": the solver, a heuristic, missed it.");
}

const change = (energy) =>
  `the energy would ${energy < 0 ? "fall" : "rise"} by ${number(Math.abs(energy))}`;

// ---- the list --------------------------------------------------------------------------------

// Energy of each edge or cell that the easiest change is about.
const sureness = (segment) => certain.get(segment).energy / certain.get(segment).weight;

// Segments that a correction is about need no more review.
function reviewOrder() {
  const done = new Set(clicks.flatMap((c) => c.points.map((p) => segmentOf(pieceAt(p)))));
  return [...certain.keys()]
    .filter((s) => certain.get(s).change !== "none" && innerPiece(s) !== undefined && !done.has(s))
    .sort((a, b) => sureness(a) - sureness(b) || a - b);
}

function listReview() {
  const now = selected === null ? null : segmentOf(selected);
  $$("review").replaceChildren(...reviewOrder().map((segment) => {
    const made = button([swatch(segment), `${name(segment)}: ${shortChange(certain.get(segment))}`],
      () => select(innerPiece(segment)));
    if (segment === now) made.ariaCurrent = "true";
    return element("li", made);
  }));
}

const shortChange = (sure) =>
  `${sure.change} ${signed(sure.energy)} (${signed(sure.energy / sure.weight, 2)} each)`;

function step(by) {
  const order = reviewOrder();
  const at = selected === null ? (by > 0 ? -1 : 0) : order.indexOf(segmentOf(selected));
  const segment = order[(at + by + order.length) % order.length];
  if (segment !== undefined) select(innerPiece(segment));
}

// ---- drawing ---------------------------------------------------------------------------------

let coloured = { state: null, by: "" };

// A colour for every segment; neighbours differ.
function colours() {
  const by = $$("colours").value;
  if (coloured.state === state && coloured.by === by) return coloured.map;
  const map = new Map();
  const segments = [...new Set(state.segments)].sort((a, b) => a - b);
  const beside = new Map(segments.map((s) => [s, new Set()]));
  graph.pairs.forEach(([i, j]) => {
    if (state.segments[i] === state.segments[j]) return;
    beside.get(state.segments[i]).add(state.segments[j]);
    beside.get(state.segments[j]).add(state.segments[i]);
  });
  const low = Math.min(...segments.map(sureness), 0);
  for (const s of segments) {
    const k = state.classes[state.members(s)[0]];
    if (by === "class") map.set(s, classes[k].color);
    else if (by === "certainty") map.set(s, certainColour((sureness(s) - low) / (2 - low)));
    else if (!state.thing[k]) map.set(s, STUFF_COLOUR);
    else {
      const used = new Set([...beside.get(s)].map((other) => map.get(other)));
      map.set(s, PALETTE.find((c) => !used.has(c)) || PALETTE[s % PALETTE.length]);
    }
  }
  coloured = { state, by, map };
  return map;
}

function certainColour(share) {
  const at = Math.min(1, share) * 2;
  const [a, b] = at < 1 ? CERTAIN.slice(0, 2) : CERTAIN.slice(1);
  return a.map((v, i) => Math.round(v + (b[i] - v) * (at < 1 ? at : at - 1)));
}

const pictures = new Map();
function picture(src) {
  if (!pictures.has(src)) {
    const image = new Image();
    image.onload = draw;
    image.src = src;
    pictures.set(src, image);
  }
  return pictures.get(src);
}

function draw() {
  const canvas = $$("stage");
  const context = canvas.getContext("2d");
  canvas.width = width * scale;
  canvas.height = height * scale;
  const base = picture($$("base").value);
  if (base.complete) {
    context.imageSmoothingEnabled = base.naturalWidth >= width;
    context.drawImage(base, 0, 0, canvas.width, canvas.height);
  }
  const overlay = document.createElement("canvas");
  overlay.width = canvas.width;
  overlay.height = canvas.height;
  overlay.getContext("2d").putImageData(overlayPixels(canvas.width, canvas.height), 0, 0);
  context.drawImage(overlay, 0, 0);
  drawMarks(context);
}

// Fill, cuts (each segment's rim in its colour), pieces and truth, pixel by pixel of the canvas.
function overlayPixels(w, h) {
  const image = new ImageData(w, h);
  const pixels = new Uint32Array(image.data.buffer);
  const pack = ([r, g, b], alpha) => ((alpha << 24) | (b << 16) | (g << 8) | r) >>> 0;
  const alpha = Math.round(2.55 * Number($$("opacity").value));
  const fill = state.segments.map((s) => pack(colours().get(s), alpha));
  const rim = state.segments.map((s) => pack(colours().get(s), 255));
  const [cuts, pieces, truth] = ["cuts", "pieces", "truth"].map((id) => $$(id).checked);
  const truths = truthOf && new Map(data.truth.segments.map((s) => [s.id, s.state]));
  const chosen = selected === null ? null : segmentOf(selected);
  const source = new Int32Array(w);
  for (let x = 0; x < w; x++) source[x] = Math.floor(x / scale);
  const black = pack([0, 0, 0], 255);
  const white = pack([255, 255, 255], 255);
  for (let y = 0; y < h; y++) {
    const row = Math.floor(y / scale) * width;
    const above = Math.floor(Math.max(y - 1, 0) / scale) * width;
    const below = Math.min(Math.floor((y + 1) / scale), height - 1) * width;
    for (let x = 0; x < w; x++) {
      const at = row + source[x];
      const others = [row + source[Math.min(x + 1, w - 1)], below + source[x],
        row + source[Math.max(x - 1, 0)], above + source[x]];
      const piece = pieceOf[at];
      const segment = state.segments[piece];
      let colour = fill[piece];
      for (const other of others) {
        const beside = pieceOf[other];
        if (beside === piece) continue;
        if (state.segments[beside] === segment) {
          if (pieces && (x + y) % 3 === 0) colour = white;
        } else if (segment === chosen) colour = (x + y) % 8 < 4 ? white : black;
        else if (cuts) colour = rim[piece];
      }
      if (truth && truthOf)
        for (const other of others)
          if (truthOf[other] !== truthOf[at]) {
            const kind = worst(truths.get(truthOf[at]), truths.get(truthOf[other]));
            const dash = TRUTH_DASH[kind];
            if (!dash || (x + y) % (2 * dash) < dash) colour = pack(TRUTH_COLOUR[kind], 255);
          }
      pixels[y * w + x] = colour;
    }
  }
  return image;
}

const ORDER = ["missed", "fused", "split", "found"];
const worst = (a, b) => ORDER[Math.min(...[a, b].map((s) => (s ? ORDER.indexOf(s) : 3)))];

function drawMarks(context) {
  const place = ([x, y]) => [(x + 0.5) * scale, (y + 0.5) * scale];
  const dot = (point, colour) => {
    context.beginPath();
    context.arc(...place(point), 6, 0, 2 * Math.PI);
    context.fillStyle = colour;
    context.fill();
    context.lineWidth = 2;
    context.strokeStyle = "#000";
    context.stroke();
  };
  if (link && link.pairs) {
    for (const e of link.pairs) {
      const [a, b] = graph.pairs[e].map((p) => anchor[p]);
      if (!a || !b) continue;
      for (const [colour, thick] of [["#000", 7], [e === link.weakest ? "#d55e00" : "#fff", 4]]) {
        context.beginPath();
        context.moveTo(...place(a));
        context.lineTo(...place(b));
        context.setLineDash(e === link.weakest && thick === 4 ? [8, 6] : []);
        context.lineWidth = thick;
        context.strokeStyle = colour;
        context.stroke();
      }
    }
    context.setLineDash([]);
    for (const p of [link.from, link.to]) if (anchor[p]) dot(anchor[p], "#56b4e9");
  }
  for (const point of pending) dot(point, "#f0e442");
  if (open) for (const point of clicks[clicks.length - 1].points) dot(point, "#f0e442");
  if (document.activeElement === $$("stage")) {
    const [x, y] = place(cursor);
    for (const [colour, thick] of [["#fff", 4], ["#000", 2]]) {
      context.lineWidth = thick;
      context.strokeStyle = colour;
      context.beginPath();
      context.moveTo(x - 12, y);
      context.lineTo(x + 12, y);
      context.moveTo(x, y - 12);
      context.lineTo(x, y + 12);
      context.stroke();
    }
  }
}

// ---- saving and loading ----------------------------------------------------------------------

const stem = data.file_name.replace(/.*[\\/]/, "").replace(/\.[^.]*$/, "");

function download(blob, file) {
  const made = element("a", [], { href: URL.createObjectURL(blob), download: file });
  made.click();
  setTimeout(() => URL.revokeObjectURL(made.href), 10000);
  saved = true;
  say(`Saved ${file}.`);
}

const saveJson = (value, file) =>
  download(new Blob([JSON.stringify(value)], { type: "application/json" }), file);

// Ids of pixels, 0 = void, and the list of segments. Segments below the area limits become void,
// as in the model's output, unless a correction made them.
function labels() {
  const touched = new Set(clicks.flatMap((c) => c.points.map((p) => segmentOf(pieceAt(p)))));
  const found = new Map();
  for (let at = 0; at < pieceOf.length; at++) {
    const s = segmentOf(pieceOf[at]);
    const [x, y] = [at % width, Math.floor(at / width)];
    if (!found.has(s)) found.set(s, { area: 0, box: [x, y, x, y] });
    const info = found.get(s);
    info.area++;
    info.box = [Math.min(info.box[0], x), Math.min(info.box[1], y), Math.max(info.box[2], x),
      Math.max(info.box[3], y)];
  }
  const ids = new Map();
  const segments = [];
  for (const s of [...new Set(state.segments)].filter((s) => found.has(s))) {
    const { area, box } = found.get(s);
    const k = state.classes[state.members(s)[0]];
    const limit = state.thing[k] ? data.thing_area : data.stuff_area;
    if (area < limit && !touched.has(s)) continue;
    ids.set(s, segments.length + 1);
    segments.push({ id: segments.length + 1, category_id: classes[k].id, area, iscrowd: 0,
      bbox: [box[0], box[1], box[2] - box[0] + 1, box[3] - box[1] + 1] });
  }
  return { ids: Int32Array.from(pieceOf, (p) => ids.get(segmentOf(p)) || 0), segments };
}

// A PNG, RGB, id = R + 256 G + 65536 B, written here so that no browser changes a value.
async function labelPng() {
  const { ids } = labels();
  const raw = new Uint8Array(height * (1 + 3 * width));
  for (let y = 0, at = 0; y < height; y++) {
    at++; // filter 0
    for (let x = 0; x < width; x++) {
      const id = ids[y * width + x];
      raw[at++] = id & 255;
      raw[at++] = (id >> 8) & 255;
      raw[at++] = (id >> 16) & 255;
    }
  }
  const packed = new Blob([raw]).stream().pipeThrough(new CompressionStream("deflate"));
  const head = new Uint8Array(13);
  const view = new DataView(head.buffer);
  view.setUint32(0, width);
  view.setUint32(4, height);
  head.set([8, 2, 0, 0, 0], 8);
  const body = new Uint8Array(await new Response(packed).arrayBuffer());
  return new Blob([new Uint8Array([137, 80, 78, 71, 13, 10, 26, 10]), chunk("IHDR", head),
    chunk("IDAT", body), chunk("IEND", new Uint8Array(0))], { type: "image/png" });
}

function chunk(type, body) {
  const made = new Uint8Array(12 + body.length);
  const view = new DataView(made.buffer);
  view.setUint32(0, body.length);
  made.set([...type].map((c) => c.charCodeAt(0)), 4);
  made.set(body, 8);
  let crc = ~0;
  for (let i = 4; i < made.length - 4; i++) {
    crc ^= made[i];
    for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
  }
  view.setUint32(8 + body.length, ~crc);
  return made;
}

function panopticJson() {
  const image = { id: data.image_id, file_name: data.file_name.replace(/.*[\\/]/, ""), height, width };
  const annotation = { image_id: data.image_id, file_name: `${stem}.png`,
    segments_info: labels().segments };
  const categories = classes.map((c) => ({ ...c, isthing: c.isthing ? 1 : 0, supercategory: c.name }));
  return { images: [image], annotations: [annotation], categories };
}

const clicksJson = () => ({ format: data.format, file_name: data.file_name, height, width,
  class_offsets: offsets.classes, distance_offsets: offsets.distances, clicks });

async function loadClicks(file) {
  let given;
  try {
    given = JSON.parse(await file.text());
  } catch (error) {
    return say(`${file.name} is not JSON: ${error.message}`, true);
  }
  if (given.format !== data.format)
    return say(`${file.name}: expected format "${data.format}", got "${given.format}".`, true);
  if (given.height !== height || given.width !== width)
    return say(`${file.name} is for an image of ${given.width} x ${given.height} pixels, this one ` +
      `has ${width} x ${height}.`, true);
  const { class_offsets: byClass, distance_offsets: byDistance } = given;
  if (!Array.isArray(given.clicks) || byClass?.length !== classes.length ||
    byDistance?.length !== graph.distances.length)
    return say(`${file.name}: expected a list of clicks, ${classes.length} class offsets and ` +
      `${graph.distances.length} distance offsets.`, true);
  const before = offsets;
  offsets = { classes: byClass, distances: byDistance };
  clear();
  if (!update(given.clicks, `${given.clicks.length} clicks loaded.`)) offsets = before;
  showOffsets();
}

// ---- what if ---------------------------------------------------------------------------------

function makeOffsets() {
  const slider = (kind, index, text) => {
    const input = element("input", [], { type: "range", min: -3, max: 3, step: 0.1, value: 0 });
    const output = element("output", "0.0");
    input.oninput = () => {
      const before = offsets[kind];
      offsets[kind] = before.map((v, i) => (i === index ? Number(input.value) : v));
      if (!update(clicks, "Solved again.")) offsets[kind] = before;
      showOffsets();
    };
    input.dataset.kind = kind;
    input.dataset.index = index;
    return element("label", [text, input, output]);
  };
  $$("offsets").append(
    ...classes.map((c, k) => slider("classes", k, `cost of ${c.name}`)),
    ...graph.distances.map((d, i) => slider("distances", i, `affinity, distance ${d}`)));
}

function showOffsets() {
  for (const input of $$("offsets").querySelectorAll("input")) {
    input.value = offsets[input.dataset.kind][input.dataset.index];
    input.nextElementSibling.textContent = Number(input.value).toFixed(1);
  }
}

// ---- setting up ------------------------------------------------------------------------------

function setUp() {
  $$("base").append(...[{ title: "image", src: data.image }, ...data.maps].map(({ title, src }) =>
    element("option", title, { value: src })));
  $$("carve-class").append(...classes.map((c, k) =>
    element("option", c.name, { value: k, disabled: !c.isthing })));
  $$("carve-class").value = classes.findIndex((c) => c.isthing);
  $$("truth-label").hidden = !data.truth;
  if (data.truth) {
    const counts = new Map(ORDER.map((kind) =>
      [kind, data.truth.segments.filter((s) => s.state === kind).length]));
    $$("legend").append(...ORDER.map((kind) => {
      const made = element("span", [], { className: "swatch" });
      made.style.background = `rgb(${TRUTH_COLOUR[kind]})`;
      return element("li", [made, `truth ${kind}: ${counts.get(kind)}`]);
    }));
  }
  makeOffsets();
  for (const id of ["base", "colours", "opacity", "cuts", "pieces", "truth"])
    $$(id).addEventListener("input", () => (id === "colours" ? refresh() : draw()));
  for (const input of document.querySelectorAll("input[name=tool]"))
    input.addEventListener("change", () => { clear(); refresh(); say(""); });
  $$("undo").onclick = undo;
  $$("reset-offsets").onclick = () => {
    offsets = { classes: classes.map(() => 0), distances: graph.distances.map(() => 0) };
    update(clicks, "All offsets are zero.");
    showOffsets();
  };
  $$("save-labels").onclick = async () => download(await labelPng(), `${stem}.png`);
  $$("save-json").onclick = () => saveJson(panopticJson(), `${stem}.panoptic.json`);
  $$("save-clicks").onclick = () => saveJson(clicksJson(), `${stem}.clicks.json`);
  $$("load-clicks").onchange = async (event) => {
    await loadClicks(event.target.files[0]);
    event.target.value = "";
  };
  const stage = $$("stage");
  stage.addEventListener("click", (event) => {
    const box = stage.getBoundingClientRect();
    const inside = (at, size) => Math.max(0, Math.min(size - 1, Math.floor(at)));
    click([inside(((event.clientX - box.left - 1) / (box.width - 2)) * width, width),
      inside(((event.clientY - box.top - 1) / (box.height - 2)) * height, height)]);
  });
  stage.addEventListener("focus", draw);
  stage.addEventListener("blur", draw);
  stage.addEventListener("keydown", (event) => {
    const by = event.shiftKey ? 1 : Math.max(1, Math.round(width / 64));
    const move = { ArrowLeft: [-by, 0], ArrowRight: [by, 0], ArrowUp: [0, -by], ArrowDown: [0, by] };
    if (move[event.key]) {
      const [dx, dy] = move[event.key];
      cursor = [Math.max(0, Math.min(width - 1, cursor[0] + dx)),
        Math.max(0, Math.min(height - 1, cursor[1] + dy))];
      say(`${name(segmentOf(pieceAt(cursor)))} at ${cursor.join(", ")}`);
      draw();
    } else if (event.key === "Enter" || event.key === " ") click(cursor);
    else if (event.key === "Escape") clear(), refresh(), say("");
    else return;
    event.preventDefault();
  });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) {
      if (event.key === "z" && !event.altKey) undo(), event.preventDefault();
      return;
    }
    if (["INPUT", "SELECT", "TEXTAREA"].includes(event.target.tagName) &&
      event.target.type !== "radio") return;
    const tools = { i: "inspect", c: "chain", m: "merge", s: "split", n: "carve" };
    const key = event.key.toLowerCase();
    if (tools[key]) {
      const input = document.querySelector(`input[value=${tools[key]}]`);
      input.checked = true;
      input.dispatchEvent(new Event("change"));
      say(input.parentElement.textContent.trim());
    } else if (key === "u") undo();
    else if (key === ".") step(1);
    else if (key === ",") step(-1);
  });
  window.addEventListener("beforeunload", (event) => saved || event.preventDefault());
  update([], "");
}

setUp();
