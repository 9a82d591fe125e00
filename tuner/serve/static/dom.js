// Elements, and how values are shown.
export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value === true ? "" : value);
  element.append(...children);
  return element;
}

export function notice(error) {
  return el("p", { class: "error", role: "alert" }, error.message || String(error));
}

export function copyButton(target) {
  const button = el("button", { type: "button" }, "Copy");
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(target.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(target);
      button.textContent = "Press Ctrl+C";
    }
  });
  return button;
}

const MARKS = { starting: "…", running: "▶", finished: "✓", interrupted: "■", broken: "!" };

export const show = {
  state: ({ state }) => el("span", { class: `tag state-${state}` }, `${MARKS[state] ?? ""} ${state}`),
  simulated: () => el("span", { class: "tag warn" }, "SIMULATED"),
  number: (value) => Number(value).toLocaleString("en", { maximumSignificantDigits: 3 }),
  amount: (value, unit) => (value === null ? "" : unit === "s" && value < 1
    ? `${show.number(value * 1000)} ms` : `${show.number(value)} ${unit}`),
  duration: (seconds) => (seconds < 120 ? `${Math.round(seconds)} s`
    : seconds < 7200 ? `${Math.round(seconds / 60)} min` : `${Math.floor(seconds / 3600)} h ${Math.round((seconds % 3600) / 60)} min`),
};
