"use strict";
// The page of an atlas. All it shows lies in the page: JSON and pictures in inert script elements, by position and never
// by name, so that a layer may be called anything. Text goes in as text; nothing is parsed as HTML.

// ---- State ----------------------------------------------------------------------------------------------------------

const network = JSON.parse(document.getElementById("network").textContent);
const state = {
  layer: 0, // which of the page's layers
  map: null, // the number of the map whose view is open; null: the grid
  start: null, // position of the start that is shown large; null: the best
  frame: null, // position on the way; null: the result
  look: "data", // or "strongest"
  sort: "index",
  filter: "all",
  text: "",
  by: "images", // what likeness is of: "images" or "activations"
  near: null, // the map whose most similar ones the grid shows
  problem: "", // what an address asks for, and is not there
};
const shown = { layer: null, order: [], cells: [], range: {}, scroll: 0, printing: false };
const WHOLE = 512; // so many maps stand in the grid at once; of more those in sight, as scrolling would be slow
const NEARLY = 900; // pixels beyond the window within which they stand there
const BLOCK = 4; // rows that come and go together
const main = document.getElementById("main");

const SORTS = [
  ["index", "number", 1],
  ["score", "score", -1],
  ["over_data", "score over data", -1],
  ["legibility", "legibility", -1],
  ["agreement", "agreement of starts", -1],
  ["selectivity", "selectivity", 1],
];
const FILTERS = [
  ["all", "all"],
  ["alive", "alive"],
  ["dead", "dead"],
  ["recovered", "recovered"],
  ["fallback", "fallback"],
  ["noise", "not distinguishable from noise"],
  ["above_data", "above the data"],
];
const SORT_NOTES = {
  over_data: () => "the best start’s score over the largest score of the data",
  legibility: () => "legibility of the best start’s picture",
  agreement: (layer) => `the mean correlation between the ${layer.noun}’s starts (${layer.starts} at most), each the largest over all shifts`,
  selectivity: (layer) => `the ${layer.noun}’s own place among those that its image excites most, 1 is the first`,
};
const LOOKS = [
  ["data", "In the data’s range"],
  ["strongest", "Own contrast"],
];
const LOOK_NOTES = {
  data: "Colours: the data’s own, what is darker than black or lighter than white clipped.",
  strongest: "Scale: each picture from its own 0.5 % to its 99.5 % quantile.",
};

// ---- What is in the page --------------------------------------------------------------------------------------------

const memo = (make) => {
  const made = new Map();
  return (key) => made.get(key) ?? made.set(key, make(key)).get(key);
};

/** The entry of a layer, read when it is first looked at. */
const layerOf = memo((index) => JSON.parse(document.getElementById(`layer-${index}`).textContent));

/** A sheet of pictures, decoded when it is first looked at. */
const sheetOf = memo(async (id) => {
  const image = document.getElementById(id);
  if (image instanceof HTMLImageElement) return image.decode().then(() => image);
  const bytes = Uint8Array.from(atob(image.textContent), (letter) => letter.charCodeAt(0));
  return createImageBitmap(new Blob([bytes], { type: "image/webp" }));
});

const here = () => layerOf(state.layer);
const mapAt = (number) => here().maps.findIndex((map) => map.number === number);
const bestSheet = () => (state.look === "data" ? `best-${state.layer}` : `pack-${state.layer}-best-strongest`);
const isNumber = (value) => typeof value === "number";

/** Where the pictures of a map are on its sheet: first its starts, then its way. */
function packOf(position, look) {
  const layer = here();
  const chunk = Math.floor(position / layer.chunk);
  const name = `${chunk}-${look}`;
  let first = 0;
  if (look !== "real") {
    for (const map of layer.maps.slice(chunk * layer.chunk, position)) first += map.starts.length + map.way.length + 1;
  }
  return { id: `pack-${state.layer}-${name}`, columns: layer.columns[name], first };
}

// ---- Small helpers --------------------------------------------------------------------------------------------------

/** An element; `set` holds attributes, and functions for events. Children are elements or text. */
function el(tag, set = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(set)) {
    if (typeof value === "function") made.addEventListener(key, value);
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== ""));
  return made;
}

