// One study: how it stands, its trials as a plot, the best configuration, results, the report.
import { Refused, ask, blob, follow, text } from "./api.js";
import { copyButton, el, notice, show } from "./dom.js";
import { scorePlot } from "./plot.js";

const COLUMNS = "trial,kind,score,objective,objective_name,objective_unit,slo_met,failure_cause";
const SIMULATED = "SIMULATED: these numbers come from a model of the engine. No GPU was measured.";

// Shows the study and follows it; what it returns ends that.
export async function studyView(name) {
  const path = `studies/${encodeURIComponent(name)}`;
  const about = await ask("about");
  const parts = { head: el("div"), progress: el("section", { class: "card" }), plot: el("section", { id: "plot" }),
    best: el("section", { id: "best" }), results: results(path, name, about), report: report(path, name), log: log(path) };
  document.getElementById("main").replaceChildren(...Object.values(parts));
  const ending = new AbortController();
  let drawn = -1, drawing = false, current;

  const draw = async () => {
    if (drawing || !current.kept) return;
    drawing = true;
    try {
      for (let ended = ends(current); ended !== drawn; ended = ends(current)) {
        drawn = ended;
        const trials = await ask(`${path}/trials?columns=${COLUMNS}`).catch(absent) ?? [];
        if (trials.length) parts.plot.replaceChildren(el("h2", {}, "Trials"), scorePlot(trials, current.progress?.planned ?? 0, current.maximise));
        if (trials.length && !["starting", "running"].includes(current.state)) parts.best.replaceChildren(...await best(path, about));
        await new Promise((resume) => setTimeout(resume, 1000));
      }
    } finally {
      drawing = false;
    }
  };
  const listen = () => follow(name, (study) => {
    current = study;
    parts.head.replaceChildren(...head(study, path, listen));
    parts.progress.replaceChildren(...progress(study));
    draw();
  }, ending.signal).catch((error) => { if (error.name !== "AbortError") throw error; });
  listen();
  return () => ending.abort();
}

const ends = ({ progress, state }) => `${state} ${progress ? progress.finished + progress.failed : 0}`;

function absent(error) {
  if (error instanceof Refused && [404, 409].includes(error.status)) return null;
  throw error;
}

function* head(study, path, listen) {
  if (study.simulated) yield el("p", { class: "simulated" }, SIMULATED);
  yield el("div", { class: "row" }, el("h1", {}, study.study), show.state(study));
  yield el("p", { class: "soft" }, [study.engine, study.model, study.objective.replaceAll("_", " ")].filter(Boolean).join(", "));
  if (study.reason) yield el("p", { class: "error" }, study.reason);
  const running = ["starting", "running"].includes(study.state);
  const asked = running ? "cancel" : "resume";
  const button = el("button", { type: "button", class: "plain", id: asked }, running ? "Cancel" : "Resume");
  const said = el("span", { role: "status", class: "soft" });
  button.addEventListener("click", async () => {
    button.disabled = true;
    said.textContent = running ? "finished trials are kept; engines leave their GPUs …" : "";
    try {
      await ask(`${path}/${asked}`, { method: "POST" });
      if (!running) listen();
    } catch (error) {
      said.replaceChildren(notice(error));
    }
  });
  if (running || (study.kept && study.state !== "finished")) yield el("div", { class: "row" }, button, said);
}

