/* What a reader has set, as an address to send on and as a call in Python. */

const list = (values) => `[${Array.from(values, written).join(", ")}]`;

/** The call that gives the page's numbers. */
function python() {
  const table = (key) => `[\n${state.rows.map((row) => `    ${list(row[key])},\n`).join("")}]`;
  const floats = (values) => `torch.tensor(${values}, dtype=torch.float64)`;
  const labels = list(state.rows.map(({ label, ignored }) => (ignored ? -100 : label)));
  const target = start.soft ? floats(table("t")) : `torch.tensor(${labels})`;
  const samples = state.rows.map(({ sample, ignored }) => (start.soft && ignored ? 0 : sample));
  const options = [state.temperature === 1 ? "logits" : `logits / ${state.temperature}`, "target"];
  if (state.weight.some((w) => w !== 1)) options.push(`weight=${floats(list(state.weight))}`);
  if (state.smoothing) options.push(`label_smoothing=${state.smoothing}`);
  if (state.reduction !== "mean") options.push(`reduction="${state.reduction}"`);
  if (samples.some((s) => s !== 1)) options.push(`sample_weight=${floats(list(samples))}`);
  if (state.reduction === "mean" && state.denominator !== undefined) options.push(`denominator=${state.denominator}`);
  if (state.softcap < Infinity) options.push(`softcap=${state.softcap}`);
  if (state.zloss) options.push(`z_loss=${state.zloss}`);
  const call = options.length > 2 ? `\n    ${options.join(",\n    ")},\n` : options.join(", ");
  const logits = `logits = torch.tensor(${table("x")}, dtype=torch.float64, requires_grad=True)`;
  return `${/\b(inf|nan)\b/.test(logits + options) ? "from math import inf, nan\n" : ""}import torch
import crossent.nn.functional as F

${logits}
target = ${target}
loss = F.cross_entropy(${call})
loss${state.reduction === "none" ? ".sum()" : ""}.backward()
print(loss, logits.grad)
`;
}

/** What differs from the start. A change of thousands of logits at once is left out, since no address holds it. */
function keepInAddress() {
  const from = fresh();
  const kept = new URLSearchParams();
  for (const key of [...Object.keys(SETTINGS), "reduction", "row", "moving", "step"]) {
    if (!Object.is(state[key], from[key])) kept.set(key, written(state[key]));
  }
  const keep = (key, where, value, before) => {
    if (!Object.is(value, before)) kept.append(key, `${where}:${written(value)}`);
  };
  state.weight.forEach((w, c) => keep("weight", `0.${c}`, w, from.weight[c]));
  state.rows.forEach((row, i) => {
    keep("label", `${i}.0`, row.label, from.rows[i].label);
    keep("ignored", `${i}.0`, Number(row.ignored), Number(from.rows[i].ignored));
    keep("sample", `${i}.0`, row.sample, from.rows[i].sample);
    row.t?.forEach((value, c) => keep("target", `${i}.${c}`, value, from.rows[i].t[c]));
    row.x.forEach((value, c) => keep("logit", `${i}.${c}`, value, from.rows[i].x[c]));
  });
  if (kept.size < 1000 && `${kept}` !== location.hash.slice(1)) history.replaceState(null, "", `#${kept}`);
}

/** The state that an address holds; what makes no sense in it is passed over. */
function fromAddress() {
  const kept = new URLSearchParams(location.hash.slice(1));
  const found = fresh();
  const take = (key, fits) => {
    const value = parsed(kept.get(key));
    if (value !== undefined && fits(value)) found[key] = value;
  };
  for (const [key, { fits }] of Object.entries(SETTINGS)) take(key, fits);
  take("row", (i) => i in found.rows);
  take("moving", (c) => start.rows[found.row].shown.includes(c));
  for (const key of ["reduction", "step"]) {
    if (all(`[name=${key}]`).some((radio) => radio.value === kept.get(key))) found[key] = kept.get(key);
  }
  const put = (key, set) => {
    for (const entry of kept.getAll(key)) {
      const [, i, c, text] = /^(\d+)\.(\d+):(.+)$/.exec(entry) ?? [];
      const value = parsed(text);
      if (value !== undefined && i in found.rows && c < start.classes) set(found.rows[i], c, value);
    }
  };
  put("weight", (_, c, value) => NOT_NEGATIVE.fits(value) && (found.weight[c] = value));
  const isShown = (row, c) => !start.soft && start.rows[found.rows.indexOf(row)].shown.includes(c);
  put("label", (row, _, value) => isShown(row, value) && (row.label = value));
  put("sample", (row, _, value) => NOT_NEGATIVE.fits(value) && (row.sample = value));
  put("target", (row, c, value) => NOT_NEGATIVE.fits(value) && row.t && (row.t[c] = value));
  put("ignored", (row, _, value) => (row.ignored = value === 1));
  put("logit", (row, c, value) => (row.x[c] = value));
  return found;
}
