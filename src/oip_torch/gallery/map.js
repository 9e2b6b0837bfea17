// The view of one map.

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
  document.title = `${capital(layer.noun)} ${map.number} · ${titleOf(layer)} · ${network.name}`;
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
      el("a", { class: "back", href: address(layer) }, "← ", el("bdi", {}, titleOf(layer))),
      el("span", { class: "turns" }, turn(before, "‹ Previous", "previous"), turn(after, "Next ›", "next"))),
    el("h2", { id: "title", tabindex: "-1", title: layer.place }, `${capital(layer.noun)} ${map.number}`, el("span", { class: "of" }, /^\d/.test(layer.place) ? " of layer " : " of ", el("bdi", {}, layer.place))),
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
  const [reason] = new Set(start.figures);
  const nothing = start.figures.every((value) => value === reason && !isNumber(value));
  const why = (value) => `${capital(network.reasons[value].replace("undefined: ", ""))}.`;
  const rows = nothing ? [] : network.figures.map((figure, index) => {
    const value = start.figures[index];
    const known = isNumber(value);
    const unit = known && figure.unit ? figure.unit : "";
    const text = known ? (network.keys[index] === "selectivity_rank" ? `${value} of ${layer.data.ranked}` : told(value) + unit) : "undefined";
    return el("div", { class: known ? "figure" : "figure undefined" },
      el("dt", {}, figure.label),
      el("dd", { class: "number" }, text),
      el("dd", { class: "meaning" }, known ? figure.meaning : why(value)));
  });
  return el("section", { "aria-labelledby": "figures-title" },
    el("h3", { id: "figures-title" }, `Figures of start ${start.start}`),
    el("dl", { class: "figures" },
      el("div", { class: "figure" },
        el("dt", {}, "Score"),
        el("dd", { class: "number" }, start.score),
        el("dd", { class: "meaning" }, `${capital(layer.score)} on this image, what the ascent made large.`)),
      rows),
    nothing ? el("p", { class: "small" }, `All other figures are undefined. ${why(reason)}`) : null);
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
  const last = layer.traceSteps[layer.traceSteps.length - 1];
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
      el("th", { scope: "row", dir: "auto" }, el("span", {}, layer.data.classes[index] ?? String(index))),
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
  const verdict = dead ? `The ${layer.noun} is dead: there is nothing to tell from noise.`
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
