"use strict";
const $ = (id) => document.getElementById(id);
const meta = JSON.parse($("meta").textContent);
const printed = () => matchMedia("print").matches; // paper shows canvases as they are: no frame would draw them again
const element = (tag, properties = {}) => Object.assign(document.createElement(tag), properties);
const formatNumber = (x, digits = 2) => (Number.isFinite(x) ? x.toFixed(digits) : "–");
const formatP = (p) => (!Number.isFinite(p) ? "–" : p >= 0.001 ? p.toFixed(3) : p.toExponential(1));

// --- blocks: gzip and base64, unpacked when they are first needed ------------------------------------------------

const unpacked = new Map();
function bytes(id) {
  if (!unpacked.has(id)) unpacked.set(id, inflate($(`block-${id}`).textContent));
  return unpacked.get(id);
}
async function inflate(text) {
  const raw = atob(text), data = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) data[i] = raw.charCodeAt(i);
  const stream = new Blob([data]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}
const lines = async (id) => new TextDecoder().decode(await bytes(id)).split("\n");

function showTip(text, event) {
  const tip = $("tip");
  tip.hidden = !text;
  if (!text) return;
  tip.textContent = text;
  const x = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8);
  const y = event.clientY + 16 + tip.offsetHeight > innerHeight ? event.clientY - tip.offsetHeight - 10 : event.clientY + 16;
  tip.style.left = `${Math.max(4, x)}px`;
  tip.style.top = `${y}px`;
}

// --- colours --------------------------------------------------------------------------------------------------------

const VIRIDIS = ["#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725"];
const PURPLES = ["#e6e6ea", "#d5c9e0", "#b79bd0", "#9369bb", "#6c3f9e", "#451e78", "#210a45"];
const rgb = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
const pixel = ([r, g, b]) => ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0; // as it lies in the memory of a canvas
const MISSING = pixel(rgb("#d3d3d3")), FAINT = pixel(rgb("#e9ecee"));
function scaleOf(stops) {
  const colors = stops.map(rgb), table = new Uint32Array(256).fill(MISSING);
  for (let i = 0; i < 255; i++) {
    const at = (i / 254) * (colors.length - 1), j = Math.min(Math.floor(at), colors.length - 2), t = at - j;
    table[i] = pixel([0, 1, 2].map((c) => Math.round(colors[j][c] * (1 - t) + colors[j + 1][c] * t)));
  }
  return table;
}