function svg(tag, set = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(set)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/** Two decimals, or as many as a small number needs to differ from 0; as the package's own texts have it. */
function told(value, decimals = 2) {
  if (value === 0 || Math.abs(value) >= 0.5 * 10 ** -decimals) return value.toFixed(decimals).replace("-", "−");
  return value.toPrecision(1).replace("-", "−");
}

const say = (text) => (document.getElementById("live").textContent = text);
const count = (number, one, many = `${one}s`) => `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
const address = (layer, map = null) =>
  `#${encodeURIComponent(layer.name)}${map === null ? "" : `/${map}`}`;
const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

/** A canvas of a picture's own pixels, which the style makes larger. */
function canvas(size, label) {
  const [height, width] = size;
  const made = el("canvas", { width, height, ...(label ? { role: "img", "aria-label": label } : { "aria-hidden": "true" }) });
  if (here().large) made.classList.add("smooth");
  made.style.aspectRatio = `${width} / ${height}`;
  return made;
}

function draw(target, sheet, columns, index) {
  const { width, height } = target;
  const x = (index % columns) * width;
  const y = Math.floor(index / columns) * height;
  target.getContext("2d").drawImage(sheet, x, y, width, height, 0, 0, width, height);
}

/** Draw when the sheet is decoded, unless something else is to be drawn there by then. */
function drawLater(target, id, columns, index) {
  const ticket = `${id}/${index}`;
  target.dataset.ticket = ticket;
  sheetOf(id).then((sheet) => target.dataset.ticket === ticket && draw(target, sheet, columns, index));
}

function drawPack(target, position, offset, look = state.look) {
  const pack = packOf(position, look);
  drawLater(target, pack.id, pack.columns, pack.first + offset);
}

/** Buttons of which one is pressed. */
function choice(label, options, value, choose) {
  const buttons = options.map(([key, text, off]) =>
    el("button", { type: "button", "aria-pressed": String(key === value), disabled: Boolean(off), click: () => choose(key) }, text),
  );
  return el("div", { class: "choice", role: "group", "aria-label": label }, buttons);
}

function press(group, options, value) {
  options.forEach(([key], index) => group.children[index].setAttribute("aria-pressed", String(key === value)));
}

// ---- Which maps, in which order -------------------------------------------------------------------------------------

/** "17, 30-39" → a test of numbers; null: it says no numbers. */
function numbersIn(text) {
  const parts = text.split(/[\s,;]+/).filter(Boolean);
  const ranges = parts.map((part) => /^(\d{1,9})(?:[-–](\d{1,9})?)?$/.exec(part));
  if (ranges.includes(null)) return null;
  const ends = ranges.map(([, first, last]) => [Number(first), Number(last ?? first)]);
  return (number) => ends.length === 0 || ends.some(([first, last]) => first <= number && number <= last);
}

/** Of a filter or a sorting: why it cannot be had here; "" if it can. */
function missing(layer, key) {
  if (key === "index" || key === "all" || key === "score") return "";
  if (key === "alive" || key === "dead") return layer.canBeDead ? "" : "not told here";
  if (key === "noise") return layer.noise ? "" : "not asked";
  if (key === "above_data") return layer.compares ? "" : "no data";
  if (FILTERS.some(([filter]) => filter === key)) return "";
  return layer.maps.some((map) => isNumber(map.sort[key])) ? "" : "undefined";
}

/** Positions of the maps that the grid shows, in order. What is undefined comes last. */
function order() {
  const layer = here();
  if (state.near !== null) {
    const own = mapAt(state.near);
    return [own, ...layer.maps[own].alike[state.by].map(([position]) => position)];
  }
  const wanted = numbersIn(state.text);
  const positions = layer.maps
    .map((_, position) => position)
    .filter((position) => {
      const map = layer.maps[position];
      return wanted?.(map.number) && (state.filter === "all" || map.flags.includes(state.filter));
    });
  const [, , direction] = SORTS.find(([key]) => key === state.sort);
  const value = (position) => {
    const map = layer.maps[position];
    const found = state.sort === "index" ? map.number : map.sort[state.sort];
    return isNumber(found) ? direction * found : Infinity;
  };
  return positions.sort((a, b) => {
    const [left, right] = [value(a), value(b)];
    return left === right ? layer.maps[a].number - layer.maps[b].number : left - right;
  });
}

// ---- The grid -------------------------------------------------------------------------------------------------------

function renderGrid() {
  const layer = here();
  if (shown.layer !== state.layer) {
    shown.layer = state.layer;
    shown.cells = layer.maps.map((map, position) => cell(layer, map, position));
  }
  const list = el("ul", { class: "grid", "aria-label": `${capital(layer.nouns)} of ${layer.name}`, keydown: onGridKey });
  if (layer.large) list.classList.add("large");
  main.replaceChildren(
    el("section", { class: "plate-view", "aria-labelledby": "title" },
      el("div", { class: "view-head" },
        el("h2", { id: "title", tabindex: "-1" }, layer.name),
        el("p", { class: "sub" }, layerWords(layer))),
      toolbar(layer),
      el("p", { class: "hint", id: "hint" }),
      list,
      el("p", { class: "legend" })),
  );
  updateGrid();
  document.title = `${layer.name} · ${network.name}`;
}

/** What a change of sorting, filter or look changes. */
function updateGrid() {
  const layer = here();
  const list = main.querySelector(".grid");
  shown.order = order();
  shown.order.forEach((position) => updateCell(shown.cells[position], layer, layer.maps[position]));
  rove(null);
  fillList();
  const total = layer.maps.length;
  const text =
    state.near !== null
      ? `${capital(layer.noun)} ${state.near} and the ${shown.order.length - 1} of ${total} ${layer.nouns} most like it, by ${byWords()}`
      : `${shown.order.length.toLocaleString("en")} of ${count(total, layer.noun, layer.nouns)}`;
  main.querySelector("#count").textContent = text;
  main.querySelector(".legend").replaceChildren(...gridLegend(layer));
  say(text);
  hint(layer);
}

/** Put the cells into the list; of thousands those alone that are in sight, or nearly, and room for the others. */
function fillList(anew = true) {
  const list = main.querySelector(".grid");
  if (!list) return;
  const range = rangeInSight(list);
  if (!anew && range.first === shown.range.first && range.end === shown.range.end) return;
  const before = anew ? { first: 0, end: 0 } : shown.range;
  shown.range = range;
  const items = shown.order.slice(range.first, range.end).map((position, index) => {
    const item = shown.cells[position];
    item.setAttribute("aria-posinset", range.first + index + 1);
    item.setAttribute("aria-setsize", shown.order.length);
    return item;
  });
  const kept = (index) => before.first <= index && index < before.end;
  const place = (index) => index - range.first;
  if (![range.first, range.end - 1].some(kept)) list.replaceChildren(...items);
  else {
    for (const item of [...list.children].filter((each) => !items.includes(each))) item.remove();
    list.prepend(...items.slice(0, Math.max(0, place(before.first))));
    list.append(...items.slice(Math.max(0, place(before.end))));
  }
  list.style.paddingBlock = `${range.before}px ${range.after}px`;
  items.forEach((item) => drawCell(item.querySelector(".tile")));
  if (!list.querySelector('a[tabindex="0"]')) rove(list.querySelector("a"));
}

/** Which places of the order are in the list: all where they are few. */
function rangeInSight(list) {
  const count = shown.order.length;
  if (count <= WHOLE || shown.printing) return { first: 0, end: count, before: 0, after: 0 };
  const { columns, row, top } = measured(list);
  const block = (pixels, round) => Math.max(0, BLOCK * round(pixels / row / BLOCK));
  const rows = Math.ceil(count / columns);
  const first = Math.min(block(-top - NEARLY, Math.floor), rows - 1);
  const end = Math.min(block(innerHeight - top + NEARLY, Math.ceil), rows);
  return { first: first * columns, end: Math.min(count, end * columns), before: first * row, after: (rows - end) * row };
}

/** Columns of the grid, height of a row with its gap, and where the grid begins in the window. */
function measured(list) {
  if (!list.firstChild) list.append(shown.cells[shown.order[0]]);
  const style = getComputedStyle(list);
  const row = list.firstChild.offsetHeight + parseFloat(style.rowGap);
  return { columns: style.gridTemplateColumns.split(" ").length, row, top: list.getBoundingClientRect().top };
}

/** Put the focus on a place of the order, which may be far out of sight. */
function focusPlace(place) {
  const list = main.querySelector(".grid");
  const { columns, row, top } = measured(list);
  const y = top + Math.floor(place / columns) * row;
  if (y < 80 || y + row > innerHeight) window.scrollBy(0, y - (innerHeight - row) / 2);
  fillList(false);
  const link = shown.cells[shown.order[place]].firstChild;
  rove(link);
  link.focus({ preventScroll: true });
}

async function drawCell(tile) {
  const [layer, look, id] = [state.layer, state.look, bestSheet()];
  if (!tile.firstChild) tile.append(canvas(here().tile));
  const target = tile.firstChild;
  if (target.dataset.look === look) return;
  const sheet = await sheetOf(id);
  if (layer !== state.layer || look !== state.look) return;
  draw(target, sheet, here().bestColumns, Number(tile.dataset.position));
  target.dataset.look = look;
}

function cell(layer, map, position) {
  const tile = el("div", { class: "tile", "data-position": position });
  tile.style.aspectRatio = `${layer.tile[1]} / ${layer.tile[0]}`;
  const link = el("a", { href: address(layer, map.number), tabindex: "-1" },
    tile,
    el("span", { class: "caption", "aria-hidden": "true" },
      el("b", {}, String(map.number)),
      el("span", { class: "value" })));
  return el("li", { class: map.flags.includes("dead") ? "dead" : "" }, link);
}

/** The caption: what the grid is sorted by, with the marks of how the image came about. */
function updateCell(item, layer, map) {
  const best = map.starts[map.best];
  const key = state.near !== null || state.sort === "index" ? "score" : state.sort;
  const value = captionValue(layer, map, key);
  const marks = `${network.marks[best.status] ?? ""}${map.flags.includes("noise") ? "~" : ""}`;
  const field = item.querySelector(".value");
  field.textContent = value + (best.status === "dead" && key === "score" ? "" : marks);
  item.querySelector("a").setAttribute("aria-label", cellLabel(layer, map, key, value));
}

function captionValue(layer, map, key) {
  if (state.near !== null && map.number !== state.near) {
    const [, likeness] = layer.maps[mapAt(state.near)].alike[state.by].find(([position]) => layer.maps[position] === map) ?? [];
    if (likeness !== undefined) return `r ${told(likeness)}`;
  }
  if (key === "score") return map.starts[map.best].status === "dead" ? "dead" : map.starts[map.best].score;
  const value = map.sort[key];
  if (!isNumber(value)) return "–";
  if (key === "selectivity") return `${value}.`;
  return key === "over_data" ? `${told(value, 1)}×` : told(value);
}

function cellLabel(layer, map, key, value) {
  const words = { score: "score", over_data: "score over data", legibility: "legibility", agreement: "agreement", selectivity: "selectivity" };
  const best = map.starts[map.best];
  const parts = [`${capital(layer.noun)} ${map.number}`];
  parts.push(value === "–" ? `${words[key]} undefined` : value === "dead" ? "dead" : `${words[key]} ${value}`);
  if (best.status !== "dead" && network.marks[best.status]) parts.push(best.status);
  if (best.status === "dead" && value !== "dead") parts.push("dead");
  if (map.flags.includes("noise")) parts.push("not distinguishable from noise");
  return parts.join(", ");
}

function layerWords(layer) {
  const parts = [layer.kind, `${layer.maps.length} of ${count(layer.of, layer.noun, layer.nouns)}${layer.size ? `, ${layer.size} each` : ""}`];
  const images = layer.planned === layer.images ? count(layer.images, "image") : `${layer.images.toLocaleString("en")} of ${count(layer.planned, "image")} so far`;
  parts.push(`${images}, up to ${count(layer.starts, "start")} a ${layer.noun}`);
  if (layer.place !== layer.name) parts.push(layer.place.replace(layer.name, "").trim());
  if (layer.lost) parts.push(`${count(layer.lost, "image")} left the finite numbers and ${layer.lost === 1 ? "is" : "are"} not shown`);
  return `${parts.join(" · ")}.`;
}

function gridLegend(layer) {
  const has = (flag) => layer.maps.some((map) => map.flags.includes(flag));
  const note = state.near !== null ? byWords() : SORT_NOTES[state.sort]?.(layer) ?? `the score (${layer.score}) of the best start`;
  const parts = [`Beside the number: ${note}.${state.sort === "index" || state.sort === "score" ? "" : " – is undefined, and comes last."}`];
  for (const status of Object.keys(network.marks)) if (has(status)) parts.push(`${network.marks[status]} ${network.statuses[status]}`);
  if (has("noise")) parts.push("~ not distinguishable from noise.");
  if (has("dead")) parts.push("Faded: dead.");
  if (layer.noise) parts.push(`${capital(layer.noise)}.`);
  return [parts.join(" "), el("br"), LOOK_NOTES[state.look]];
}

function hint(layer) {
  const text = [];
  if (!shown.order.length) {
    text.push(numbersIn(state.text) === null
      ? "Type numbers or ranges, as in 17 or 30-39."
      : `No ${layer.noun} is left. Choose “all”, or clear the numbers.`);
  }
  if (state.problem) text.unshift(state.problem);
  main.querySelector("#hint").textContent = text.join(" ");
}

function toolbar(layer) {
  const option = (key, text, value, more) => {
    const why = missing(layer, key);
    return el("option", { value: key, selected: key === value, disabled: Boolean(why) }, why ? `${text} (${why})` : text + more);
  };
  const having = (key) => (key === "all" ? layer.maps.length : layer.maps.filter((map) => map.flags.includes(key)).length);
  const sort = el("select", { id: "sort", change: (event) => set({ sort: event.target.value, near: null }) },
    SORTS.map(([key, text]) => option(key, text, state.sort, "")));
  const filter = el("select", { id: "filter", change: (event) => set({ filter: event.target.value, near: null }) },
    FILTERS.map(([key, text]) => option(key, text, state.filter, ` (${having(key)})`)));
  const text = el("input", {
    id: "text", type: "search", inputmode: "text", placeholder: "17, 30–39", autocomplete: "off", value: state.text,
    "aria-describedby": "hint", input: (event) => set({ text: event.target.value, near: null }),
  });
  const looks = choice("Way of looking", LOOKS, state.look, (look) => {
    press(looks, LOOKS, look);
    set({ look });
  });
  return el("div", { class: "toolbar", role: "group", "aria-label": "Sort and filter" },
    el("div", { class: "field" }, el("label", { for: "sort" }, "Sort by"), sort),
    el("div", { class: "field" }, el("label", { for: "filter" }, "Show"), filter),
    el("div", { class: "field" }, el("label", { for: "text" }, "Numbers"), text),
    looks,
    el("p", { class: "count", id: "count" }),
    el("button", { type: "button", class: "quiet clear", id: "clear", hidden: state.near === null, click: () => { set({ near: null }); renderGrid(); } }, "Show all again"));
}

/** Change what the grid shows, and show it. */
function set(changes) {
  Object.assign(state, changes, { problem: "" });
  const clear = main.querySelector("#clear");
  if (clear) clear.hidden = state.near === null;
  updateGrid();
}

const byWords = () => (state.by === "images" ? "correlation of the images" : "correlation of activations over the data");

/** One cell at a time is in the order of Tab; the arrows go to the others. */
function rove(link) {
  for (const item of shown.cells) item.firstChild.setAttribute("tabindex", item.firstChild === link ? "0" : "-1");
}

function onGridKey(event) {
  const link = document.activeElement.closest?.(".grid a");
  if (!link || event.altKey || event.ctrlKey || event.metaKey) return;
  const from = shown.order.findIndex((position) => shown.cells[position].firstChild === link);
  const { columns } = measured(event.currentTarget);
  const last = shown.order.length - 1;
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, Home: -from, End: last - from };
  if (!(event.key in steps)) return;
  event.preventDefault();
  focusPlace(Math.min(last, Math.max(0, from + steps[event.key])));
}

