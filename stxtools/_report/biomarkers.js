// --- biomarkers -----------------------------------------------------------------------------------------------------

const volcano = $("volcano"), UP = "#c4500a", DOWN = "#0b62a4", NOT_SIGNIFICANT = "#c9d0d6";
let table, rankOf, filtered = [], drawnRows = 0, chosen = -1, dots = [], sorting = { column: null, sign: 1 };
const TITLES = { gene: "Gene", group: "Group", logfoldchanges: "log₂ fold", pvals_adj: "FDR", auroc: "AUROC", beyond: "Beyond", sections: "Sections", subjects: "Subjects", targets: "As target" };
const HINTS = { beyond: "beyond composition: differs more than the mixture of cells in the group explains", auroc: "how well the gene alone tells the group from the reference: 0.5 is chance", logfoldchanges: "1 is twofold, -1 is half", pvals_adj: "false discovery rate: share of wrong genes among those up to this one", sections: "sections in which the effect was estimated, and whether all have the same direction", subjects: "subjects in whom the effect was estimated, and whether all have the same direction", targets: "what the joined tables know; empty: nothing, or the gene is not in them" };

async function openBiomarkers() {
  const m = meta.biomarkers;
  const [names, group, gene, beyond, ...numbers] = await Promise.all([
    lines("t-names"), bytes("t-group"), bytes("t-gene"), m.composition ? bytes("t-beyond") : null, ...m.numbers.map((c) => bytes(`t-${c}`)),
  ]);
  table = { names, group: new Uint16Array(group), gene: new Uint32Array(gene), beyond: beyond && new Uint8Array(beyond) };
  m.numbers.forEach((c, i) => (table[c] = new Float32Array(numbers[i])));
  for (const c of m.texts) table[c] = await lines(`t-${c}`);
  rankOf = ranks();
  $("biomarkers").hidden = false;
  $("beyond-label").hidden = !beyond;
  if (m.groups.length > 1) $("group").append(element("option", { value: -1, textContent: "all" }));
  $("group").append(...m.groups.map((textContent, value) => element("option", { value, textContent })));
  $("group").value = table.group[table.pvals_adj.findIndex((p) => p <= 0.05)] ?? 0; // the first group with a marker
  for (const id of ["group", "fdr", "direction", "beyond"]) $(id).onchange = update;
  $("search").oninput = update;
  $("save").onclick = save;
  $("scroll").onscroll = () => { const s = $("scroll"); if (s.scrollTop + s.clientHeight > s.scrollHeight - 200) addRows(); };
  volcano.onpointermove = (e) => { const d = dotAt(e); showTip(d ? rowText(d.row) : "", e); };
  volcano.onpointerleave = () => showTip();
  volcano.onclick = (e) => { const d = dotAt(e); if (d) selectRow(d.row); };
  drawHeader();
  update();
  new ResizeObserver(drawVolcano).observe(volcano);
}
const geneOf = (row) => table.names[table.gene[row]];
const fold = (x) => `${+(2 ** x).toPrecision(2)}-fold`;
function cells(row) {
  const out = { gene: geneOf(row) };
  if (+$("group").value < 0) out.group = meta.biomarkers.groups[table.group[row]];
  out.logfoldchanges = formatNumber(table.logfoldchanges[row]);
  out.pvals_adj = formatP(table.pvals_adj[row]);
  if (table.auroc) out.auroc = formatNumber(table.auroc[row]);
  for (const c of meta.biomarkers.texts) out[c] = table[c][row];
  if (table.beyond) out.beyond = table.beyond[row] ? "yes" : "";
  return out;
}
const STYLE = { gene: "name", group: "text", auroc: "wide", sections: "wide", subjects: "wide", targets: "text" };
function drawHeader() {
  const line = element("tr");
  for (const column of Object.keys(cells(0))) {
    const head = element("th", { scope: "col", className: STYLE[column] ?? "", title: HINTS[column] ?? "" });
    const on = sorting.column === column;
    head.setAttribute("aria-sort", on ? (sorting.sign > 0 ? "ascending" : "descending") : "none");
    const button = element("button", { type: "button", textContent: TITLES[column] + (on ? (sorting.sign > 0 ? " ↑" : " ↓") : "") });
    button.onclick = () => {
      const first = ["logfoldchanges", "auroc", "beyond"].includes(column) ? -1 : 1; // then the other way, then by rank
      sorting = on && sorting.sign !== first ? { column: null, sign: 1 } : { column, sign: on ? -first : first };
      update();
    };
    head.append(button);
    line.append(head);
  }
  $("table").tHead.replaceChildren(line);
}
const inGroup = (row) => +$("group").value < 0 || table.group[row] === +$("group").value;
const passes = (row) => table.pvals_adj[row] <= +$("fdr").value;
function passesFilters(row, text) {
  return inGroup(row) && passes(row) && (!+$("direction").value || table.logfoldchanges[row] * +$("direction").value > 0)
    && (!$("beyond").checked || table.beyond[row]) && (!text || geneOf(row).toLowerCase().includes(text));
}
function update() {
  const text = $("search").value.trim().toLowerCase(), { column, sign } = sorting;
  filtered = [];
  for (let row = 0; row < meta.biomarkers.n; row++) if (passesFilters(row, text)) filtered.push(row);
  const value = column === "gene" ? geneOf : column === "group" ? (row) => table.group[row] : (row) => table[column][row];
  const size = (row) => Math.abs(table.logfoldchanges[row]);
  if (!column) filtered.sort(byRank);
  else filtered.sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    const order = typeof x === "string" ? x.localeCompare(y) : (Number.isNaN(x) ? 1e9 : x) - (Number.isNaN(y) ? 1e9 : y);
    return sign * order || size(b) - size(a);
  });
  $("count").textContent = `${filtered.length.toLocaleString("en")} ${filtered.length === 1 ? "row" : "rows"}. Click a gene to see where it is expressed. Orange: higher, blue: lower${table.beyond ? "; filled: beyond composition" : ""}.`;
  $("table").tBodies[0].replaceChildren();
  $("scroll").scrollTop = drawnRows = 0;
  drawHeader();
  addRows();
  drawVolcano();
  summarize();
}
// a group's part of the table begins with the highest genes and ends with the lowest
function byRank(a, b) {
  const low = (row) => table.logfoldchanges[row] < 0;
  return low(a) - low(b) || rankOf[a] - rankOf[b] || a - b;
}
function ranks() {
  const sizes = new Map(), out = new Uint32Array(meta.biomarkers.n);
  const count = (row) => { sizes.set(table.group[row], (sizes.get(table.group[row]) ?? -1) + 1); return sizes.get(table.group[row]); };
  for (let row = 0; row < out.length; row++) out[row] = count(row);
  sizes.clear();
  for (let row = out.length - 1; row >= 0; row--) { const n = count(row); if (table.logfoldchanges[row] < 0) out[row] = n; }
  return out;
}
function addRows() {
  const body = $("table").tBodies[0];
  for (const row of filtered.slice(drawnRows, (drawnRows += 60))) {
    const line = element("tr", { tabIndex: 0 });
    line.dataset.row = row;
    line.setAttribute("aria-selected", String(row === chosen));
    for (const [column, textContent] of Object.entries(cells(row))) line.append(element("td", { textContent, className: STYLE[column] ?? "", title: ["name", "text"].includes(STYLE[column]) ? textContent : "" }));
    line.onclick = () => selectRow(row);
    line.onkeydown = (e) => { if (e.key === "Enter") selectRow(row); };
    body.append(line);
  }
}
function summarize() {
  const group = +$("group").value, fdr = +$("fdr").value, all = [], box = $("marked"), groups = meta.biomarkers.groups;
  let tested = 0;
  for (let row = 0; row < meta.biomarkers.n; row++) {
    if (!inGroup(row)) continue;
    tested++;
    if (table.pvals_adj[row] <= Math.min(fdr, 0.1)) all.push(row);
  }
  const against = meta.biomarkers.reference === "rest" ? "the rest" : meta.biomarkers.reference;
  box.replaceChildren();
  const what = group < 0 ? "the groups" : `${meta.biomarkers.groupby === meta.key ? "segment " : ""}${groups[group]}`, beyond = table.beyond ? all.filter((row) => table.beyond[row]).length : null;
  if (groups.length > 1) box.append(`At a false discovery rate of ${100 * Math.min(fdr, 0.1)} %, ${(all.length || "no").toLocaleString("en")} of ${tested.toLocaleString("en")} ${group < 0 ? "pairs of group and gene" : "genes"} tell ${what} from ${against}`
    + (beyond === null || !all.length ? "." : `, ${beyond.toLocaleString("en")} of them beyond composition.`));
  for (const [title, sign] of [["Higher", 1], ["Lower", -1]]) {
    const part = all.filter((row) => table.logfoldchanges[row] * sign > 0).sort(byRank);
    if (!part.length) continue;
    box.append(` ${title}: `);
    part.slice(0, 8).forEach((row, i) => {
      const button = element("button", { type: "button", textContent: geneOf(row) });
      button.onclick = () => selectRow(row);
      box.append(i ? ", " : "", button, ` (${fold(table.logfoldchanges[row])})`);
    });
    box.append(part.length > 8 ? `, and ${(part.length - 8).toLocaleString("en")} more.` : ".");
  }
}
function rowText(row) {
  const group = +$("group").value < 0 ? `\n${meta.biomarkers.groups[table.group[row]]}` : "";
  const auroc = table.auroc ? `, AUROC ${formatNumber(table.auroc[row])}` : "";
  return `${geneOf(row)}${group}\n${fold(table.logfoldchanges[row])}, FDR ${formatP(table.pvals_adj[row])}${auroc}${table.beyond?.[row] ? "\nbeyond composition" : ""}`;
}

