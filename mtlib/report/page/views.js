// What fills the page: its start, a grid of features, one feature, one image. Each returns elements for <main>.

const CHUNK = 30; // cards that are made at a time, as the end of the grid comes near

/** Cards of groups of features, made as they are scrolled to. */
function grid(groups, state, made = CHUNK) {
  const box = h("div.grid"), end = h("div.end");
  const add = (n) => {
    const next = groups.slice(box.childElementCount, box.childElementCount + n);
    box.append(...next.map((group) => card(group, state)));
    if (box.childElementCount >= groups.length) end.remove();
  };
  add(Math.max(made, CHUNK));
  if (end.isConnected || box.childElementCount < groups.length) {
    new IntersectionObserver((seen) => seen.some((s) => s.isIntersecting) && add(CHUNK), {rootMargin: "1200px"}).observe(end);
  }
  return [box, box.childElementCount < groups.length && end];
}

/** The features of the state's method, or of two side by side. */
function results(state, made) {
  const methods = [state.method || METHODS[0].name, state.vs].filter(Boolean).map((name) => BY_NAME.get(name));
  const columns = methods.map((m) => {
    const groups = listed(m, state), n = groups.reduce((sum, group) => sum + group.length, 0);
    const left = m.n_alive - m.features.length, folded = n - groups.length;
    return h("section.column", {"aria-label": `features of ${m.name}`},
      h("p.count", {}, methods.length > 1 && h("b", {}, m.name, " "), h("span", {role: "status"}, `${count(n)} of ${many(m.n_latents, "feature")}`),
        h("span.muted", {}, folded > 0 && ` · ${many(folded, "copy", "copies")} folded in`, m.n_latents > m.n_alive && ` · ${count(m.n_latents - m.n_alive)} never fire here`, left > 0 && ` · the ${count(left)} least active are left out`)),
      groups.length ? grid(groups, state, made) : h("p.empty", {}, "No feature passes. ", h("a", {href: address(state, {q: "", show: "all"})}, "Show all")));
  });
  return h("div", {id: "results", class: columns.length > 1 ? "two" : null}, columns);
}

/** The first thing a visitor sees: the errors found, most certain first. */
function start(state) {
  const found = errorsFound(state.judge), few = 9;
  const smoke = DATA.run.split("-").slice(1).includes("smoke");
  const head = h("div.hero", {},
    h("p.over", {}, `run ${DATA.run}`),
    h("h1", {}, DATA.labelled ? "What does this image model get physically wrong?" : "What do the features of this image model stand for?"),
    h("p.lead", {}, found.length
      ? [h("b", {}, many(found.length, "kind of error", "kinds of error")), ` named by the features of ${many(METHODS.length, "method")}, most certain first. `]
      : DATA.labelled ? "No feature was found to stand for an error. " : `${many(METHODS.length, "method")}, the most active features first. `,
      `All images here are held out: ${count(DATA.n_images)} of which nothing was learned. Click a picture for its features, a feature for its pictures.`),
    DATA.note && h("p.note", {}, DATA.note),
    DATA.remark && h("p.note", {}, DATA.remark),
    smoke && h("p.note", {}, "A smoke run: it shows that every step runs, and nothing else."));
  const cards = found.map((group) => finding(group, state));
  const more = cards.length > few && h("button.more", {type: "button", onclick: () => { rest.hidden = false; more.remove(); }}, `Show all ${cards.length}`);
  const rest = h("div.findings", {hidden: true}, cards.slice(few));
  return [head, cards.length > 0 && h("section", {"aria-label": "errors found"}, h("div.findings", {}, cards.slice(0, few)), rest, more)];
}

/** One error: the surest feature for it, and the other methods that have one. */
function finding([f, ...others], state) {
  const best = [f, ...others].flatMap((g) => BY_NAME.get(g.method).features).flatMap((g) => g.causes.map((c) => ({...c, feature: g})));
  const own = best.filter((c) => c.cause === f.top_cause).sort((a, b) => b.ap - a.ap)[0];
  return h("article.finding", {},
    strip(f, state, 6),
    h("div.text", {},
      h("h2", {}, h("a", {href: address(state, {feature: f, image: null}), class: "through"}, nameOf(f, state.judge))),
      certainty(f),
      f.top_cause && h("p.truth", {}, h("span.muted", {}, "truth: "), f.top_cause, h("span.muted", {title: "share of the strongest validation images that show it"}, ` in ${percent(f.top_cause_share)} of its strongest`), own && [" · ", h("a", {href: address(state, {feature: own.feature, image: null}), title: "the one feature that tells this error best, chosen on validation images: its average precision among all held-out images"}, `best feature AP ${own.ap.toFixed(2)}`)]),
      h("p.methods", {}, [f, ...others].map((g) => h("a.chip", {href: address(state, {feature: g, image: null})}, `${g.method} #${g.number}`)))));
}

const section = (title, remark, ...inside) => h("section.block", {}, h("h2", {}, title), remark && h("p.muted", {}, remark), ...inside);
const tiles = (shown, state, small = false, heat = null) => h(`div.tiles${small ? ".ten" : ""}`, {}, shown.map((one) => tile(one, state, true, heat)));

/** Lays the heat maps of a feature over its pictures, or takes them off again. */
const heatSwitch = (f) => f.top.some((one) => one.cells) && h("button.more", {type: "button", "aria-pressed": String(document.body.classList.contains("hot")),
  onclick: (e) => e.currentTarget.setAttribute("aria-pressed", document.body.classList.toggle("hot"))}, "Where does it fire?");
const FIFTH = ["strongest fifth", "second", "middle", "fourth", "weakest fifth"];

