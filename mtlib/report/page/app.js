// What happens: an address is shown, controls change the address, keys move about.

const main = document.getElementById("main"), controls = {}, places = new Map();
let state = readAddress(location.hash), shown = "";

const select = (key, label, options) => {
  controls[key] = h("select", {onchange: (e) => go({[key]: e.target.value})}, options.map(([value, text]) => h("option", {value}, text)));
  return h("label", {}, h("span.muted", {}, label), controls[key]);
};

function toolbar() {
  const names = METHODS.map((m) => [m.name, m.name]), judges = [...new Set(METHODS.flatMap((m) => m.judges))];
  const shows = Object.entries(SHOWS).filter(([key]) => METHODS.some((m) => m.features.some((f) => SHOWS[key][1](f, ""))));
  const sorts = Object.entries(SORTS).filter(([key]) => (DATA.labelled || !LABELLED.has(key)) && (key !== "cause" || METHODS.some((m) => m.features.some((f) => f.causes.length))));
  controls.q = h("input", {type: "search", placeholder: "search names, errors, #numbers", "aria-label": "search features", autocomplete: "off", spellcheck: "false", oninput: (e) => search(e.target.value)});
  return h("div.toolbar", {role: "search"},
    h("label.search", {}, controls.q, h("kbd", {}, "/")),
    METHODS.length > 1 && select("method", "method", names),
    METHODS.length > 1 && select("vs", "beside", [["", "nothing"], ...names]),
    select("show", "show", shows.map(([key, [text]]) => [key, text])),
    select("sort", "sort by", sorts.map(([key, [text]]) => [key, text])),
    judges.length > 1 && select("judge", "names by", judges.map((j, i) => [i ? j : "", j])));
}

/** Go to a state; what is typed replaces the last place of the history, what is clicked is a new one. */
function go(change, replace = false) {
  const next = address(state, change);
  history[replace ? "replaceState" : "pushState"](null, "", next);
  draw();
}

let waiting = 0;
function search(q) {
  cancelAnimationFrame(waiting);
  waiting = requestAnimationFrame(() => go({q, feature: null, image: null}, true));
}

const order = () => listed(BY_NAME.get(state.feature.method), state);

function draw() {
  const before = state, moved = shown !== "";
  if (shown === "list") places.set(address(before), [scrollY, main.querySelector(".grid")?.childElementCount ?? 0]);
  state = readAddress(location.hash);
  const view = state.image ? "image" : state.feature ? "feature" : "list";
  for (const [key, control] of Object.entries(controls)) {
    const value = key === "method" ? state.method || METHODS[0].name : state[key];
    if (key !== "q" || control !== document.activeElement) control.value = value;
  }
  const [y, made] = places.get(address(state)) ?? [0, 0];
  const same = view === "list" && shown === "list" && before.method === state.method;
  if (same) document.getElementById("results").replaceWith(results(state));
  else {
    main.replaceChildren(...(view === "image" ? imageView(state) : view === "feature" ? featureView(state, order())
      : [!state.method && start(state), bar, results(state, made)]).flat(2).filter(Boolean));
    scrollTo(0, y);
  }
  const own = state.feature?.method ?? state.method;
  for (const link of document.querySelectorAll("header nav a")) own === link.textContent ? link.setAttribute("aria-current", "page") : link.removeAttribute("aria-current");
  document.title = `${view === "feature" ? `${nameOf(state.feature, state.judge)} · ` : view === "image" ? "an image · " : ""}${DATA.run}`;
  if (moved && view !== "list") main.querySelector("h1").focus({preventScroll: true});
  shown = view;
}

/** Move the focus among cards: one further, or to the one above or below. */
function move(key) {
  const cards = [...main.querySelectorAll(".finding h2 a, .card h3 a")], at = cards.indexOf(document.activeElement);
  if (!cards.length) return;
  let to = at + {ArrowRight: 1, ArrowLeft: -1, ArrowDown: 1, ArrowUp: -1}[key];
  if (at >= 0 && (key === "ArrowDown" || key === "ArrowUp")) {
    const own = cards[at].closest("article").getBoundingClientRect(), down = key === "ArrowDown";
    const away = cards.map((c, i) => [i, c.closest("article").getBoundingClientRect()])
      .filter(([, box]) => (down ? box.top >= own.bottom - 1 : box.bottom <= own.top + 1))
      .map(([i, box]) => [Math.abs(box.top - own.top) * 4 + Math.abs(box.left - own.left), i]);
    to = away.length ? away.reduce((a, b) => (b[0] < a[0] ? b : a))[1] : at;
  }
  const next = cards[Math.min(Math.max(to, 0), cards.length - 1)];
  next.focus({preventScroll: true});
  next.closest("article").scrollIntoView({block: "nearest"});
}

document.addEventListener("keydown", (e) => {
  if (e.ctrlKey || e.metaKey || e.altKey) return;
  const typing = ["INPUT", "SELECT", "TEXTAREA"].includes(e.target.tagName);
  if (e.key === "/" && !typing) {
    if (state.feature || state.image) go({feature: null, image: null});
    controls.q.focus();
    controls.q.select();
  } else if (e.key === "Escape") {
    if (typing) e.target.blur();
    else if (state.feature || state.image) go({method: state.feature?.method ?? state.method, feature: null, image: null});
    else return;
  } else if (!typing && e.key.startsWith("Arrow")) {
    if (state.image) return;
    if (!state.feature) move(e.key);
    else if (e.key === "ArrowLeft" || e.key === "ArrowRight") main.querySelector(`a[rel="${e.key === "ArrowRight" ? "next" : "prev"}"]`)?.click();
    else return;
  } else return;
  e.preventDefault();
});

const bar = toolbar();
document.getElementById("top").append(h("a.brand", {href: "#"}, "Features of ", h("b", {}, DATA.run)), h("nav", {"aria-label": "methods"}, METHODS.map((m) => h("a", {href: address({...START, method: m.name, feature: null, image: null})}, m.name))));
document.getElementById("foot").append(
  h("p", {}, "Rates are of held-out images; intervals are 95%. Keys: ", h("kbd", {}, "/"), " search, ", h("kbd", {}, "← →"), " next feature, ", h("kbd", {}, "Esc"), " back."),
  h("p", {}, DATA.notebooks.map((name) => [h("a", {href: `notebooks/${encodeURIComponent(name)}`}, name.replace(/\.html$/, "")), " "])));
addEventListener("popstate", draw);
history.scrollRestoration = "manual";
draw();
