"use strict";

const WINDOWS = { lung: { level: -600, width: 1500 }, mediastinum: { level: 40, width: 400 } };
const PREDICTED = 1, TRUE = 2, MASK_STEP = 85;
const DRAG_PIXELS = 12; // to the next slice

const byId = (id) => document.getElementById(id);

// --- Pictures ---------------------------------------------------------------------------------------------------

/** Grey values of the stored pictures to those of a window: HU are linear between the levels of the case. */
function lookupTable(levels, { level, width }) {
  const table = new Uint8ClampedArray(256);
  for (let grey = 0; grey < 256; grey++) {
    let k = 1;
    while (k < levels.length - 1 && grey > levels[k][1]) k++;
    const [[hu0, grey0], [hu1, grey1]] = [levels[k - 1], levels[k]];
    const hu = hu0 + ((grey - grey0) * (hu1 - hu0)) / (grey1 - grey0);
    table[grey] = (255 * (hu - (level - width / 2))) / width;
  }
  return table;
}

/** The pixels of a WebP in base64: one byte each. */
async function decode(webp) {
  const image = new Image();
  image.src = `data:image/webp;base64,${webp}`;
  await image.decode();
  const canvas = document.createElement("canvas");
  canvas.width = image.naturalWidth;
  canvas.height = image.naturalHeight;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  const colours = context.getImageData(0, 0, canvas.width, canvas.height).data;
  const grey = new Uint8Array(canvas.width * canvas.height);
  for (let i = 0; i < grey.length; i++) grey[i] = colours[4 * i + 1];
  return { grey, width: canvas.width, height: canvas.height };
}

/**
 * The outline of the voxels in a mask that have a bit set, as an SVG path on their borders: clockwise around them,
 * counter-clockwise around holes. Voxels that touch in a corner only are apart.
 */
function outline({ grey, width, height }, bit) {
  const inside = (x, y) =>
    x >= 0 && y >= 0 && x < width && y < height && (Math.round(grey[y * width + x] / MASK_STEP) & bit) !== 0;
  const across = width + 1;
  // Edges to the right, down, left, up, by the corner that they start from.
  const edges = [0, 1, 2, 3].map(() => new Uint8Array(across * (height + 1)));
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      if (!inside(x, y)) continue;
      const corner = y * across + x;
      if (!inside(x, y - 1)) edges[0][corner] = 1;
      if (!inside(x + 1, y)) edges[1][corner + 1] = 1;
      if (!inside(x, y + 1)) edges[2][corner + across + 1] = 1;
      if (!inside(x - 1, y)) edges[3][corner + across] = 1;
    }
  }
  const step = [1, across, -1, -across];
  let path = "";
  for (let start = 0; start < edges[0].length; start++) {
    if (!edges[0][start]) continue;
    let corner = start, direction = 0, length = 0, closed = false;
    path += `M${start % across} ${Math.floor(start / across)}`;
    while (!closed) {
      if (corner !== start || direction !== 0) edges[direction][corner] = 0;
      corner += step[direction];
      length++;
      const next = [1, 0, 3].map((turn) => (direction + turn) % 4).find((d) => edges[d][corner]);
      closed = corner === start && next === 0;
      if (next !== direction || closed) {
        path += (direction % 2 ? "v" : "h") + (direction < 2 ? length : -length);
        length = 0;
      }
      direction = next;
    }
    edges[0][start] = 0;
    path += "z";
  }
  return path;
}

// --- One plane --------------------------------------------------------------------------------------------------

class Plane {
  constructor(name, changed) {
    this.name = name;
    this.changed = changed;
    const root = byId(name);
    this.root = root;
    this.stage = root.querySelector(".stage");
    this.canvas = root.querySelector("canvas");
    this.overlay = root.querySelector(".stage svg");
    this.amounts = root.querySelector(".amounts");
    this.slider = root.querySelector("input");
    this.output = root.querySelector("output");
    this.note = root.querySelector(".note");
    this.slider.addEventListener("input", () => this.show(Number(this.slider.value)));
    this.stage.addEventListener("keydown", (event) => this.key(event));
    this.stage.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    this.stage.addEventListener("pointerdown", (event) => this.drag(event));
  }

