/* The page: its controls set the state, and whatever shows a number follows the loss of the state. */

const byId = (id) => document.getElementById(id);
const all = (selector) => [...document.querySelectorAll(selector)];
const start = JSON.parse(byId("start").textContent);

/** Numbers as the page holds them: their bytes, of so many for each; none are as many ones as there are classes. */
function decoded(packed) {
  if (packed === null) return new Float64Array(start.classes).fill(1);
  const { buffer } = Uint8Array.from(atob(packed.bytes), (byte) => byte.charCodeAt(0));
  return Float64Array.from(packed.size === 4 ? new Float32Array(buffer) : new Float64Array(buffer));
}

const first = Math.max(0, start.rows.findIndex((row) => !row.ignored));

/** What the page starts from, and goes back to. */
const fresh = () => ({
  temperature: 1, rate: start.rate, smoothing: start.smoothing, softcap: start.softcap ?? Infinity, zloss: start.zloss,
  denominator: parsed(start.denominator), reduction: start.reduction, weight: decoded(start.weight),
  rows: start.rows.map(({ label, ignored, sample, x, t }) =>
    ({ label, ignored, sample: parsed(sample), x: decoded(x), t: t && decoded(t) })),
  row: first, moving: start.rows[first].label ?? start.rows[first].shown[0], step: "softmax",
});
let state; // as soon as there is one
const chosen = () => state.rows[state.row];
const shownClasses = () => start.rows[state.row].shown;
const hidden = () => start.classes - shownClasses().length;

/** A message in the page's language, with these values in their places. */
const say = (key, values = {}) => start.text[key].replace(/\{(\w+)\}/g, (_, name) => values[name]);
const others = () => say("others", { count: hidden().toLocaleString("en") });
const ofClass = (key, c) => say(key, { name: start.names[c] });

/** How far a logit's slider goes to both sides: beyond all logits at the start, unless they are extreme. */
const sizes = start.rows.flatMap(({ x, shown }) => [decoded(x)].flatMap((all) => shown.map((c) => Math.abs(all[c]))));
const span = Math.min(1e5, Math.max(6, 2 * Math.ceil(0.75 * Math.max(...sizes.filter(Number.isFinite), 0))));

// What follows the state: functions of its loss. The first `lasting` stay, the others belong to the chosen row.
const views = [];
let lasting = 0;

function update() {
  const now = lossOf(state);
  for (const view of views) view(now);
  later(() => {
    const what = say(`loss_${state.reduction}`);
    byId("status").textContent = say("status", { what, loss: shown(main(now)), row: shown(rowLoss(now)) });
    keepInAddress();
  });
}

const rowLoss = (now) => now.rows[state.row].loss;

/** The loss that the page is about: without a reduction that of the chosen row; and what guessing evenly would cost. */
const main = (now) => (state.reduction === "none" ? rowLoss(now) : now.loss);
const evenly = (now) => {
  const rows = state.reduction === "none" ? [now.rows[state.row]] : now.rows;
  return (sumOf(rows.map(({ share, mass }) => times(share, mass))) / now.divisor) * Math.log(start.classes);
};

function change(action) {
  action();
  update();
}

/** Only once nothing has changed for a while: a screen reader could not follow every number of a drag. */
let waiting;
function later(action) {
  clearTimeout(waiting);
  waiting = setTimeout(action, 400);
}

