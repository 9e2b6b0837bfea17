"use strict";
// What is in the page, and what is shown of it. The page holds JSON and pictures in inert script elements, by position
// and never by name, so that a layer may be called anything. Text goes in as text; nothing is parsed as HTML.
// The files are put together in this order: data.js, grid.js, map.js, page.js.

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
const shown = { layer: null, order: [], cells: [], range: {}, scroll: 0, printing: false, roving: null };
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

// What is in the page

const memo = (make) => {
  const made = new Map();
  return (key) => made.get(key) ?? made.set(key, make(key)).get(key);
};

/** The entry of a layer, read when it is first looked at. */
const layerOf = memo((index) => JSON.parse(document.getElementById(`layer-${index}`).textContent));

/** A sheet of pictures, decoded when it is first looked at. */
const sheetOf = memo(async (id) => {
  const image = document.getElementById(id);
  return image instanceof HTMLImageElement ? image.decode().then(() => image) : createImageBitmap(fileOf(id));
});

/** The image file of a sheet. */
function fileOf(id) {
  const held = document.getElementById(id);
  const text = held instanceof HTMLImageElement ? held.src.slice(held.src.indexOf(",") + 1) : held.textContent;
  return new Blob([Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0))], { type: "image/webp" });
}

/** An address of a sheet that a style can name. */
const urlOf = memo((id) => URL.createObjectURL(fileOf(id)));

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

// Small helpers

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
/** A layer's name; torch numbers those of a Sequential, and "Map 5 of 6" would say something else. */
const titleOf = (layer) => (/^\d/.test(layer.name) ? `Layer ${layer.name}` : layer.name);
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