// ---- The view of one map --------------------------------------------------------------------------------------------

function renderMap() {
  const layer = here();
  const position = mapAt(state.map);
  const map = layer.maps[position];
  const chosen = state.start ?? map.best;
  main.replaceChildren(
    el("article", { class: "map-view", "aria-labelledby": "title" },
      mapHead(layer, map),
      el("div", { class: "columns" },
        el("div", { class: "pictures" },
          portrait(layer, map, position, chosen),
          evolution(layer, map, position),
          trace(layer, map, chosen)),
        el("div", { class: "facts" }, figures(layer, map, chosen))),
      realImages(layer, map, position),
      el("div", { class: "pair" }, classes(layer, map), noise(layer, map)),
      similar(layer, map),
      comparison(layer, map) ?? []),
  );
  document.title = `${capital(layer.noun)} ${map.number} · ${layer.name} · ${network.name}`;
}

function mapHead(layer, map) {
  const [before, after] = neighbours(map.number);
  const turn = (number, text, key) =>
    number === null
      ? el("span", { class: "turn off", "aria-hidden": "true" }, text)
      : el("a", { class: "turn", id: key, href: address(layer, number), "aria-label": `${capital(layer.noun)} ${number}, the ${key} one` }, text);
  const badges = [];
  const best = map.starts[map.best];
  badges.push(el("li", { class: `badge ${best.status}` }, best.status));
  if (map.flags.includes("noise")) badges.push(el("li", { class: "badge noise" }, "not distinguishable from noise"));
  if (map.flags.includes("above_data")) badges.push(el("li", { class: "badge above" }, "above the data"));
  return el("div", { class: "view-head" },
    el("nav", { class: "crumbs", "aria-label": "Between maps" },
      el("a", { class: "back", href: address(layer) }, `← ${layer.name}`),
      el("span", { class: "turns" }, turn(before, "‹ Previous", "previous"), turn(after, "Next ›", "next"))),
    el("h2", { id: "title", tabindex: "-1" }, `${capital(layer.noun)} ${map.number}`, el("span", { class: "of" }, ` of ${layer.place}`)),
    el("ul", { class: "badges", "aria-label": "Status" }, badges));
}

