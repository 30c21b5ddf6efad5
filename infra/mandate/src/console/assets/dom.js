// Building the page. Text from outside becomes text nodes only: nothing here parses markup.

/** Characters that a reader cannot see or that reorder a line: controls, bidirectional controls, invisible ones. */
const UNSEEN = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Cs}\p{Default_Ignorable_Code_Point}]/u;
const UNSEEN_RUNS = /([\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Cs}\p{Default_Ignorable_Code_Point}])/u;

/** The hosts of Microsoft's portals that a link may lead to. */
const PORTALS = new Set([
  "security.microsoft.com",
  "security.microsoft.us",
  "security.apps.mil",
  "entra.microsoft.com",
  "entra.microsoft.us",
]);

/** Returns the URL if it is an https link to a portal of Microsoft, else null. */
export function portalUrl(text) {
  if (typeof text !== "string" || !URL.canParse(text)) return null;
  const url = new URL(text);
  const plain = url.protocol === "https:" && url.port === "" && url.username === "" && url.password === "";
  return plain && PORTALS.has(url.hostname) ? url.href : null;
}

/**
 * Creates an element. Attributes that are functions become event listeners; null and false are left out. A link leads to
 * a place in this page or to a portal of Microsoft.
 */
export function h(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") element.addEventListener(key, value);
    else if (key === "value") element.value = value;
    else if (key === "href" && !value.startsWith("#/") && portalUrl(value) === null) throw new Error("not a link of this page");
    else if (/^(on|style$|src|srcdoc)/.test(key)) throw new Error(`the attribute ${key} is not used here`);
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

const code = (character) => `U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;

/** Returns a text from outside as an element of its own direction, in which unseen characters are shown by their code. */
export function outside(text, { multiline = false } = {}) {
  const element = h("bdi", {});
  const whole = multiline ? String(text ?? "").replaceAll("\r\n", "\n") : String(text ?? "");
  for (const part of whole.split(UNSEEN_RUNS)) {
    if (part === "") continue;
    const shown = !UNSEEN.test(part) || (multiline && (part === "\n" || part === "\t"));
    element.append(shown ? part : h("span", { class: "unseen", title: "a character that is not visible" }, code(part)));
  }
  return element;
}

/** Returns a text from outside as a string for places that hold no elements. */
export function outsideText(text) {
  return String(text ?? "").split(UNSEEN_RUNS).map((part) => (UNSEEN.test(part) ? `[${code(part)}]` : part)).join("");
}

/** Returns a link to a portal of Microsoft, or null if the address is another. */
export function portalLink(url, text) {
  const href = portalUrl(url);
  return href && h("a", { href, target: "_blank", rel: "noopener noreferrer", class: "portal" }, text);
}

/** Says something to screen readers. */
export function announce(text) {
  document.getElementById("announcements").textContent = text;
}

/** Replaces the children of an element. The focus stays on the element with the same `data-key`, if it had it. */
export function replace(container, ...children) {
  const key = container.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
  container.replaceChildren(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  if (key !== undefined) container.querySelector(`[data-key="${CSS.escape(key)}"]`)?.focus({ preventScroll: true });
}

const TIME = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "medium" });
const SHORT_TIME = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" });

/**
 * Returns a time in the reader's time zone, or a dash. Its title has the seconds and the time as it was sent. A time of
 * Microsoft's without an offset is in UTC.
 */
export function time(text, { long = false } = {}) {
  const date = new Date(/T[\d:.]+$/.test(text) ? `${text}Z` : (text ?? NaN));
  if (Number.isNaN(date.getTime())) return h("span", { class: "soft" }, text ? outside(text) : "–");
  const format = long ? TIME : SHORT_TIME;
  return h("time", { datetime: date.toISOString(), title: `${TIME.format(date)} (${outsideText(text)})` }, format.format(date));
}

/** Returns a number of seconds in words with two units at most. */
export function duration(seconds) {
  if (!Number.isFinite(seconds)) return "–";
  const left = Math.max(0, Math.round(seconds));
  if (left < 60) return `${left} s`;
  const minutes = Math.floor(left / 60);
  if (minutes < 60) return minutes < 10 && left % 60 ? `${minutes} min ${left % 60} s` : `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return minutes % 60 ? `${hours} h ${minutes % 60} min` : `${hours} h`;
  return hours % 24 ? `${Math.floor(hours / 24)} d ${hours % 24} h` : `${hours / 24} d`;
}

/** Returns a number with a noun in the right form. */
export function count(number, noun, plural = `${noun}s`) {
  return `${number.toLocaleString("en-GB")} ${number === 1 ? noun : plural}`;
}

/** Returns an input with its label above it. */
export function field(label, input, hint) {
  if (hint) input.setAttribute("aria-describedby", `${input.id}-hint`);
  return h("div", { class: "field" }, h("label", { for: input.id }, label), input, hint && h("p", { class: "hint", id: `${input.id}-hint` }, hint));
}

/** Returns a choice; `options` is a list of pairs of value and text. */
export function choice(id, options, selected, attributes = {}) {
  return h("select", { id, name: id, ...attributes }, options.map(([value, text]) => h("option", { value, selected: value === selected }, text)));
}

/** Returns a list of names with their values; pairs without a value are left out. */
export function facts(pairs) {
  const given = pairs.filter(([, value]) => value !== null && value !== undefined && value !== "");
  return h("dl", { class: "facts" }, given.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
}

/** Returns a table. Each cell of a row also has its column's name, which a narrow screen shows in front of it. */
export function table(caption, columns, rows, attributes = {}) {
  const head = columns.map((name) => h("th", { scope: "col", role: "columnheader" }, name));
  const body = rows.map((cells) => h("tr", { role: "row" }, cells.map((cell, index) => (
    index === 0
      ? h("th", { scope: "row", role: "rowheader", "data-column": columns[index] }, cell)
      : h("td", { role: "cell", "data-column": columns[index] }, cell)
  ))));
  return h("table", { role: "table", ...attributes },
    h("caption", { class: "hidden" }, caption),
    h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, head)),
    h("tbody", { role: "rowgroup" }, body));
}
