// What is shown, in the fragment of the address: it is never sent to a server, and a link has it.
const DEFAULTS = { prompt: "", seed: 0, model: "", toward: "", position: 50, other: "" };

export function addressOf(shown) {
  const query = new URLSearchParams();
  for (const [key, value] of Object.entries(shown)) if (value !== DEFAULTS[key]) query.set(key, value);
  return `#${query}`;
}

export function shownBy(hash) {
  const query = new URLSearchParams(hash.slice(1)), shown = { ...DEFAULTS };
  for (const key of Object.keys(DEFAULTS)) {
    const value = query.get(key);
    if (value === null) continue;
    const number = Number(value);
    if (typeof DEFAULTS[key] === "string") shown[key] = value.slice(0, 400);
    else if (Number.isInteger(number) && number >= 0) shown[key] = Math.min(number, key === "seed" ? 2147483647 : 100);
  }
  return shown;
}
