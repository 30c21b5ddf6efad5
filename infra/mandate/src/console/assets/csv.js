// A table as CSV (RFC 4180) that a spreadsheet shows and never runs. `mandate hunt --out` has the same rules
// (commands/hunt.rs).

/** The beginnings that a spreadsheet takes for a formula, also behind white space and in their wide forms. */
const FORMULA = /^[\s\p{Cf}]*[=+\-@|%＝＋－＠]|^[\t\r\n]/u;

/** Control characters, which a terminal would obey where a person prints the file. Tabs and line breaks stay. */
const CONTROLS = /\r(?!\n)|[^\P{Cc}\t\n\r]/gu;

/** Returns one cell. A text that begins like a formula gets an apostrophe in front; numbers stay numbers. */
function cell(value) {
  if (value === null || value === undefined) return "";
  if (typeof value === "number" || typeof value === "boolean") return String(value);
  const whole = typeof value === "string" ? value : JSON.stringify(value);
  const text = whole.replace(CONTROLS, (character) => `\\u{${character.codePointAt(0).toString(16)}}`);
  const safe = FORMULA.test(text) ? `'${text}` : text;
  return /[",\r\n\t;]|^\s|\s$|^'/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

/** Returns the table as CSV, with a byte order mark, without which spreadsheets misread letters outside of ASCII. */
export function csv(columns, rows) {
  const lines = [columns, ...rows.map((row) => columns.map((name) => row[name]))];
  return `\ufeff${lines.map((cells) => cells.map(cell).join(",")).join("\r\n")}\r\n`;
}
