// What the page of features does: a list of the latents of a member, of which only the rows in view are in the document;
// search and order; and a card of the latent that is chosen. All data is in #data (features_page.py writes it), nothing
// is fetched. Tokens and names enter the page as textContent only.
"use strict";
const $ = (query, root = document) => root.querySelector(query);
const element = (tag, properties = {}, ...children) => {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
};
const data = JSON.parse($("#data").textContent);
const { strongest: STRONGEST, before: BEFORE, after: AFTER, bins: BINS } = data.shape;
const CONTEXTS = STRONGEST + data.shape.others, WIDTH = BEFORE + 1 + AFTER, NONE = 0xffffffff, UNKNOWN = -32768, BETWEEN = 32767;
const KINDS = { f: Float32Array, i: Int32Array, u: Uint32Array, h: Int16Array, s: Uint16Array, b: Uint8Array };
const array = (kind, text) => {
  const letters = atob(text), bytes = new Uint8Array(letters.length);
  for (let i = 0; i < letters.length; i++) bytes[i] = letters.charCodeAt(i);
  return new KINDS[kind](bytes.buffer);
};
const tokens = ([table, places, kind]) => {
  const found = array("u", table), at = array(kind === "uint16" ? "s" : "u", places), ids = new Uint32Array(at.length);
  for (let i = 0; i < at.length; i++) ids[i] = found[at[i]];
  return ids;
};
const three = (value) => (!Number.isFinite(value) ? "–" : Math.abs(value) >= 100 ? Math.round(value).toLocaleString("en") : String(+value.toPrecision(3)));
const percent = (rate) => (rate === 0 ? "never" : `${+(100 * rate).toPrecision(2)} %`);

// -- tokens ---------------------------------------------------------------------------------------------------------
// features.py has done the same to whole tokens; a letter that stands in several is put together here
const plain = (text) => text.replace(/[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]/g, "\ufffd");
const bytewise = (byte) => (byte < 0x80 ? plain(String.fromCharCode(byte)) : `<${byte.toString(16).padStart(2, "0")}>`);
const words = data.vocabulary.map((piece) => (typeof piece === "string" ? piece : piece.map(bytewise).join("")));
const lower = words.map((word) => word.toLowerCase());
const visible = (word) => word.replaceAll(" ", "␣").replaceAll("\n", "↵").replaceAll("\t", "→") || "∅";
const word = (id) => (id === NONE ? "" : visible(words[id]));

// the texts of tokens side by side: a letter whose bytes are in several tokens stands in the last of them
function texts(ids) {
  const decoder = new TextDecoder("utf-8");
  return ids.map((id, i) => {
    const piece = data.vocabulary[id], next = data.vocabulary[ids[i + 1]];
    if (typeof piece === "string") return piece;
    return plain(decoder.decode(new Uint8Array(piece), { stream: Array.isArray(next) })) || "…";
  });
}

// a text with its spaces, line ends and tabs visible, as nodes
function marked(text) {
  return text.split(/( |\n|\t)/).filter(Boolean).map((part) =>
    part === " " ? element("i", { className: "space", textContent: " " })
    : part === "\n" || part === "\t" ? element("i", { className: "mark", textContent: part === "\n" ? "↵" : "→" })
    : part);
}