/** The numbers of the maps before and after in the order of the grid; null at its ends. */
function neighbours(number) {
  const layer = here();
  const inGrid = shown.layer === state.layer ? shown.order.map((position) => layer.maps[position].number) : [];
  const numbers = inGrid.includes(number) ? inGrid : layer.maps.map((map) => map.number);
  const at = numbers.indexOf(number);
  return [numbers[at - 1] ?? null, numbers[at + 1] ?? null];
}

function portrait(layer, map, position, chosen) {
  const start = map.starts[chosen];
  const isBest = chosen === map.best;
  const size = layer.large && isBest ? layer.large : layer.tile;
  const label = `OIP of ${layer.noun} ${map.number} of ${layer.name}, start ${start.start}, score ${start.score}`;
  const picture = canvas(size, label);
  if (layer.large && isBest) drawLater(picture, `pack-${state.layer}-large-${position}-${state.look}`, 1, 0);
  else drawPack(picture, position, chosen);
  const looks = choice("Way of looking", LOOKS, state.look, (look) => again({ look }, `.choice button:nth-child(${LOOKS.findIndex(([key]) => key === look) + 1})`));
  const status = start.status === "converged" ? `converged: the article’s criterion was met at step ${start.converged}.` : network.statuses[start.status];
  return el("figure", { class: "portrait" },
    picture,
    el("figcaption", {},
      looks,
      el("p", {}, el("strong", {}, `Start ${start.start}`), isBest && map.starts.length > 1 ? ", the best of " + count(map.starts.length, "start") : "", ` · score ${start.score}`),
      el("p", { class: "small" }, capital(status), " ", LOOK_NOTES[state.look]),
      startStrip(layer, map, position, chosen)));
}

