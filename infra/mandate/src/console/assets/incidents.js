// The incidents of all tenants or of one, as Microsoft has them now.
import { call, knownTenants, tenantPath } from "./api.js";
import { announce, choice, count, field, h, outside, outsideText, replace, table, time } from "./dom.js";
import { empty, every, failureNotice, head, loading, problemNotice, severity } from "./parts.js";
import { readIncident } from "./record.js";
import { words, INCIDENT_STATUSES, SEVERITIES } from "./words.js";

const SPANS = [["1", "Last hour"], ["24", "Last 24 hours"], ["72", "Last 3 days"], ["168", "Last 7 days"], ["720", "Last 30 days"]];
const REFRESHES = [["0", "Off"], ["30", "Every 30 s"], ["60", "Every minute"], ["300", "Every 5 min"]];
/** A page may be empty although more follow; so many are read before the reader is asked. */
const EMPTY_PAGES = 10;

/** Shows the incidents that the filters in the address want. */
export async function showIncidents({ main, query, signal, go }) {
  const filters = {
    severity: query.get("severity") ?? "", status: query.get("status") ?? "", tenant: query.get("tenant") ?? "",
    since: query.get("since") ?? "24", refresh: query.get("refresh") ?? "60",
  };
  const list = { rows: [], failures: [], next: null, changed: new Set(), from: null };
  const names = new Map();
  const name = (id) => names.get(id) ?? id;

  const fresh = h("p", { class: "soft fresh" });
  const results = h("div", { "aria-busy": "true" }, loading("Reading the incidents …"));
  const tenants = choice("tenant", [["", "All tenants"], ...(filters.tenant ? [[filters.tenant, outsideText(filters.tenant)]] : [])], filters.tenant);
  const selects = {
    severity: choice("severity", [["", "Any severity"], ...SEVERITIES.map((word) => [word, words(word)])], filters.severity),
    status: choice("status", [["", "Any status"], ...INCIDENT_STATUSES.map((word) => [word, words(word)])], filters.status),
    tenant: tenants,
    since: choice("since", SPANS, filters.since),
    refresh: choice("refresh", REFRESHES, filters.refresh),
  };
  const labels = { severity: "Severity", status: "Status", tenant: "Tenant", since: "Updated in", refresh: "Refresh" };
  const form = h("form", { class: "tools", role: "search", "aria-label": "Filters", submit: (event) => event.preventDefault() },
    Object.entries(selects).map(([key, select]) => field(labels[key], select)),
    h("button", { type: "button", click: () => refresh() }, "Refresh now"));
  replace(main, head("Incidents", fresh), form, results);

  const page = (next) => {
    const { tenant, severity: wanted, status } = filters;
    const path = tenant ? tenantPath(tenant, "/incidents") : "/incidents";
    const query = next ? { next, limit: "100" } : { severity: wanted, status, from: list.from, limit: "100" };
    return call("GET", path, { query, signal });
  };
  /** Reads a page with rows, or the last one. */
  const readPage = async (next) => {
    let got = await page(next);
    const failures = [...(got.failures ?? [])];
    for (let turn = 0; turn < EMPTY_PAGES && got.incidents.length === 0 && got.next; turn += 1) {
      got = await page(got.next);
      failures.push(...(got.failures ?? []));
    }
    return { rows: got.incidents.map(readIncident), failures, next: got.next ?? null };
  };
  const draw = () => {
    const caption = filters.tenant ? `Incidents of ${outsideText(name(filters.tenant))}` : "Incidents of all tenants";
    const rows = list.rows.map((incident) => row(incident, name, list.changed.has(incident.key)));
    const columns = ["Incident", "Severity", "Status", "Customer", "Assigned to", "Alerts", "Updated"];
    replace(results,
      failureNotice(list.failures, name, list.failures.length === 1 ? "could not be read: its incidents are missing here" : "could not be read: their incidents are missing here"),
      list.rows.length ? table(caption, columns, rows, { class: "cards incidents" }) : none(),
      list.next && h("p", {}, h("button", { type: "button", "data-key": "more", click: more }, "Load more")));
    results.removeAttribute("aria-busy");
    replace(fresh, count(list.rows.length, "incident"), list.next ? " so far" : null, ", read at ", time(new Date().toISOString()));
  };
  const none = () => (list.failures.length
    ? empty("No incident in what could be read")
    : empty("No incident", `Nothing was updated in this time${filters.severity || filters.status ? " that the filters want" : ""}.`));
  const fail = (problem, retry) => {
    if (signal.aborted) return;
    results.removeAttribute("aria-busy");
    replace(results, problemNotice(problem, retry));
  };
  let turn = 0;
  const start = async () => {
    turn += 1;
    const mine = turn;
    replace(results, loading("Reading the incidents …"));
    results.setAttribute("aria-busy", "true");
    list.from = new Date(Date.now() - Number(filters.since) * 3_600_000).toISOString();
    list.changed.clear();
    try {
      const got = await readPage();
      if (mine !== turn || signal.aborted) return;
      Object.assign(list, got);
      draw();
      announce(count(list.rows.length, "incident"));
    } catch (problem) {
      if (mine === turn) fail(problem, start);
    }
  };
  const more = async () => {
    const mine = turn;
    try {
      const got = await readPage(list.next);
      if (mine !== turn || signal.aborted) return;
      const seen = new Set(list.rows.map(({ key }) => key));
      list.rows.push(...got.rows.filter(({ key }) => !seen.has(key)));
      list.failures = merge(list.failures, got.failures);
      list.next = got.next;
      draw();
      announce(`${count(list.rows.length, "incident")} now`);
    } catch (problem) {
      fail(problem, start);
    }
  };
  /** Reads the first page again and puts it in front of what was loaded further down. */
  const refresh = async () => {
    const mine = turn;
    try {
      const got = await readPage();
      if (mine !== turn || signal.aborted) return;
      const before = new Map(list.rows.map((incident) => [incident.key, incident.version]));
      const changed = got.rows.filter((incident) => before.get(incident.key) !== incident.version);
      list.changed = new Set(changed.map(({ key }) => key));
      list.rows = joined(got, list);
      list.failures = got.failures;
      draw();
      if (changed.length) announce(`${count(changed.length, "incident")} new or changed`);
    } catch (problem) {
      if (!signal.aborted) replace(fresh, h("span", { class: "tone bad" }, "Not refreshed: ", outside(problem.message)));
    }
  };

  let stop = () => {};
  const schedule = () => {
    stop();
    if (filters.refresh !== "0") stop = every(Number(filters.refresh), signal, refresh);
  };
  for (const [key, select] of Object.entries(selects)) {
    select.addEventListener("change", () => {
      filters[key] = select.value;
      go("#/incidents", filters);
      if (key === "refresh") schedule();
      else start();
    });
  }
  schedule();
  await Promise.all([start(), nameTenants(signal, names, tenants)]);
  if (!signal.aborted && list.rows.length + list.failures.length) draw();
}

