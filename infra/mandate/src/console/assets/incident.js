// One incident with its alerts and evidence.
import { call, knownTenants, tenantPath } from "./api.js";
import { count, facts, h, outside, outsideText, portalLink, replace, table, time } from "./dom.js";
import { copyButton, empty, every, head, load, notice, severity } from "./parts.js";
import { readIncident } from "./record.js";
import { words } from "./words.js";

const REFRESH_SECONDS = 60;

/** Shows one incident. */
export async function showIncident({ main, path: [tenantId, id], signal }) {
  const area = h("div", {});
  const crumb = h("p", { class: "crumb" }, h("a", { href: "#/incidents" }, "Incidents"));
  replace(main, crumb, area);
  const path = tenantPath(tenantId, `/incidents/${encodeURIComponent(id)}`);
  const read = async () => readIncident(await call("GET", path, { signal }));
  let version;
  const draw = (incident, customer) => {
    version = incident.version;
    return content(incident, customer);
  };
  let customer = tenantId;
  await load(area, "Reading the incident …", signal, async () => {
    const [incident, tenants] = await Promise.all([read(), knownTenants(signal).catch(() => [])]);
    customer = tenants.find((tenant) => tenant.tenant_id === tenantId)?.customer ?? tenantId;
    return draw(incident, customer);
  }, "Incident");
  every(REFRESH_SECONDS, signal, async () => {
    try {
      const incident = await read();
      // A page that somebody reads is not replaced: it says that there is something new.
      if (signal.aborted || version === undefined || incident.version === version || area.querySelector(".newer")) return;
      area.prepend(h("div", { class: "newer" }, notice("info", "This incident has changed since you opened it.", h("p", {}, h("button", { type: "button", click: () => replace(area, draw(incident, customer)) }, "Show the new state")))));
    } catch {
      // The next refresh tries again.
    }
  });
}

function content(incident, customer) {
  const { tenantId } = incident;
  const merged = incident.mergedInto && h("a", { href: `#/incidents/${encodeURIComponent(tenantId)}/${encodeURIComponent(incident.mergedInto)}` }, `#${outsideText(incident.mergedInto)}`);
  return [
    head(outside(incident.title), portalLink(incident.url, "Open in the Defender portal")),
    h("p", { class: "badges" }, severity(incident.severity), h("span", { class: "badge" }, incident.status ? outside(words(incident.status)) : "No status"), incident.tags.map((tag) => h("span", { class: "badge tag" }, outside(tag)))),
    merged && notice("info", "Merged into another incident", h("p", {}, "It goes on as ", merged, ".")),
    h("section", { class: "card", "aria-labelledby": "facts-title" },
      h("h2", { id: "facts-title" }, "Overview"),
      incident.description && h("p", { class: "text" }, outside(incident.description, { multiline: true })),
      incident.summary && h("p", { class: "text" }, outside(incident.summary, { multiline: true })),
      facts([
        ["Customer", h("a", { href: `#/tenants/${encodeURIComponent(tenantId)}` }, outside(customer))],
        ["Incident", h("span", { class: "id" }, outside(incident.id))],
        ["Assigned to", incident.assignedTo ? outside(incident.assignedTo) : "Nobody"],
        ["Classification", incident.classification && outside(words(incident.classification))],
        ["Determination", incident.determination && outside(words(incident.determination))],
        ["Priority", incident.priority === null ? null : outside(incident.priority)],
        ["Created", incident.created && time(incident.created, { long: true })],
        ["Updated", time(incident.lastUpdated, { long: true })],
        ["Resolving comment", incident.resolvingComment && outside(incident.resolvingComment, { multiline: true })],
        ["Read through", incident.api === "defender" ? "Defender API" : "Microsoft Graph"],
      ])),
    alerts(incident),
    incident.comments.length > 0 && h("section", { class: "card", "aria-labelledby": "comments-title" },
      h("h2", { id: "comments-title" }, "Comments"),
      h("ul", { class: "plain comments" }, incident.comments.map(({ text, by, at }) => h("li", {},
        h("p", { class: "text" }, outside(text, { multiline: true })), h("p", { class: "soft" }, by ? outside(by) : "Unknown", ", ", time(at)))))),
    raw(incident),
  ];
}