// -- members: arrays are made from their texts when a member is first shown -----------------------------------------
const opened = new Map();
// latent -> its place in the arrays of a member; a member that is whole has all its latents in order
const placeOf = (raw, latents) => (raw.whole ? { has: (latent) => latent < raw.whole, get: (latent) => latent } : new Map([...latents].map((latent, i) => [latent, i])));
function opening(k) {
  if (opened.has(k)) return opened.get(k);
  const raw = data.members[k], n = array("u", raw.latents).length;
  const member = {
    ...raw, n, k,
    latents: array("u", raw.latents), rate: array("f", raw.rate), largest: array("f", raw.largest), effect: array("f", raw.effect),
    own: array("f", raw.own), other: array("f", raw.other), peaks: tokens(raw.peaks), promoted: tokens(raw.promoted),
    inFile: array("b", raw.inFile), f1: raw.f1 ? array("b", raw.f1) : new Uint8Array(0),
  };
  const c = raw.cards, pair = ([latents, cosines]) => [array("u", latents), array("f", cosines)];
  member.card = {
    latents: array("u", c.latents), document: array("i", c.document), value: array("f", c.value), below: array("f", c.below),
    ids: tokens(c.ids), values: array("h", c.values), histogram: array("u", c.histogram), own: pair(c.own),
    others: Object.entries(c.others).map(([other, near]) => [+other, ...pair(near)]),
    promotes: c.promotes && [tokens(c.promotes[0]), array("f", c.promotes[1])],
    suppresses: c.suppresses && [tokens(c.suppresses[0]), array("f", c.suppresses[1])],
    labels: c.labels && [array("i", c.labels[0]), ...c.labels.slice(1).map((text) => array("f", text))],
  };
  member.place = placeOf(raw, member.latents);
  member.cardOf = new Map([...member.card.latents].map((latent, i) => [latent, i]));
  member.best = new Int16Array(n).fill(-1);
  const most = new Uint8Array(n);
  for (let label = 0; label < data.labels.length; label++)
    for (let i = 0, k = label * n; i < n; i++, k++)
      if (member.f1[k] > most[i]) {
        most[i] = member.f1[k];
        member.best[i] = label;
      }
  opened.set(k, member);
  return member;
}

// -- the list -------------------------------------------------------------------------------------------------------
const bestF1 = (m, i) => (m.best[i] < 0 ? 0 : m.f1[m.best[i] * m.n + i]);
const ORDERS = {
  "firing rate": (m, i) => m.rate[i],
  "largest value": (m, i) => m.largest[i],
  "logit effect": (m, i) => m.effect[i],
  "label (F1)": (m, i) => (label < 0 ? bestF1(m, i) : m.f1[label * m.n + i]),
  "similarity, this member": (m, i) => m.own[i],
  "similarity, other members": (m, i) => m.other[i],
  "number": (m, i) => -m.latents[i],
};
let member, shown = [], at = -1, order = "firing rate", reversed = false, label = -1;
const ROW = 48;
const list = $("#list"), rows = $("#rows"), card = $("#card"), search = $("#search");

function matching(query) {
  const text = query.trim().toLowerCase(), m = member;
  if (!text) return () => true;
  if (text.startsWith("label:")) {
    const wanted = new Set(data.labels.flatMap((name, i) => (name.toLowerCase().includes(text.slice(6).trim()) ? [i] : [])));
    return (i) => wanted.has(m.best[i]);
  }
  const raw = query.toLowerCase(), found = Uint8Array.from(lower, (one) => (one.includes(raw) || one.includes(text) ? 1 : 0));
  const inContext = new Set();
  const per = CONTEXTS * WIDTH;
  m.card.ids.forEach((id, k) => id !== NONE && found[id] && inContext.add(m.card.latents[Math.floor(k / per)]));
  const peaks = m.peaks.length / m.n, promoted = m.promoted.length / m.n, number = /^\d+$/.test(text) ? Number(text) : -1;
  return (i) => {
    if (m.latents[i] === number || inContext.has(m.latents[i])) return true;
    for (let k = i * peaks; k < (i + 1) * peaks; k++) if (found[m.peaks[k]]) return true;
    for (let k = i * promoted; k < (i + 1) * promoted; k++) if (found[m.promoted[k]]) return true;
    return false;
  };
}

