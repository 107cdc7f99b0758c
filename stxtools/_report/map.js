// --- map: discs are written into the pixels of a canvas, which takes a few milliseconds for 100,000 of them -----------

const canvas = $("map"), layer = document.createElement("canvas");
const images = meta.sections.map((s) => s.image && Object.assign(new Image(), { src: s.image.src, onload: () => redraw() }));
let xy, columns, names, pixels, words, ratio = 1, view = { x: 0, y: 0, k: 1 }, waiting = false, selected = -1;
let shown = null; // the column or gene that colours the map: { label, values, names or low and high, table }
const paint = new Uint32Array(meta.n), order = new Uint32Array(meta.n), rank = new Uint8Array(meta.n);

function resize() {
  if (printed()) return;
  ratio = Math.min(devicePixelRatio || 1, 2);
  const { width, height } = canvas.getBoundingClientRect();
  const [w, h] = [Math.max(1, Math.round(width * ratio)), Math.max(1, Math.round(height * ratio))];
  if (canvas.width === w && canvas.height === h) return;
  const middle = { x: view.x + canvas.width / 2 / view.k, y: view.y + canvas.height / 2 / view.k };
  const fresh = !pixels;
  Object.assign(canvas, { width: w, height: h });
  Object.assign(layer, { width: w, height: h });
  pixels = new ImageData(w, h);
  words = new Uint32Array(pixels.data.buffer);
  if (fresh) fit();
  else Object.assign(view, { x: middle.x - w / 2 / view.k, y: middle.y - h / 2 / view.k });
  redraw();
}
function fit() {
  const chosen = meta.sections.filter((s, i) => $("section").value === "" || +$("section").value === i);
  const [x0, y0] = [0, 1].map((j) => Math.min(...chosen.map((s) => s.box[j])));
  const [x1, y1] = [2, 3].map((j) => Math.max(...chosen.map((s) => s.box[j])));
  view.k = 0.96 * Math.min(canvas.width / (x1 - x0), canvas.height / (y1 - y0));
  view.x = (x0 + x1) / 2 - canvas.width / 2 / view.k;
  view.y = (y0 + y1) / 2 - canvas.height / 2 / view.k;
  redraw();
}
function zoom(factor, px = canvas.width / 2, py = canvas.height / 2) {
  const whole = Math.min(...meta.sections.map((s) => Math.min(canvas.width, canvas.height) / Math.max(s.box[2] - s.box[0], s.box[3] - s.box[1])));
  const k = Math.min(Math.max(view.k * factor, whole / 20), whole * 400);
  Object.assign(view, { x: view.x + px / view.k - px / k, y: view.y + py / view.k - py / k, k });
  redraw();
}
function redraw() {
  if (!waiting && shown) { waiting = true; requestAnimationFrame(draw); }
}
const radius = (section) => Math.max(0.46 * section.pitch * view.k, 0.9 * ratio);

