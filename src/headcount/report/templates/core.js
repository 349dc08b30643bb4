// What every part of the page uses: data, elements, numbers, theme, downloads.
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const root = document.documentElement;
const sections = {}; // each adds what draws its data, by its id

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function drawn(tag, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

const css = (name) => getComputedStyle(root).getPropertyValue(name).trim();
const systemDark = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : systemDark.matches);
const narrow = () => root.clientWidth < 560;

// The key-value head of a query head: groups of one size, or each head's own.
const groupOf = (groups, head) => (typeof groups === "number" ? Math.floor(head / groups) : groups[head]);

// Drawings that depend on the theme or the width register here.
const redraws = [];
const redrawAll = () => redraws.forEach((redraw) => redraw());

function setUpTheme() {
  const button = byId("theme");
  const say = () => {
    button.textContent = isDark() ? "Light" : "Dark";
    button.setAttribute("aria-label", `Show the page in ${isDark() ? "light" : "dark"} colours`);
  };
  button.hidden = false;
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    say();
    redrawAll();
  });
  systemDark.addEventListener("change", () => { say(); redrawAll(); });
  say();
  let width = root.clientWidth;
  addEventListener("resize", () => {
    if (root.clientWidth === width) return;
    width = root.clientWidth;
    redrawAll();
  });
}

const percent = (part, digits = 0) => (part === null || Number.isNaN(part) ? "–" : `${(100 * part).toFixed(digits)}%`);

const whole = (count) => count.toLocaleString("en");

// Three significant digits, never in exponents for the sizes that scores have.
function number(value) {
  if (value === null || Number.isNaN(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e5)) return value.toExponential(1).replace("e+", "e").replace("-", "−");
  return value.toFixed(size === 0 ? 0 : Math.max(0, 2 - Math.floor(Math.log10(size)))).replace("-", "−");
}

// Base64 of gzip, as the page carries everything large, to bytes.
async function unpack(name) {
  const text = atob(document.querySelector(`script[data-packed="${CSS.escape(name)}"]`).textContent);
  const packed = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) packed[i] = text.charCodeAt(i);
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}
const unpackText = async (name) => new TextDecoder().decode(await unpack(name));

function download(name, text) {
  const link = element("a", { href: URL.createObjectURL(new Blob([text], { type: "text/csv;charset=utf-8" })), download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

// RFC 4180; text that a spreadsheet would run as a formula gets an apostrophe before it, as in the tables that travel along.
function csv(lines) {
  const field = (value) => {
    if (typeof value === "number") return String(value);
    const inert = /^[=+\-@\t\r\n＝＋－＠]/.test(value) ? `'${value}` : value;
    return /[",\r\n]/.test(inert) ? `"${inert.replace(/"/g, '""')}"` : inert;
  };
  return lines.map((line) => `${line.map(field).join(",")}\r\n`).join("");
}

// Tables that a part of the page makes when asked; all others travel as text.
const csvMakers = {};
function setUpDownloads() {
  let texts;
  document.addEventListener("click", async ({ target }) => {
    const id = target instanceof Element && target.closest("[data-csv]")?.dataset.csv;
    if (!id) return;
    if (csvMakers[id]) return download(`${id}.csv`, await csvMakers[id]());
    texts ??= JSON.parse(await unpackText("tables"));
    download(`${id}.csv`, texts[id]);
  });
}

// Kept when the head map is drawn: what is not needed for it waits until then.
let sayMapDrawn;
const mapDrawn = new Promise((keep) => { sayMapDrawn = keep; });

// Give the browser time to paint and to answer before the next piece of work.
const idle = () => new Promise((resume) => (window.requestIdleCallback ? requestIdleCallback(resume, { timeout: 300 }) : setTimeout(resume, 30)));