function fill(keep) {
  const fits = matching(search.value), value = ORDERS[order], number = Number(search.value.trim() || NaN);
  const keys = new Float64Array(member.n);
  shown = [];
  for (let i = 0; i < member.n; i++) {
    if (!fits(i) || (label >= 0 && !member.f1[label * member.n + i])) continue;
    const key = value(member, i);
    keys[i] = Number.isFinite(key) ? (reversed ? -key : key) : -Infinity;
    if (member.latents[i] === number) keys[i] = Infinity;  // the number that is searched for comes first
    shown.push(i);
  }
  shown.sort((a, b) => keys[b] - keys[a] || a - b);
  rows.style.height = `${ROW * shown.length}px`;
  $("#count").textContent = `${shown.length.toLocaleString("en")} of ${member.n.toLocaleString("en")} latents`;
  const place = keep === undefined ? 0 : shown.indexOf(member.place.get(keep));
  choose(Math.max(place, 0));
}

function row(place) {
  const i = shown[place], m = member, latent = m.latents[i];
  const peaks = [...new Set(m.peaks.subarray((i * m.peaks.length) / m.n, ((i + 1) * m.peaks.length) / m.n))].filter((id) => id !== NONE);
  const best = label < 0 ? m.best[i] : label;
  const promoted = m.promoted[(i * m.promoted.length) / m.n];
  const more = [best < 0 ? "" : `${data.labels[best]} ${(m.f1[best * m.n + i] / 255).toFixed(2)}`, promoted === undefined || promoted === NONE ? "" : `promotes ${word(promoted)} ${three(m.effect[i])}`];
  const node = element("div", { className: "row", id: `latent-${latent}` },
    element("b", { textContent: latent }),
    element("span", { textContent: peaks.map(word).join("  ") || (m.rate[i] ? "" : "never fired") }),
    element("span", { textContent: m.rate[i] ? percent(m.rate[i]) : "" }),
    element("span", { className: "more", textContent: more.filter(Boolean).join(" · ") }));
  node.setAttribute("role", "option");
  node.setAttribute("aria-selected", place === at);
  node.setAttribute("aria-posinset", place + 1);
  node.setAttribute("aria-setsize", shown.length);
  node.style.top = `${ROW * place}px`;
  node.onclick = () => { choose(place); list.focus({ preventScroll: true }); };
  return node;
}

let drawnFrom = -1, drawnTo = -1;
function draw(anew) {
  const from = Math.max(0, Math.floor(list.scrollTop / ROW) - 6), to = Math.min(shown.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + 6);
  if (!anew && from === drawnFrom && to === drawnTo) return;
  [drawnFrom, drawnTo] = [from, to];
  rows.replaceChildren(...Array.from({ length: Math.max(0, to - from) }, (_, k) => row(from + k)));
}

function choose(place) {
  at = shown.length ? Math.min(Math.max(place, 0), shown.length - 1) : -1;
  if (at >= 0) {
    const top = ROW * at;
    if (top < list.scrollTop) list.scrollTop = top;
    else if (top + ROW > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW - list.clientHeight;
    list.setAttribute("aria-activedescendant", `latent-${member.latents[shown[at]]}`);
    history.replaceState(null, "", `#member-${member.member}/latent-${member.latents[shown[at]]}`);
  } else {
    list.removeAttribute("aria-activedescendant");
  }
  draw(true);
  showCard();
}

// -- the card -------------------------------------------------------------------------------------------------------
function table(head, body) {
  return element("table", {},
    element("thead", {}, element("tr", {}, ...head.map((text) => element("th", { textContent: text })))),
    element("tbody", {}, ...body.map((cells) => element("tr", {}, ...cells.map((cell) => element("td", {}, cell))))));
}

function bars(counts, marked, ends, title) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg"), most = Math.max(...counts, 1);
  const shape = (tag, attributes) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    svg.append(node);
  };
  svg.setAttribute("viewBox", `0 0 ${counts.length} 50`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", title);
  // square roots: one example of thousands can still be seen
  counts.forEach((count, k) => count && shape("rect", { x: k + 0.06, width: 0.88, y: 50 - Math.max(1, 49 * Math.sqrt(count / most)), height: Math.max(1, 49 * Math.sqrt(count / most)), class: k === marked ? "at" : "" }));
  shape("line", { x1: 0, x2: counts.length, y1: 49.8, y2: 49.8, "vector-effect": "non-scaling-stroke" });
  return element("div", {}, element("h3", { textContent: title }), svg, element("div", { className: "axis" }, ...ends.map((text) => element("span", { textContent: text }))));
}