function startStrip(layer, map, position, chosen) {
  if (map.starts.length < 2) return el("p", { class: "small" }, "There is one start.");
  const buttons = map.starts.map((start, index) => {
    const picture = canvas(layer.tile);
    drawPack(picture, position, index);
    const text = start.status === "dead" ? "dead" : start.score;
    return el("li", {},
      el("button", {
        type: "button", class: "start", "aria-pressed": String(index === chosen),
        "aria-label": `Start ${start.start}, score ${text}${index === map.best ? ", the best" : ""}`,
        click: () => again({ start: index }, `.start-strip li:nth-child(${index + 1}) button`),
      }, picture, el("span", { "aria-hidden": "true" }, `${text}${network.marks[start.status] ?? ""}`)));
  });
  return el("ul", { class: "start-strip", "aria-label": "All starts" }, buttons);
}

/** Render the open map anew with these changes, and keep the focus where it was. */
function again(changes, selector) {
  Object.assign(state, changes);
  const scroll = window.scrollY;
  renderMap();
  main.querySelector(selector)?.focus({ preventScroll: true });
  window.scrollTo(0, scroll);
}

function evolution(layer, map, position) {
  const best = map.starts[map.best];
  const frames = layer.evolution.length + 1;
  if (frames < 2) return el("p", { class: "small" }, "The way to the image was not kept.");
  const picture = canvas(layer.tile, "");
  picture.setAttribute("role", "img");
  picture.removeAttribute("aria-hidden");
  const output = el("output", { for: "frame", class: "frame-words" });
  const slider = el("input", { id: "frame", type: "range", min: 0, max: frames - 1, step: 1, value: state.frame ?? frames - 1, list: "frames" });
  const show = () => {
    const frame = Number(slider.value);
    state.frame = frame === frames - 1 ? null : frame;
    const at = layer.evolution[frame];
    const score = at ? map.way[frame] : null;
    const words = at ? `${at.screening ? "screening, " : ""}step ${at.step}` : "result";
    const valued = at ? (score === null ? "" : `, score ${told(score)}`) : `, score ${best.score}`;
    output.textContent = words + valued;
    slider.setAttribute("aria-valuetext", words + valued);
    picture.setAttribute("aria-label", `${capital(layer.noun)} ${map.number}, start ${best.start}, at: ${words}`);
    drawPack(picture, position, map.starts.length + frame);
  };
  slider.addEventListener("input", show);
  show();
  return el("section", { class: "evolution", "aria-labelledby": "evolution-title" },
    el("h3", { id: "evolution-title" }, "How it came about"),
    el("div", { class: "evolution-row" },
      picture,
      el("div", { class: "evolution-control" },
        el("label", { for: "frame" }, `From the start to the result (start ${best.start}${map.starts.length > 1 ? ", the best" : ""})`),
        slider,
        output)));
}

