"use strict";
// What the page knows: methods, features and images as objects; what is listed; what an address means. Nothing is drawn here.

const DATA = JSON.parse(document.getElementById("data").textContent);
const [TOP, FIFTHS, PER_FIFTH] = DATA.layout;

const IMAGES = DATA.images.map(([file, label, word, path, cause], id) => ({id, file, label, word, path, cause, features: []}));
const METHODS = DATA.methods.map(readMethod);
const BY_NAME = new Map(METHODS.map((m) => [m.name, m]));

function readMethod(raw) {
  const columns = Object.entries(raw.columns);
  const features = raw.columns.feature.map((number, i) => {
    const f = {method: raw.name, number};
    for (const [name, values] of columns) f[name] = values[i];
    const shown = raw.shown[i].map((id, at) => ({image: IMAGES[id], activation: raw.activations[i][at]}));
    const part = (from, to) => shown.slice(from, to).filter((one) => one.image);
    f.top = part(0, TOP);
    f.fifths = Array.from({length: FIFTHS}, (_, k) => part(TOP + k * PER_FIFTH, TOP + (k + 1) * PER_FIFTH));
    f.silent = part(TOP + FIFTHS * PER_FIFTH);
    f.verdicts = raw.verdicts[i].map(([judge, phrase, verdict, category, confidence, detail]) =>
      ({judge, phrase, verdict, category, confidence, detail}));
    f.near = raw.near[i].map(([other, cosine, jaccard]) => ({other, cosine, jaccard}));
    [f.end, f.counts] = raw.histograms[i];
    f.causes = raw.causes.filter((c) => c[1] === number).map(([cause, , ap, probe]) => ({cause, ap, probe}));
    f.enriched = f.assessed && f.q_bh !== null && f.q_bh <= 0.05;
    return f;
  });
  const byNumber = new Map(features.map((f) => [f.number, f]));
  for (const f of features) f.copies = [];
  for (const f of features) if (f.copy_of !== f.number) byNumber.get(f.copy_of)?.copies.push(f.number);
  raw.images.forEach((flat, id) => {
    const own = [];
    for (let k = 0; k < flat.length; k += 2) own.push({feature: byNumber.get(flat[k]), activation: flat[k + 1]});
    IMAGES[id].features.push(own); // one list for each method, in their order
  });
  const method = {name: raw.name, features, byNumber, judges: raw.judges, n_latents: raw.n_latents, n_alive: raw.n_alive};
  method.errors = raw.errors.map((number) => byNumber.get(number));
  return method;
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

/** Features of a method that a state keeps, in its order; copies of one another are one, the first with all their numbers. */
function listed(method, state) {
  const wanted = state.q.toLowerCase().split(/\s+/).filter(Boolean), keep = SHOWS[state.show][1], value = SORTS[state.sort][1];
  const kept = method.features.filter((f) => keep(f, state.judge) && wanted.every((w) => words(f, state.judge).includes(w)));
  const keyed = kept.map((f) => [value(f) ?? -Infinity, f]);
  keyed.sort(([a, f], [b, g]) => b - a || f.number - g.number || 0);
  const groups = new Map();
  for (const [, f] of keyed) {
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

function address(state, change = {}) {
  const {method, feature, image, ...rest} = {...state, ...change};
  const query = new URLSearchParams(Object.entries(rest).filter(([key, value]) => value !== START[key])).toString();
  const place = image ? `:image/${image.id}` : feature ? `${encodeURIComponent(feature.method)}/${feature.number}` : encodeURIComponent(method);
  return `#${place}${query ? `?${query}` : ""}`;
}