function rates(m, i) {
  const low = Math.floor(Math.log10(1 / m.examples)), per = 4, bin = (rate) => Math.min(Math.floor((Math.log10(rate) - low) * per), -low * per - 1);
  m.rateCounts ??= m.rate.reduce((counts, rate) => { if (rate) counts[bin(rate)]++; return counts; }, Array(-low * per).fill(0));
  return bars(m.rateCounts, m.rate[i] ? bin(m.rate[i]) : -1, Array.from({ length: -low + 1 }, (_, k) => percent(10 ** (low + k))), "Firing rates of these latents");
}

function link(latent, cosine, k) {
  const there = data.members.findIndex((one) => one.member === k);
  const text = `${k === member.member ? "" : `member ${k}, `}${latent}`;
  const here = there >= 0 && (data.members[there].whole ? latent < data.members[there].whole : opening(there).place.has(latent));
  if (!here) return data.links.home ? element("a", { href: `${data.links.home}#member-${k}/latent-${latent}`, textContent: text }) : text;
  return element("a", { href: `#member-${k}/latent-${latent}`, textContent: text, onclick: (event) => { event.preventDefault(); go(there, latent); } });
}

let say = () => {};
function context(m, j, c, largest) {
  const base = (j * CONTEXTS + c) * WIDTH, places = [];
  for (let w = 0; w < WIDTH; w++) if (m.card.ids[base + w] !== NONE) places.push(w);
  const ids = places.map((w) => m.card.ids[base + w]), shownTexts = texts(ids), negative = m.card.value[j * CONTEXTS + c] < 0;
  const line = element("div", { className: "context", tabIndex: c === 0 ? 0 : -1 });
  places.forEach((w, k) => {
    const whole = m.card.values[base + w], value = whole === UNKNOWN ? NaN : (whole / BETWEEN) * largest;
    const token = element("span", { className: `token${w === BEFORE ? " peak" : ""}${whole === UNKNOWN ? " without" : ""}` }, ...marked(shownTexts[k]));
    if (value) {
      const share = Math.min(1, Math.abs(value) / largest);
      token.style.backgroundColor = `color-mix(in srgb, var(--${value > 0 ? "heat" : "cold"}) ${Math.round(100 * (0.12 + 0.88 * share))}%, transparent)`;
      token.dataset.share = share.toFixed(3);
    }
    const words = `${visible(shownTexts[k])}  ${whole === UNKNOWN ? "not looked at" : value ? three(value) : "0"}`;
    token.title = words;
    token.onmouseenter = token.onclick = () => say(line, k, words);
    line.append(token);
  });
  line.onmouseleave = () => say(null);
  line.setAttribute("role", "group");
  const peak = shownTexts[places.indexOf(BEFORE)];
  line.setAttribute("aria-label", `${peak === undefined ? "" : visible(peak)}: ${three(m.card.value[j * CONTEXTS + c])}${negative ? ", negative" : ""}; arrows walk over the tokens`);
  return line;
}