function made(tag, attributes = {}, ...children) {
  const isDrawn = ["path", "line", "circle", "text"].includes(tag);
  const element = document.createElementNS(`http://www.w3.org/${isDrawn ? "2000/svg" : "1999/xhtml"}`, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const written = (value) => String(value).replace("Infinity", "inf").replace("NaN", "nan");

/** To be read: in at most nine characters. */
function shown(value) {
  const size = Math.abs(value);
  if (size === 0) return "0";
  const isUsual = size >= 5e-5 && size < 1e5;
  return (isUsual ? value.toFixed(size < 1e3 ? 4 : 1) : written(value.toExponential(2))).replace("-", "−");
}

/** As it stands in a field. */
function typed(value) {
  const rounded = Number(value.toFixed(4));
  return written(rounded === 0 ? value : rounded);
}

const WORDS = new Map([["inf", Infinity], ["+inf", Infinity], ["-inf", -Infinity], ["nan", NaN]]);

/** The number that a text stands for, undefined if it is none. */
function parsed(text) {
  const word = (text ?? "").trim().toLowerCase().replace("−", "-").replace(",", ".");
  if (WORDS.has(word)) return WORDS.get(word);
  return word !== "" && Number.isFinite(Number(word)) ? Number(word) : undefined;
}

/** An element that shows a number as it is now, in full as its value. */
function figure(number, element = made("data")) {
  views.push((now) => {
    const value = number(now);
    if (element.value === String(value)) return;
    element.value = String(value);
    element.textContent = shown(value);
  });
  return element;
}

const POSITIVE = { fits: (value) => value > 0 && value < Infinity, hint: say("positive") };
const NOT_NEGATIVE = { fits: (value) => value >= 0 && value < Infinity, hint: say("not_negative") };
const SHARE = { fits: (value) => value >= 0 && value <= 1, hint: say("share") };
const UP_TO_NONE = { fits: (value) => value > 0, hint: say("positive_or_inf") };
const BY_RATIO = { step: 0.01, to: Math.log10, from: (value) => Number((10 ** value).toPrecision(2)) };
const SETTINGS = {
  temperature: { low: 0.1, high: 10, ...POSITIVE, ...BY_RATIO },
  smoothing: { low: 0, high: 1, step: 0.01, ...SHARE },
  rate: { low: 0.1, high: 100, ...POSITIVE, ...BY_RATIO },
  softcap: { low: 1, high: 1000, ...UP_TO_NONE, ...BY_RATIO, from: (v) => (v === 3 ? Infinity : BY_RATIO.from(v)) },
  zloss: { low: 0, high: 0.1, step: 0.001, ...NOT_NEGATIVE },
};
if (start.denominator !== null) SETTINGS.denominator = { low: 1, high: 1e6, ...POSITIVE, ...BY_RATIO };

/** A slider and a field for one number: `low` to `high` is the slider's range, `to` and `from` its scale. */
function dial({ name, low, high, step, get, set, fits, hint, to = Number, from = Number }) {
  const slider = made("input", { type: "range", min: to(low), max: to(high), step, "aria-label": name });
  const field = made("input", { type: "text", "aria-label": say("as_number", { name }), autocomplete: "off" });
  const take = (value) => {
    const isGood = value !== undefined && fits(value);
    field.setAttribute("aria-invalid", !isGood);
    byId("wrong").textContent = isGood ? "" : say("must_be", { name, what: hint });
    if (isGood) change(() => set(value));
  };
  slider.addEventListener("input", () => take(from(slider.valueAsNumber)));
  field.addEventListener("input", () => take(parsed(field.value)));
  field.addEventListener("blur", () => take(get()));
  views.push(() => {
    slider.value = Math.min(to(high), Math.max(to(low), to(get()))) || 0;
    slider.setAttribute("aria-valuetext", shown(get()));
    if (document.activeElement !== field) field.value = typed(get());
  });
  return [slider, field];
}

function logitDial(c) {
  const set = (value) => {
    state.moving = c;
    chosen().x[c] = value;
  };
  const step = 10 ** (Math.floor(Math.log10(span / 2.2)) - 1);
  const rules = { low: -span, high: span, step, fits: () => true, hint: say("any_number") };
  return dial({ name: ofClass("logit_of", c), ...rules, get: () => chosen().x[c], set });
}

/** A dial for each class shown, of what `values` holds of it. */
function classDials(key, high, values) {
  const rules = { low: 0, high, step: high / 50, ...NOT_NEGATIVE };
  return shownClasses().map((c) => made("div", {}, made("span", {}, ofClass("class", c)), ...dial(
    { name: ofClass(key, c), ...rules, get: () => values()[c], set: (value) => (values()[c] = value) })));
}

const colour = (c) => `var(--c${shownClasses().indexOf(c)}, var(--rest))`;

/** The sum over the classes that are not shown; those that are come in order. Several views ask for the same. */
const rests = new WeakMap();
function rest(of) {
  if (rests.has(of)) return rests.get(of);
  let [sum, from] = [0, 0];
  for (const shown of [...shownClasses(), start.classes]) {
    for (let c = from; c < shown; c++) sum += of(c);
    from = shown + 1;
  }
  rests.set(of, sum);
  return sum;
}

/** A number beside a bar from one share of its track to another, which may have a mark and says which way to go. */
function amount(kind, title, number, bar) {
  const [filled, mark, way] = [made("i"), made("i", { class: "mark" }), made("i", { "aria-hidden": "true" })];
  views.push((now) => {
    const { from, to, fill, at, up } = bar(now);
    const [left, right] = [Math.min(from, to), Math.max(from, to)].map((share) => 100 * share || 0);
    Object.assign(filled.style, { left: `${left}%`, width: `${right - left}%`, background: fill });
    mark.hidden = at === undefined;
    mark.style.left = `${100 * at}%`;
    way.textContent = up === undefined ? "" : up ? "▲" : "▼";
  });
  const track = made("div", { class: "track", "aria-hidden": "true" }, filled, mark);
  const value = made("span", {}, figure(number), way);
  return made("div", { class: `amount ${kind}` }, made("small", {}, title), track, value);
}

/** The probability and the gradient of a class, or of all that are not shown, where `of` is their sum. */
function outcome(of, fill) {
  const row = (now) => now.rows[state.row];
  const share = (now) => of(row(now).p);
  const gradient = (now) => of(now.gradients[state.row]);
  const ofMass = (now, value) => (row(now).mass ? value / row(now).mass : undefined);
  const bar = (now) => ({ from: 0, to: share(now), fill, at: ofMass(now, of(row(now).q)) });
  const slope = (now) => {
    const way = gradient(now);
    const to = 0.5 + (ofMass(now, of(row(now).slope)) ?? 0) / 2;
    return { from: 0.5, to, fill: `var(--${way < 0 ? "up" : "down"})`, at: 0.5, up: way ? way < 0 : undefined };
  };
  return [amount("share", say("probability"), share, bar), amount("slope", say("gradient"), gradient, slope)];
}

function classLine(c) {
  const radio = made("input", { type: "radio", name: "label", value: c, "aria-label": ofClass("is_label", c) });
  radio.addEventListener("change", () => change(() => (chosen().label = c)));
  const isNamed = start.names[c] !== String(c);
  const [swatch, name] = [made("i", { class: "swatch", style: `background: ${colour(c)}` }), made("span")];
  const label = start.soft ? made("div", { class: "choice" }, swatch, name)
    : made("label", { class: "choice" }, radio, swatch, name);
  const line = made("div", { class: "class", role: "group", "aria-label": ofClass("class", c) },
    label, ...logitDial(c), ...outcome((values) => values(c), colour(c)));
  line.addEventListener("focusin", () => change(() => (state.moving = c)));
  views.push(() => {
    radio.checked = chosen().label === c;
    name.textContent = radio.checked ? `y = ${start.names[c]}` : isNamed ? start.names[c] : ofClass("class", c);
    line.classList.toggle("chosen", state.moving === c);
  });
  return line;
}

/** Everything that belongs to the chosen row. */
function showRow() {
  views.length = lasting;
  if (!shownClasses().includes(state.moving)) state.moving = aim();
  byId("classes").replaceChildren(...shownClasses().map(classLine));
  const empty = () => made("span", { class: "wide" });
  if (hidden()) byId("classes").append(
    made("div", { class: "class" }, made("span", {}, others()), empty(), empty(), ...outcome(rest, "var(--rest)")));
  byId("weights").replaceChildren(...classDials("weight_of", 5, () => state.weight));
  if (start.soft) byId("targets").replaceChildren(...classDials("target_of", 1, () => chosen().t));
  showWorking();
  views.push(drawPlots);
  update();
}

/** The numbers of a step: one for each class or one for the row. */
const STEPS = {
  scale: (row) => row.z, shift: (row) => row.shifted, exp: (row) => row.power, sum: (row) => row.sum,
  softmax: (row) => row.p, log: (row) => row.logP, pick: (row) => row.picked, negate: (row) => row.cost,
  gradient: (_, now) => now.gradients[state.row],
};
const SUMMED = ["exp", "softmax", "pick", "gradient"]; // that mean something as a sum over the classes not shown
const OF_A_ROW = ["sum", "negate", "average"];

function showWorking() {
  const names = [...shownClasses().map((c) => start.names[c]), ...(hidden() ? [others()] : [])];
  const heads = byId("working").tHead.rows[0];
  heads.replaceChildren(heads.cells[0], ...names.map((name) => made("th", { scope: "col" }, name)));
  for (const line of byId("working").tBodies[0].rows) {
    const name = line.dataset.step;
    const of = (now) => STEPS[name](now.rows[state.row], now);
    const cells = OF_A_ROW.includes(name)
      ? [made("td", { class: "one", colspan: names.length }, name === "average" ? reduced() : figure(of))]
      : shownClasses().map((c) => made("td", {}, name === "pick" ? picked(c) : figure((now) => of(now)(c))));
    if (hidden() && SUMMED.includes(name)) cells.push(made("td", {}, figure((now) => rest(of(now)))));
    line.replaceChildren(line.cells[0], ...cells);
  }
}

/** Nothing where the class holds nothing of the target. */
function picked(c) {
  const element = figure((now) => now.rows[state.row].picked(c));
  views.push((now) => (element.hidden = now.rows[state.row].q(c) === 0));
  return element;
}

function reduced() {
  const element = made("span");
  views.push((now) => {
    const losses = now.rows.map((row) => shown(row.loss));
    const by = state.reduction === "mean" ? ` / ${shown(now.divisor)}` : "";
    const sum = losses.length > 1 ? `(${losses.join(" + ")})` : losses[0];
    element.textContent = state.reduction === "none" ? losses.join(",  ") : `${sum}${by} = ${shown(now.loss)}`;
  });
  return element;
}

function goTo(step) {
  state.step = step;
  for (const part of all("[data-part]")) part.classList.toggle("lit", part.dataset.part === step);
  for (const line of all("tr[data-step]")) line.classList.toggle("lit", line.dataset.step === step);
  for (const sentence of all("p[data-step]")) sentence.hidden = sentence.dataset.step !== step;
  for (const radio of all("[name=step]")) radio.checked = radio.value === step;
  later(keepInAddress);
}

function goBy(count) {
  const names = all("[name=step]").map((radio) => radio.value);
  goTo(names[(names.indexOf(state.step) + count + names.length) % names.length]);
}

/** The class that the row's target holds most of. */
const aim = () => chosen().label ?? shownClasses().reduce((best, c) => (chosen().t[c] > chosen().t[best] ? c : best));

/** What one of the buttons makes of a row with label y. */
const TRIES = {
  even: (x) => x.fill(0),
  right: (x, y) => (x.fill(0)[y] = 8),
  wrong: (x, y, other) => (x.fill(0)[other] = 8),
  masked: (x, y) => (x[y] = -Infinity),
  huge: (x, y, other) => (x[other] = 1e4),
};

function attempt(name) {
  const y = aim();
  change(() => TRIES[name](chosen().x, y, shownClasses().find((c) => c !== y) ?? y));
}

/** Gradient descent on the logits themselves, for all rows. */
function descend() {
  const { gradients } = lossOf(state);
  state.rows.forEach(({ x }, i) => x.forEach((value, c) => (x[c] = value - state.rate * gradients[i](c))));
}

function rowChoice({ name }, i) {
  const radio = made("input", { type: "radio", name: "row", value: i });
  radio.addEventListener("change", () => {
    state.row = i;
    showRow();
  });
  const loss = made("span");
  views.push((now) => {
    radio.checked = state.row === i;
    loss.textContent = `${name}: ${state.rows[i].ignored ? say("ignored") : shown(now.rows[i].loss)}`;
  });
  return made("label", { class: "choice" }, radio, loss);
}

function showSettings(now) {
  const { smoothing, weight, reduction, softcap, zloss, rows } = state;
  const isSpread = start.soft || smoothing > 0 || weight.some((w) => w !== 1);
  const are = { spread: isSpread, label: !isSpread, [reduction]: true, zloss: zloss > 0, softcap: softcap < Infinity,
    sample: start.soft || rows.some(({ sample }) => sample !== 1) };
  for (const part of all("[data-when]")) {
    part.toggleAttribute("hidden", !part.dataset.when.split(" ").some((word) => are[word]));
  }
  for (const radio of all("[name=reduction]")) radio.checked = radio.value === reduction;
  byId("ignored").checked = chosen().ignored;
  byId("what").textContent = say(`loss_${reduction}`);
  const worse = main(now) > evenly(now) ? "worse" : main(now) < evenly(now) ? "better" : "";
  byId("verdict").textContent = worse && say(worse);
  byId("python").textContent = byId("code").hidden ? "" : python();
}

/** What has to be there once, whichever row is chosen. */
function prepare() {
  for (const [key, setting] of Object.entries(SETTINGS)) {
    const [name, set] = [say(key), (value) => (state[key] = value)];
    byId(key).append(...dial({ name, ...setting, get: () => state[key], set }));
  }
  byId("sample").append(...dial({ name: say("sample"), low: 0, high: 5, step: 0.1, ...NOT_NEGATIVE,
    get: () => chosen().sample, set: (value) => (chosen().sample = value) }));
  figure(main, byId("loss"));
  figure(rowLoss, byId("row-loss"));
  figure(evenly, byId("evenly"));
  byId("rows").append(...start.rows.map(rowChoice));
  byId("code").hidden = start.classes > 12;
  views.push(showSettings);
  lasting = views.length;
  const on = (selector, event, action) => {
    for (const element of all(selector)) element.addEventListener(event, () => action(element));
  };
  on("#ignored", "change", ({ checked }) => change(() => (chosen().ignored = checked)));
  on("[data-try]", "click", ({ dataset }) => attempt(dataset.try));
  on("[name=reduction]", "change", ({ value }) => change(() => (state.reduction = value)));
  on("[name=step]", "change", ({ value }) => goTo(value));
  on("#back", "click", () => goBy(-1));
  on("#next", "click", () => goBy(1));
  on("#descend", "click", () => change(descend));
  on("#reset", "click", () => begin(fresh()));
  all("svg").forEach(followPointer);
  addEventListener("resize", update);
  addEventListener("hashchange", () => begin(fromAddress()));
}

function begin(from) {
  state = from;
  showRow();
  goTo(state.step);
}

prepare();
begin(fromAddress());
