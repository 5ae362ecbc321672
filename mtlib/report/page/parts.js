// Small things that views are made of. Text from data only ever becomes a text node or the value of an attribute set here.

/** An element: properties by their attribute's name (on... is a listener, true is bare, null and false leave it out). */
function h(tag, given = {}, ...children) {
  const [name, ...classes] = tag.split(".");
  const made = name.startsWith("svg:") ? document.createElementNS("http://www.w3.org/2000/svg", name.slice(4)) : document.createElement(name);
  if (classes.length) made.setAttribute("class", classes.join(" "));
  for (const [key, value] of Object.entries(given)) {
    if (value === null || value === false || value === undefined) continue;
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (key === "style") for (const [what, is] of Object.entries(value)) made.style.setProperty(what, is);
    else made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.flat(3).filter((c) => c !== null && c !== false && c !== undefined));
  return made;
}

const missing = (v) => v === null || v === undefined;
const percent = (v) => (missing(v) ? "–" : `${v > 0 && v < 0.0995 ? Number((100 * v).toPrecision(2)) : Math.round(100 * v)}%`);
const count = (n) => n.toLocaleString("en");
const many = (n, one, more = `${one}s`) => `${count(n)} ${n === 1 ? one : more}`;
const number = (v) => (missing(v) ? "–" : v === 0 || (Math.abs(v) >= 0.001 && Math.abs(v) < 1e5) ? String(Number(v.toPrecision(3))) : v.toExponential(1));
const signed = (v) => (missing(v) ? "–" : (v > 0 ? "+" : "") + number(v).replace("-", "−"));
const LABELS = {1: ["implausible", "✗"], 0: ["plausible", "✓"], [-1]: ["", ""]};
const VERDICTS = {error: "physical error", no_error: "no error", refused: "refused", failed: "failed", unasked: "not asked", skipped: "not judged", "": "not judged"};

/** The picture of an image, or its word where there is none. */
function picture(image) {
  const said = [LABELS[image.label][0], image.word || image.path].filter(Boolean).join(", ");
  if (!image.file) return h("span.word", {}, image.word || image.path);
  const made = h("img", {src: `page/${image.file}`, alt: said, loading: "lazy", decoding: "async", width: 160, height: 160});
  made.addEventListener("load", () => made.naturalWidth <= 64 && made.classList.add("pixels"), {once: true});
  return made;
}

const LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/** Where a feature fires on a picture: red, the stronger the less it lets through. It lies as the picture does, which fills a square. */
function heatMap(cells, {side: [height, width], square}, shown) {
  const made = h("canvas.heat", {width, height, "aria-hidden": "true"}), paint = made.getContext("2d"), pixels = paint.createImageData(width, height);
  for (let i = 0; i < cells.length; i++) pixels.data.set([214, 40, 0, 3.3 * LETTERS.indexOf(cells[i])], 4 * i);
  paint.putImageData(pixels, 0, 0);
  if (!square) shown.addEventListener("load", () => {
    const ratio = shown.naturalWidth / shown.naturalHeight, [x, y] = [Math.max(1, ratio), Math.max(1, 1 / ratio)];
    Object.assign(made.style, {transform: `scale(${x}, ${y})`, clipPath: `inset(${50 - 50 / y}% ${50 - 50 / x}%)`});
  }, {once: true});
  return made;
}

/** A picture that leads to its image, marked with its label; below it the activation where that is given, over it a map where there is one. */
function tile({image, activation, cells}, state, focusable = true, heat = null) {
  const [label, sign] = LABELS[image.label], shown = picture(image);
  return h("a.tile", {href: address(state, {image, feature: null}), class: `tile label${image.label}`, tabindex: focusable ? null : -1, title: image.path},
    shown, heat && cells && image.file && heatMap(cells, heat, shown),
    h("span.under", {}, missing(activation) ? "" : activation > 0 ? number(activation) : "", label && h("span.sign", {"aria-label": label}, sign)));
}

const strip = (f, state, n) => h("div.strip", {}, f.top.slice(0, n).map((one) => tile({image: one.image}, state, false)));