function* progress({ progress: at, state }) {
  if (!at) {
    yield el("p", {}, state === "starting" ? "Starting: the first trial is yet to come." : "No trial was begun.");
    return;
  }
  const ended = at.finished + at.failed;
  const left = at.remaining_s && state === "running" ? `about ${show.duration(at.remaining_s)} left` : "";
  if (state === "finished") {
    yield el("p", {}, el("strong", {}, `${ended} trials`), at.failed ? `, ${at.failed} of them failed` : "");
    return;
  }
  yield el("div", { class: "row" }, el("progress", { max: at.planned, value: ended, "aria-label": "Trials that have ended" }),
    el("strong", {}, `${ended} of ${at.planned} trials`), el("span", { class: "soft" }, left));
  const counts = { running: at.running, "waiting for GPUs": at.waiting, finished: at.finished, failed: at.failed };
  yield el("p", {}, Object.entries(counts).filter(([, count]) => count).map(([what, count]) => `${count} ${what}`).join(", "));
  if (at.trouble) yield el("p", { class: "error" }, at.trouble);
  if (at.best) yield el("p", {}, "Best so far: ", el("strong", { id: "best-so-far" }, at.best.text));
  if (at.places.length && state === "running") {
    yield el("ul", {}, ...at.places.map(({ trial, node, gpu_ids: gpus }) => el("li", { class: "soft" },
      `trial ${trial} on ${node}${gpus.length ? `, GPU${gpus.length > 1 ? "s" : ""} ${gpus.join(" ")}` : ""}`)));
  }
}

async function best(path, about) {
  const found = await ask(`${path}/best`).catch(absent);
  if (!found) return [];
  const rows = Object.entries(found.config).map(([flag, value]) => el("tr", {}, el("td", {}, el("code", {}, `${flag}=${value}`))));
  const launch = el("pre", { id: "launch" }, found.launch ?? "");
  const form = el("select", { "aria-label": "Format" }, ...about.export_formats.map((each) => el("option", {}, each)));
  form.addEventListener("change", async () => {
    launch.textContent = await text(`${path}/export?format=${form.value}`).catch((error) => error.message);
  });
  return [el("div", { class: "answer" },
    el("h2", {}, rows.length ? "Best configuration" : "The engine's defaults are best"),
    el("table", { class: "flags" }, ...rows),
    el("dl", {}, el("dt", {}, "Objective"), el("dd", {}, found.objective),
      el("dt", {}, "Gain"), el("dd", { class: found.verdict === "better" ? "better" : "open" }, found.gain_text),
      el("dt", {}, "SLOs"), el("dd", {}, found.slo_text)),
    ...(found.launch ? [el("div", { class: "row" }, el("label", { class: "field" }, "Run it as", form)),
      el("div", { class: "launch" }, launch, copyButton(launch))] : []))];
}

function results(path, name, about) {
  const forms = ["csv", "parquet", "json"];
  const lines = Object.keys(about.tables).reverse().map((table) => el("div", { class: "row" }, el("code", {}, table),
    ...forms.map((form) => {
      const button = el("button", { type: "button", class: "plain" }, form.toUpperCase());
      button.addEventListener("click", () => save(`${path}/${table}?format=${form}`, `${name}-${table}.${form}`));
      return button;
    })));
  return el("details", { class: "card" }, el("summary", {}, "Results to take away"), ...lines);
}

async function save(path, name) {
  const address = URL.createObjectURL(await blob(path));
  const link = el("a", { href: address, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

// In a frame of its own without this page's rights: a study may come from anywhere.
function report(path, name) {
  const place = el("div");
  const open = el("button", { type: "button", id: "report" }, "Show the report");
  open.addEventListener("click", async () => {
    const page = await text(`${path}/report`).catch((error) => { place.replaceChildren(notice(error)); });
    if (page) place.replaceChildren(el("iframe", { title: `Report of ${name}`, sandbox: "allow-scripts", srcdoc: page }));
  });
  const keep = el("button", { type: "button", class: "plain" }, "Save it");
  keep.addEventListener("click", () => save(`${path}/report`, `${name}.html`));
  return el("section", {}, el("h2", {}, "Report"), el("div", { class: "row" }, open, keep), place);
}

function log(path) {
  const shown = el("pre", { class: "log" });
  const details = el("details", { class: "card" }, el("summary", {}, "Log"), shown);
  details.addEventListener("toggle", async () => {
    if (details.open) shown.textContent = await text(`${path}/log?lines=300`).catch((error) => error.message);
  });
  return details;
}
