// Requests to the service: the token, errors as sentences, events as they come.
const PLACE = "amortized3d-token";

export class Problem extends Error {
  constructor(sentence, status = 0) { super(sentence); this.status = status; }
}

// The answer to a request; asks for a token if one is needed. `json` is sent as the body. Throws Problem.
export async function request(path, { json, method, signal, headers = {} } = {}) {
  for (let asked = false; ; asked = true) {
    const token = sessionStorage.getItem(PLACE);
    const sent = { ...headers, ...(token ? { Authorization: `Bearer ${token}` } : {}) };
    if (json !== undefined) sent["Content-Type"] = "application/json";
    let answer;
    try {
      answer = await fetch(path, {
        method: method ?? (json === undefined ? "GET" : "POST"),
        headers: sent, body: json === undefined ? undefined : JSON.stringify(json), signal,
        credentials: "omit", redirect: "error",
      });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Problem("The service does not answer: it may have stopped.");
    }
    if (answer.ok) return answer;
    if (answer.status === 401 && await askToken(token !== null || asked)) continue;
    throw new Problem(await sentenceOf(answer), answer.status);
  }
}

export const get = async (path, options) => (await request(path, options)).json();
export const post = async (path, json, options) => (await request(path, { ...options, json })).json();

// A problem as one sentence.
async function sentenceOf(answer) {
  const problem = await answer.json().catch(() => ({}));
  const parts = [problem.title, problem.detail].filter((part) => typeof part === "string" && part);
  const wait = answer.headers.get("Retry-After");
  const after = wait && answer.status !== 202 ? `; try again in ${wait} s` : "";
  return parts.length ? `${parts.join(": ")}${after}.` : `The service answered with the error ${answer.status}.`;
}

// ---- the token: in this tab's memory, and in a header; never in an address
let asking = null;

function askToken(wasWrong) {
  asking ??= new Promise((resolve) => {
    const dialog = document.getElementById("token-dialog"), field = document.getElementById("token");
    const refuse = () => {
      document.getElementById("token-problem").textContent = "The service does not accept this token.";
    };
    if (wasWrong) refuse();
    const close = (given) => {
      if (given) sessionStorage.setItem(PLACE, given);
      field.value = "";
      dialog.close();
      asking = null;
      resolve(Boolean(given));
    };
    document.getElementById("token-form").onsubmit = (event) => {
      event.preventDefault();
      const given = field.value.trim();
      if (/^[\x21-\x7e]+$/.test(given)) close(given); else refuse();  // a header takes no other characters
    };
    document.getElementById("token-cancel").onclick = () => close("");
    dialog.oncancel = (event) => { event.preventDefault(); close(""); };
    dialog.showModal();
  });
  return asking;
}

// ---- objects
// The events of an object, [kind, data], until the last; comes back with the last id if the connection is lost.
async function* events(id, signal) {
  let last = "0", failures = 0, ended = false;
  while (!ended) {
    try {
      const answer = await request(`v1/objects/${id}/events`, { signal, headers: { "Last-Event-ID": last } });
      for await (const block of blocksOf(answer.body)) {
        const fields = Object.fromEntries(block.split("\n").map((line) => line.split(/: (.*)/s)));
        if (!fields.data) continue;
        [last, failures] = [fields.id ?? last, 0];
        yield [fields.event, JSON.parse(fields.data)];
        ended ||= ["done", "failed", "deleted"].includes(fields.event);  // the stream ends by itself
      }
    } catch (error) {
      if (error.name === "AbortError" || error.status || ++failures > 5) throw error;
    }
    if (!ended) await new Promise((resolve) => setTimeout(resolve, 500 * 2 ** failures));
  }
}

async function* blocksOf(body) {
  const reader = body.getReader(), decoder = new TextDecoder();
  let text = "";
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    const blocks = (text + decoder.decode(part.value, { stream: true })).split("\n\n");
    text = blocks.pop();
    yield* blocks;
  }
}

// Make an object; resolves to its status once it is done. `onEvent` gets (progress, stage). Throws Problem.
export async function make(wish, { signal, onEvent = () => {} } = {}) {
  let status = await post("v1/objects", wish, { signal });
  if (!["done", "failed"].includes(status.status)) {
    for await (const [kind, data] of events(status.id, signal)) {
      if (kind === "deleted") throw new Problem("The object was deleted.");
      if (data.progress !== undefined) onEvent(data.progress, data.stage ?? "");
      status = data;
    }
  }
  if (status.status === "failed") throw new Problem(`${status.error.detail}.`);
  return status;
}

export async function file(status, name, signal) {
  return (await request(`v1/objects/${status.id}/files/${name}`, { signal })).blob();
}
