// One tenant: its state, its jobs, and what an operator can change.
import { call, sessionInfo, tenantPath, Problem } from "./api.js";
import { announce, choice, count, duration, facts, field, h, outside, outsideText, portalLink, replace, time } from "./dom.js";
import { confirm, copyButton, empty, every, head, load, notice, problemNotice, state } from "./parts.js";
import { openIncidents, standing, sweepState } from "./tenants.js";
import { judge, words } from "./words.js";

const REFRESH_SECONDS = 15;
const JOB_SECONDS = 3;
const KEPT_JOBS = 10;

/** The ids of a tenant's jobs that this page knows until the console ends; the API has no list of them. */
const jobsOf = {
  key: (id) => `jobs:${id}`,
  read(id) {
    try {
      const ids = JSON.parse(localStorage.getItem(this.key(id)) ?? "[]");
      return Array.isArray(ids) ? ids.filter((job) => typeof job === "string") : [];
    } catch {
      return [];
    }
  },
  add(id, job) {
    localStorage.setItem(this.key(id), JSON.stringify([job, ...this.read(id).filter((other) => other !== job)].slice(0, KEPT_JOBS)));
  },
  remove(id, job) {
    localStorage.setItem(this.key(id), JSON.stringify(this.read(id).filter((other) => other !== job)));
  },
};

/** Shows one tenant. */
export async function showTenant({ main, path: [id], signal }) {
  const { write } = await sessionInfo();
  const area = h("div", {});
  replace(main, h("p", { class: "crumb" }, h("a", { href: "#/tenants" }, "Tenants")), area);
  let drawn = "";
  const read = () => call("GET", `${tenantPath(id)}?history=true`, { signal });
  const view = { id, write, signal, outcome: h("div", { class: "outcome", tabindex: "-1" }), jobs: h("div", {}) };
  view.jobForm = jobForm(view);
  const draw = (tenant) => {
    drawn = JSON.stringify(tenant);
    return content(tenant, view, reload);
  };
  const reload = async (tenant) => {
    const next = tenant ?? await read();
    if (!signal.aborted) replace(area, draw(next));
  };
  await load(area, "Reading the tenant …", signal, async () => draw(await read()), "Tenant");
  drawJobs(view);
  every(REFRESH_SECONDS, signal, async () => {
    try {
      const tenant = await read();
      if (!signal.aborted && JSON.stringify(tenant) !== drawn && !document.querySelector("dialog")) await reload(tenant);
    } catch {
      // The next refresh tries again; what is shown has its time.
    }
  });
}

function content(tenant, view, reload) {
  const { label, tone } = judge(tenant);
  const search = new URLSearchParams({ tenant: tenant.tenant_id });
  return [
    head(outside(tenant.customer), state(tone, label)),
    h("div", { class: "columns" },
      h("section", { "aria-labelledby": "state-title", class: "card" },
        h("h2", { id: "state-title" }, "State"),
        standing(tenant),
        facts([
          ["Open incidents", openIncidents(tenant.open_incidents)],
          ["Lag", tenant.status === "offboarded" ? null : duration(tenant.lag_seconds ?? NaN)],
          ["Covered until", tenant.covered_until && time(tenant.covered_until, { long: true })],
          ["Last success", tenant.last_success_at && time(tenant.last_success_at, { long: true })],
          ["Last sweep", sweepState(tenant)],
          ["Incidents in all", (tenant.incidents_total ?? 0).toLocaleString("en-GB")],
          ["Quarantined", (tenant.quarantined ?? 0).toLocaleString("en-GB")],
        ]),
        h("p", { class: "links" },
          h("a", { href: `#/incidents?${search}` }, "Its incidents"),
          h("a", { href: `#/hunting?${search}` }, "Hunt in it"))),
      h("section", { "aria-labelledby": "consent-title", class: "card" },
        h("h2", { id: "consent-title" }, "Consent"),
        facts([
          ["Tenant id", h("span", { class: "with-copy" }, h("span", { class: "id" }, outside(tenant.tenant_id)), copyButton(tenant.tenant_id, "Copy", "Copy the tenant id"))],
          ["Read through", tenant.api === "defender" ? "Defender API" : tenant.api === "graph" ? "Microsoft Graph" : outside(tenant.api)],
          ["Roles", tenant.roles?.length ? h("ul", { class: "plain" }, tenant.roles.map((role) => h("li", {}, h("code", {}, outsideText(role))))) : "None"],
          ["Consented at", tenant.consented_at && time(tenant.consented_at, { long: true })],
          ["Consented by", tenant.consented_by && outside(tenant.consented_by)],
          ["Role proven", tenant.role_proven === undefined ? null : tenant.role_proven ? "Yes" : "No: the ID token holds no role that may consent"],
        ]))),
    view.outcome,
    changes(tenant, view, reload),
    tenant.history?.length ? history(tenant) : null,
    h("section", { "aria-labelledby": "jobs-title", class: "card" }, h("h2", { id: "jobs-title" }, "Jobs"), view.jobs, view.jobForm),
  ];
}