function discs() {
  words.fill(0);
  const { width, height } = layer;
  let start = 0;
  for (const section of meta.sections) {
    const r = radius(section), reach = Math.ceil(r), dxs = [], dys = [], covers = [];
    for (let dy = -reach; dy <= reach; dy++) for (let dx = -reach; dx <= reach; dx++) {
      const cover = Math.min(1, r + 0.5 - Math.hypot(dx, dy)); // of the pixel by the disc
      if (cover > 0.05) { dxs.push(dx); dys.push(dy); covers.push(cover); }
    }
    const shifts = Int32Array.from(dxs, (dx, o) => dys[o] * width + dx), n = shifts.length;
    for (let j = start; j < start + section.n; j++) {
      const i = order[j];
      const cx = Math.round((xy[2 * i] - view.x) * view.k), cy = Math.round((xy[2 * i + 1] - view.y) * view.k);
      if (cx < -reach || cy < -reach || cx >= width + reach || cy >= height + reach) continue;
      const color = paint[i], at = cy * width + cx;
      const inside = cx >= reach && cy >= reach && cx < width - reach && cy < height - reach;
      for (let o = 0; o < n; o++) {
        if (!inside && (cx + dxs[o] < 0 || cy + dys[o] < 0 || cx + dxs[o] >= width || cy + dys[o] >= height)) continue;
        const p = at + shifts[o];
        words[p] = covers[o] >= 0.99 ? color : over(color, words[p], covers[o]);
      }
    }
    start += section.n;
  }
}
function over(color, below, cover) {
  if (!below) return ((Math.round(255 * cover) << 24) | (color & 0xffffff)) >>> 0;
  const mix = (shift) => Math.round(((color >>> shift) & 255) * cover + ((below >>> shift) & 255) * (1 - cover)) << shift;
  const alpha = Math.max(below >>> 24, Math.round(255 * cover));
  return ((alpha << 24) | mix(16) | mix(8) | mix(0)) >>> 0;
}
function draw() {
  waiting = false;
  discs();
  layer.getContext("2d").putImageData(pixels, 0, 0);
  const pen = canvas.getContext("2d"), share = $("opacity-label").hidden ? 0 : +$("opacity").value;
  const place = (x, y) => [(x - view.x) * view.k, (y - view.y) * view.k];
  pen.clearRect(0, 0, canvas.width, canvas.height);
  pen.globalAlpha = Math.min(1, 2 * share);
  meta.sections.forEach((s, i) => {
    if (!share || !images[i]?.complete) return;
    const [x0, y0, x1, y1] = s.image.box;
    pen.drawImage(images[i], ...place(x0, y0), (x1 - x0) * view.k, (y1 - y0) * view.k);
  });
  pen.globalAlpha = Math.min(1, 2 - 2 * share);
  pen.drawImage(layer, 0, 0);
  pen.globalAlpha = 1;
  if (meta.sections.length > 1) {
    Object.assign(pen, { font: `600 ${12 * ratio}px system-ui, sans-serif`, fillStyle: "#1d2329", strokeStyle: "#fff", lineWidth: 3 * ratio });
    for (const s of meta.sections) {
      const [x, y] = place(s.box[0], s.box[1]);
      pen.strokeText(s.name, x, y, (s.box[2] - s.box[0]) * view.k);
      pen.fillText(s.name, x, y, (s.box[2] - s.box[0]) * view.k);
    }
  }
  if (selected >= 0) {
    pen.beginPath();
    pen.arc(...place(xy[2 * selected], xy[2 * selected + 1]), Math.max(radius(sectionOf(selected)) + 2 * ratio, 6 * ratio), 0, 7);
    Object.assign(pen, { strokeStyle: "#fff", lineWidth: 4 * ratio });
    pen.stroke();
    Object.assign(pen, { strokeStyle: "#1d2329", lineWidth: 2 * ratio });
    pen.stroke();
  }
  const micron = meta.sections[0].micron;
  $("scale").hidden = !micron || meta.sections.some((s) => s.micron !== micron);
  if (!$("scale").hidden) {
    const most = (110 * ratio * micron) / view.k, power = 10 ** Math.floor(Math.log10(most));
    const length = [5, 2, 1].map((m) => m * power).find((l) => l <= most);
    $("scale").textContent = length >= 1000 ? `${length / 1000} mm` : `${+length.toPrecision(1)} µm`;
    $("scale").style.width = `${(length * view.k) / micron / ratio}px`;
  }
  canvas.dataset.drawn = shown.label;
}
function sectionOf(i) {
  let end = 0;
  return meta.sections.find((s) => i < (end += s.n));
}

// --- the observation under the pointer ------------------------------------------------------------------------------

