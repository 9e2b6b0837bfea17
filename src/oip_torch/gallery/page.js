// Addresses, keys and the theme; and the beginning.

/** What an address asks for: {layer, map, problem}. The map's number is behind the last slash. */
function asked(hash) {
  const found = /^#?(.*?)(?:\/(\d{1,9}))?$/s.exec(hash);
  let name = null;
  try {
    name = decodeURIComponent(found[1]);
  } catch {
    return { layer: 0, map: null, problem: "This address cannot be read." };
  }
  if (name === "") return { layer: null, map: null, problem: "" };
  const layer = network.layers.find((each) => each.name === name);
  if (!layer) return { layer: 0, map: null, problem: `There is no layer “${name.slice(0, 80)}” in this atlas.` };
  if (found[2] === undefined) return { layer: layer.index, map: null, problem: "" };
  const map = Number(found[2]);
  const own = layerOf(layer.index);
  return own.maps.some((each) => each.number === map)
    ? { layer: layer.index, map, problem: "" }
    : { layer: layer.index, map: null, problem: `There is no ${own.noun} ${map} of this layer in the atlas.` };
}

function go(hash) {
  if (location.hash === hash) route();
  else location.hash = hash;
}

/** Show what the address asks for, and put the focus there. */
function route(first = false) {
  const wanted = asked(location.hash);
  const before = { layer: state.layer, map: state.map };
  if (before.map === null && shown.layer !== null && wanted.map !== null) shown.scroll = window.scrollY;
  const layer = wanted.layer ?? (first ? 0 : state.layer);
  if (layer !== state.layer) Object.assign(state, { text: "", near: null });
  Object.assign(state, { layer, map: wanted.map, start: null, frame: null, problem: wanted.problem });
  if (missing(here(), state.sort)) state.sort = "index";
  if (missing(here(), state.filter)) state.filter = "all";
  markLayer();
  if (state.map !== null) {
    renderMap();
    say(`${capital(here().noun)} ${state.map} of ${here().name}`);
    if (!first && before.map === null) window.scrollTo(0, main.offsetTop - 8);
    if (!first) main.querySelector("#title").focus({ preventScroll: true });
    return;
  }
  renderGrid();
  if (first) return;
  const back = before.map !== null && before.layer === state.layer ? shown.order.indexOf(mapAt(before.map)) : -1;
  if (back < 0 || state.near !== null) main.querySelector("#title").focus({ preventScroll: state.near === null });
  else {
    window.scrollTo(0, shown.scroll);
    focusPlace(back);
  }
}

function markLayer() {
  document.body.classList.toggle("open", state.map !== null);
  const strip = document.querySelector(".strip");
  for (const link of document.querySelectorAll("a.layer")) {
    if (Number(link.dataset.layer) !== state.layer) link.removeAttribute("aria-current");
    else {
      link.setAttribute("aria-current", "true");
      const [left, right] = [link.offsetLeft - strip.offsetLeft, link.offsetLeft - strip.offsetLeft + link.offsetWidth];
      if (left < strip.scrollLeft || right > strip.scrollLeft + strip.clientWidth) strip.scrollLeft = left - 16;
    }
  }
}

function onKey(event) {
  if (event.defaultPrevented || event.altKey || event.ctrlKey || event.metaKey) return;
  const typing = event.target.matches?.("input, select, textarea");
  if (event.key === "/" && !event.target.matches?.('input[type="search"]')) {
    event.preventDefault();
    if (state.map !== null) go(address(here()));
    setTimeout(() => main.querySelector("#text")?.focus());
  } else if (event.key === "Escape") {
    if (state.map !== null) go(address(here()));
    else if (typing && event.target.id === "text") leaveFilter(event.target);
  } else if (state.map !== null && !typing && (event.key === "ArrowLeft" || event.key === "ArrowRight")) {
    const number = neighbours(state.map)[event.key === "ArrowLeft" ? 0 : 1];
    if (number !== null) {
      event.preventDefault();
      go(address(here(), number));
    }
  }
}

function leaveFilter(field) {
  field.value = "";
  set({ text: "" });
  main.querySelector('.grid a[tabindex="0"]')?.focus();
}

function setTheme(dark) {
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  document.getElementById("theme").setAttribute("aria-pressed", String(dark));
}

function startTheme() {
  const preference = matchMedia("(prefers-color-scheme: dark)");
  const button = document.getElementById("theme");
  button.setAttribute("aria-pressed", String(preference.matches));
  button.addEventListener("click", () => setTheme(button.getAttribute("aria-pressed") !== "true"));
  preference.addEventListener("change", () => document.documentElement.dataset.theme || button.setAttribute("aria-pressed", String(preference.matches)));
}

/** In a notebook's frame a link of "#…" would lead to the notebook's own page. */
function onLink(event) {
  const link = event.target.closest?.('a[href^="#"]');
  if (!link || location.protocol !== "about:" || event.ctrlKey || event.metaKey) return;
  event.preventDefault();
  go(link.getAttribute("href"));
}

document.documentElement.classList.add("js");
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});
document.getElementById("static").hidden = true;
for (const link of document.querySelectorAll("a.layer")) link.href = address(network.layers[Number(link.dataset.layer)]);
startTheme();
addEventListener("hashchange", () => route());
addEventListener("keydown", onKey);
addEventListener("click", onLink);
for (const event of ["scroll", "resize"]) addEventListener(event, () => requestAnimationFrame(() => fillList(false)), { passive: true });
for (const event of ["beforeprint", "afterprint"]) {
  addEventListener(event, () => {
    shown.printing = event === "beforeprint";
    fillList(false);
  });
}
route(true);