/** Error ratio with its interval beside the base rate, as a bar from 0 to 100%. */
function certainty(f, wide = false) {
  if (missing(f.error_ratio) || missing(DATA.base_rate)) return null;
  const at = (v) => `${(100 * v).toFixed(1)}%`;
  const said = `${percent(f.error_ratio)} of ${count(f.n_active_test)} images implausible`;
  const sure = `95% interval ${percent(f.error_low)} to ${percent(f.error_high)}, base rate ${percent(DATA.base_rate)}`;
  return h("div.certainty", {title: `${said}; ${sure}`},
    h("div.track", {role: "img", "aria-label": `${said}; ${sure}`},
      h("span.range", {style: {left: at(f.error_low), width: at(f.error_high - f.error_low)}}),
      h("span.base", {style: {left: at(DATA.base_rate)}}),
      h("span.dot", {style: {left: at(f.error_ratio)}})),
    h("p.muted", {}, wide ? `${said}; ${sure}` : f.assessed ? said : `${said}: too few to say`));
}

const badge = (verdict) => h(`span.badge.${Object.hasOwn(VERDICTS, verdict) ? verdict || "skipped" : "skipped"}`, {}, VERDICTS[verdict] ?? verdict);
const chip = (...text) => h("span.chip", {}, ...text);

/** A known error that a feature is the best for, with how good it is. */
const causeChip = ({cause, ap, probe}) => h("span.chip.cause", {title: `average precision of this one feature on all held-out images${missing(probe) ? "" : `; a linear probe: ${probe.toFixed(2)}`}`}, cause, ` AP ${ap.toFixed(2)}`);

/** One feature, or a group of copies, in a grid. */
function card(group, state) {
  const [f] = group, said = verdictOf(f, state.judge);
  return h("article.card", {},
    strip(f, state, 4),
    h("div.text", {},
      h("h3", {}, h("a", {href: address(state, {feature: f, image: null}), class: "through"}, nameOf(f, state.judge))),
      h("p.muted", {}, `#${f.number} · fires on ${percent(f.density)}`, group.length > 1 && h("b.copies", {title: `copies: ${group.map((g) => `#${g.number}`).join(", ")}`}, ` ×${group.length}`)),
      certainty(f),
      h("div.chips", {}, said.verdict && !["skipped", "unasked"].includes(said.verdict) && badge(said.verdict), f.causes.map(causeChip))));
}

/** A feature in a line: some pictures, its name, a remark. */
function line(f, state, remark, share = null) {
  return h("div.line", {},
    h("div.strip.small", {}, f.top.slice(0, 3).map((one) => tile({image: one.image}, state, false))),
    h("div.text", {},
      h("a", {href: address(state, {feature: f, image: null}), class: "through"}, nameOf(f, state.judge)),
      h("p.muted", {}, `#${f.number} · ${remark}`),
      !missing(share) && h("div.amount", {}, h("span", {style: {width: `${Math.min(100, 100 * share).toFixed(0)}%`}}))));
}

/** How often a feature fires how strongly: bars of square-root height. */
function histogram(f) {
  if (!f.counts.length) return null;
  const [width, height] = [360, 90], most = Math.max(...f.counts), step = width / f.counts.length;
  const bars = f.counts.map((n, i) => {
    const tall = Math.sqrt(n / most) * height;
    return h("svg:rect", {x: i * step, y: height - tall, width: Math.max(step - 1, 1), height: tall},
      h("svg:title", {}, `${number((i * f.end) / f.counts.length)} to ${number(((i + 1) * f.end) / f.counts.length)}: ${many(n, "image")}`));
  });
  return h("figure.histogram", {},
    h("svg:svg", {viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", role: "img", "aria-label": `histogram of ${many(f.n_active_test, "activation")}, largest ${number(f.max_activation)}`}, bars),
    h("figcaption.muted", {}, h("span", {}, "0"), h("span", {}, "activation"), h("span", {}, number(f.end))));
}

/** What taking the feature away does to the classifier's logit, beside its controls, of which only the size is known. */
function effect(f) {
  const [own, ...controls] = [f.causal_relevance, f.causal_control_latents, f.causal_control_random];
  if (missing(own)) return null;
  const most = Math.max(...[own, ...controls].map((v) => Math.abs(v ?? 0))) || 1, half = (v) => `${(50 * Math.abs(v)) / most}%`;
  const row = (name, bar, text) => [h("dt", {}, name), h("dd", {}, h("span.bar", {}, bar), h("b", {}, text))];
  const both = (name, v) => !missing(v) && row(name, h("span.both", {style: {left: `calc(50% - ${half(v)})`, right: `calc(50% - ${half(v)})`}}), `±${number(v)}`);
  return h("dl.effect", {},
    row("this feature", h("span", {class: own < 0 ? "down" : "up", style: {width: half(own)}}), signed(own)),
    both("other features", controls[0]), both("random directions", controls[1]));
}