  open(view, levels, id) {
    this.view = view;
    this.levels = levels;
    this.decoded = new Map();
    const [width, height] = view.size, [x, y] = view.spacing;
    this.stage.style.aspectRatio = `${width * x} / ${height * y}`;
    this.root.style.setProperty("--ratio", (width * x) / (height * y));
    this.overlay.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.slider.max = view.slices.length - 1;
    this.slider.disabled = view.slices.length < 2;
    this.stage.setAttribute("aria-label", `${this.name} slices of ${id}; arrow keys scroll`);
    const amounts = view.slices.map((slice, k) => (slice.mask ? `M${k + 0.5} 0V1` : "")).join("");
    this.amounts.setAttribute("viewBox", `0 0 ${view.slices.length} 1`);
    this.amounts.firstElementChild.setAttribute("d", amounts);
    this.note.textContent =
      view.every === 1
        ? `All ${view.count} ${this.name} slices of the lungs.`
        : `${view.slices.length} of ${view.count} ${this.name} slices: of every ${view.every}, the one with most lesion or, without, the middle one.`;
    this.show(view.start);
  }

  show(k) {
    const { slices } = this.view;
    this.current = Math.min(Math.max(k, 0), slices.length - 1);
    const slice = slices[this.current];
    const axis = this.name === "axial" ? "z" : "y";
    const millimetres = slice.position.toFixed(1).replace("-", "−");
    const position = `slice ${slice.index + 1} of ${this.view.total}, ${axis} = ${millimetres} mm`;
    this.slider.value = this.current;
    this.slider.setAttribute("aria-valuetext", position);
    this.output.textContent = position;
    this.draw();
    this.changed(this);
  }

  /** A slice's pixels and outlines; those of few slices are kept. */
  load(k) {
    if (!this.decoded.has(k)) {
      const { image, mask } = this.view.slices[k];
      const made = Promise.all([decode(image), mask ? decode(mask) : null]).then(([picture, label]) => ({
        picture,
        predicted: label ? outline(label, PREDICTED) : "",
        true: label ? outline(label, TRUE) : "",
      }));
      this.decoded.set(k, made);
    }
    return this.decoded.get(k);
  }

  async draw() {
    const { view, current } = this;
    const { picture, ...outlines } = await this.load(current);
    if (view !== this.view || current !== this.current) return; // another one is wanted by now
    const table = lookupTable(this.levels, WINDOWS[chosenWindow()]);
    const { width, height, grey } = picture;
    if (this.canvas.width !== width || this.canvas.height !== height) {
      this.canvas.width = width;
      this.canvas.height = height;
    }
    const context = this.canvas.getContext("2d", { willReadFrequently: true });
    const shown = context.createImageData(width, height);
    for (let i = 0; i < grey.length; i++) {
      shown.data.fill(table[grey[i]], 4 * i, 4 * i + 3);
      shown.data[4 * i + 3] = 255;
    }
    context.putImageData(shown, 0, 0);
    for (const name of ["predicted", "true"]) this.overlay.querySelector(`.${name}`).setAttribute("d", outlines[name]);
    this.stage.dataset.slice = view.slices[current].index;
    for (const k of [current + 1, current - 1]) if (k >= 0 && k < view.slices.length) this.load(k);
  }

  /** Show where the slice of the other plane lies. */
  cross(index) {
    const row = (index - this.view.first) * this.view.step + 0.5;
    this.overlay.querySelector(".cross").setAttribute("d", `M0 ${row}H${this.view.size[0]}`);
  }

  key(event) {
    const steps = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1, PageUp: 5, PageDown: -5, Home: -1e6, End: 1e6 };
    if (!(event.key in steps) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    this.show(this.current + steps[event.key]);
  }

  /** Scroll through the slices; at the last one, the page scrolls on. */
  wheel(event) {
    if (event.ctrlKey || event.deltaY === 0) return;
    const step = event.deltaY > 0 ? -1 : 1;
    const next = this.current + step;
    if (next < 0 || next >= this.view.slices.length) return;
    event.preventDefault();
    // Touchpads send many small steps.
    this.wheeled = (Math.sign(this.wheeled || 0) === step ? this.wheeled : 0) + step * Math.min(Math.abs(event.deltaY), 60);
    if (event.deltaMode !== 0 || Math.abs(this.wheeled) >= 30) {
      this.wheeled = 0;
      this.show(next);
    }
  }

  drag(event) {
    if (event.button !== 0) return;
    const from = event.clientX, first = this.current;
    this.stage.setPointerCapture(event.pointerId);
    const move = (moved) => {
      const k = first + Math.round((moved.clientX - from) / DRAG_PIXELS);
      if (k !== this.current) this.show(k);
    };
    const end = () => {
      this.stage.removeEventListener("pointermove", move);
      for (const name of ["pointerup", "pointercancel"]) this.stage.removeEventListener(name, end);
    };
    this.stage.addEventListener("pointermove", move);
    for (const name of ["pointerup", "pointercancel"]) this.stage.addEventListener(name, end);
  }
}

