// What the page does: it draws figures as they come into view, in the colours of the reader's theme; a click on a
// point or a row chooses a member; the table of members; dictionaries. All data is in #data (page_data.py writes it),
// nothing is fetched. Text from a run enters the page as textContent, and a figure of plotly's through escaped().
"use strict";
const $ = (query, root = document) => root.querySelector(query);
const element = (tag, properties = {}, ...children) => {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
};
const data = JSON.parse($("#data").textContent);
const escaped = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;").replaceAll("$", "&#36;");
const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer;
const three = (value) => (typeof value !== "number" ? value ?? "–" : Number.isInteger(value) ? String(value) : Math.abs(value) >= 100 ? String(Math.round(value)) : String(+value.toPrecision(3)));

// how the page shows a cell of the members table: long words in short, with the whole word as a tip
const cell = (value, k) => {
  const { short } = data.members.columns[k];
  return Object.hasOwn(short, value) ? { textContent: short[value], title: value } : { textContent: three(value) };
};

// -- figures -------------------------------------------------------------------------------------------------------
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function themed(layout) {
  const [ink, line, paper] = ["--ink", "--line", "--paper"].map(colour);
  const axis = { gridcolor: line, linecolor: line, zerolinecolor: line, tickcolor: line, automargin: true, showgrid: true, title: { standoff: 8 } };
  const { meta = {}, title, ...rest } = layout;
  const narrow = innerWidth < 640;
  return {
    ...rest,
    height: layout.height - (meta.head ?? 0),
    margin: { ...layout.margin, t: layout.margin.t - (meta.head ?? 0), ...(narrow ? { l: Math.min(layout.margin.l, 48), r: 8 } : {}) },
    dragmode: narrow ? false : layout.dragmode,
    template: {
      layout: {
        font: { family: colour("--sans"), size: narrow ? 11 : 12.5, color: ink },
        paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
        xaxis: axis, yaxis: axis,
        hoverlabel: { bgcolor: paper, bordercolor: line, font: { color: ink }, align: "left" },
      },
    },
  };
}

const drawn = new Map();  // element -> the function that makes its [traces, layout]

function show(node) {
  const [traces, layout] = drawn.get(node)();
  return Plotly.react(node, traces, themed(layout), { responsive: true, displaylogo: false, displayModeBar: false });
}

const observer = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (!isIntersecting) continue;
    observer.unobserve(target);
    show(target).then(() => {
      target.dataset.drawn = "";
      target.on("plotly_click", ({ points: [point] }) => Number.isInteger(point.customdata) && visit(point.customdata));
    });
  }
}, { rootMargin: "500px" });

for (const node of document.querySelectorAll(".plot")) {
  const { data: traces, layout } = data.figures[node.id];
  const byMember = { curves: curves, firingrates: firingRates }[node.dataset.kind];
  drawn.set(node, () => [byMember ? byMember(traces, layout) : traces, layout]);
  node.style.height = `${layout.height - (layout.meta?.head ?? 0)}px`;
  observer.observe(node);
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => redraw(".plot[data-drawn]"));
const redraw = (query) => document.querySelectorAll(query).forEach(show);

// -- chosen members: their traces are made here, each like the first trace that the figure came with ---------------
let chosen = data.chosen;
const swatch = (i) => data.swatches[i % data.swatches.length];
const name = (row) => escaped(`member ${data.members.rows[row][0]}`);
const steps = data.history && new Uint32Array(bytes(data.history.steps));
const past = data.history && Object.fromEntries(Object.entries(data.history.values).map(([key, text]) => [key, new Float32Array(bytes(text))]));
const shares = data.firing && new Float32Array(bytes(data.firing.shares));

function curves(traces, layout) {
  const metrics = layout.meta.metrics;
  return chosen.flatMap((row, i) => {
    const [from, to] = [data.history.starts[row], data.history.starts[row + 1]];
    return metrics.map((metric, k) => ({ ...traces[k], x: steps.subarray(from, to), y: past[metric].subarray(from, to), name: name(row), legendgroup: name(row), line: { ...traces[k].line, color: swatch(i) } }));
  });
}