function nearest(event) {
  if (!xy) return -1;
  const box = canvas.getBoundingClientRect();
  const x = view.x + ((event.clientX - box.left) * ratio) / view.k, y = view.y + ((event.clientY - box.top) * ratio) / view.k;
  const reach = Math.max((event.pointerType === "touch" ? 14 : 7) * ratio / view.k, 0.6 * Math.max(...meta.sections.map((s) => s.pitch)));
  let best = -1, least = reach ** 2;
  for (let i = 0; i < meta.n; i++) {
    const d = (xy[2 * i] - x) ** 2 + (xy[2 * i + 1] - y) ** 2;
    if (d < least) [best, least] = [i, d];
  }
  return best;
}
function valueOf(column, i) {
  const v = column.values[i];
  if (column.names) return column.names[v] ?? "–";
  return v === 255 ? "–" : formatNumber(column.low + ((column.high - column.low) * v) / 254);
}
function valuesText(i, separator) {
  const all = shown.gene ? [shown, ...columns] : columns;
  return all.map((column) => `${column.label} ${valueOf(column, i)}`).join(separator);
}
async function selectObservation(i) {
  selected = i;
  redraw();
  if (i < 0) { $("picked").textContent = ""; return; }
  names ??= await lines("names");
  $("picked").textContent = `${names[i]}: ${valuesText(i, ", ")}`;
}

// --- colours of the map -------------------------------------------------------------------------------------------

async function colorBy(key) {
  let next;
  if (key.startsWith("gene")) {
    const [label, high] = meta.genes[+key.slice(4)];
    next = { label, gene: true, low: 0, high, values: new Uint8Array(await bytes(key)), table: scaleOf(PURPLES), stops: PURPLES };
  } else next = columns[+key.slice(6)];
  if ($("color").value !== key) $("color").value = key;
  shown = next;
  shown.single = -1;
  recolor();
  legend();
}
function recolor() {
  const { values, table, single } = shown;
  for (let i = 0; i < meta.n; i++) {
    const v = values[i], faint = shown.names && single >= 0 && v !== single;
    paint[i] = faint ? FAINT : table[v] ?? MISSING;
    rank[i] = shown.names ? +!faint : (v + 1) & 255; // missing and faint ones below, high values on top
  }
  let start = 0;
  for (const section of meta.sections) {
    const next = new Uint32Array(257);
    for (let i = start; i < start + section.n; i++) next[rank[i] + 1]++;
    for (let v = 0; v < 256; v++) next[v + 1] += next[v];
    for (let i = start; i < start + section.n; i++) order[start + next[rank[i]]++] = i;
    start += section.n;
  }
  redraw();
}
function legend() {
  const box = $("legend");
  box.replaceChildren();
  if (!shown.names) {
    const bar = element("div", { className: "bar" }), strip = element("span");
    strip.style.background = `linear-gradient(90deg, ${shown.stops.join(", ")})`;
    bar.append(element("b", { textContent: formatNumber(shown.low) }), strip, element("b", { textContent: formatNumber(shown.high) + (shown.gene ? "  log expression" : "") }));
    box.append(bar);
    return;
  }
  const counts = new Uint32Array(shown.names.length + 1);
  for (const v of shown.values) counts[Math.min(v, shown.names.length)]++;
  if (!shown.legend) {
    box.append(element("span", { className: "note", textContent: `${shown.names.length} regions. Colours repeat; they only set neighbours apart.` }));
    return;
  }
  shown.names.forEach((name, v) => {
    if (!counts[v]) return;
    const entry = element("button", { type: "button" }), dot = element("i");
    dot.style.background = shown.colors[v];
    entry.setAttribute("aria-pressed", String(v === shown.single));
    entry.append(dot, name, element("small", { textContent: counts[v].toLocaleString("en") }));
    entry.onclick = () => isolate(v);
    box.append(entry);
  });
  if (counts[shown.names.length]) box.append(element("span", { className: "note", textContent: `${counts[shown.names.length].toLocaleString("en")} without` }));
}
function isolate(v) {
  shown.single = shown.single === v ? -1 : v;
  recolor();
  legend();
  const group = meta.biomarkers && shown.single >= 0 && shown.key === meta.biomarkers.groupby ? meta.biomarkers.groups.indexOf(shown.names[v]) : -1;
  if (group >= 0) { $("group").value = group; update(); }
}

