const byId = (id) => document.getElementById(id);
const all = (selector) => [...document.querySelectorAll(selector)];
const start = JSON.parse(byId("start").textContent);
const decoded = (text) => new Float64Array(Uint8Array.from(atob(text), (byte) => byte.charCodeAt(0)).buffer);

/** What the page starts from, and goes back to. */
const fresh = () => ({
  temperature: 1, rate: 1, smoothing: start.smoothing, reduction: start.reduction, weight: decoded(start.weight),
  rows: start.rows.map(({ label, ignored, x }) => ({ label, ignored, x: decoded(x) })),
  row: 0, moving: start.rows[0].label, step: "softmax",
});
let state = fresh();
const finite = state.rows.flatMap(({ x }, i) => start.rows[i].shown.map((c) => Math.abs(x[c]))).filter(Number.isFinite);
const span = Math.min(100, Math.max(6, 2 * Math.ceil(0.75 * Math.max(...finite, 0)))); // of a logit's slider, to both sides

// What follows the state: functions of its loss. The first `lasting` are there for all rows, the others for the chosen one.
let views = [];
let lasting = 0;
const chosen = () => state.rows[state.row];
const shownClasses = () => start.rows[state.row].shown;

function update() {
  const now = lossOf(state);
  for (const view of views) view(now);
  later(() => {
    byId("status").textContent = `Loss ${shown(now.loss)}. This row ${shown(now.rows[state.row].loss)}.`;
    keepInAddress();
  });
}

/** Only once nothing has changed for a while: a screen reader could not follow every number of a drag. */
let waiting;
function later(action) {
  clearTimeout(waiting);
  waiting = setTimeout(action, 400);
}