function firingRates(traces) {
  const bins = data.firing.bins;
  return chosen.filter((row) => data.firing.rows.includes(row)).map((row, i) => {
    const at = data.firing.rows.indexOf(row) * bins;
    return { ...traces[0], y: shares.subarray(at, at + bins), name: name(row), line: { ...traces[0].line, color: swatch(chosen.indexOf(row)) } };
  });
}

function choose(rows) {
  chosen = rows.slice(-data.swatches.length);
  redraw(".plot[data-drawn][data-kind=curves], .plot[data-drawn][data-kind=firingrates]");
  listChosen();
  markRows();
}

function visit(row) {
  if (!chosen.includes(row)) choose([...chosen, row]);
  history.replaceState(null, "", `#member-${encodeURIComponent(data.members.rows[row][0])}`);
  $("#members").scrollIntoView();
}

function listChosen() {
  const { columns, rows } = data.members;
  const shown = data.members.brief;
  const head = element("tr", {}, ...shown.map((k) => element("th", { textContent: columns[k].label })), element("th"));
  const body = chosen.map((row, i) => {
    const cells = shown.map((k) => element("td", cell(rows[row][k], k)));
    cells[0].prepend(element("i"));
    const links = element("td");
    if (data.dictionaries.some((d) => d.row === row)) links.append(element("a", { href: `#dictionary-${row}`, textContent: "dictionary" }));
    links.append(element("button", { textContent: "×", title: "remove from this list", onclick: () => choose(chosen.filter((r) => r !== row)) }));
    const tr = element("tr", {}, ...cells, links);
    tr.style.setProperty("--swatch", swatch(i));
    return tr;
  });
  $("#chosen").replaceChildren(element("table", {}, element("thead", {}, head), element("tbody", {}, ...body)));
}

// -- the table of members -----------------------------------------------------------------------------------------
let order = data.members.rows.map((_, row) => row), sorted = null, descending = false;
const lines = data.members.rows.map((values, row) => element("tr", { onclick: () => choose(chosen.includes(row) ? chosen.filter((r) => r !== row) : [...chosen, row]) }, ...values.map((value, k) => element("td", cell(value, k)))));

function matches(row, query) {
  return query.split(/\s+/).filter(Boolean).every((term) => {
    const [, key, sign, wanted] = term.match(/^([^<>=]+?)(<=|>=|<|>|=)(.+)$/) ?? [];
    const values = data.members.rows[row];
    if (!key) return values.some((value) => String(value).toLowerCase().includes(term.toLowerCase()));
    const k = data.members.columns.findIndex((column) => column.name === key || column.label === key);
    if (k < 0) return false;
    const [value, number] = [values[k], Number(wanted)];
    if (typeof value !== "number") return sign === "=" && String(value) === wanted;
    return { "=": value === number, "<": value < number, ">": value > number, "<=": value <= number, ">=": value >= number }[sign];
  });
}

const visible = () => order.filter((row) => matches(row, $("#filter").value));

function fill() {
  const rows = visible();
  $("#table tbody").replaceChildren(...rows.map((row) => lines[row]));
  $("#count").textContent = `${rows.length} of ${lines.length}`;
}

function sortBy(k, th) {
  descending = sorted === k && !descending;
  sorted = k;
  const compare = (a, b) => (a === null || b === null ? (a === null) - (b === null) : (descending ? -1 : 1) * (typeof a === "number" ? a - b : String(a).localeCompare(String(b), undefined, { numeric: true })));
  order.sort((a, b) => compare(data.members.rows[a][k], data.members.rows[b][k]));
  document.querySelectorAll("#table th").forEach((other) => other.removeAttribute("aria-sort"));
  th.setAttribute("aria-sort", descending ? "descending" : "ascending");
  fill();
}

function markRows() {
  lines.forEach((line, row) => {
    line.classList.toggle("chosen", chosen.includes(row));
    line.style.setProperty("--swatch", swatch(chosen.indexOf(row)));
  });
}

