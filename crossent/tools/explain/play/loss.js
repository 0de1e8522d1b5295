"use strict";
/* The loss of a few rows in float64, with every step on its way. Nothing here knows of the page. */

const sumOf = (values) => values.reduce((sum, value) => sum + value, 0);

/** A share of 0 removes what it is a share of, even an infinity. */
const times = (share, value) => (share === 0 ? 0 : share * value);

/** From a logit to z. */
function bentBy({ temperature, softcap }) {
  if (softcap === Infinity) return (x) => x / temperature;
  return (x) => softcap * Math.tanh(x / temperature / softcap);
}

/**
 * From z to log-probabilities. -log p = log sum + (peak - z) is a sum of two terms that are not negative, so that no
 * digit cancels where a class has nearly all of the probability. A row whose maximum is not finite has no value.
 * What each class has is a function of it: of many thousands few are looked at.
 */
function softmaxOf(z) {
  let top = 0;
  for (let c = 1; c < z.length; c++) if (z[c] > z[top] || Number.isNaN(z[c])) top = c;
  const peak = Number.isFinite(z[top]) ? z[top] : NaN;
  const powers = z.map((value) => Math.exp(value - peak));
  let others = 0;
  for (let c = 0; c < z.length; c++) if (c !== top) others += powers[c];
  const [sum, logSum] = [1 + others, Math.log1p(others)];
  const shifted = (c) => z[c] - peak;
  const ofClass = { z: (c) => z[c], shifted, power: (c) => powers[c], p: (c) => powers[c] / sum };
  return { ...ofClass, logP: (c) => shifted(c) - logSum, sum, lse: peak + logSum };
}

/** q: what each class holds of a row's target, a label or probabilities. */
function targetOf(row, { smoothing, weight }) {
  const each = smoothing / weight.length;
  const given = (c) => (row.t ? row.t[c] : Number(c === row.label));
  return (c) => (row.ignored ? 0 : times((1 - smoothing) * given(c) + each, weight[c]));
}

/** A row with all its steps, which counts `share` times. `slope` is d cost / d z = mass p - q, without cancelling 1 - p. */
function worked(row, settings) {
  const { temperature, softcap, zloss } = settings;
  const steps = softmaxOf(row.x.map(bentBy(settings)));
  const { z, p, logP, lse } = steps;
  const [q, share] = [targetOf(row, settings), row.ignored ? 0 : row.sample];
  const picked = (c) => times(q(c), logP(c));
  let [mass, sum] = [0, 0];
  for (let c = 0; c < row.x.length; c++) {
    mass += q(c);
    sum += picked(c);
  }
  const isUnknown = share !== 0 && Number.isNaN(lse); // whatever q is
  const cost = isUnknown ? NaN : 0 - sum;
  const loss = times(share, cost + (zloss && zloss * mass * lse * lse));
  const slope = (c) => {
    if (isUnknown) return NaN;
    const held = q(c);
    const pulled = (mass - held) * p(c) + (held && held * Math.expm1(logP(c)));
    return pulled + (zloss && 2 * zloss * mass * lse * p(c));
  };
  const bend = (c) => (softcap === Infinity ? 1 : 1 - (z(c) / softcap) ** 2);
  const gradient = (c) => times(share, (slope(c) * bend(c)) / temperature);
  return { ...steps, q, share, mass, picked, cost, loss, slope, gradient };
}

/** The loss of all rows and its gradient in their logits; without a reduction, those of the losses' sum. */
function lossOf(state) {
  const rows = state.rows.map((row) => worked(row, state));
  const counts = rows.map(({ share }, i) => times(share, state.rows[i].t ? 1 : state.weight[state.rows[i].label]));
  const divisor = state.reduction === "mean" ? (state.denominator ?? sumOf(counts)) : 1;
  const gradients = rows.map(({ share, gradient }) => (c) => (share === 0 ? 0 : gradient(c) / divisor));
  return { rows, divisor, loss: sumOf(rows.map((row) => row.loss)) / divisor, gradients };
}

/**
 * A row's loss and probabilities as functions of the logit of one class: of the other classes, the log of their summed
 * exponentials and what they hold of the target are all that counts.
 */
function along(row, settings, moving) {
  const bent = bentBy(settings);
  const z = row.x.map(bent);
  z[moving] = -Infinity;
  const alone = z.every((value) => value === -Infinity);
  const { lse, p } = softmaxOf(z);
  const q = targetOf(row, settings);
  let [mass, dot] = [q(moving), 0];
  for (let c = 0; c < z.length; c++) {
    if (c === moving) continue;
    mass += q(c);
    dot += times(q(c), z[c]);
  }
  return (value) => {
    const own = bent(value);
    const total = alone ? own : Math.max(lse, own) + Math.log1p(Math.exp(-Math.abs(lse - own)));
    const share = (c) => (c === moving ? Math.exp(own - total) : alone ? 0 : p(c) * Math.exp(lse - total));
    const cost = mass * total - dot - times(q(moving), own) + settings.zloss * mass * total * total;
    return { loss: times(row.ignored ? 0 : row.sample, cost), share };
  };
}
