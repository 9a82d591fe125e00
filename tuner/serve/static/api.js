// What is asked of the server. The token lies in this tab's session storage, and goes into one header.
const BASE = "api/v1/";

export class Refused extends Error {
  constructor(status, { error, problems }) {
    super(error ?? `the server answered ${status}`);
    this.status = status;
    this.problems = problems ?? [];
  }
}

export const keepToken = (token) => sessionStorage.setItem("token", token);
export const forget = () => sessionStorage.removeItem("token");

async function answer(path, options = {}) {
  const token = sessionStorage.getItem("token");
  const headers = { ...(token ? { Authorization: `Bearer ${token}` } : {}), ...options.headers };
  const response = await fetch(BASE + path, { ...options, headers });
  if (!response.ok) throw new Refused(response.status, await response.json().catch(() => ({})));
  return response;
}

export const ask = async (path, options) => (await answer(path, options)).json();
export const text = async (path) => (await answer(path)).text();
export const blob = async (path) => (await answer(path)).blob();

// Calls `each` with every state of a study until it ends or `signal` does. EventSource sends no headers.
export async function follow(study, each, signal) {
  const response = await answer(`studies/${encodeURIComponent(study)}/events`, { signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const fields = Object.fromEntries(part.split("\n").map((line) => [line.split(":", 1)[0], line.slice(line.indexOf(":") + 2)]));
      if (fields.event === "study") each(JSON.parse(fields.data));
    }
  }
}
