// The maps of a layer as a grid: which, in which order, and the keys that lead through it.

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
        el("h2", { id: "title", tabindex: "-1", title: layer.name, dir: "auto" }, titleOf(layer)),
        el("p", { class: "sub" }, layerWords(layer))),
      toolbar(layer),
      el("p", { class: "hint", id: "hint" }),
      list,
      el("p", { class: "legend" })),
  );
  updateGrid();
  document.title = `${titleOf(layer)} · ${network.name}`;
}

/** What a change of sorting, filter or look changes. */
function updateGrid() {
  const layer = here();
  const list = main.querySelector(".grid");
  shown.order = order();
  if (!layer.large) list.style.setProperty("--sheet", `url("${urlOf(bestSheet())}")`);
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
  if (here().large) items.forEach((item) => drawCell(item.querySelector(".tile")));
  if (!list.contains(shown.roving)) rove(list.querySelector("a"));
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

/** The picture of a cell of a layer of large images: smoothed, the sheet's other pictures would show at its rim. */
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
  if (!layer.large) showPart(tile, layer.bestColumns, Math.ceil(layer.maps.length / layer.bestColumns), position);
  const link = el("a", { href: address(layer, map.number), tabindex: "-1" },
    tile,
    el("span", { class: "caption", "aria-hidden": "true" },
      el("b", {}, String(map.number)),
      el("span", { class: "value" })));
  return el("li", { class: map.flags.includes("dead") ? "dead" : "" }, link);
}

/** A picture as a part of the grid's sheet: thousands of canvases take most of the time of scrolling. */
function showPart(tile, columns, rows, position) {
  const share = (place, count) => (count > 1 ? `${(100 * place) / (count - 1)}%` : "0");
  tile.classList.add("part");
  tile.style.backgroundSize = `${100 * columns}% ${100 * rows}%`;
  tile.style.backgroundPosition = `${share(position % columns, columns)} ${share(Math.floor(position / columns), rows)}`;
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
  if (layer.settings !== network.settings) parts.push(`made by settings of its own: ${layer.settings}`);
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
  shown.roving?.setAttribute("tabindex", "-1");
  link?.setAttribute("tabindex", "0");
  shown.roving = link;
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
