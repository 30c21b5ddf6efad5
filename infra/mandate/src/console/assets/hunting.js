// One query over many tenants.
import { call, knownTenants } from "./api.js";
import { announce, choice, count, field, h, outside, outsideText, replace, table } from "./dom.js";
import { csv } from "./csv.js";
import { empty, failureNotice, head, notice, problemNotice, state } from "./parts.js";

const SPANS = [["", "As the query says"], ["P1D", "1 day"], ["P7D", "7 days"], ["P30D", "30 days"]];
const EXAMPLES = [
  ["Sign-ins that failed", "AADSignInEventsBeta\n| where Timestamp > ago(1d) and ErrorCode != 0\n| summarize Failures = count() by AccountUpn, IPAddress\n| top 50 by Failures"],
  ["PowerShell that downloads", "DeviceProcessEvents\n| where Timestamp > ago(7d) and FileName in~ (\"powershell.exe\", \"pwsh.exe\")\n| where ProcessCommandLine has_any (\"DownloadString\", \"Invoke-WebRequest\", \"EncodedCommand\")\n| project Timestamp, DeviceName, AccountName, ProcessCommandLine\n| take 100"],
  ["Devices by exposure", "DeviceInfo\n| summarize arg_max(Timestamp, *) by DeviceId\n| summarize Devices = count() by ExposureLevel, OSPlatform"],
];
/** Rows that are drawn at first; the download has all. */
const DRAWN_ROWS = 200;
const WAIT_SECONDS = "5";

/** The last hunt of this page. It goes on while another view is open. */
let hunt = null;

/** Shows the form of a hunt, and the last hunt with its progress or its table. */
export async function showHunting({ main, query, signal }) {
  const editor = h("textarea", { id: "query", name: "query", rows: "8", spellcheck: "false", autocomplete: "off", required: true, value: hunt?.query ?? "" });
  const span = choice("timespan", SPANS, "");
  const chosen = new Set(query.getAll("tenant"));
  const picker = h("fieldset", { class: "picker" }, h("legend", {}, "Tenants"));
  const output = h("section", { "aria-labelledby": "result-title", class: "card" });
  const names = new Map();
  const name = (id) => names.get(id) ?? id;
  const run = h("button", { type: "submit", class: "accent" }, "Run");

  const draw = () => {
    if (signal.aborted) return;
    run.disabled = hunt?.status === "running";
    replace(output, h("h2", { id: "result-title", tabindex: "-1" }, "Result"), hunt ? result(hunt, name, draw) : empty("No hunt yet", "The table over all tenants appears here."));
  };
  const form = h("form", { class: "card", "aria-label": "Query", submit: async (event) => {
    event.preventDefault();
    const tenants = chosen.size ? [...chosen] : undefined;
    await startHunt({ query: editor.value, tenants, timespan: span.value || undefined }, draw);
  } },
  field("Query (KQL)", editor, "Runs in each tenant with this app's rights. Ctrl+Enter runs it."),
  h("div", { class: "examples" }, h("span", { class: "soft" }, "Examples: "), EXAMPLES.map(([title, text]) => (
    h("button", { type: "button", class: "quiet", click: () => { editor.value = text; editor.focus(); } }, title)))),
  picker,
  h("div", { class: "tools" }, field("Time", span), run));
  editor.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
  replace(main, head("Hunting"), form, output);
  draw();
  if (hunt) hunt.draw = draw;
  try {
    const tenants = await knownTenants(signal);
    for (const tenant of tenants) names.set(tenant.tenant_id, tenant.customer);
    const active = tenants.filter(({ status }) => status === "active").sort((one, other) => one.customer.localeCompare(other.customer));
    if (!signal.aborted) drawPicker(picker, active, chosen);
    draw();
  } catch (problem) {
    if (!signal.aborted) replace(picker, h("legend", {}, "Tenants"), problemNotice(problem));
  }
}

/** Draws the choice of tenants: all, or those that are ticked. */
function drawPicker(picker, active, chosen) {
  const sum = h("summary", {});
  const say = () => { sum.textContent = chosen.size ? `${chosen.size} of ${count(active.length, "active tenant")}` : `All ${count(active.length, "active tenant")}`; };
  const boxes = active.map(({ tenant_id: id, customer }) => {
    const box = h("input", { type: "checkbox", id: `tenant-${id}`, checked: chosen.has(id), change: () => {
      if (box.checked) chosen.add(id);
      else chosen.delete(id);
      say();
    } });
    return { text: `${customer} ${id}`.toLowerCase(), line: h("li", {}, box, h("label", { for: box.id }, outside(customer))) };
  });
  const search = h("input", { type: "search", id: "tenant-search", autocomplete: "off", input: () => {
    for (const { text, line } of boxes) line.hidden = !text.includes(search.value.trim().toLowerCase());
  } });
  say();
  replace(picker, h("legend", {}, "Tenants"), h("details", { open: chosen.size > 0 }, sum,
    active.length > 8 && field("Search", search),
    h("ul", { class: "plain boxes" }, boxes.map(({ line }) => line)),
    h("p", { class: "hint" }, "None ticked means all active tenants.")));
}

