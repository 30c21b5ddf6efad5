// All tenants, the worst first.
import { readTenants, sessionInfo } from "./api.js";
import { announce, choice, count, duration, field, h, outside, replace, table, time } from "./dom.js";
import { empty, every, head, load, state } from "./parts.js";
import { completeness, judge, words, worstFirst, SEVERITIES, TENANT_STATUSES } from "./words.js";

const REFRESH_SECONDS = 30;

/** The groups above the table, by the rank of a judgement. */
const GROUPS = [
  ["all", "All", () => true],
  ["act", "Need you", ({ rank }) => rank <= 2],
  ["watch", "To watch", ({ rank }) => rank > 2 && rank < 8],
  ["fine", "Fine", ({ rank }) => rank === 8],
];

/** Returns the open incidents of a tenant by severity, or a dash on an API that does not count them. */
export function openIncidents(open) {
  if (!open) return h("span", { class: "soft" }, "–");
  const counts = SEVERITIES.map((severity) => [severity, open[severity] ?? 0]);
  if (counts.every(([, number]) => number === 0)) return h("span", { class: "soft" }, "None");
  return h("span", { class: "counts" }, counts.filter(([, number]) => number > 0).map(([severity, number]) => (
    h("span", { class: `severity ${severity}` }, `${number.toLocaleString("en-GB")} ${severity}`)
  )));
}

/** Returns a tenant's state with its reason and what to do. */
export function standing(tenant) {
  const { tone, label, meaning, action } = judge(tenant);
  return h("div", { class: "standing" },
    state(tone, label), meaning && h("p", {}, meaning, "."), action && h("p", { class: "soft" }, action));
}

/** Returns how complete a tenant's deliveries are. */
export function sweepState(tenant) {
  const { tone, text, at } = completeness(tenant);
  return h("div", { class: "standing" }, h("span", { class: `tone ${tone}` }, text), at && h("p", { class: "soft" }, time(at)));
}

function row(tenant) {
  const href = `#/tenants/${encodeURIComponent(tenant.tenant_id)}`;
  const late = tenant.status === "active" && judge(tenant).rank === 4;
  return [
    h("div", {}, h("a", { href, "data-key": tenant.tenant_id, class: "strong" }, outside(tenant.customer)), h("p", { class: "id" }, outside(tenant.tenant_id))),
    standing(tenant),
    h("span", { class: late ? "tone wait number" : "number" }, tenant.status === "offboarded" ? "–" : duration(tenant.lag_seconds ?? NaN)),
    sweepState(tenant),
    openIncidents(tenant.open_incidents),
  ];
}

/** Shows all tenants. The address keeps the filters. */
export async function showTenants({ main, query, signal, go }) {
  const { write } = await sessionInfo();
  const filters = { group: query.get("group") ?? "all", status: query.get("status") ?? "", text: query.get("text") ?? "" };
  const body = h("div", {});
  let tenants = [];

  const remember = () => go("#/tenants", { ...filters, group: filters.group === "all" ? "" : filters.group });
  const inGroup = (tenant) => (GROUPS.find(([name]) => name === filters.group) ?? GROUPS[0])[2](judge(tenant));
  const matches = (tenant) => inGroup(tenant)
    && (!filters.status || tenant.status === filters.status)
    && `${tenant.customer} ${tenant.tenant_id}`.toLowerCase().includes(filters.text.trim().toLowerCase());

  const draw = () => {
    const shown = tenants.filter(matches).sort(worstFirst);
    const groups = h("div", { class: "groups", role: "group", "aria-label": "Tenants by what they need" }, GROUPS.map(([name, label, belongs]) => (
      h("button", { type: "button", "data-key": `group-${name}`, class: `group ${name}`, "aria-pressed": String(filters.group === name), click: () => {
        filters.group = name;
        remember();
        draw();
      } }, h("span", { class: "group-number" }, tenants.filter((tenant) => belongs(judge(tenant))).length.toLocaleString("en-GB")), label)
    )));
    const list = shown.length
      ? table("Tenants, the worst first", ["Customer", "State", "Lag", "Last sweep", "Open incidents"], shown.map(row), { class: "cards tenants" })
      : empty("No tenant matches", h("p", {}, h("button", { type: "button", click: () => go("#/tenants", {}, true) }, "Show all")));
    replace(body, groups, list);
    announceIfChanged(count(shown.length, "tenant"));
  };
  let announced = "";
  const announceIfChanged = (text) => {
    if (text !== announced) announce(text);
    announced = text;
  };
  const read = async (progress) => {
    tenants = await readTenants(signal, progress);
    return tenants;
  };

  const search = h("input", { id: "text", type: "search", value: filters.text, autocomplete: "off", placeholder: "Name or id", input: () => {
    filters.text = search.value;
    remember();
    draw();
  } });
  const statuses = choice("status", [["", "Any state"], ...TENANT_STATUSES.map((status) => [status, words(status)])], filters.status, { change: ({ target }) => {
    filters.status = target.value;
    remember();
    draw();
  } });
  const tools = h("form", { class: "tools", role: "search", submit: (event) => event.preventDefault() }, field("Search", search), field("State", statuses));
  const area = h("div", {});
  replace(main, head("Tenants", h("p", { class: "soft fresh" })), area);

  await load(area, "Reading the tenants …", signal, async () => {
    const note = area.querySelector(".loading");
    await read((number) => { if (note) note.textContent = `Reading the tenants: ${number} so far …`; });
    if (tenants.length === 0) return noTenants(write);
    draw();
    return [tools, body];
  });
  if (signal.aborted) return;
  const fresh = main.querySelector(".fresh");
  const stamp = () => replace(fresh, "Read at ", time(new Date().toISOString(), {}));
  if (area.contains(body)) stamp();
  every(REFRESH_SECONDS, signal, async () => {
    try {
      const before = JSON.stringify(tenants);
      await read();
      if (signal.aborted) return;
      stamp();
      if (tenants.length && !area.contains(body)) replace(area, tools, body);
      if (tenants.length && JSON.stringify(tenants) !== before) draw();
    } catch (problem) {
      if (!signal.aborted) replace(fresh, h("span", { class: "tone bad" }, "Not refreshed: ", outside(problem.message)));
    }
  });
}

function noTenants(write) {
  const how = write
    ? h("p", {}, h("a", { href: "#/invitations", class: "button accent" }, "Invite a customer"))
    : h("p", {}, "Invite one with ", h("code", {}, "mandate invite CUSTOMER"), ", or start this console with ", h("code", {}, "--write"), ".");
  return empty("No tenant yet", "A tenant appears here once a customer's administrator has consented.", how);
}