function figures(layer, map, chosen) {
  const start = map.starts[chosen];
  const rows = network.figures.map((figure, index) => {
    const value = start.figures[index];
    const known = isNumber(value);
    const unit = known && figure.unit ? figure.unit : "";
    const text = known ? (network.keys[index] === "selectivity_rank" ? `${value} of ${layer.data.ranked}` : told(value) + unit) : "undefined";
    return el("div", { class: known ? "figure" : "figure undefined" },
      el("dt", {}, figure.label),
      el("dd", { class: "number" }, text),
      el("dd", { class: "meaning" }, known ? figure.meaning : `${capital(network.reasons[value].replace("undefined: ", ""))}.`));
  });
  return el("section", { "aria-labelledby": "figures-title" },
    el("h3", { id: "figures-title" }, `Figures of start ${start.start}`),
    el("dl", { class: "figures" },
      el("div", { class: "figure" },
        el("dt", {}, "Score"),
        el("dd", { class: "number" }, start.score),
        el("dd", { class: "meaning" }, `${capital(layer.score)} on this image, what the ascent made large.`)),
      rows));
}

function realImages(layer, map, position) {
  const title = el("h3", { id: "real-title" }, "Real images that excite it most");
  const frame = (...children) => el("section", { class: "real", "aria-labelledby": "real-title" }, title, ...children);
  if (!map.data) return frame(el("p", { class: "small" }, "The atlas was made without real images."));
  const [height, width] = layer.full;
  const items = map.data.top.map((top, place) => {
    const field = Array.isArray(top.field) ? `, what the unit sees outlined: rows ${top.field[0]} to ${top.field[1]}, columns ${top.field[2]} to ${top.field[3]}` : "";
    const picture = canvas(layer.tile, `Real image ${top.index} of the data, score ${top.score}${field}`);
    drawPack(picture, position, map.data.pictures[place], "real");
    return el("li", { class: map.data.excited ? "" : "faded" },
      el("div", { class: "framed" }, picture, Array.isArray(top.field) ? outline(top.field, width, height) : null),
      el("span", { class: "caption" }, el("span", {}, `#${top.index}`), el("span", { class: "value" }, top.score + (top.equal && map.data.excited ? " =" : ""))));
  });
  return frame(
    el("p", { class: "small" }, realWords(layer, map)),
    el("ol", { class: "real-list" }, items));
}

function outline([top, bottom, left, right], width, height) {
  const drawing = svg("svg", { viewBox: `0 0 ${width} ${height}`, class: "outline", "aria-hidden": "true", preserveAspectRatio: "none" });
  const set = { x: left, y: top, width: right - left, height: bottom - top };
  drawing.append(svg("rect", { ...set, class: "under" }), svg("rect", set));
  return drawing;
}

function realWords(layer, map) {
  const data = map.data;
  const unit = layer.noun === "map" ? "the unit at which the map is largest sees" : `the ${layer.nouns} of ${layer.name} see`;
  const fields = data.top.map((top) => top.field);
  const sizes = fields.filter(Array.isArray).map(([top, bottom, left, right]) => [bottom - top, right - left]);
  const parts = [`Of ${count(layer.data.count, "image")}, in the data’s range; number in the data, score.`];
  if (sizes.length) {
    const [rows, columns] = [Math.max(...sizes.map(([high]) => high)), Math.max(...sizes.map(([, wide]) => wide))];
    const rim = sizes.some(([high, wide]) => high < rows || wide < columns) ? " (less at the rim)" : "";
    parts.push(`Outlined is what ${unit}: ${rows}×${columns} of ${layer.full[0]}×${layer.full[1]} pixels${rim}.`);
  } else if (fields.includes("all")) parts.push(`${capital(unit)} the whole image, so that nothing is outlined.`);
  if (fields.includes("none")) parts.push(`No outline where the ${layer.noun} is the same all over.`);
  if (!data.excited) parts.push(`Faded: ${data.fires ? "the data hardly excites" : "no image of the data excites"} this ${layer.noun}.`);
  else if (data.top.some((top) => top.equal)) parts.push("= others score exactly as much: such images have no order.");
  parts.push(`Largest score ${data.maximum}, mean ${data.mean}.`);
  return parts.join(" ");
}

