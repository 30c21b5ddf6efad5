// The parts that several views share: badges, notices, states of loading and failing, dialogs.
import { announce, h, outside, outsideText, replace } from "./dom.js";
import { explainFailure, explainProblem, words, SEVERITIES } from "./words.js";

/** Returns the badge of a severity; a word that is not known looks like an informational one. */
export function severity(word) {
  const known = SEVERITIES.includes(word) ? word : "unknown";
  return h("span", { class: `severity ${known}` }, word ? outside(words(word)) : "Unknown");
}

/** Returns a state: a dot whose colour repeats what the label says. */
export function state(tone, label) {
  return h("span", { class: `state ${tone}` }, h("span", { class: "dot", "aria-hidden": "true" }), label);
}

/** Returns a notice with a title and lines. `tone` is `bad`, `wait`, `good` or `info`. */
export function notice(tone, title, ...lines) {
  return h("div", { class: `notice ${tone}`, role: tone === "bad" ? "alert" : null },
    h("p", { class: "notice-title" }, title),
    lines.flat().filter(Boolean).map((line) => (line instanceof Node && line.nodeName !== "BDI" ? line : h("p", {}, line))));
}

/** Returns the notice of a problem. With `retry` it has a button. */
export function problemNotice(problem, retry) {
  const [title, action] = explainProblem(problem.code);
  return notice("bad", title,
    outside(problem.message),
    quoted(problem.advice ?? action),
    h("p", { class: "soft" }, "Code: ", h("code", {}, outsideText(problem.code)), problem.reason ? [", reason: ", h("code", {}, outsideText(problem.reason))] : null),
    retry && h("p", {}, h("button", { type: "button", click: retry }, "Try again")));
}

/** Returns a text, which may come from outside, in which the parts between backquotes are code. */
export function quoted(text) {
  return h("p", {}, text.split("`").map((part, index) => (index % 2 ? h("code", {}, outsideText(part)) : outside(part))));
}

/** Returns the sign of a load that goes on. */
export function loading(text) {
  return h("p", { class: "loading" }, text);
}

/** Returns what stands where a list has no entry. */
export function empty(title, ...lines) {
  return h("div", { class: "empty" }, h("p", { class: "empty-title" }, title), lines.map((line) => (line instanceof Node ? line : h("p", {}, line))));
}

/** Returns the notice for tenants that a result lacks, or null if it lacks none. `name` finds a tenant's customer. */
export function failureNotice(failures, name, what) {
  if (!failures?.length) return null;
  const lines = failures.map((failure) => h("li", {},
    h("a", { href: `#/tenants/${encodeURIComponent(failure.tenant_id)}` }, outside(name(failure.tenant_id))),
    ": ", explainFailure(failure), " ",
    h("code", { class: "soft" }, outsideText([failure.code, failure.reason].filter(Boolean).join(", ")))));
  const title = failures.length === 1 ? `One tenant ${what}` : `${failures.length} tenants ${what}`;
  const list = h("ul", {}, lines);
  return notice("wait", title, failures.length > 5 ? h("details", {}, h("summary", {}, "Show them"), list) : list);
}

/**
 * Fills an element with what `work` returns; shows that it loads, and a problem with a way to try again. With `title`
 * both have a heading, for views whose heading comes with the content.
 */
export async function load(container, text, signal, work, title) {
  replace(container, title && head(title), loading(text));
  container.setAttribute("aria-busy", "true");
  try {
    const content = await work();
    if (!signal.aborted) replace(container, content);
  } catch (problem) {
    if (signal.aborted || problem.name === "AbortError") return;
    replace(container, title && head(title), problemNotice(problem, () => load(container, text, signal, work, title)));
  } finally {
    container.removeAttribute("aria-busy");
  }
}

/** Calls `work` every so many seconds while the page is visible, until the signal. */
export function every(seconds, signal, work) {
  const timer = setInterval(() => {
    if (document.visibilityState === "visible") work();
  }, seconds * 1000);
  signal.addEventListener("abort", () => clearInterval(timer));
  return () => clearInterval(timer);
}

/** Returns the head of a view: its title, which takes the focus, and what stands beside it. */
export function head(title, ...beside) {
  document.title = `${title instanceof Node ? title.textContent : title} – Mandate console`;
  return h("div", { class: "head" }, h("h1", { tabindex: "-1", "data-key": "title" }, title), h("div", { class: "beside" }, beside));
}

/** Returns a button that copies a text. */
export function copyButton(text, label, name) {
  const button = h("button", { type: "button", "aria-label": name ?? label, click: async () => {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
    announce("Copied.");
    setTimeout(() => { button.textContent = label; }, 2000);
  } }, label);
  return button;
}

/**
 * Asks for a confirmation that names the customer. The promise is true only if the reader pressed the button. With
 * `typed` the customer's name must be typed, too.
 */
export function confirm({ title, customer, text, more, button, tone = "accent", typed = false }) {
  const { promise, resolve } = Promise.withResolvers();
  const go = h("button", { type: "submit", class: tone, value: "yes", disabled: typed }, button);
  const input = typed && h("input", { id: "typed-name", type: "text", autocomplete: "off", spellcheck: "false", input: () => { go.disabled = input.value !== customer; } });
  const dialog = h("dialog", { "aria-labelledby": "dialog-title", close: () => {
    dialog.remove();
    resolve(dialog.returnValue === "yes");
  } },
  h("form", { method: "dialog" },
    h("h2", { id: "dialog-title" }, title),
    h("p", {}, "Customer: ", h("strong", {}, outside(customer))),
    h("p", {}, text),
    more,
    typed && h("div", { class: "field" }, h("label", { for: "typed-name" }, "Type the customer's name to confirm"), input),
    h("div", { class: "actions" }, h("button", { type: "button", autofocus: true, click: () => dialog.close("no") }, "Cancel"), go)));
  document.body.append(dialog);
  dialog.showModal();
  return promise;
}