/** Returns the section of the last states, the present one first. */
function history(tenant) {
  return h("section", { "aria-labelledby": "history-title", class: "card" },
    h("h2", { id: "history-title" }, "History"),
    h("ol", { class: "plain history" }, tenant.history.map(({ at, status, reason }) => {
      const { label, tone, meaning } = judge({ status, reason });
      return h("li", {}, time(at, { long: true }), state(tone, label), meaning && h("span", { class: "soft" }, meaning));
    })));
}

/** Returns the section of changes: buttons with `--write`, else the commands that do the same. */
function changes(tenant, view, reload) {
  const { tenant_id: id, status } = tenant;
  const titled = (...inside) => h("section", { "aria-labelledby": "changes-title", class: "card" }, h("h2", { id: "changes-title" }, "Changes"), inside);
  if (!view.write) {
    const commands = [["pause", status === "active"], ["resume", status === "paused" || status === "pending"], ["sweep", status === "active"], ["backfill", status === "active"]];
    return titled(
      h("p", {}, "This console is read only. Start it with ", h("code", {}, "mandate console --write"), ", or use the terminal:"),
      h("ul", { class: "plain commands" }, commands.filter(([, fits]) => fits).map(([name]) => {
        const command = `mandate ${name} ${id}`;
        return h("li", { class: "with-copy" }, h("code", {}, outsideText(command)), copyButton(command, "Copy", `Copy the command ${name}`));
      })));
  }
  const change = (work) => async () => {
    try {
      await work();
    } catch (problem) {
      replace(view.outcome, problemNotice(problem));
    }
  };
  const done = async (title, ...lines) => {
    replace(view.outcome, notice("good", title, lines));
    announce(title);
    await reload();
    view.outcome.focus();
  };
  const buttons = [];
  if (status === "active") buttons.push(["Pause", change(() => pause(tenant, done))]);
  if (status === "paused" || status === "pending") buttons.push(["Resume", change(() => resume(tenant, done))]);
  if (status === "active") {
    buttons.push(["Sweep", change(() => start(tenant, view, done, "sweep"))]);
    buttons.push(["Backfill", change(() => backfill(tenant, view, done))]);
  }
  const again = new URLSearchParams({ customer: tenant.customer, tenant: id });
  return titled(h("div", { class: "actions" },
    buttons.map(([label, click]) => h("button", { type: "button", "data-key": `change-${label}`, click }, label)),
    h("a", { class: "button", href: `#/invitations?${again}` }, "Invite again"),
    h("button", { type: "button", class: "danger", "data-key": "change-Offboard", click: change(() => offboard(tenant, view, reload)) }, status === "offboarded" ? "Check access again" : "Offboard")));
}

async function pause(tenant, done) {
  const text = "Its incidents are not read until somebody resumes it. What happens meanwhile is delivered then.";
  if (!await confirm({ title: "Pause this tenant?", customer: tenant.customer, text, button: "Pause" })) return;
  await call("POST", tenantPath(tenant.tenant_id, "/pause"), { body: { customer: tenant.customer } });
  await done(`${outsideText(tenant.customer)} is paused.`);
}

async function resume(tenant, done) {
  const decides = tenant.status === "pending" && tenant.reason === "operator";
  const text = decides
    ? `You vouch that ${outsideText(tenant.consented_by || "the person who consented")} acts for this customer, and that the tenant is theirs.`
    : "Its incidents are read again, from where the feed stopped.";
  if (!await confirm({ title: "Resume this tenant?", customer: tenant.customer, text, button: "Resume" })) return;
  await call("POST", tenantPath(tenant.tenant_id, "/resume"), { body: { customer: tenant.customer } });
  await done(`${outsideText(tenant.customer)} is resumed.`);
}

async function start(tenant, view, done, kind, span = {}) {
  if (kind === "sweep") {
    const text = "A sweep reads the last days once more and delivers what polling has missed.";
    if (!await confirm({ title: "Start a sweep?", customer: tenant.customer, text, button: "Start the sweep" })) return;
  }
  const { job_id: job } = await call("POST", tenantPath(tenant.tenant_id, "/sync"), { body: { customer: tenant.customer, kind, ...span } });
  jobsOf.add(view.id, job);
  await done(`The ${kind} has started.`);
  drawJobs(view);
}

async function backfill(tenant, view, done) {
  const days = choice("days", [["7", "7 days"], ["30", "30 days"], ["90", "90 days"], ["180", "180 days, the most"]], "30");
  const text = "A backfill delivers incidents that are older than the feed.";
  const more = field("How far back", days);
  if (!await confirm({ title: "Start a backfill?", customer: tenant.customer, text, more, button: "Start the backfill" })) return;
  const from = new Date(Date.now() - Number(days.value) * 86_400_000).toISOString();
  await start(tenant, view, done, "backfill", { from });
}