async function startHunt(request, draw) {
  const mine = { ...request, status: "running", id: null, done: 0, total: null, rows: 0, response: null, problem: null, drawn: DRAWN_ROWS, draw };
  hunt = mine;
  mine.draw();
  announce("The hunt has started.");
  try {
    let response = await call("POST", "/hunting", { body: { ...request, wait_seconds: 1 } });
    while (hunt === mine && response.status === "running") {
      mine.id = response.hunt_id;
      Object.assign(mine, { done: response.tenants_done ?? 0, total: response.tenants_total ?? null, rows: response.rows ?? 0, failures: response.failures });
      mine.draw();
      response = await call("GET", `/hunting/${encodeURIComponent(mine.id)}`, { query: { wait_seconds: WAIT_SECONDS } });
    }
    mine.status = response.status ?? "done";
    mine.response = response;
    announce(mine.status === "cancelled" ? "The hunt was cancelled." : `The hunt is done: ${count(response.results?.length ?? response.rows ?? 0, "row")}.`);
  } catch (problem) {
    mine.status = "failed";
    mine.problem = problem;
  }
  if (hunt === mine) mine.draw();
}

/** Returns what is known of a hunt: its progress, its problem, or its table. */
function result(mine, name, draw) {
  if (mine.problem) return problemNotice(mine.problem);
  if (mine.status === "running") return progress(mine, name);
  const { schema, results, failures, objects, truncated, rows } = mine.response;
  const columns = ["tenant_id", ...(schema ?? []).map((column) => column.name).filter((column) => column !== "tenant_id")];
  const got = results ?? [];
  const total = rows ?? got.length;
  return [
    h("p", {}, state(mine.status === "cancelled" ? "off" : "good", mine.status === "cancelled" ? "Cancelled" : "Done"), ` ${count(total, "row")}`),
    failureNotice(failures, name, failures?.length === 1 ? "did not respond: its rows are missing" : "did not respond: their rows are missing"),
    truncated && notice("wait", "The table is not complete", "Microsoft cut the result of a tenant, or it is too large for this page. Ask for fewer rows."),
    !results && objects?.length ? objectsNotice(objects) : null,
    results && (got.length ? rowsTable(mine, columns, got, name, draw) : empty("No row", "The query found nothing in the tenants that responded.")),
  ];
}

function objectsNotice(objects) {
  return notice("info", "The table is too large for this page", "The whole is in the bucket, as compressed NDJSON, for 30 days:",
    h("details", {}, h("summary", {}, count(objects.length, "object")), h("ul", { class: "plain" }, objects.map((object) => h("li", {}, h("code", {}, outsideText(object)))))));
}

function progress(mine, name) {
  const text = mine.total === null ? "Waiting for the tenants …" : `${mine.done} of ${count(mine.total, "tenant")}, ${count(mine.rows, "row")} so far`;
  const cancel = mine.id && h("button", { type: "button", "data-key": "cancel-hunt", click: async () => {
    try {
      await call("DELETE", `/hunting/${encodeURIComponent(mine.id)}`, { body: {} });
    } catch (problem) {
      mine.problem = problem;
      mine.status = "failed";
      mine.draw();
    }
  } }, "Cancel the hunt");
  return [
    h("p", { id: "hunt-progress" }, text),
    h("progress", mine.total ? { max: String(mine.total), value: String(mine.done), "aria-labelledby": "hunt-progress" } : { "aria-labelledby": "hunt-progress" }),
    failureNotice(mine.failures, name, "did not respond so far"),
    cancel && h("p", {}, cancel),
  ];
}

const shown = (value) => (value === null || value === undefined ? "" : typeof value === "object" ? JSON.stringify(value) : String(value));

function rowsTable(mine, columns, rows, name, draw) {
  const download = h("button", { type: "button", click: () => save(columns, rows, name) }, "Download CSV");
  const titles = columns.map((column) => (column === "tenant_id" ? "Customer" : outsideText(column)));
  const drawn = rows.slice(0, mine.drawn).map((row) => columns.map((column) => outside(column === "tenant_id" ? name(row.tenant_id) : shown(row[column]))));
  return [
    h("p", { class: "actions" }, download, rows.length > drawn.length && h("span", { class: "soft" }, `${drawn.length} of ${count(rows.length, "row")} are drawn; the download has all.`)),
    h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Rows" }, table("Rows of the hunt", titles, drawn, { class: "rows" })),
    rows.length > drawn.length && h("p", {}, h("button", { type: "button", "data-key": "more-rows", click: () => { mine.drawn += 500; draw(); } }, "Draw 500 more")),
  ];
}

/** Hands the table to the browser as a file, with the customer's name beside the tenant id. */
function save(columns, rows, name) {
  const named = rows.map((row) => ({ ...row, customer: name(row.tenant_id) }));
  const file = new Blob([csv(["customer", ...columns.filter((column) => column !== "customer")], named)], { type: "text/csv;charset=utf-8" });
  const url = URL.createObjectURL(file);
  const anchor = document.createElement("a");
  anchor.href = url;
  anchor.download = `hunt-${new Date().toISOString().slice(0, 19).replaceAll(":", "")}Z.csv`;
  anchor.click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}