function showCard() {
  say(null);
  if (at < 0) return card.replaceChildren(element("p", { className: "lead", textContent: "No latent fits." }));
  const m = member, i = shown[at], latent = m.latents[i], j = m.cardOf.get(latent), largest = m.largest[i];
  const head = [element("h2", { textContent: `Latent ${latent}` }), element("p", { className: "lead facts", textContent:
    m.rate[i] ? `${m.name}. Active on ${percent(m.rate[i])} of ${m.examples.toLocaleString("en")} tokens (${Math.round(m.rate[i] * m.examples).toLocaleString("en")}); largest value ${three(largest)}.` : `${m.name}. Not active on any of ${m.examples.toLocaleString("en")} tokens.` })];
  if (j === undefined) {
    const file = m.inFile[i] && m.files[Math.floor(latent / data.shape.chunk)];
    const words = m.rate[i] ? (file ? "Its contexts are in a file beside this one: " : "Its contexts are not kept: too many latents for the folder. The report's page says how many.") : "";
    const where = element("p", { className: "facts", textContent: words });
    if (file) where.append(element("a", { id: "file", href: `${file}#member-${m.member}/latent-${latent}`, textContent: `open latent ${latent}` }), " (o).");
    return card.replaceChildren(...head, where, element("div", { className: "columns" }, rates(m, i)));
  }
  const c = m.card, part = (values, size) => values.subarray(j * size, (j + 1) * size);
  const columns = element("div", { className: "columns" });
  columns.append(bars([...part(c.histogram, BINS)], -1, ["0", three(largest / 2), three(largest)], "Values where it is active"), rates(m, i));
  const listed = ([ids, effects], name) => {
    const size = ids.length / c.latents.length, [mine, by] = [part(ids, size), part(effects, size)];
    columns.append(element("div", {}, element("h3", { textContent: name }), table(["token", "logit"], [...mine].map((id, k) => [word(id), three(by[k])]))));
  };
  if (c.promotes) {
    listed(c.promotes, "Promotes");
    listed(c.suppresses, "Suppresses");
  }
  if (c.labels) {
    const [best, f1, precision, recall] = c.labels.map((values) => part(values, values.length / c.latents.length));
    const found = [...best].flatMap((one, k) => (one < 0 ? [] : [[data.labels[one], f1[k].toFixed(2), precision[k].toFixed(2), recall[k].toFixed(2)]]));
    columns.append(element("div", {}, element("h3", { textContent: "Labels it is best at" }), found.length ? table(["label", "F1", "precision", "recall"], found) : element("p", { className: "lead facts", textContent: "None: on each label, a detector that always says yes is as good." })));
  }
  const near = c.own[0].length / c.latents.length;
  const neighbours = Array.from({ length: near }, (_, k) => [link(c.own[0][j * near + k], 0, m.member), three(c.own[1][j * near + k])]);
  for (const [other, latents, cosines] of c.others) neighbours.push([link(latents[j], 0, other), three(cosines[j])]);
  if (neighbours.length) columns.append(element("div", {}, element("h3", { textContent: "Nearest latents" }), table(["latent", "cosine"], neighbours)));
  const contexts = (from, to) => {
    const items = [];
    for (let k = from; k < to; k++) {
      const owner = c.document[j * CONTEXTS + k];
      if (owner < 0) continue;
      const value = c.value[j * CONTEXTS + k], below = c.below[j * CONTEXTS + k];
      const rank = k < STRONGEST ? "" : `, above ${Math.floor(100 * below)} % of its values`;
      items.push(element("li", {}, context(m, j, k, largest), element("small", { textContent: `${three(value)}${rank} · ${data.documents[owner] ?? ""}` })));
    }
    return element("ul", { className: "contexts" }, ...items);
  };
  const others = contexts(STRONGEST, CONTEXTS);
  card.replaceChildren(...head, element("h3", { textContent: "Strongest contexts" }), contexts(0, STRONGEST),
    ...(others.children.length ? [element("h3", { textContent: "Other contexts, drawn at random from all its values" }), others] : []), columns);
}

// the token that is pointed at, or that the arrows have reached, and its value
let walked = null;
say = (line, k, words) => {
  card.querySelectorAll(".token.at").forEach((node) => node.classList.remove("at"));
  walked = line && { line, k };
  $("#value").hidden = !line;
  if (!line) return;
  line.children[k].classList.add("at");
  $("#value").textContent = words;
};

