// The photograph under the classes' colors: slider, hover, legend, one class alone.
const MOST = 2048; // pixels of a side that is drawn; the downloads have all
const get = (id) => document.getElementById(id);
const stage = get("stage"), edge = get("edge"), split = get("split"), opacity = get("opacity");
const HINT = `${matchMedia("(pointer: coarse)").matches ? "Tap or point" : "Point"} at the photograph to see the class and its confidence.`;
let shown = null, alone = null, pointer = { x: 0.5, y: 0.5 };

// `result` has width, height, classes (found), colors by id, names by id, ids and confidence.
export function show(result, photograph) {
  const scale = Math.min(1, MOST / Math.max(result.width, result.height));
  shown = { ...result, across: Math.max(1, Math.round(result.width * scale)), down: Math.max(1, Math.round(result.height * scale)) };
  alone = null;
  for (const canvas of [get("photo"), get("colors")]) {
    canvas.width = shown.across;
    canvas.height = shown.down;
  }
  if (photograph) get("photo").getContext("2d").drawImage(photograph, 0, 0, shown.across, shown.down);
  stage.style.aspectRatio = `${result.width} / ${result.height}`;
  stage.style.maxWidth = `calc(75vh * ${result.width / result.height})`;
  moveSplit(0);
  get("cross").hidden = true;
  fillLegend();
  unname();
  paint();
}

function paint() {
  const { across, down, width, height, ids, colors } = shown;
  const image = new ImageData(across, down), pixels = new Uint32Array(image.data.buffer);
  const packed = colors.map((color) => {
    const [red, green, blue] = [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16));
    return (255 << 24) | (blue << 16) | (green << 8) | red;
  });
  const dimmed = 0xcc000000;
  for (let y = 0, at = 0; y < down; y++) {
    const row = Math.floor(((y + 0.5) * height) / down) * width;
    for (let x = 0; x < across; x++, at++) {
      const id = ids[row + Math.floor(((x + 0.5) * width) / across)];
      pixels[at] = alone === null || id === alone ? packed[id] : dimmed;
    }
  }
  get("colors").getContext("2d").putImageData(image, 0, 0);
}

function fillLegend() {
  const rows = [...shown.classes].sort((a, b) => b.share - a.share).map((one) => {
    const row = document.createElement("li"), button = document.createElement("button");
    const swatch = document.createElement("i"), name = document.createElement("span");
    const share = document.createElement("span"), bar = document.createElement("div");
    const filled = document.createElement("i");
    row.dataset.id = one.id;
    button.type = "button";
    button.setAttribute("aria-pressed", "false");
    button.title = `mean confidence ${percent(one.mean_confidence)}`;
    swatch.className = "swatch";
    swatch.style.background = shown.colors[one.id];
    name.textContent = one.name;
    share.className = "numbers soft";
    share.textContent = percent(one.share);
    bar.className = "bar";
    filled.style.width = `${100 * one.share}%`;
    filled.style.background = shown.colors[one.id];
    bar.append(filled);
    button.append(swatch, name, share, bar);
    button.addEventListener("click", () => isolate(alone === one.id ? null : one.id));
    row.append(button);
    return row;
  });
  get("legend").replaceChildren(...rows);
  get("all").hidden = true;
}

function isolate(id) {
  alone = id;
  for (const row of get("legend").children) {
    row.firstChild.setAttribute("aria-pressed", String(Number(row.dataset.id) === id));
  }
  get("all").hidden = id === null;
  paint();
}

export function percent(fraction) {
  const value = 100 * fraction;
  return value > 0 && value < 0.1 ? "< 0.1 %" : `${value.toFixed(value < 10 ? 1 : 0)} %`;
}

function probe(x, y) { // fractions of the sides
  const column = Math.min(shown.width - 1, Math.floor(x * shown.width));
  const row = Math.min(shown.height - 1, Math.floor(y * shown.height));
  const at = row * shown.width + column;
  return { id: shown.ids[at], column, row, text: `${shown.names[shown.ids[at]]}, confidence ${percent(shown.confidence[at] / 255)}` };
}

function name(x, y, { spoken }) {
  const found = probe(x, y), tip = get("tip");
  tip.textContent = found.text;
  tip.hidden = false;
  const left = x * stage.clientWidth, top = y * stage.clientHeight;
  const isRight = left + 16 + tip.offsetWidth > stage.clientWidth;
  tip.style.left = `${Math.max(2, isRight ? left - 12 - tip.offsetWidth : left + 16)}px`;
  tip.style.top = `${Math.min(stage.clientHeight - tip.offsetHeight - 2, Math.max(2, top - 34))}px`;
  get("probe").setAttribute("aria-live", spoken ? "polite" : "off");
  get("probe").textContent = `${found.text}, at column ${found.column}, row ${found.row}`;
  mark(found.id);
}

function unname() {
  get("tip").hidden = true;
  get("probe").setAttribute("aria-live", "off");
  get("probe").textContent = HINT;
  mark(null);
}

function mark(id) {
  for (const row of get("legend").children) row.classList.toggle("pointed", Number(row.dataset.id) === id);
}

function fractions(event) {
  const box = stage.getBoundingClientRect();
  const within = (value) => Math.min(0.999999, Math.max(0, value));
  return { x: within((event.clientX - box.left) / box.width), y: within((event.clientY - box.top) / box.height) };
}

function moveSplit(value) {
  split.value = value;
  stage.style.setProperty("--split", `${split.value}%`);
  const at = (split.value / 100) * stage.clientWidth; // the grip stays inside
  const nudge = Math.max(22 - at, 0) - Math.max(22 - (stage.clientWidth - at), 0);
  stage.style.setProperty("--nudge", `${nudge}px`);
}

stage.addEventListener("pointermove", (event) => {
  if (!shown) return;
  const { x, y } = fractions(event);
  if (edge.hasPointerCapture(event.pointerId)) moveSplit(100 * x);
  else name(x, y, { spoken: false });
});
stage.addEventListener("pointerdown", (event) => {
  if (!shown || edge.contains(event.target)) return;
  pointer = fractions(event);
  name(pointer.x, pointer.y, { spoken: false });
});
stage.addEventListener("pointerleave", (event) => {
  if (event.pointerType === "touch") return; // what was touched stays named
  unname();
});
edge.addEventListener("pointerdown", (event) => {
  edge.setPointerCapture(event.pointerId);
  get("tip").hidden = true;
  event.preventDefault();
});
stage.addEventListener("keydown", (event) => {
  const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const step = steps[event.key];
  if (!step || !shown) return;
  event.preventDefault();
  const length = event.shiftKey ? 0.1 : 0.02;
  const within = (value) => Math.min(0.999999, Math.max(0, value));
  pointer = { x: within(pointer.x + length * step[0]), y: within(pointer.y + length * step[1]) };
  const cross = get("cross");
  cross.hidden = false;
  cross.style.left = `${100 * pointer.x}%`;
  cross.style.top = `${100 * pointer.y}%`;
  name(pointer.x, pointer.y, { spoken: true });
});
stage.addEventListener("blur", () => { get("cross").hidden = true; unname(); });
split.addEventListener("input", () => moveSplit(split.value));
opacity.addEventListener("input", () => stage.style.setProperty("--opacity", opacity.value / 100));
get("all").addEventListener("click", () => isolate(null));
document.addEventListener("keydown", (event) => { if (event.key === "Escape" && alone !== null) isolate(null); });
addEventListener("resize", () => { if (shown) moveSplit(split.value); });