function alerts({ alerts: all }) {
  const title = all ? count(all.length, "alert") : "Alerts";
  const inside = all === null
    ? empty("The alerts are not here", "The incident is too large for one response, or the API left them out. The portal has them.")
    : all.length === 0 ? empty("No alert yet", "Microsoft may show alerts some minutes after the incident.") : all.map((alert) => alertDetails(alert, all.length === 1));
  return h("section", { class: "card", "aria-labelledby": "alerts-title" }, h("h2", { id: "alerts-title" }, title), inside);
}

/** Returns one alert, whose inside is built when it is opened: an incident may have hundreds. */
function alertDetails(alert, open) {
  const details = h("details", { class: "alert" },
    h("summary", {}, severity(alert.severity), h("span", { class: "alert-title" }, outside(alert.title)), h("span", { class: "soft" }, time(alert.firstActivity ?? alert.created))));
  const fill = () => {
    if (details.childElementCount === 1) details.append(alertBody(alert));
  };
  details.addEventListener("toggle", fill);
  if (open) {
    fill();
    details.open = true;
  }
  return details;
}

function alertBody(alert) {
  return h("div", { class: "alert-body" },
    alert.description && h("p", { class: "text" }, outside(alert.description, { multiline: true })),
    alert.actions && [h("h3", {}, "Recommended actions"), h("p", { class: "text" }, outside(alert.actions, { multiline: true }))],
    facts([
      ["Status", alert.status && outside(words(alert.status))],
      ["Category", alert.category && outside(words(alert.category))],
      ["Techniques", alert.techniques.length > 0 && outside(alert.techniques.join(", "))],
      ["Threat", alert.threat && outside(alert.threat)],
      ["Product", alert.service && outside(words(alert.service))],
      ["Detected by", alert.detection && outside(words(alert.detection))],
      ["First activity", alert.firstActivity && time(alert.firstActivity, { long: true })],
      ["Last activity", alert.lastActivity && time(alert.lastActivity, { long: true })],
      ["Alert id", alert.id && h("span", { class: "id" }, outside(alert.id))],
    ].map(([name, value]) => [name, value || null])),
    h("h3", {}, "Evidence"),
    alert.evidence.length ? table(`Evidence of ${outsideText(alert.title)}`, ["Name", "Kind", "Verdict", "Remediation"], alert.evidence.map(evidenceRow), { class: "cards evidence" }) : h("p", { class: "soft" }, "None was sent."),
    h("p", {}, portalLink(alert.url, "Open the alert in the Defender portal")));
}

function evidenceRow({ type, name, verdict, remediation, members }) {
  return [
    h("div", {}, outside(name), members.length > 0 && h("details", {}, h("summary", {}, count(members.length, "detail")), facts(members.map(([path, value]) => [outside(path), outside(value)])))),
    outside(words(type)),
    verdict ? h("span", { class: `tone ${verdict === "malicious" ? "bad" : verdict === "suspicious" ? "wait" : "soft"}` }, outside(words(verdict))) : "–",
    remediation ? outside(words(remediation)) : "–",
  ];
}

/** Returns the whole record, drawn when it is opened. */
function raw(incident) {
  const text = () => JSON.stringify(incident.raw, null, 2);
  const details = h("details", { class: "card raw" }, h("summary", {}, "The record as Microsoft sent it"));
  details.addEventListener("toggle", () => {
    if (details.childElementCount > 1) return;
    details.append(h("p", {}, copyButton(text(), "Copy", "Copy the record")), h("pre", { tabindex: "0", role: "region", "aria-label": "The record as JSON" }, outside(text(), { multiline: true })));
  });
  return details;
}