// -- moving about ---------------------------------------------------------------------------------------------------
function go(k, latent) {
  member = opening(k);
  $("#member").value = k;
  if (search.value && latent !== undefined && !matching(search.value)(member.place.get(latent))) search.value = "";
  if (latent !== undefined && label >= 0 && !member.f1[label * member.n + member.place.get(latent)]) { label = -1; $("#label").value = -1; }
  fill(latent);
}

function fromHash() {
  const [, k, latent] = location.hash.match(/^#member-(\d+)\/latent-(\d+)$/) ?? [];
  const there = data.members.findIndex((one) => one.member === Number(k));
  if (there < 0) return false;
  go(there, opening(there).place.has(Number(latent)) ? Number(latent) : undefined);
  return true;
}

function walk(event) {
  const lines = [...card.querySelectorAll(".context")], line = event.target, here = lines.indexOf(line);
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key], jump = { ArrowUp: -1, ArrowDown: 1 }[event.key];
  if (jump) lines[here + jump]?.focus();
  if (step) {
    const tokens = line.children, first = [...tokens].findIndex((node) => node.classList.contains("peak"));
    const k = walked?.line === line ? Math.min(Math.max(walked.k + step, 0), tokens.length - 1) : Math.max(first, 0);
    say(line, k, tokens[k].title);
  }
  if (jump || step) event.preventDefault();
  return jump || step;
}

const page = () => Math.max(1, Math.floor(list.clientHeight / ROW) - 1);
const KEYS = {
  j: () => choose(at + 1), k: () => choose(at - 1),
  "/": () => search.focus(), s: () => $("#order").focus(), r: () => $("#reverse").click(),
  "[": () => go((member.k + data.members.length - 1) % data.members.length), "]": () => go((member.k + 1) % data.members.length),
  c: () => $(".context")?.focus(), o: () => $("#file")?.click(), "?": () => $("#help").click(),
};
const IN_LIST = { ArrowDown: () => choose(at + 1), ArrowUp: () => choose(at - 1), PageDown: () => choose(at + page()), PageUp: () => choose(at - page()), Home: () => choose(0), End: () => choose(shown.length - 1) };
document.onkeydown = (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const inField = ["INPUT", "SELECT", "TEXTAREA"].includes(event.target.tagName);
  if (event.key === "Escape" || (event.key === "Enter" && event.target === search)) return list.focus();
  if (inField) return;
  if (event.target.classList?.contains("context") && walk(event)) return;
  const action = (event.target === list && IN_LIST[event.key]) || (Object.hasOwn(KEYS, event.key) && KEYS[event.key]) || (event.target === list && event.key === "Enter" && KEYS.o);
  if (!action) return;
  event.preventDefault();
  action();
};
list.onscroll = () => draw(false);
addEventListener("resize", () => draw(true));
addEventListener("hashchange", fromHash);
$("#member").append(...data.members.map((one, k) => element("option", { value: k, textContent: one.name })));
$("#member").onchange = ({ target }) => go(Number(target.value));
$("#order").append(...Object.keys(ORDERS).filter((name) => (data.labels.length || name !== "label (F1)") && (data.members.length > 1 || name !== "similarity, other members")).map((name) => element("option", { value: name, textContent: name })));
const current = () => (at < 0 ? undefined : member.latents[shown[at]]);
$("#order").onchange = ({ target }) => { order = target.value; fill(); list.scrollTop = 0; };
$("#reverse").onclick = () => { reversed = !reversed; $("#reverse").textContent = reversed ? "↑" : "↓"; fill(); };
search.oninput = () => fill();
if ($("#label")) {
  $("#label").append(element("option", { value: -1, textContent: "any" }), ...data.labels.map((name, k) => element("option", { value: k, textContent: name })));
  $("#label").onchange = ({ target }) => { label = Number(target.value); if (label >= 0) $("#order").value = order = "label (F1)"; fill(); };
}
$("#help").onclick = ({ currentTarget }) => { const keys = $("#keys"); keys.hidden = !keys.hidden; currentTarget.setAttribute("aria-expanded", !keys.hidden); };
if (!fromHash()) go(0);