// a spreadsheet would take a text that begins like these for a formula, and a line's end for that of a row
const harmless = (value) => (typeof value !== "string" ? value ?? "" : (/^\s*[=+@]|^\s*-(?!inf$)/.test(value) ? `'${value}` : value).replace(/[\t\r\n]+/g, " "));

function text(separator) {
  const quoted = (value) => (/[",]/.test(value) ? `"${String(value).replaceAll('"', '""')}"` : value);
  const rows = [data.members.columns.map((column) => column.name), ...visible().map((row) => data.members.rows[row])];
  return rows.map((values) => values.map(harmless).map(separator === "," ? quoted : String).join(separator)).join("\n") + "\n";
}

async function copy(button) {
  const area = element("textarea", { value: text("\t") });
  try {
    await navigator.clipboard.writeText(area.value);
  } catch {  // an older browser, or one that gives a local file no clipboard
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  button.textContent = "copied";
  setTimeout(() => (button.textContent = "copy"), 1500);
}

function download() {
  const url = URL.createObjectURL(new Blob([text(",")], { type: "text/csv" }));
  element("a", { href: url, download: `${data.name}-members.csv` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

$("#table thead").append(element("tr", {}, ...data.members.columns.map(({ label, name }, k) => {
  const th = element("th", { textContent: label, title: Object.hasOwn(data.meanings, label) ? data.meanings[label] : name, tabIndex: 0 });
  th.onclick = () => sortBy(k, th);
  th.onkeydown = (event) => event.key === "Enter" && sortBy(k, th);
  return th;
})));
$("#filter").oninput = fill;
$("#copy").onclick = ({ target }) => copy(target);
$("#csv").onclick = download;
listChosen();
fill();
markRows();

// -- dictionaries: each image is a piece of one sheet per member and kind -------------------------------------------
const rate = (r) => (r === null ? "" : r === 0 ? "dead" : `${+(100 * r).toPrecision(2)} %`);

function image(sheet, k, size) {
  const scale = Math.max(1, Math.round(size / sheet.width));
  const node = element("span", { className: `image ${sheet.class}` });
  Object.assign(node.style, {
    width: `${scale * sheet.width}px`, height: `${scale * sheet.height}px`,
    backgroundSize: `${scale * sheet.width * sheet.columns}px auto`,
    backgroundPosition: `${-scale * sheet.width * (k % sheet.columns)}px ${-scale * sheet.height * Math.floor(k / sheet.columns)}px`,
  });
  return node;
}

for (const dictionary of data.dictionaries.filter((d) => d.directions)) {
  const root = $(`#dictionary-${dictionary.row}`);
  const tiles = element("div", { className: "tiles" }), detail = element("div", { className: "detail" });
  const open = (k) => {
    [...tiles.children].forEach((tile, i) => tile.setAttribute("aria-pressed", i === k));
    const pairs = dictionary.top[k].map(([place, number, value]) => element("div", {}, element("div", { className: "pair" }, image(dictionary.inputs, place, 56), image(dictionary.outputs, place, 56)), `#${number} · ${three(value)}`));
    const words = dictionary.rates[k] === null ? "" : dictionary.rates[k] === 0 ? "is active on no held-out example" : `is active on ${rate(dictionary.rates[k])} of held-out examples`;
    detail.replaceChildren(
      element("div", {}, image(dictionary.directions, k, 72)),
      element("div", {}, element("b", { textContent: `latent ${dictionary.latents[k]}` }), element("br"), words, element("br"), pairs.length ? "strongest examples, each with its reconstruction:" : ""),
      ...pairs,
    );
  };
  dictionary.latents.forEach((latent, k) => {
    const dead = dictionary.rates[k] === 0;
    tiles.append(element("button", { className: dead ? "tile dead" : "tile", title: `latent ${latent}`, onclick: () => open(k) }, image(dictionary.directions, k, 44), rate(dictionary.rates[k])));
  });
  root.append(tiles, detail);
  open(0);
}

if (location.hash.startsWith("#member-")) {
  const row = data.members.rows.findIndex(([member]) => `#member-${encodeURIComponent(member)}` === location.hash);
  if (row >= 0) visit(row);
}