/** One feature: its images, its numbers, what is said of it, and its neighbours. */
function featureView(state, order) {
  const f = state.feature, m = BY_NAME.get(f.method), at = order.findIndex((group) => group.includes(f));
  const step = (by, word) => {
    const next = order.length && order[(Math.max(at, 0) + by + order.length) % order.length][0];
    return h("a.button", {href: next ? address(state, {feature: next}) : null, rel: by > 0 ? "next" : "prev", "aria-label": `${word} feature`, title: `${word} feature (arrow key)`}, by > 0 ? "→" : "←");
  };
  const said = verdictOf(f, state.judge), others = counterparts(f);
  const own = (by, least) => f.near.filter((n) => n[by] > least).sort((a, b) => b[by] - a[by]).slice(0, 6);
  const [near, together] = [own("cosine", 0), own("jaccard", 0)];
  const facts = [
    ["fires on", percent(f.density), `${count(f.n_active_test)} of ${many(DATA.n_images, "image")}`],
    ["largest activation", number(f.max_activation), `mean ${number(f.mean_activation)}`],
    ["MonoScore", number(f.mono_score), "1: all images alike"],
    ["purity", percent(f.purity), f.dominant_class],
    ["commonest error", f.top_cause, f.top_cause && `${percent(f.top_cause_share)} of its top val images`],
  ].filter(([, v]) => v && v !== "–");
  const best = f.causes.map((c) => h("p", {}, causeChip(c), h("span.muted", {}, " the method’s best single feature for this error")));
  return [
    h("div.head", {},
      h("nav.crumbs", {"aria-label": "place"}, h("a", {href: address(state, {feature: null, image: null, method: f.method})}, f.method), h("span", {}, ` #${f.number}`), h("span.push"), step(-1, "previous"), h("span.muted.at", {}, at >= 0 ? `${at + 1} / ${order.length}` : ""), step(1, "next")),
      h("h1", {tabindex: -1}, nameOf(f, state.judge)),
      h("div.chips", {}, badge(said.verdict), f.enriched && chip("enriched for errors"), f.copy_of !== f.number && h("a.chip", {href: m.byNumber.has(f.copy_of) ? address(state, {feature: m.byNumber.get(f.copy_of)}) : null}, `copy of #${f.copy_of}`), f.copies.map((g) => h("a.chip", {href: address(state, {feature: m.byNumber.get(g)})}, `copy #${g}`)))),
    h("div.feature", {},
      h("div.images", {},
        section("Strongest images", null, heatSwitch(f), tiles(f.top, state, false, f.heat)),
        f.fifths.some((part) => part.length) && section("Over its whole range", "Images on which it fires, from its strongest fifth to its weakest.", h("div.fifths", {}, f.fifths.map((part, k) => h("div", {}, h("h3.muted", {}, FIFTH[k]), tiles(part, state))))),
        section("Without it", "Images on which it does not fire, by chance.", tiles(f.silent, state, true))),
      h("aside.side", {},
        certainty(f) && section("Is it about errors?", null, certainty(f, true), best),
        section("In numbers", null, h("dl.facts", {}, facts.map(([name, v, remark]) => [h("dt", {}, name), h("dd", {}, h("b", {}, v), " ", h("span.muted", {}, remark))]))),
        section("Activations", "How often it fires how strongly; heights are roots of numbers of images.", histogram(f)),
        effect(f) && section("Effect on the logit", "Mean change when it is taken away, beside what taking others of its size away does; below 0, it had pushed towards “implausible”.", effect(f)),
        section("Names and verdicts", null, f.verdicts.length ? h("ul.judges", {}, f.verdicts.map((v) => h("li", {}, h("span.over", {}, v.judge), badge(v.verdict), h("p", {}, v.phrase), h("p.muted", {}, [v.category, !missing(v.confidence) && `confidence ${number(v.confidence)}`, v.detail].filter(Boolean).join(" · "))))) : h("p.muted", {}, "No judge has looked at it.")))),
    h("div.three", {},
      near.length > 0 && section("Nearest features", "by the direction that they write", near.map((n) => line(m.byNumber.get(n.other), state, `cosine ${n.cosine.toFixed(2)}`, n.cosine))),
      together.length > 0 && section("Fire together", "on the same images", together.map((n) => line(m.byNumber.get(n.other), state, `${percent(n.jaccard)} of images in common`, n.jaccard))),
      others.length > 0 && section("In other methods", "the feature with most of the same top images", others.map((one) => line(one.feature, state, `${one.feature.method}, ${percent(one.share)} in common`, one.share)))),
  ];
}

/** One image: what is known of it, and its features in every method. */
function imageView(state) {
  const {image} = state, [label, sign] = LABELS[image.label];
  const facts = [["label", label && `${sign} ${label}`], ["class", image.word], ["true error", image.cause], ["file", image.path]].filter(([, v]) => v);
  const columns = METHODS.map((m) => [m, featuresOf(m, image)]).map(([m, own]) => section(m.name, null,
    own.length ? own.map(({feature, activation}) => line(feature, state, `${number(activation)}, ${percent(activation / feature.max_activation)} of its largest`, activation / feature.max_activation)) : h("p.muted", {}, "No feature fires.")));
  return [
    h("div.head", {}, h("nav.crumbs", {"aria-label": "place"}, h("a", {href: address(state, {image: null, feature: null})}, "features"), h("span", {}, " image")), h("h1", {tabindex: -1}, "What fires on this image?")),
    h("div.image", {}, h("div.whole", {class: `whole label${image.label}`}, picture(image)), h("dl.facts", {}, facts.map(([name, v]) => [h("dt", {}, name), h("dd", {}, v)]))),
    h("div.three", {}, columns),
  ];
}
