/* What becomes of the chosen row if one of its logits moves: its probabilities as bands, and the loss as a curve. */

const PLOT = { left: 46, right: 12, top: 10, bottom: 26, samples: 100 };

/** From numbers to places in a plot that is `high` high, and the axes. */
function axes(svg, high) {
  const [width, height] = [svg.clientWidth, svg.clientHeight];
  const x = (value) => PLOT.left + ((value + span) / (2 * span)) * (width - PLOT.left - PLOT.right);
  const y = (value) => PLOT.top + (1 - value / high) * (height - PLOT.top - PLOT.bottom);
  const lines = made("path", { class: "axis", d: `M${x(-span)},${y(high)}V${y(0)}H${x(span)}` });
  const tick = (value, attributes) => made("text", { class: "tick", ...attributes }, String(value).replace("-", "−"));
  const anchor = (value) => ({ "text-anchor": value === span ? "end" : "middle" });
  const below = [-span, -span / 2, 0, span / 2, span].map((value) =>
    tick(value, { x: x(value), y: height - 6, ...anchor(value) }));
  const beside = [0, high / 2, high].map((value) =>
    tick(value, { x: PLOT.left - 6, y: y(value) + 4, "text-anchor": "end" }));
  return { x, y, marks: [lines, ...below, ...beside] };
}

const samples = () => Array.from({ length: PLOT.samples + 1 }, (_, i) => span * ((2 * i) / PLOT.samples - 1));
const isInPlot = (value) => Math.abs(value) <= span;
const path = (points) => `M${points.map((point) => point.map((at) => at.toFixed(1)).join(",")).join("L")}`;

function drawPlots(now) {
  const at = along(chosen(), state, state.moving);
  drawShares(now, at);
  drawCurve(now, at);
}

function drawShares(now, at) {
  const { x, y, marks } = axes(byId("shares"), 1);
  const logit = chosen().x[state.moving];
  const classes = hidden() ? [...shownClasses(), undefined] : shownClasses();
  const edges = samples().map((value) => {
    const { share } = at(value);
    const tops = [0];
    for (const c of shownClasses()) tops.push(tops.at(-1) + share(c));
    return hidden() ? [...tops, 1] : tops;
  });
  const known = edges.flat().every(Number.isFinite);
  const parts = classes.flatMap((c, i) => (known ? band(c, edges.map((tops) => tops.slice(i, i + 2)), x, y) : []));
  if (isInPlot(logit)) parts.push(made("path", { class: "now", d: `M${x(logit)},${y(0)}V${y(1)}` }));
  byId("shares").replaceChildren(...parts, ...marks);
  const values = { name: start.names[state.moving], logit: shown(logit), p: shown(now.rows[state.row].p(state.moving)) };
  byId("shares-text").textContent = say("shares", values);
}

/** A class's share along the plot, with its name where it has room. */
function band(c, edges, x, y) {
  const places = samples().map(x);
  const upper = edges.map(([, top], i) => [places[i], y(top)]);
  const lower = edges.map(([bottom], i) => [places[i], y(bottom)]).reverse();
  const area = made("path", { class: "band", d: `${path([...upper, ...lower])}Z`, fill: colour(c) });
  const inner = edges.map(([bottom, top], i) => (i > 7 && i < PLOT.samples - 7 ? top - bottom : 0));
  const wide = [...inner.keys()].filter((i) => inner[i] >= 0.99 * Math.max(...inner));
  const widest = wide[wide.length >> 1];
  if (y(0) - y(inner[widest]) < 16) return [area];
  const middle = (edges[widest][0] + edges[widest][1]) / 2;
  const name = c === undefined ? others() : c === chosen().label ? `y = ${start.names[c]}` : start.names[c];
  return [area, made("text", { x: places[widest], y: y(middle) + 4, "text-anchor": "middle" }, name)];
}

function drawCurve(now, at) {
  const logit = chosen().x[state.moving];
  const others = sumOf(now.rows.map((row, i) => (i === state.row ? 0 : row.loss)));
  const lossAt = (value) => (state.reduction === "none" ? at(value).loss : (others + at(value).loss) / now.divisor);
  const losses = samples().map(lossAt);
  const known = losses.every(Number.isFinite);
  const { x, y, marks } = axes(byId("curve"), known ? ceiling(Math.max(...losses)) : 1);
  const [loss, slope] = [lossAt(logit), now.gradients[state.row](state.moving)];
  const points = samples().map((value, i) => [x(value), y(losses[i])]);
  const parts = known ? [made("path", { class: "curve", d: path(points) })] : [];
  if (known && isInPlot(logit)) parts.push(...tangent(logit, loss, slope, x, y));
  byId("curve").replaceChildren(...marks, ...parts);
  byId("curve-text").textContent = said(logit, loss, slope);
}

function tangent(logit, loss, slope, x, y) {
  const tall = Math.abs(slope) * (y(0) - y(1)); // in pixels, per 1 of the logit
  const half = Math.min(span / 3, 80 / tall);
  const [left, right] = [logit - half, logit + half];
  const ends = { x1: x(left), y1: y(loss - slope * half), x2: x(right), y2: y(loss + slope * half) };
  return [made("line", { class: "tangent", ...ends }), made("circle", { cx: x(logit), cy: y(loss), r: 6 })];
}

/** The next number above that has few digits. */
function ceiling(value) {
  if (value <= 0) return 1;
  const unit = 10 ** Math.floor(Math.log10(value));
  return Number((unit * [1, 1.5, 2, 3, 4, 5, 6, 8, 10].find((times) => times * unit >= value)).toPrecision(2));
}

function said(logit, value, slope) {
  const values = { loss: say(`loss_${state.reduction}`), value: shown(value), slope: shown(slope) };
  if (!Number.isFinite(value + slope)) return say("curve_undefined", values);
  const text = say(slope < 0 ? "curve_down" : "curve", { ...values, change: shown(Math.abs(0.1 * slope)) });
  return isInPlot(logit) ? text : `${text} ${say("outside")}`;
}

/** Dragging in a plot moves the logit, as its slider does. A touch that scrolls the page leaves it alone. */
function followPointer(svg) {
  const move = (event) => {
    const { left, width } = svg.getBoundingClientRect();
    const share = (event.clientX - left - PLOT.left) / (width - PLOT.left - PLOT.right);
    chosen().x[state.moving] = Number((span * (2 * Math.min(1, Math.max(0, share)) - 1)).toFixed(2));
    update();
  };
  svg.addEventListener("pointerdown", (event) => svg.setPointerCapture(event.pointerId));
  svg.addEventListener("pointermove", (event) => svg.hasPointerCapture(event.pointerId) && move(event));
  svg.addEventListener("click", move);
}