function trace(layer, map, chosen) {
  const title = el("h3", { id: "trace-title" }, "Score by step");
  const frame = (...children) => el("section", { class: "trace", "aria-labelledby": "trace-title" }, title, ...children);
  const values = map.starts.flatMap((start) => start.trace).filter((value) => value !== null);
  if (layer.traceSteps.length < 2 || !values.length) return frame(el("p", { class: "small" }, "The scores on the way were not kept."));
  const [width, height, pad] = [520, 170, 8];
  const [low, high] = [Math.min(0, ...values), Math.max(...values, 1e-9)];
  const last = layer.traceSteps.at(-1);
  const x = (step) => (pad + ((width - 2 * pad) * step) / last).toFixed(1);
  const y = (value) => (height - pad - ((height - 2 * pad) * (value - low)) / (high - low)).toFixed(1);
  const line = (start, name) => {
    const points = layer.traceSteps.map((step, index) => [step, start.trace[index]]).filter(([, value]) => value !== null);
    return svg("polyline", { class: name, points: points.map(([step, value]) => `${x(step)},${y(value)}`).join(" ") });
  };
  const own = map.starts[chosen];
  const first = own.trace.find((value) => value !== null) ?? 0;
  const drawing = svg("svg", {
    class: "lines", viewBox: `0 0 ${width} ${height}`, role: "img",
    "aria-label": `Scores of ${count(map.starts.length, "start")} over ${last + 1} steps, from 0 to ${told(high)}; start ${own.start} goes from ${told(first)} to ${own.score}`,
  });
  drawing.append(svg("line", { class: "axis", x1: pad, x2: width - pad, y1: y(0), y2: y(0) }));
  if (layer.screening) drawing.append(svg("line", { class: "screening", x1: x(layer.screening), x2: x(layer.screening), y1: pad, y2: height - pad }));
  map.starts.forEach((start, index) => index !== chosen && drawing.append(line(start, "other")));
  drawing.append(line(own, "own"));
  const note = layer.screening ? ` Left of the dotted line: the screening of each start, ${layer.screening} steps.` : "";
  return frame(
    drawing,
    el("p", { class: "axis-words", "aria-hidden": "true" }, el("span", {}, "step 0"), el("span", {}, `step ${last}`)),
    el("p", { class: "small" }, `Strong: start ${own.start}; faint: the others. The line below is 0, the top ${told(high)}.${note}`));
}

function classes(layer, map) {
  const title = el("h3", { id: "classes-title" }, "Classes that it responds to");
  const frame = (...children) => el("section", { "aria-labelledby": "classes-title" }, title, ...children);
  if (!map.data) return null;
  const values = map.data.classes;
  if (!values.length) return frame(el("p", { class: "small" }, "The images of the data have no classes."));
  const [low, high] = [Math.min(0, ...values), Math.max(0, ...values)];
  const span = high - low || 1;
  const rows = values.map((value, index) => {
    const bar = el("span", { class: value === high && value > 0 ? "fill most" : "fill" });
    bar.style.left = `${(100 * (Math.min(0, value ?? 0) - low)) / span}%`;
    bar.style.width = `${(100 * Math.abs(value ?? 0)) / span}%`;
    return el("tr", {},
      el("th", { scope: "row" }, layer.data.classes[index] ?? String(index)),
      el("td", { class: "gauge", "aria-hidden": "true" }, el("span", { class: "track" }, bar)),
      el("td", { class: "number" }, value === null ? "undefined" : told(value)));
  });
  return frame(
    el("table", { class: "bars" }, el("caption", { class: "visually-hidden" }, "Mean score over the images of each class"), el("tbody", {}, rows)),
    el("p", { class: "small" }, `Mean score of the ${layer.noun} over the images of each class.`));
}

