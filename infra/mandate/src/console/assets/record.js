// One incident as Microsoft sent it. Graph and the Defender API name the same things differently.

const first = (record, ...names) => names.map((name) => record?.[name]).find((value) => value !== undefined && value !== null && value !== "");

/** Returns a word of the wire in snake_case: `InProgress` and `inProgress` become `in_progress`. */
export function snake(word) {
  return typeof word === "string" ? word.replace(/([\p{Ll}\d])(\p{Lu})/gu, "$1_$2").toLowerCase() : null;
}

const list = (value) => (Array.isArray(value) ? value.filter((entry) => entry !== null && typeof entry === "object") : []);
const strings = (value) => (Array.isArray(value) ? value.filter((entry) => typeof entry === "string" && entry) : []);
/** A word that says that there is none. */
const given = (word) => (word && !["unknown", "not_available", "none"].includes(word) ? word : null);

/** Returns the members of an incident that the pages show. `line` is one object of the API's lists. */
export function readIncident(line) {
  const record = line.incident ?? {};
  return {
    tenantId: line.tenant_id,
    id: String(line.incident_id),
    key: `${line.tenant_id}/${line.incident_id}`,
    version: line.key,
    api: line.api,
    lastUpdated: line.last_updated,
    created: first(record, "createdDateTime", "createdTime"),
    title: first(record, "displayName", "incidentName") ?? `Incident ${line.incident_id}`,
    severity: snake(record.severity),
    status: snake(record.status),
    assignedTo: first(record, "assignedTo"),
    classification: given(snake(record.classification)),
    determination: given(snake(record.determination)),
    description: first(record, "description"),
    summary: first(record, "summary"),
    resolvingComment: first(record, "resolvingComment"),
    priority: record.priorityScore ?? null,
    mergedInto: first(record, "redirectIncidentId"),
    tags: [...strings(record.customTags), ...strings(record.tags), ...strings(record.systemTags)],
    url: first(record, "incidentWebUrl", "incidentUri"),
    comments: list(record.comments).map((comment) => ({
      text: first(comment, "comment"),
      by: first(comment, "createdByDisplayName", "createdBy"),
      at: first(comment, "createdDateTime", "createdTime"),
    })),
    alerts: Array.isArray(record.alerts) ? list(record.alerts).map(readAlert) : null,
    raw: record,
  };
}

function readAlert(alert) {
  const devices = list(alert.devices).map((device) => readEvidence("device", device));
  const entities = list(alert.entities).map((entity) => readEvidence(snake(entity.entityType) ?? "entity", entity));
  const evidence = list(alert.evidence).map((entry) => readEvidence(snake(graphType(entry)) ?? "entity", entry));
  return {
    id: first(alert, "id", "alertId"),
    title: first(alert, "title") ?? "Alert without a title",
    severity: snake(alert.severity),
    status: snake(alert.status),
    category: first(alert, "category"),
    description: first(alert, "description"),
    actions: first(alert, "recommendedActions"),
    service: first(alert, "productName", "serviceSource"),
    detection: first(alert, "detectionSource"),
    threat: first(alert, "threatDisplayName", "threatFamilyName", "actorDisplayName", "actorName"),
    techniques: strings(alert.mitreTechniques),
    firstActivity: first(alert, "firstActivityDateTime", "firstActivity"),
    lastActivity: first(alert, "lastActivityDateTime", "lastActivity"),
    created: first(alert, "createdDateTime", "creationTime"),
    url: first(alert, "alertWebUrl"),
    evidence: [...devices, ...entities, ...evidence],
  };
}

const graphType = (entry) => String(entry["@odata.type"] ?? "").replace(/^#microsoft\.graph\.security\./, "").replace(/Evidence$/, "");

/** The members that name a piece of evidence, the most telling first. */
const NAMES = [
  "deviceDnsName", "hostName", "userPrincipalName", "accountName", "processCommandLine", "fileName", "subject", "primaryAddress",
  "mailboxAddress", "url", "ipAddress", "registryKey", "domainName", "displayName", "name",
];
/** The members that are shown elsewhere or say nothing to a reader. */
const LEFT_OUT = new Set(["@odata.type", "entityType", "verdict", "remediationStatus"]);

function readEvidence(type, entry) {
  const members = flat(entry).filter(([name]) => !LEFT_OUT.has(name));
  const named = NAMES.map((name) => members.find(([path]) => path.split(".").at(-1) === name)).find(Boolean);
  return {
    type,
    name: named ? String(named[1]) : "–",
    verdict: given(snake(entry.verdict)),
    remediation: given(snake(entry.remediationStatus)),
    members: members.filter((member) => member !== named),
  };
}

/** Returns the values of an object as pairs of path and text, without those that are empty. */
function flat(value, path = "") {
  if (value === null || value === "" || (Array.isArray(value) && value.length === 0)) return [];
  if (typeof value !== "object") return [[path, String(value)]];
  if (Array.isArray(value) && value.every((entry) => typeof entry !== "object")) return [[path, value.join(", ")]];
  return Object.entries(value).flatMap(([name, inner]) => flat(inner, path ? `${path}.${name}` : name));
}