function listen() {
  const pointers = new Map();
  let moved = 0;
  const at = (e) => { const b = canvas.getBoundingClientRect(); return [(e.clientX - b.left) * ratio, (e.clientY - b.top) * ratio]; };
  canvas.onpointerdown = (e) => {
    if (!pointers.size) moved = 0;
    pointers.set(e.pointerId, at(e));
    canvas.setPointerCapture(e.pointerId);
    showTip();
  };
  canvas.onpointermove = (e) => {
    if (!pointers.has(e.pointerId)) {
      const i = nearest(e);
      return showTip(i >= 0 ? valuesText(i, "\n") : "", e);
    }
    const before = [...pointers.values()], old = pointers.get(e.pointerId), now = at(e);
    pointers.set(e.pointerId, now);
    const after = [...pointers.values()], n = after.length;
    moved += Math.hypot(now[0] - old[0], now[1] - old[1]);
    if (moved < 4 * ratio) return;
    canvas.classList.add("moving");
    view.x -= (now[0] - old[0]) / n / view.k;
    view.y -= (now[1] - old[1]) / n / view.k;
    if (n === 2) {
      const apart = ([a, b]) => Math.hypot(a[0] - b[0], a[1] - b[1]);
      zoom(apart(after) / (apart(before) || 1), (after[0][0] + after[1][0]) / 2, (after[0][1] + after[1][1]) / 2);
    }
    redraw();
  };
  const end = (e) => {
    if (pointers.delete(e.pointerId) && e.type === "pointerup" && moved < 4 * ratio) selectObservation(nearest(e));
    canvas.classList.remove("moving");
  };
  Object.assign(canvas, { onpointerup: end, onpointercancel: end, onpointerleave: () => showTip() });
  canvas.addEventListener("wheel", (e) => { e.preventDefault(); zoom(Math.exp(-e.deltaY * (e.deltaMode ? 0.05 : 0.0015)), ...at(e)); }, { passive: false });
  canvas.onkeydown = (e) => {
    const step = canvas.width / 10 / view.k;
    const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[e.key];
    if (move) { view.x += move[0] * step; view.y += move[1] * step; redraw(); }
    else if (e.key === "+" || e.key === "=") zoom(1.4);
    else if (e.key === "-") zoom(1 / 1.4);
    else if (e.key === "0") fit();
    else return;
    e.preventDefault();
  };
  $("zoom-in").onclick = () => zoom(1.6);
  $("zoom-out").onclick = () => zoom(1 / 1.6);
  $("fit").onclick = $("section").onchange = fit;
  $("opacity").oninput = redraw;
  $("color").onchange = () => colorBy($("color").value);
  new ResizeObserver(resize).observe(canvas);
}

async function openMap() {
  xy = new Float32Array(await bytes("xy"));
  columns = await Promise.all(meta.colors.map(async (c) => {
    const data = await bytes(c.block);
    return c.names
      ? { ...c, values: new Uint32Array(data), table: Uint32Array.from(c.colors, (hex) => pixel(rgb(hex))) }
      : { ...c, values: new Uint8Array(data), table: scaleOf(VIRIDIS), stops: VIRIDIS };
  }));
  const select = $("color");
  const group = (label, entries) => {
    if (!entries.length) return;
    const box = element("optgroup", { label });
    box.append(...entries.map(([value, textContent]) => element("option", { value, textContent })));
    select.append(box);
  };
  group("Tissue", columns.map((c, i) => [`column${i}`, c.label]));
  group("Expression", meta.genes.map(([name], i) => [`gene${i}`, name]));
  $("section").append(element("option", { value: "", textContent: "all" }), ...meta.sections.map((s, value) => element("option", { value, textContent: s.name })));
  $("section-label").hidden = meta.sections.length < 2;
  $("opacity-label").hidden = !images.some(Boolean);
  if (images.some(Boolean)) $("opacity").value = 0.3;
  listen();
  if (select.options.length) await colorBy(select.options[0].value);
  else { // positions are all there is
    shown = { label: "position", names: [], values: new Uint16Array(meta.n), table: [pixel(rgb("#7a8691"))], single: -1, colors: [] };
    recolor();
  }
  resize();
}
