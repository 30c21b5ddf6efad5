// The console's own server. It speaks to the HTTP API; this page never does.

const KEY = "mandate-console-key";
const HEADER = "x-mandate-console";

/** A refusal or a failure: the problem that the server or the API reported. */
export class Problem extends Error {
  constructor(status, { code, detail, reason, advice } = {}) {
    super(detail || `The server responded with ${status}.`);
    this.status = status;
    this.code = code ?? "unknown";
    this.reason = reason ?? null;
    this.advice = advice ?? null;
  }
}

/** The key that the server gives to one browser, once. */
let key;

async function readKey() {
  const stored = localStorage.getItem(KEY);
  if (stored) return stored;
  const { key: given } = await send("POST", "/session/key", { body: {} });
  localStorage.setItem(KEY, given);
  return given;
}

async function send(method, url, { body, headers = {}, signal } = {}) {
  let response;
  try {
    response = await fetch(url, {
      method,
      headers: body === undefined ? headers : { ...headers, "content-type": "application/json" },
      body: body === undefined ? undefined : JSON.stringify(body),
      cache: "no-store",
      redirect: "error",
      signal,
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, { code: "console_ended", detail: "The console does not respond. It may have been ended in the terminal." });
  }
  const text = await response.text();
  let json;
  try {
    json = text ? JSON.parse(text) : undefined;
  } catch {
    throw new Problem(response.status, { code: "upstream_error", detail: "The response is not JSON." });
  }
  if (!response.ok) throw new Problem(response.status, json);
  return json;
}

/** Calls a route of the API through the console's server and returns the JSON of the response. */
export async function call(method, path, { query = {}, body, signal } = {}) {
  const given = Object.entries(query).filter(([, value]) => value !== null && value !== undefined && value !== "");
  const search = given.length ? `?${new URLSearchParams(given)}` : "";
  for (const last of [false, true]) {
    key ??= readKey();
    let headers;
    try {
      headers = { [HEADER]: await key };
    } catch (error) {
      key = undefined;
      throw error;
    }
    try {
      return await send(method, `/api${path}${search}`, { body, headers, signal });
    } catch (error) {
      // The key of a console that was ended, on the same port.
      if (last || error.code !== "unknown_key") throw error;
      localStorage.removeItem(KEY);
      key = undefined;
    }
  }
}

/** Yields the pages of a list, up to the last. */
export async function* pages(path, { query = {}, signal } = {}) {
  let next;
  do {
    const page = await call("GET", path, { query: { limit: "100", ...query, next }, signal });
    yield page;
    next = page.next;
  } while (next);
}

let session;

/** What this console may do and which API it speaks to: `{write, api, version}`. */
export function sessionInfo() {
  session ??= call("GET", "/session").catch((error) => {
    session = undefined;
    throw error;
  });
  return session;
}

let known = [];

/** All tenants, read once more. `progress` receives the number so far. */
export async function readTenants(signal, progress = () => {}) {
  const all = [];
  for await (const { tenants } of pages("/tenants", { signal })) {
    all.push(...tenants);
    progress(all.length);
  }
  known = all;
  return all;
}

/** The tenants as they were read last, or now if none was. */
export async function knownTenants(signal) {
  return known.length ? known : readTenants(signal);
}

/** Returns the path of a tenant's route. */
export const tenantPath = (id, rest = "") => `/tenants/${encodeURIComponent(id)}${rest}`;
