"use strict";
// What the page knows: methods, features and images as objects; what is listed; what an address means. Nothing is drawn here.

const DATA = JSON.parse(document.getElementById("data").textContent);
const [TOP, FIFTHS, PER_FIFTH] = DATA.layout;

const IMAGES = DATA.images.map(([file, label, word, path, cause], id) => ({id, file, label, word, path, cause}));

/** One feature: its columns by name, and what else is known of it, read when it is asked for. */
class Feature {
  #raw; #i;

  constructor(raw, i) {
    [this.#raw, this.#i] = [raw, i];
    [this.method, this.number, this.copies] = [raw.name, raw.columns.feature[i], []];
    for (const name of Object.keys(raw.columns)) this[name] = raw.columns[name][i];
    this.enriched = this.assessed && this.q_bh !== null && this.q_bh <= 0.05;
    this.causes = raw.causes.filter((c) => c[1] === this.number).map(([cause, , ap, probe]) => ({cause, ap, probe}));
    this.verdicts = raw.verdicts[i].map(([judge, phrase, verdict, category, confidence, detail]) =>
      ({judge, phrase, verdict, category, confidence, detail}));
  }

  #part(from, to) {
    const [ids, activations] = [this.#raw.shown[this.#i], this.#raw.activations[this.#i]];
    return ids.slice(from, to).map((id, k) => ({image: IMAGES[id], activation: activations[from + k], cells: this.#raw.heat.maps?.[this.number]?.[id]})).filter((one) => one.image);
  }

  get top() { return this.#part(0, TOP); }
  get fifths() { return Array.from({length: FIFTHS}, (_, k) => this.#part(TOP + k * PER_FIFTH, TOP + (k + 1) * PER_FIFTH)); }
  get silent() { return this.#part(TOP + FIFTHS * PER_FIFTH); }
  get heat() { return this.#raw.heat; }
  get near() { return this.#raw.near[this.#i].map(([other, cosine, jaccard]) => ({other, cosine, jaccard})); }
  get end() { return this.#raw.histograms[this.#i][0]; }
  get counts() { return this.#raw.histograms[this.#i][1]; }
}

const METHODS = DATA.methods.map((raw) => {
  const features = raw.columns.feature.map((_, i) => new Feature(raw, i)), byNumber = new Map(features.map((f) => [f.number, f]));
  for (const f of features) if (f.copy_of !== f.number) byNumber.get(f.copy_of)?.copies.push(f.number);
  const {name, judges, n_latents, n_alive, images} = raw;
  return {name, judges, n_latents, n_alive, images, features, byNumber, orders: new Map(), errors: raw.errors.map((n) => byNumber.get(n))};
});
const BY_NAME = new Map(METHODS.map((m) => [m.name, m]));

/** Features of a method that fire on an image, nearest to their own largest activation first. */
function featuresOf(method, image) {
  const flat = method.images[image.id];
  return Array.from({length: flat.length / 2}, (_, k) => ({feature: method.byNumber.get(flat[2 * k]), activation: flat[2 * k + 1]}));
}

const NONE = {judge: "", phrase: "", verdict: "", category: "", confidence: null, detail: ""};

/** What a judge says of a feature; where it says nothing, what the first does. */
function verdictOf(f, judge) {
  return f.verdicts.find((v) => v.judge === judge) ?? f.verdicts.find((v) => v.judge === BY_NAME.get(f.method).judges[0]) ?? NONE;
}

const nameOf = (f, judge) => verdictOf(f, judge).phrase || "(no name)";

const SORTS = { // value -> what a person reads, the value sorted by; the largest first
  sure: ["surest of errors", (f) => f.error_low],
  plausible: ["surest of none", (f) => (f.error_high === null ? null : -f.error_high)],
  ratio: ["error ratio", (f) => f.error_ratio],
  active: ["activity", (f) => f.density * f.mean_activation],
  density: ["fires most often", (f) => f.density],
  rare: ["fires least often", (f) => -f.density],
  effect: ["effect on the logit", (f) => (f.causal_relevance == null ? null : Math.abs(f.causal_relevance))],
  mono: ["MonoScore", (f) => f.mono_score],
  cause: ["known cause", (f) => (f.causes ?? []).reduce((most, c) => Math.max(most, c.ap), -1)],
  number: ["number", (f) => -f.number],
};
const LABELLED = new Set(["sure", "plausible", "ratio", "effect"]);
const SHOWS = { // value -> what a person reads, whether a feature is kept
  all: ["all features", () => true],
  error: ["called an error", (f, judge) => verdictOf(f, judge).verdict === "error"],
  enriched: ["enriched for errors", (f) => f.enriched],
  both: ["enriched, and called an error", (f, judge) => f.enriched && verdictOf(f, judge).verdict === "error"],
  assessed: ["assessed (10 images or more)", (f) => f.assessed],
  known: ["best of a known error", (f) => f.causes.length > 0],
  refused: ["not judged", (f, judge) => !["error", "no_error"].includes(verdictOf(f, judge).verdict)],
};

/** Words that a search looks through, in lower case. */
function words(f, judge) {
  f.words ??= new Map();
  if (!f.words.has(judge)) {
    const said = verdictOf(f, judge);
    const text = [`#${f.number}`, said.phrase, said.category, f.top_cause, f.dominant_class, ...f.causes.map((c) => c.cause)];
    f.words.set(judge, text.join(" ").toLowerCase());
  }
  return f.words.get(judge);
}

/** All features of a method in the order of a sort, found once. */
function ordered(method, sort) {
  if (!method.orders.has(sort)) {
    const keyed = method.features.map((f) => [SORTS[sort][1](f) ?? -Infinity, f]);
    keyed.sort(([a, f], [b, g]) => b - a || f.number - g.number);
    method.orders.set(sort, keyed.map(([, f]) => f));
  }
  return method.orders.get(sort);
}

/** Features of a method that a state keeps, in its order; copies of one another are one group, the first with the others. */
function listed(method, state) {
  const wanted = state.q.toLowerCase().split(/\s+/).filter(Boolean), keep = SHOWS[state.show][1], groups = new Map();
  for (const f of ordered(method, state.sort)) {
    if (!keep(f, state.judge) || !wanted.every((w) => words(f, state.judge).includes(w))) continue;
    if (groups.has(f.copy_of)) groups.get(f.copy_of).push(f);
    else groups.set(f.copy_of, [f]);
  }
  return [...groups.values()];
}

/** Errors found, over methods: of one known cause, or of one name, the surest feature, and those of other methods. */
function errorsFound(judge) {
  const found = new Map();
  for (const m of METHODS) {
    for (const f of m.errors) {
      const key = f.top_cause || nameOf(f, judge);
      if (!found.has(key)) found.set(key, []);
      found.get(key).push(f);
    }
  }
  const groups = [...found.values()].map((all) => {
    const sure = all.toSorted((f, g) => g.error_low - f.error_low || g.n_active_test - f.n_active_test);
    return sure.filter((f, i) => sure.findIndex((g) => g.method === f.method) === i); // one for each method
  });
  return groups.sort(([f], [g]) => g.error_low - f.error_low);
}

/** For each other method the feature whose strongest images are most like this one's: with their share in common. */
function counterparts(f) {
  const own = new Set(f.top.map((one) => one.image));
  return METHODS.filter((m) => m.name !== f.method).map((m) => {
    let best = null, most = 0;
    for (const g of m.features) {
      const both = g.top.reduce((n, one) => n + own.has(one.image), 0), share = both / (own.size + g.top.length - both);
      if (share > most) [best, most] = [g, share];
    }
    return {feature: best, share: most};
  }).filter((one) => one.feature);
}

// ---- addresses: #  #method  #method/feature  #:image/number, then ?q=...&show=...&sort=...&judge=...&vs=...

const START = {q: "", show: "all", sort: DATA.labelled ? "sure" : "active", judge: "", vs: ""};

function readAddress(hash) {
  const [path, query] = hash.replace(/^#/, "").split("?", 2), given = new URLSearchParams(query ?? "");
  const state = {...START, method: "", feature: null, image: null};
  for (const key of Object.keys(START)) if (given.has(key)) state[key] = given.get(key);
  if (!Object.hasOwn(SHOWS, state.show)) state.show = START.show;
  if (!Object.hasOwn(SORTS, state.sort)) state.sort = START.sort;
  if (!BY_NAME.has(state.vs)) state.vs = "";
  let parts = [];
  try {
    parts = path.split("/").map(decodeURIComponent);
  } catch { /* a torn address is the start */ }
  if (parts[0] === ":image") state.image = IMAGES[Number(parts[1])] ?? null;
  else if (BY_NAME.has(parts[0])) {
    state.method = parts[0];
    state.feature = parts[1] ? BY_NAME.get(parts[0]).byNumber.get(Number(parts[1])) ?? null : null;
  }
  return state;
}

const queries = new WeakMap(); // of a state: a grid asks for the same one again and again

function query(state) {
  if (!queries.has(state)) {
    const said = new URLSearchParams(Object.keys(START).filter((key) => state[key] !== START[key]).map((key) => [key, state[key]]));
    queries.set(state, said.size ? `?${said}` : "");
  }
  return queries.get(state);
}

/** The address of a state with a change to it. */
function address(state, change = {}) {
  const {method, feature, image} = {...state, ...change};
  const place = image ? `:image/${image.id}` : feature ? `${encodeURIComponent(feature.method)}/${feature.number}` : encodeURIComponent(method);
  return `#${place}${query(Object.keys(change).some((key) => key in START) ? {...state, ...change} : state)}`;
}