const planes = ["axial", "coronal"].map((name) => new Plane(name, showCross));

function showCross() {
  if (!planes.every((plane) => plane.view)) return;
  planes.forEach((plane, k) => {
    const other = planes[1 - k];
    plane.cross(other.view.slices[other.current].index);
  });
}

function chosenWindow() {
  return document.querySelector("input[name=window]:checked").value;
}

for (const radio of document.querySelectorAll("input[name=window]")) {
  radio.addEventListener("change", () => planes.forEach((plane) => plane.view && plane.draw()));
}
for (const name of ["predicted", "true", "cross"]) {
  const box = byId(`show-${name}`);
  const apply = () => byId("viewer").classList.toggle(`no-${name}`, !box.checked);
  box.addEventListener("change", apply);
  apply();
}

// --- Cases ------------------------------------------------------------------------------------------------------

const table = byId("cases");
const body = table.tBodies[0];
const headings = [...table.tHead.rows[0].cells];
const visibleRows = () => [...body.rows].filter((row) => !row.hidden);
let selected = null;

function select(row, focus) {
  if (!row) return;
  if (selected) selected.removeAttribute("aria-current");
  selected = row;
  row.setAttribute("aria-current", "true");
  row.scrollIntoView({ block: "nearest" });
  if (focus) row.querySelector("button").focus({ preventScroll: true });
  const view = JSON.parse(byId(`case-${row.dataset.case}`).textContent);
  byId("case-id").textContent = view.id;
  byId("true-switch").hidden = !view.truth;
  const values = byId("values");
  values.replaceChildren();
  [...row.cells].slice(1).forEach((cell, k) => {
    const pair = document.createElement("div");
    const name = document.createElement("dt"), value = document.createElement("dd");
    const { title, unit } = headings[k + 1].dataset;
    name.textContent = title;
    value.textContent = cell.dataset.value === "" ? cell.textContent : `${cell.textContent} ${unit}`;
    pair.append(name, value);
    values.append(pair);
  });
  planes.forEach((plane, k) => plane.open(view.planes[k], view.levels, view.id));
}

function selectNext(step, focus) {
  const rows = visibleRows();
  const now = rows.indexOf(selected);
  select(rows[now < 0 ? 0 : Math.min(Math.max(now + step, 0), rows.length - 1)], focus);
}

body.addEventListener("click", (event) => {
  const row = event.target.closest("tr");
  if (!row) return;
  select(row, true);
  // Where the viewer is below the table, go there.
  if (byId("viewer").getBoundingClientRect().top > innerHeight / 2) byId("viewer").scrollIntoView();
});
body.addEventListener("keydown", (event) => {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!step || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  selectNext(step, true);
});
byId("next").addEventListener("click", () => selectNext(1, false));
byId("previous").addEventListener("click", () => selectNext(-1, false));

/** Numbers before texts, and what is missing last in both directions. */
function compare(a, b, ascending) {
  if (a === b) return 0;
  if (a === "" || b === "") return a === "" ? 1 : -1;
  const numbers = [a, b].map((text) => !Number.isNaN(Number(text)));
  const order = numbers[0] && numbers[1] ? Number(a) - Number(b) : numbers[1] - numbers[0] || collator.compare(a, b);
  return ascending ? order : -order;
}
const collator = new Intl.Collator("en", { numeric: true });

headings.forEach((heading, k) => {
  heading.querySelector("button").addEventListener("click", () => {
    const ascending = heading.getAttribute("aria-sort") !== "ascending";
    for (const other of headings) other.setAttribute("aria-sort", "none");
    heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    const rows = [...body.rows].sort((a, b) => compare(a.cells[k].dataset.value, b.cells[k].dataset.value, ascending));
    body.append(...rows);
  });
});

byId("filter").addEventListener("input", (event) => {
  const wanted = event.target.value.trim().toLowerCase();
  for (const row of body.rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
  const left = visibleRows().length;
  byId("shown").textContent = wanted ? `${left} of ${body.rows.length}` : "";
});

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input[type=search]")) return;
  const toggle = (id) => byId(id).click();
  if (event.key === "j") selectNext(1, body.contains(document.activeElement));
  else if (event.key === "k") selectNext(-1, body.contains(document.activeElement));
  else if (event.key === "w") document.querySelector("input[name=window]:not(:checked)").click();
  else if (event.key === "p") toggle("show-predicted");
  else if (event.key === "t") toggle("show-true");
  else if (event.key === "x") toggle("show-cross");
});

if (body.rows.length) select(body.rows[0], false);
else byId("viewer").hidden = true;
