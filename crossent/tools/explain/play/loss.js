"use strict";
/* The loss of a few rows in float64, with every step on its way. Nothing here knows of the page. */

const sumOf = (values) => values.reduce((sum, value) => sum + value, 0);

/** A share of 0 removes what it is a share of, even an infinity. */
const times = (share, value) => (share === 0 ? 0 : share * value);

/**
 * From logits to log-probabilities. -log p = log sum + (peak - z) is a sum of two terms that are not negative, so that
 * no digit cancels where a class has nearly all of the probability. A row whose maximum is not finite has no value.
 */
function softmaxOf(x, temperature) {
  const z = x.map((value) => value / temperature);
  const top = z.reduce((best, value, c) => (value > z[best] || Number.isNaN(value) ? c : best), 0);
  const peak = Number.isFinite(z[top]) ? z[top] : NaN;
  const shifted = z.map((value) => value - peak);
  const powers = shifted.map(Math.exp);
  const others = powers.reduce((sum, power, c) => (c === top ? sum : sum + power), 0);
  const logSum = Math.log1p(others);
  const logP = shifted.map((value) => value - logSum);
  return { z, shifted, powers, sum: 1 + others, lse: peak + logSum, p: logP.map(Math.exp), logP };
}

/** q: what each class holds of a row's target. */
function targetOf(row, { smoothing, weight }) {
  const each = smoothing / weight.length;
  return weight.map((w, c) => (row.ignored ? 0 : times((c === row.label ? 1 - smoothing : 0) + each, w)));
}

/** A row with all its steps; `slopes` are d loss / d z = mass p - q, written so that 1 - p does not cancel. */
function worked(row, settings) {
  const steps = softmaxOf(row.x, settings.temperature);
  const q = targetOf(row, settings);
  const mass = sumOf(q);
  const picked = q.map((share, c) => times(share, steps.logP[c]));
  const isUnknown = settings.smoothing > 0 && !row.ignored && Number.isNaN(steps.lse); // whatever q is
  const loss = isUnknown ? NaN : 0 - sumOf(picked);
  const slope = (share, c) => times(mass - share, steps.p[c]) + times(share, Math.expm1(steps.logP[c]));
  const slopes = q.map((share, c) => (isUnknown ? NaN : slope(share, c)));
  return { ...steps, q, mass, picked, loss, slopes };
}

/** The loss of all rows and its gradient in their logits; without a reduction, those of the losses' sum. */
function lossOf(state) {
  const rows = state.rows.map((row) => worked(row, state));
  const counts = state.rows.map((row) => (row.ignored ? 0 : state.weight[row.label]));
  const sum = sumOf(rows.map((row) => row.loss));
  const divisor = state.reduction === "mean" ? sumOf(counts) : 1;
  const gradients = rows.map(({ slopes }, i) =>
    slopes.map((slope) => (state.rows[i].ignored ? 0 : slope / divisor / state.temperature)),
  );
  return { rows, divisor, loss: sum / divisor, gradients };
}

/**
 * A row's loss and probabilities as functions of the logit of one class: of the other classes, the log of their summed
 * exponentials and what they hold of the target are all that counts.
 */
function along(row, settings, moving) {
  const others = row.x.slice();
  others[moving] = -Infinity;
  const alone = others.every((value) => value === -Infinity);
  const { z, lse, p } = softmaxOf(others, settings.temperature);
  const q = targetOf(row, settings);
  const mass = sumOf(q);
  const dot = sumOf(q.map((share, c) => (c === moving ? 0 : times(share, z[c]))));
  return (value) => {
    const own = value / settings.temperature;
    const total = alone ? own : Math.max(lse, own) + Math.log1p(Math.exp(-Math.abs(lse - own)));
    const share = (c) => (c === moving ? Math.exp(own - total) : alone ? 0 : p[c] * Math.exp(lse - total));
    return { loss: mass * total - dot - times(q[moving], own), share };
  };
}