async function offboard(tenant, view, reload) {
  const again = tenant.status === "offboarded";
  if (!again) {
    const text = "Its feed ends and what we store of it is deleted. Delivered objects and backups keep their own retention. This cannot be undone; only a new invitation brings it back, as new.";
    if (!await confirm({ title: "Offboard this tenant?", customer: tenant.customer, text, button: "Offboard", tone: "danger", typed: true })) return;
  } else if (!await confirm({ title: "Check whether access has ended?", customer: tenant.customer, text: "A token is requested for this tenant. It should be refused.", button: "Check" })) {
    return;
  }
  const receipt = await call("DELETE", tenantPath(tenant.tenant_id), { body: { customer: tenant.customer } });
  const purged = Object.entries(receipt.purged ?? {}).filter(([, number]) => number > 0).map(([name, number]) => `${words(name)}: ${number}`).join(", ");
  replace(view.outcome, notice(receipt.access_ended ? "good" : "wait",
    receipt.access_ended ? "Offboarded, and access has ended." : "Offboarded. Our access at Microsoft has not ended yet.",
    purged && `Deleted: ${outsideText(purged)}.`,
    receipt.access_ended ? null : h("p", {}, "The customer removes the application here: ", portalLink(receipt.removal_url, "Microsoft Entra admin center") ?? outside(receipt.removal_url))));
  announce("Offboarded.");
  await reload();
  view.outcome.focus();
}

/** Returns the form that shows a job by its id. */
function jobForm(view) {
  const input = h("input", { id: "job", type: "text", autocomplete: "off", spellcheck: "false", maxlength: "64", required: true });
  return h("form", { class: "tools", submit: (event) => {
    event.preventDefault();
    jobsOf.add(view.id, input.value.trim());
    input.value = "";
    drawJobs(view);
  } }, field("Show a job by its id", input), h("button", { type: "submit" }, "Show"));
}

/** Draws the jobs that this page knows, and follows those that are not at their end. */
function drawJobs(view) {
  view.followers?.abort();
  view.followers = new AbortController();
  const signal = AbortSignal.any([view.signal, view.followers.signal]);
  const ids = jobsOf.read(view.id);
  if (ids.length === 0) {
    replace(view.jobs, empty("No job known here", "Jobs that are started here are followed until the console ends. Another one can be shown by its id."));
    return;
  }
  replace(view.jobs, ids.map((job) => {
    const box = h("div", { class: "job" });
    followJob(view, job, box, signal);
    return box;
  }));
}

async function followJob(view, job, box, signal) {
  const path = tenantPath(view.id, `/sync/${encodeURIComponent(job)}`);
  const forget = h("button", { type: "button", "aria-label": `Hide job ${job}`, click: () => {
    jobsOf.remove(view.id, job);
    drawJobs(view);
  } }, "Hide");
  let stop = () => {};
  const look = async () => {
    try {
      const progress = await call("GET", path, { signal });
      const ended = !["queued", "running"].includes(progress.status);
      replace(box, jobState(view, progress, path, look), forget);
      if (ended) stop();
    } catch (problem) {
      if (signal.aborted) return;
      stop();
      const text = problem instanceof Problem && problem.code === "not_found" ? "There is no such job, or its record has expired." : outside(problem.message);
      replace(box, h("p", {}, h("span", { class: "id" }, outsideText(job)), " ", text), forget);
    }
  };
  stop = every(JOB_SECONDS, signal, look);
  await look();
}

const JOB_TONES = { queued: "wait", running: "wait", done: "good", cancelled: "off", failed: "bad" };

function jobState(view, progress, path, look) {
  const { job_id: job, kind, status, from, to, covered_until: covered, delivered, fraction } = progress;
  const runs = status === "queued" || status === "running";
  const id = `job-${job}`;
  return h("div", { class: "job-state" },
    h("p", { id }, h("span", { class: "strong" }, words(kind)), " ", state(JOB_TONES[status] ?? "wait", words(status)), " ", h("span", { class: "id" }, outsideText(job))),
    h("progress", { max: "1", value: String(fraction ?? 0), "aria-labelledby": id }),
    h("p", { class: "soft" }, time(from), " to ", time(to), `, ${count(delivered ?? 0, "version")} delivered`, runs && covered ? [", covered until ", time(covered)] : null),
    view.write && runs && h("button", { type: "button", "data-key": `cancel-${job}`, click: async () => {
      try {
        const tenant = await call("GET", tenantPath(view.id), { signal: view.signal });
        if (!await confirm({ title: `Cancel this ${kind}?`, customer: tenant.customer, text: "What it has delivered stays delivered.", button: "Cancel the job", tone: "danger" })) return;
        await call("DELETE", path, { body: { customer: tenant.customer } });
        await look();
      } catch (problem) {
        replace(view.outcome, problemNotice(problem));
      }
    } }, "Cancel the job"));
}