function drawVolcano() {
  const box = volcano.getBoundingClientRect(), dpr = Math.min(devicePixelRatio || 1, 2), pen = volcano.getContext("2d");
  if (!table || !box.width || printed()) return;
  Object.assign(volcano, { width: box.width * dpr, height: box.height * dpr });
  pen.scale(dpr, dpr);
  const rows = [], seen = new Set(filtered);
  let least = 1e-3; // a p value of 0 lies above all others
  for (let row = 0; row < meta.biomarkers.n; row++) {
    if (!inGroup(row) || !Number.isFinite(table.logfoldchanges[row] + table.pvals_adj[row])) continue;
    rows.push(row);
    if (table.pvals_adj[row] > 0) least = Math.min(least, table.pvals_adj[row]);
  }
  const height = (row) => -Math.log10(Math.max(table.pvals_adj[row], least / 10));
  const left = 38, right = 10, top = 14, bottom = 34;
  let wide = 0.5, tall = 1.5;
  for (const row of rows) { wide = Math.max(wide, Math.abs(table.logfoldchanges[row])); tall = Math.max(tall, height(row)); }
  wide *= 1.06; tall *= 1.06;
  const X = (v) => left + ((v + wide) / (2 * wide)) * (box.width - left - right), Y = (v) => box.height - bottom - (v / tall) * (box.height - top - bottom);
  const tick = (span) => { const p = 10 ** Math.floor(Math.log10(span / 4)); return [1, 2, 5, 10].map((m) => m * p).find((s) => span / s <= 6); };
  Object.assign(pen, { font: "11px system-ui, sans-serif", fillStyle: "#5b6670", strokeStyle: "#e6eaed", lineWidth: 1, textBaseline: "middle" });
  const rule = (x0, y0, x1, y1) => { pen.beginPath(); pen.moveTo(x0, y0); pen.lineTo(x1, y1); pen.stroke(); };
  pen.textAlign = "center";
  const dx = tick(2 * wide), dy = tick(tall);
  for (let v = -Math.floor(wide / dx) * dx; v <= wide; v += dx) { rule(X(v), top, X(v), box.height - bottom); pen.fillText(+v.toFixed(6), X(v), box.height - bottom + 10); }
  pen.fillText("log₂ fold change", X(0), box.height - 8);
  pen.textAlign = "right";
  for (let v = 0; v <= tall; v += dy) { rule(left, Y(v), box.width - right, Y(v)); pen.fillText(+v.toFixed(6), left - 6, Y(v)); }
  pen.save();
  pen.translate(9, Y(tall / 2));
  pen.rotate(-Math.PI / 2);
  pen.textAlign = "center";
  pen.fillText("−log₁₀ FDR", 0, 0);
  pen.restore();
  if (+$("fdr").value < 1) { pen.setLineDash([4, 3]); pen.strokeStyle = "#8b959e"; rule(left, Y(-Math.log10(+$("fdr").value)), box.width - right, Y(-Math.log10(+$("fdr").value))); pen.setLineDash([]); }
  dots = rows.map((row) => ({ row, x: X(table.logfoldchanges[row]), y: Y(height(row)), in: seen.has(row) }));
  for (const front of [false, true]) for (const d of dots) {
    if (d.in !== front) continue;
    const color = front ? (table.logfoldchanges[d.row] > 0 ? UP : DOWN) : NOT_SIGNIFICANT, hollow = front && table.beyond && !table.beyond[d.row];
    pen.beginPath();
    pen.arc(d.x, d.y, front ? 3.2 : 2, 0, 7);
    if (hollow) { Object.assign(pen, { fillStyle: "#fff", strokeStyle: color, lineWidth: 1.2 }); pen.fill(); pen.stroke(); } else { pen.fillStyle = color; pen.fill(); }
  }
  label(pen, box, dots.filter((d) => d.in));
  const ring = dots.find((d) => d.row === chosen);
  $("ring").hidden = !ring;
  if (ring) Object.assign($("ring").style, { left: `${ring.x}px`, top: `${ring.y}px` });
}
function label(pen, box, points) {
  const taken = [];
  Object.assign(pen, { font: "italic 11px system-ui, sans-serif", fillStyle: "#1d2329", strokeStyle: "rgba(255,255,255,.85)", lineWidth: 3 });
  for (const d of points.sort((a, b) => rankOf[a.row] - rankOf[b.row] || a.y - b.y).slice(0, 200)) {
    const text = geneOf(d.row), w = pen.measureText(text).width;
    // beside its dot, where it covers neither a name nor a dot of another gene
    const spot = [d.x + 6, d.x - w - 6].map((x) => [x, d.y - 6, x + w, d.y + 6]).find((s) => s[0] > 0 && s[2] < box.width
      && !taken.some((t) => s[0] < t[2] + 4 && s[2] > t[0] - 4 && s[1] < t[3] && s[3] > t[1])
      && !points.some((p) => p !== d && p.x > s[0] - 4 && p.x < s[2] + 4 && p.y > s[1] - 2 && p.y < s[3] + 2));
    if (taken.length >= 14 || !spot) continue;
    taken.push(spot);
    pen.textAlign = "left";
    pen.strokeText(text, spot[0], d.y);
    pen.fillText(text, spot[0], d.y);
  }
}
function dotAt(event) {
  const box = volcano.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
  let best = null, least = 12 ** 2;
  for (const d of dots) {
    const far = (d.x - x) ** 2 + (d.y - y) ** 2 + (d.in ? 0 : 20);
    if (far < least) [best, least] = [d, far];
  }
  return best;
}
function selectRow(row) {
  chosen = row;
  const at = filtered.indexOf(row);
  while (at >= drawnRows) addRows();
  for (const line of $("table").tBodies[0].rows) {
    const on = +line.dataset.row === row;
    line.setAttribute("aria-selected", String(on));
    const s = $("scroll");
    if (on && (line.offsetTop < s.scrollTop + 30 || line.offsetTop + line.offsetHeight > s.scrollTop + s.clientHeight)) s.scrollTop = line.offsetTop - s.clientHeight / 2;
  }
  drawVolcano();
  const gene = geneOf(row), i = meta.genes.findIndex(([name]) => name === gene);
  if (i >= 0) colorBy(`gene${i}`);
  $("picked").textContent = i >= 0 ? `The map shows ${gene}.` : `The expression of ${gene} is not in this file; name it in st.report(genes=[...]).`;
}
function save() {
  const quote = (text) => (/[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  const head = ["names", "group", ...meta.biomarkers.numbers, ...(table.beyond ? ["beyond_composition"] : []), ...meta.biomarkers.texts];
  const body = filtered.map((row) => [quote(geneOf(row)), quote(meta.biomarkers.groups[table.group[row]]), ...meta.biomarkers.numbers.map((c) => table[c][row]), ...(table.beyond ? [Boolean(table.beyond[row])] : []), ...meta.biomarkers.texts.map((c) => quote(table[c][row]))]);
  const link = element("a", { href: URL.createObjectURL(new Blob([[head, ...body].map((line) => line.join(",")).join("\n") + "\n"], { type: "text/csv" })), download: "biomarkers.csv" });
  link.click();
  URL.revokeObjectURL(link.href);
}

for (const id of ["training", "parameters"]) $(id).hidden = !$(id).querySelector("figure, details");
openMap().then(() => meta.biomarkers && openBiomarkers()).then(() => requestAnimationFrame(() => requestAnimationFrame(() => (document.body.dataset.ready = "yes"))));