function made(tag, attributes = {}, ...children) {
  const svg = ["path", "line", "circle", "text"].includes(tag);
  const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** In at most nine characters. */
function shown(value) {
  if (value === null) return "none";
  if (!Number.isFinite(value)) return String(value).replace("NaN", "nan").replace("Infinity", "inf").replace("-", "−");
  const size = Math.abs(value);
  return (size !== 0 && size < 5e-5) || size >= 1e5 ? value.toExponential(2).replace("-", "−")
    : (size && value).toFixed(size < 1e3 ? 4 : 1).replace("-", "−");
}

/** A number that follows the state, in full as its value. */
function figure(number, element = made("data")) {
  views.push((now) => {
    element.value = String(number(now));
    element.textContent = shown(number(now));
  });
  return element;
}

const WORDS = { inf: Infinity, "+inf": Infinity, "-inf": -Infinity, nan: NaN };

/** The number that a text stands for, undefined if it is none. */
function parsed(text) {
  const word = text.trim().toLowerCase().replace("−", "-").replace(",", ".");
  if (Object.hasOwn(WORDS, word)) return WORDS[word];
  return word !== "" && Number.isFinite(Number(word)) ? Number(word) : undefined;
}

/** As it is typed into a field. */
function typed(value) {
  const rounded = Number(value.toFixed(4));
  return String(rounded === 0 ? value : rounded).replace("NaN", "nan").replace("Infinity", "inf");
}

/** A slider and a field for one number: `low` to `high` is the slider's range, `to` and `from` its scale. */
function dial(name, { low, high, step, get, set, fits, hint, to = Number, from = Number }) {
  const slider = made("input", { type: "range", class: "dial-slider", min: to(low), max: to(high), step, "aria-label": name });
  const field = made("input", { type: "text", "aria-label": `${name}, as a number`, autocomplete: "off", spellcheck: "false" });
  const change = (value) => {
    const good = value !== undefined && fits(value);
    field.setAttribute("aria-invalid", !good);
    byId("wrong").textContent = good ? "" : `${name} must be ${hint}.`;
    if (!good) return;
    set(value);
    update();
  };
  slider.addEventListener("input", () => change(from(slider.valueAsNumber)));
  field.addEventListener("input", () => change(parsed(field.value)));
  field.addEventListener("change", () => {
    change(get());
    field.value = typed(get());
  });
  views.push(() => {
    slider.value = Math.min(to(high), Math.max(to(low), to(get()))) || 0;
    slider.setAttribute("aria-valuetext", shown(get()));
    if (document.activeElement !== field) field.value = typed(get());
  });
  return [slider, field];
}

const POSITIVE = { fits: (value) => value > 0 && value < Infinity, hint: "a number above 0" };
const NOT_NEGATIVE = { fits: (value) => value >= 0 && value < Infinity, hint: "a number of at least 0" };

const SETTINGS = {
  temperature: { ...POSITIVE, name: "Temperature", low: 0.1, high: 10, step: 0.01, to: Math.log10, from: (value) => rounded(10 ** value) },
  smoothing: { name: "Label smoothing", low: 0, high: 1, step: 0.01, fits: (value) => value >= 0 && value <= 1, hint: "a number from 0 to 1" },
  rate: { ...POSITIVE, name: "Learning rate", low: 0.1, high: 100, step: 0.01, to: Math.log10, from: (value) => rounded(10 ** value) },
};
const rounded = (value) => Number(value.toPrecision(2));

const logitDial = (c) => dial(`Logit of class ${c}`, {
  low: -span, high: span, step: span > 20 ? 1 : 0.1, get: () => chosen().x[c], fits: () => true,
  hint: "a number, inf, -inf or nan",
  set: (value) => {
    state.moving = c;
    chosen().x[c] = value;
  },
});

const weightDial = (c) => dial(`Weight of class ${c}`, {
  ...NOT_NEGATIVE, low: 0, high: 5, step: 0.1, get: () => state.weight[c], set: (value) => (state.weight[c] = value),
});

const colour = (c) => `var(--c${shownClasses().indexOf(c)}, var(--rest))`;

/** The sum over the classes that are not shown. */
const rest = (values) => sumOf(values.filter((_, c) => !shownClasses().includes(c)));
const hidden = () => start.classes - shownClasses().length;

/** A number with a bar, from `from` to `to`, and a mark. */
function amount(kind, title, number, bar) {
  const [middle, filled, mark] = [made("i"), made("i"), made("i", { class: "mark" })];
  views.push((now) => {
    const { from, to, fill, at } = bar(now);
    const [left, right] = [Math.min(from, to), Math.max(from, to)].map((share) => 100 * Math.min(1, Math.max(0, share || 0)));
    Object.assign(filled.style, { left: `${left}%`, width: `${right - left}%`, background: fill });
    mark.hidden = at === undefined;
    mark.style.left = `${100 * (at ?? 0)}%`;
  });
  const track = made("div", { class: "track", "aria-hidden": "true" }, middle, filled, mark);
  if (kind === "slope") middle.className = "middle";
  return made("div", { class: `amount ${kind}` }, made("small", {}, title), track, made("span", {}, figure(number)));
}

/** The probability and the gradient of one class, or of all that are not shown, where `of` sums over them. */
function outcome(of, fill) {
  const row = (now) => now.rows[state.row];
  const gradient = (now) => of(now.gradients[state.row]);
  return [
    amount("share", "probability", (now) => of(row(now).p), (now) => ({
      from: 0, to: of(row(now).p), fill, at: row(now).mass ? of(row(now).q) / row(now).mass : undefined,
    })),
    amount("slope", "gradient", gradient, (now) => {
      const slope = row(now).mass ? of(row(now).slopes) / row(now).mass : 0;
      return { from: 0.5, to: 0.5 + slope / 2, fill: slope > 0 ? "var(--down)" : "var(--up)" };
    }),
  ];
}

function arrow(number) {
  const element = made("i", { "aria-hidden": "true" });
  views.push((now) => (element.textContent = number(now) < 0 ? " ▲" : number(now) > 0 ? " ▼" : "  "));
  return element;
}

function classLine(c) {
  const radio = made("input", { type: "radio", name: "label", value: c, "aria-label": `class ${c} is the label` });
  radio.addEventListener("change", () => {
    chosen().label = c;
    update();
  });
  const swatch = made("i", { class: "swatch" });
  swatch.style.background = colour(c);
  const name = made("span");
  const line = made("div", { class: "class", role: "group", "aria-label": `class ${c}` },
    made("label", { class: "choice" }, radio, swatch, name), ...logitDial(c), ...outcome((values) => values[c], colour(c)));
  line.addEventListener("focusin", () => {
    state.moving = c;
    update();
  });
  views.push(() => {
    radio.checked = chosen().label === c;
    name.textContent = radio.checked ? `y = ${c}` : `class ${c}`;
    line.classList.toggle("chosen", state.moving === c);
  });
  line.querySelector(".slope data").after(arrow((now) => now.gradients[state.row][c]));
  return line;
}

/** Everything that depends on which row is chosen. */
function showRow() {
  views.length = lasting;
  if (!shownClasses().includes(state.moving)) state.moving = chosen().label;
  const heads = ["label y", "logit x", "", "probability p", "gradient"].map((text) => made("span", {}, text));
  byId("classes").replaceChildren(made("div", { class: "class heads", "aria-hidden": "true" }, ...heads), ...shownClasses().map(classLine));
  if (hidden()) {
    const name = made("span", {}, `${hidden().toLocaleString("en")} other classes`);
    byId("classes").append(made("div", { class: "class others" }, name, made("span"), made("span"), ...outcome(rest, "var(--rest)")));
  }
  byId("weights").replaceChildren(...shownClasses().map((c) => made("div", {}, made("span", {}, `class ${c}`), ...weightDial(c))));
  showWorking();
  showPlots();
  update();
}

/** For each step its numbers: one for each class, or one for the row. */
const STEPS = {
  scale: (row) => row.z, shift: (row) => row.shifted, exp: (row) => row.powers, sum: (row) => row.sum, softmax: (row) => row.p,
  log: (row) => row.logP, pick: (row) => row.picked, negate: (row) => row.loss, gradient: (_, now) => now.gradients[state.row],
};
const SUMMED = ["exp", "softmax", "pick", "gradient"]; // what has a meaning as the sum over the classes that are not shown

function showWorking() {
  const head = shownClasses().map((c) => made("th", { scope: "col" }, String(c)));
  if (hidden()) head.push(made("th", { scope: "col" }, `${hidden().toLocaleString("en")} others`));
  const columns = head.length;
  byId("working").tHead.rows[0].replaceChildren(byId("working").tHead.rows[0].cells[0], ...head);
  for (const line of byId("working").tBodies[0].rows) {
    const name = line.dataset.step;
    const of = (now) => STEPS[name](now.rows[state.row], now);
    let cells;
    if (name === "average") cells = [made("td", { class: "one", colspan: columns }, reduced())];
    else if (name === "sum" || name === "negate") cells = [made("td", { class: "one", colspan: columns }, figure(of))];
    else {
      cells = shownClasses().map((c) => made("td", {}, name === "pick" ? picked(c) : figure((now) => of(now)[c])));
      if (hidden()) cells.push(made("td", {}, SUMMED.includes(name) ? figure((now) => rest(of(now))) : ""));
    }
    line.replaceChildren(line.cells[0], ...cells);
  }
}

/** Nothing where the class holds nothing of the target. */
function picked(c) {
  const element = figure((now) => now.rows[state.row].picked[c]);
  views.push((now) => (element.hidden = now.rows[state.row].q[c] === 0));
  return element;
}

function reduced() {
  const element = made("span");
  views.push((now) => {
    const losses = now.rows.map((row) => shown(row.loss));
    const by = state.reduction === "mean" ? ` / ${shown(now.divisor)}` : "";
    const sum = losses.length > 1 ? `(${losses.join(" + ")})${by}` : `${losses[0]}${by}`;
    element.textContent = state.reduction === "none" ? losses.join(",  ") : `${sum} = ${shown(now.loss)}`;
  });
  return element;
}

function showStep() {
  for (const part of all("[data-part]")) part.classList.toggle("lit", part.dataset.part === state.step);
  for (const line of byId("working").tBodies[0].rows) line.classList.toggle("lit", line.dataset.step === state.step);
  for (const sentence of all("#sentences p")) sentence.hidden = sentence.dataset.step !== state.step;
  for (const radio of all("[name=step]")) radio.checked = radio.value === state.step;
}

function goTo(step) {
  state.step = step;
  showStep();
  later(keepInAddress);
}

function goBy(by) {
  const names = all("[name=step]").map((radio) => radio.value);
  goTo(names[(names.indexOf(state.step) + by + names.length) % names.length]);
}

/** What one of the buttons makes of the chosen row. */
const TRIES = {
  even: (x) => x.fill(0),
  right: (x, y) => (x.fill(0)[y] = 8),
  wrong: (x, y, other) => (x.fill(0)[other] = 8),
  masked: (x, y) => (x[y] = -Infinity),
  huge: (x, y, other) => (x[other] = 1e4),
};

/** Gradient descent on the logits themselves, for all rows. */
function descend() {
  const { gradients } = lossOf(state);
  state.rows.forEach(({ x }, i) => gradients[i].forEach((slope, c) => (x[c] -= state.rate * slope)));
}


/** What has to be there once, whichever row is chosen. */
function prepare() {
  for (const [key, setting] of Object.entries(SETTINGS)) {
    byId(key).append(...dial(setting.name, { ...setting, get: () => state[key], set: (value) => (state[key] = value) }));
  }
  figure((now) => now.loss, byId("loss"));
  figure((now) => now.rows[state.row].loss, byId("row-loss"));
  figure((now) => now.evenly, byId("evenly"));
  start.rows.forEach(({ name }, i) => byId("rows").append(rowChoice(name, i)));
  views.push(showSettings);
  lasting = views.length;
  byId("ignored").addEventListener("change", () => change(() => (chosen().ignored = byId("ignored").checked)));
  for (const button of all("[data-try]")) {
    const other = () => shownClasses().find((c) => c !== chosen().label) ?? chosen().label;
    button.addEventListener("click", () => change(() => TRIES[button.dataset.try](chosen().x, chosen().label, other())));
  }
  for (const radio of all("[name=reduction]")) radio.addEventListener("change", () => change(() => (state.reduction = radio.value)));
  for (const radio of all("[name=step]")) radio.addEventListener("change", () => goTo(radio.value));
  for (const svg of all("svg")) followPointer(svg);
  byId("back").addEventListener("click", () => goBy(-1));
  byId("next").addEventListener("click", () => goBy(1));
  byId("descend").addEventListener("click", () => change(descend));
  byId("reset").addEventListener("click", () => begin(fresh()));
  addEventListener("resize", update);
  addEventListener("hashchange", () => begin(fromAddress()));
}

function change(action) {
  action();
  update();
}

function begin(from) {
  state = from;
  showRow();
  showStep();
}

function rowChoice(name, i) {
  const radio = made("input", { type: "radio", name: "row", value: i });
  radio.addEventListener("change", () => {
    state.row = i;
    showRow();
  });
  const loss = made("span");
  views.push((now) => {
    radio.checked = state.row === i;
    loss.textContent = `${name}: ${state.rows[i].ignored ? "ignored" : shown(now.rows[i].loss)}`;
  });
  return made("label", { class: "choice" }, radio, loss);
}

function showSettings(now) {
  const { smoothing, weight, reduction, temperature } = state;
  const kind = smoothing > 0 || weight.some((w) => w !== 1) ? "spread" : "label";
  for (const part of all("[data-when]")) {
    const fits = part.dataset.when.split(" ").some((word) => word === kind || word === reduction);
    part.toggleAttribute("hidden", !fits);
  }
  for (const radio of all("[name=reduction]")) radio.checked = radio.value === reduction;
  byId("ignored").checked = chosen().ignored;
  byId("what").textContent = reduction === "none" ? "no reduction" : `${reduction} loss`;
  const verdict = now.loss > now.evenly ? "worse than knowing nothing" : now.loss < now.evenly ? "better than knowing nothing" : "";
  byId("verdict").textContent = verdict;
  byId("code").hidden = start.classes > 12;
  byId("python").textContent = byId("code").hidden ? "" : python();
}

prepare();
begin(fromAddress());