function similar(layer, map) {
  const options = [
    ["images", "By images"],
    ["activations", "By activations", !map.alike.activations.length],
  ];
  const by = map.alike[state.by].length ? state.by : "images";
  const found = map.alike[by];
  const title = el("h3", { id: "similar-title" }, `${capital(layer.nouns)} most like it`);
  const frame = (...children) => el("section", { class: "similar", "aria-labelledby": "similar-title" }, title, ...children);
  if (!found.length) return frame(el("p", { class: "small" }, `There is no other ${layer.noun} to compare with.`));
  const items = found.slice(0, 12).map(([position, likeness]) => {
    const other = layer.maps[position];
    const picture = canvas(layer.tile);
    drawLater(picture, bestSheet(), layer.bestColumns, position);
    return el("li", {},
      el("a", { href: address(layer, other.number), "aria-label": `${capital(layer.noun)} ${other.number}, correlation ${told(likeness)}` },
        picture,
        el("span", { class: "caption", "aria-hidden": "true" }, el("b", {}, String(other.number)), el("span", { class: "value" }, told(likeness)))));
  });
  const meaning = by === "images"
    ? "Correlation of the best images, the largest over all shifts: 1 is the same pattern, wherever it lies."
    : `Correlation of the scores over ${count(layer.data.count, "real image")}: 1 if both ${layer.nouns} always rise and fall together.`;
  const why = map.alike.activations.length ? "" : layer.data ? ` By activations it is undefined: the ${layer.noun}’s score never varies over the data.` : " By activations needs real images.";
  return frame(
    el("div", { class: "similar-head" },
      choice("Likeness by", options, by, (key) => again({ by: key }, `.similar .choice button:nth-child(${key === "images" ? 1 : 2})`)),
      el("button", { type: "button", class: "quiet", id: "beside", click: () => beside(layer, map, by) }, "Side by side in the grid")),
    el("ul", { class: "row-list", "aria-label": `${capital(layer.nouns)} most like ${map.number}` }, items),
    el("p", { class: "small" }, meaning + why));
}

function beside(layer, map, by) {
  Object.assign(state, { near: map.number, by });
  shown.scroll = 0;
  go(address(layer));
}

function noise(layer, map) {
  const title = el("h3", { id: "noise-title" }, "More than noise?");
  const frame = (...children) => el("section", { "aria-labelledby": "noise-title" }, title, ...children);
  const found = map.noise;
  if (!found) return frame(el("p", { class: "small" }, "It was not asked: that takes two starts, and a finished layer."));
  const dead = map.flags.includes("dead");
  const asked = isNumber(found.agreement);
  const verdict = dead ? "The map is dead: there is nothing to tell from noise."
    : found.noise ? `Not distinguishable from noise: ${found.why.join("; ")}.`
    : asked ? "It is told from noise by every question that was asked." : "With one start it is not known.";
  const row = (label, value, unit = "") => el("tr", {}, el("th", { scope: "row" }, label), el("td", { class: "number" }, isNumber(value) ? told(value) + unit : "undefined"));
  const undefinedWhy = [...new Set(Object.values(found).filter((value) => typeof value === "string"))].map((key) => network.reasons[key].replace("undefined: ", ""));
  return frame(
    el("p", {}, verdict),
    el("table", { class: "plain" }, el("caption", { class: "visually-hidden" }, "Beside noise and beside other maps"), el("tbody", {},
      row(`Agreement of its ${count(map.starts.length, "start")}`, found.agreement),
      row("… of unrelated images, exceeded by one draw in 20", found.unrelated),
      row("… of scrambled copies, exceeded by one draw in 20", found.scrambled),
      row("Score of its best image", found.score),
      row(`… of the best of ${count(found.images, "noise image")}`, found.noiseScore),
      row("… of the best scrambled copy", found.scrambledScore),
      row(`… of the best image of another ${layer.noun}`, found.unrelatedScore))),
    el("p", { class: "small" }, `Agreement: the mean correlation between the starts, each the largest over all shifts.${undefinedWhy.length ? ` Undefined: ${undefinedWhy.join("; ")}.` : ""}`));
}

function comparison(layer, map) {
  const found = layer.compare;
  if (!found) return null;
  const exponent = (value) => (value === null || value === undefined ? "–" : value === 0 ? "0" : value.toExponential(1).replace("-", "−"));
  const title = el("h3", { id: "compare-title" }, "In other frameworks");
  const ascended = found.ascended !== null;
  const among = ascended && found.ascended.includes(map.number);
  const rows = found.rows.map((row) => el("tr", {},
    el("th", { scope: "row" }, row.name + (row.counted ? "" : " *")),
    el("td", { class: "number" }, exponent(row.error)),
    ascended ? el("td", { class: "number" }, exponent(row.trace)) : null,
    ascended ? el("td", { class: "number" }, row.images === null ? "–" : row.images.toFixed(6)) : null));
  const of = ascended
    ? ` Traces and images: the worst of the ascents of ${count(found.ascended.length, "map")} of this layer, ${found.steps} steps in float64; this ${layer.noun} was ${among ? "" : "not "}among them.`
    : " Ascents were compared in another layer.";
  return el("section", { "aria-labelledby": "compare-title" }, title,
    el("p", {}, network.report.agree ? "The runtimes agree." : "The runtimes do not agree: see the report."),
    el("table", { class: "plain" },
      el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "runtime"), el("th", { scope: "col", class: "number" }, "layer"), ascended ? el("th", { scope: "col", class: "number" }, "traces") : null, ascended ? el("th", { scope: "col", class: "number" }, "images") : null)),
      el("tbody", {}, rows)),
    el("p", { class: "small" }, `From oip compare of ${network.report.onnx}, against ${network.report.reference}. Layer: the largest difference over the layer’s largest value, float32.${of}${found.rows.some((row) => !row.counted) ? " * shown, not counted." : ""}`));
}

// ---- Addresses ------------------------------------------------------------------------------------------------------

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

// ---- Keys and the theme ---------------------------------------------------------------------------------------------

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
