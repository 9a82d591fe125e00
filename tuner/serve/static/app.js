// The page: routes, and what each of them shows. What is asked of the server is in api.js, what is drawn
// in plot.js. Nothing that a server says becomes markup: texts are text nodes.
import { Refused, ask, forget, keepToken } from "./api.js";
import { el, notice, show } from "./dom.js";
import { studyView } from "./study.js";

const main = document.getElementById("main");
const STARTER = `{
  // Which model, which flags of the engine, which load: docs/task-file.md has every key.
  "task_name": "first-study",
  "parameters": {
    "tp-size": [1, 2, 4],
    "chunked-prefill-size": [2048, 4096, 8192]
  },
  "optimization": { "objective": "minimize_latency", "max_iterations": 12 },
  "benchmark": { "traffic_scenarios": ["D(100,100)"], "num_concurrency": [8] }
}
`;
let leave = () => {};

function go() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given) {
    keepToken(given);
    history.replaceState(null, "", location.pathname + "#/");
  }
  leave();
  leave = () => {};
  const [, page, name] = location.hash.slice(1).split("/");
  for (const link of document.querySelectorAll("nav a")) {
    const here = link.getAttribute("href") === (page === "new" ? "#/new" : "#/");
    here ? link.setAttribute("aria-current", "page") : link.removeAttribute("aria-current");
  }
  const view = page === "studies" ? studyView(decodeURIComponent(name ?? "")) : page === "new" ? newView() : listView();
  Promise.resolve(view).then((shown) => { leave = shown ?? leave; }).catch(failed);
}

function failed(error) {
  if (error instanceof Refused && error.status === 401) signIn();
  else main.replaceChildren(el("h1", {}, "This did not work"), notice(error));
}
addEventListener("unhandledrejection", (event) => failed(event.reason));

function signIn() {
  forget();
  const field = el("input", { type: "password", autocomplete: "off", id: "token", required: true });
  const form = el("form", { class: "card" },
    el("h1", {}, "The token, please"),
    el("p", { class: "soft" }, "tuner serve printed an address with the token in it, and where the token is kept."),
    el("div", { class: "row" }, el("label", { class: "field" }, "Token", field), el("button", {}, "Enter")));
  form.addEventListener("submit", (event) => { event.preventDefault(); keepToken(field.value.trim()); go(); });
  main.replaceChildren(form);
  field.focus();
}

// --- the list ------------------------------------------------------------------------------------------

async function listView() {
  let timer, gone = false;
  const refresh = async () => {
    const found = await ask("studies?limit=100");
    if (gone) return;
    main.replaceChildren(
      el("div", { class: "row spread" }, el("h1", {}, "Studies"), el("a", { href: "#/new" }, "New study")),
      found.studies.length ? table(found.studies) : el("p", { class: "soft" }, "There is none yet."),
      ...(found.total > found.studies.length ? [el("p", { class: "soft" }, `and ${found.total - found.studies.length} more`)] : []));
    timer = setTimeout(() => refresh().catch(failed), 3000);
  };
  await refresh();
  return () => { gone = true; clearTimeout(timer); };
}

function table(studies) {
  const heads = ["Study", "State", "Trials", "Best", "Gain"].map((head) => el("th", {}, head));
  const rows = studies.map((study) => {
    const { progress } = study;
    return el("tr", {},
      el("td", {}, el("a", { href: `#/studies/${encodeURIComponent(study.study)}` }, study.study),
        el("div", { class: "soft facts" }, [study.engine, study.model].filter(Boolean).join(", "))),
      el("td", {}, show.state(study), " ", study.simulated ? show.simulated() : ""),
      el("td", { "data-label": "Trials" }, progress ? `${progress.finished + progress.failed} of ${progress.planned}` : ""),
      el("td", { "data-label": "Best" }, progress?.best ? show.amount(progress.best.objective, progress.best.unit) : ""),
      el("td", { "data-label": "Gain" }, study.reason || study.gain.split(/(?<=[a-z])\. /)[0]));
  });
  return el("table", { class: "studies" }, el("thead", {}, el("tr", {}, ...heads)), el("tbody", {}, ...rows));
}

// --- a new study ---------------------------------------------------------------------------------------

async function newView() {
  const about = await ask("about");
  const task = el("textarea", { id: "task", spellcheck: "false", "aria-label": "Task file" });
  task.value = sessionStorage.getItem("draft") ?? STARTER;
  task.addEventListener("input", () => sessionStorage.setItem("draft", task.value));
  const file = el("input", { type: "file", accept: ".json,.yaml,.yml", "aria-label": "Upload a task file" });
  file.addEventListener("change", async () => {
    if (file.files[0]) task.value = await file.files[0].text();
    task.dispatchEvent(new Event("input"));
  });
  const engine = el("select", {}, el("option", { value: "" }, "as the task says"),
    ...about.engines.map((name) => el("option", {}, name)));
  const study = el("input", { placeholder: "of the task and the time", pattern: "[A-Za-z0-9][A-Za-z0-9._\\-]*" });
  const seed = el("input", { type: "number", min: "0", max: "4294967295", placeholder: "the task's" });
  const virtual = el("input", { type: "checkbox", id: "virtual" });
  const said = el("div", { role: "status", id: "said" });

  const query = (...more) => {
    const chosen = new URLSearchParams();
    if (engine.value) chosen.set("engine", engine.value);
    if (virtual.checked) chosen.set("virtual", "true");
    for (const [name, field] of more) if (field.value) chosen.set(name, field.value);
    return chosen;
  };
  const send = async (path, chosen, then) => {
    for (const button of buttons) button.disabled = true;
    try {
      then(await ask(`${path}?${chosen}`, { method: "POST", body: task.value }));
    } catch (error) {
      if (!(error instanceof Refused) || error.status === 401) throw error;
      said.replaceChildren(el("h2", {}, error.message), el("ul", { class: "problems" }, ...error.problems.map(problem)));
    } finally {
      for (const button of buttons) button.disabled = false;
    }
  };
  const check = el("button", { type: "button", class: "plain" }, "Check");
  const start = el("button", {}, "Start");
  const buttons = [check, start];
  check.addEventListener("click", () => send("check", query(), (found) => {
    said.replaceChildren(el("h2", {}, "No problem found"), el("pre", { class: "log" }, found.lines.join("\n")));
  }));
  const form = el("form", { class: "form" },
    el("div", {}, el("div", { class: "row" }, file), task),
    el("div", {},
      el("div", { class: "row" }, el("label", { class: "field" }, "Engine", engine), el("label", { class: "field" }, "Name", study),
        el("label", { class: "field" }, "Seed", seed)),
      el("label", { class: "check" }, virtual, "On the simulator in virtual time: seconds in place of minutes"),
      el("div", { class: "row" }, start, check),
      said));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    send("studies", query(["study", study], ["seed", seed]), (found) => {
      sessionStorage.removeItem("draft");
      location.hash = `#/studies/${encodeURIComponent(found.study)}`;
    });
  });
  main.replaceChildren(el("h1", {}, "New study"), form);
}

function problem({ path, message, hint }) {
  return el("li", { class: "problem" }, path ? el("code", {}, path) : "", " ", message, hint ? el("div", { class: "soft" }, hint) : "");
}

addEventListener("hashchange", go);
go();
