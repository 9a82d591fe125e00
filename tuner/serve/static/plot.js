// The scores of a study's trials in the order in which they began, as SVG.
import { el, show } from "./dom.js";

const [WIDEST, HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [720, 300, 56, 12, 12, 44];
let WIDTH = WIDEST; // of what there is: a figure that is scaled down cannot be read on a phone

function svg(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// `trials` are rows of the table `trials`; `planned` says how far the axis goes.
export function scorePlot(trials, planned, maximise) {
  WIDTH = Math.max(280, Math.min(WIDEST, document.getElementById("main").clientWidth - 32));
  const scored = trials.filter((trial) => trial.score !== null && !trial.failure_cause);
  if (!scored.length) return el("p", { class: "soft" }, "No trial has finished yet.");
  const unit = scored[0].objective_unit;
  const inMs = unit === "s" && Math.min(...scored.map((trial) => trial.score)) < 1;
  const value = (trial) => trial.score * (inMs ? 1000 : 1);
  const good = scored.filter((trial) => trial.slo_met !== false);
  const seen = (good.length > 1 ? good : scored).map(value).sort((a, b) => a - b);
  let [low, high] = [seen[0], seen[seen.length - 1]];
  const margin = (high - low) * 0.08 || Math.abs(high) * 0.1 || 1;
  [low, high] = [low - margin, high + margin];
  const last = Math.max(planned - 1, ...trials.map((trial) => trial.trial), 1);
  const x = (number) => LEFT + ((number + 0.5) / (last + 1)) * (WIDTH - LEFT - RIGHT);
  const y = (score) => TOP + ((high - Math.min(Math.max(score, low), high)) / (high - low)) * (HEIGHT - TOP - BOTTOM);
  const parts = [...axes(low, high, last, x, y)];

  const baseline = scored.find((trial) => trial.kind === "baseline");
  if (baseline) parts.push(svg("line", { class: "baseline", x1: LEFT, x2: WIDTH - RIGHT, y1: y(value(baseline)), y2: y(value(baseline)) }));
  let best = null, line = "";
  for (const trial of scored.filter((each) => each.kind !== "confirm")) {
    const better = best === null || (maximise ? value(trial) > best : value(trial) < best);
    line += best === null ? `M${x(trial.trial)} ${y(value(trial))}` : `H${x(trial.trial)}`;
    if (better && best !== null) line += `V${y(value(trial))}`;
    if (better) best = value(trial);
  }
  parts.push(svg("path", { class: "best", d: line }));
  for (const trial of trials) parts.push(mark(trial, x(trial.trial), value, y));

  const label = `${trials[0].objective_name.replaceAll("_", " ")}, ${inMs ? "ms" : unit}: score of each trial`;
  const drawing = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: "plot", role: "img", "aria-label": label }, ...parts);
  return el("figure", { class: "plot" }, el("h3", {}, label), drawing, legend(Boolean(baseline), trials));
}

function* axes(low, high, last, x, y) {
  const rough = (high - low) / 5, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((each) => each * power).find((each) => each >= rough);
  for (let tick = Math.ceil(low / step) * step; tick <= high; tick += step) {
    yield svg("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(tick), y2: y(tick) });
    yield svg("text", { x: LEFT - 8, y: y(tick) + 4, "text-anchor": "end" }, show.number(tick));
  }
  const every = Math.max(1, Math.ceil((last + 1) / (WIDTH / 60)));
  for (let number = 0; number <= last; number += every) {
    yield svg("text", { x: x(number), y: HEIGHT - BOTTOM + 18, "text-anchor": "middle" }, String(number));
  }
  yield svg("text", { x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT - 6, "text-anchor": "middle" }, "trial");
}

function mark(trial, x, value, y) {
  const why = trial.failure_cause ?? show.amount(trial.objective, trial.objective_unit);
  const title = svg("title", {}, `trial ${trial.trial}: ${why}`);
  if (trial.failure_cause || trial.score === null) {
    const low = HEIGHT - BOTTOM - 6;
    return svg("path", { class: "failed", d: `M${x - 4} ${low - 4}l8 8m0 -8l-8 8` }, title);
  }
  if (trial.kind === "confirm") {
    return svg("rect", { class: "again", x: x - 4, y: y(value(trial)) - 4, width: 8, height: 8 }, title);
  }
  return svg("circle", { class: trial.slo_met === false ? "missed" : "done", cx: x, cy: y(value(trial)), r: 4.5 }, title);
}

function legend(baseline, trials) {
  const entries = ["● trial", "— best so far"];
  if (baseline) entries.push("- - engine's defaults");
  if (trials.some((trial) => trial.kind === "confirm")) entries.push("□ measured again");
  if (trials.some((trial) => trial.slo_met === false)) entries.push("○ SLO missed");
  if (trials.some((trial) => trial.failure_cause)) entries.push("× failed");
  return el("figcaption", { class: "legend" }, ...entries.map((entry) => el("span", {}, entry)));
}