/** Fills the map of names and the choice of tenants. Without them the ids are shown. */
async function nameTenants(signal, names, select) {
  try {
    const all = await knownTenants(signal);
    const selected = select.value;
    for (const tenant of all) names.set(tenant.tenant_id, tenant.customer);
    const active = all.filter(({ status, tenant_id: id }) => status === "active" || id === selected);
    active.sort((one, other) => one.customer.localeCompare(other.customer));
    replace(select, h("option", { value: "" }, "All tenants"), active.map(({ tenant_id: id, customer }) => h("option", { value: id, selected: id === selected }, outsideText(customer))));
  } catch {
    // The list itself shows what is wrong.
  }
}

/** Returns the first page followed by the older rows that lie behind it. */
function joined(got, list) {
  if (!got.next || got.rows.length === 0) return got.rows;
  const fresh = new Set(got.rows.map(({ key }) => key));
  const last = Date.parse(got.rows.at(-1).lastUpdated);
  return [...got.rows, ...list.rows.filter(({ key, lastUpdated }) => !fresh.has(key) && Date.parse(lastUpdated) <= last)];
}

function merge(failures, more) {
  const seen = new Set(failures.map(({ tenant_id: id }) => id));
  return [...failures, ...more.filter(({ tenant_id: id }) => !seen.has(id))];
}

function row(incident, name, changed) {
  const href = `#/incidents/${encodeURIComponent(incident.tenantId)}/${encodeURIComponent(incident.id)}`;
  return [
    h("div", {},
      h("a", { href, "data-key": incident.key, class: "strong" }, outside(incident.title)),
      h("p", { class: "id" }, `#${outsideText(incident.id)}`, changed && h("span", { class: "changed" }, "changed"))),
    severity(incident.severity),
    incident.status ? outside(words(incident.status)) : "–",
    h("a", { href: `#/tenants/${encodeURIComponent(incident.tenantId)}` }, outside(name(incident.tenantId))),
    incident.assignedTo ? outside(incident.assignedTo) : h("span", { class: "soft" }, "Nobody"),
    h("span", { class: "number" }, incident.alerts ? incident.alerts.length.toLocaleString("en-GB") : "–"),
    time(incident.lastUpdated),
  ];
}
