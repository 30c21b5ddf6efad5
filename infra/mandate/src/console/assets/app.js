// The views of the console, chosen by the address behind `#`.
import { sessionInfo } from "./api.js";
import { h, outsideText, replace } from "./dom.js";
import { showHunting } from "./hunting.js";
import { showIncident } from "./incident.js";
import { showIncidents } from "./incidents.js";
import { showInvitations } from "./invitations.js";
import { head, problemNotice } from "./parts.js";
import { showTenant } from "./tenant.js";
import { showTenants } from "./tenants.js";

/** The views by the first part of the address and the number of parts behind it. */
const VIEWS = {
  "tenants/0": showTenants,
  "tenants/1": showTenant,
  "incidents/0": showIncidents,
  "incidents/2": showIncident,
  "hunting/0": showHunting,
  "invitations/0": showInvitations,
};

const main = document.getElementById("main");
let leave = new AbortController();
let first = true;

/** Returns the parts of the address: `#/tenants/ID?x=y` has the name `tenants`, the path `[ID]` and the query. */
function parse(hash) {
  const [path, search = ""] = hash.replace(/^#\/?/, "").split("?");
  const [name = "", ...rest] = path.split("/").filter(Boolean).map((part) => {
    try {
      return decodeURIComponent(part);
    } catch {
      return part;
    }
  });
  return { name: name || "tenants", path: rest, query: new URLSearchParams(search) };
}

/** Changes the address. Filters of a view replace it without a new view, unless `redraw` says so. */
function go(path, query = {}, redraw = false) {
  const given = Object.entries(query).filter(([, value]) => value !== "");
  const hash = given.length ? `${path}?${new URLSearchParams(given)}` : path;
  history.replaceState(null, "", hash);
  if (redraw) show();
}

function markNavigation(name) {
  for (const link of document.querySelectorAll("nav a")) {
    if (link.getAttribute("href") === `#/${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
}

function focusTitle() {
  main.querySelector("h1")?.focus({ preventScroll: true });
  window.scrollTo(0, 0);
}

async function show() {
  leave.abort();
  leave = new AbortController();
  const { signal } = leave;
  const { name, path, query } = parse(location.hash);
  const view = VIEWS[`${name}/${path.length}`];
  markNavigation(name);
  document.querySelector("dialog")?.close();
  if (!view) {
    replace(main, head("There is no such page"), h("p", {}, h("a", { href: "#/tenants" }, "To the tenants")));
    return focusTitle();
  }
  // The title takes the focus as soon as it is there, so that a screen reader starts at the new view.
  const moved = first ? null : new MutationObserver(() => {
    if (!main.querySelector("h1")) return;
    moved.disconnect();
    focusTitle();
  });
  first = false;
  moved?.observe(main, { childList: true, subtree: true });
  try {
    await view({ main, path, query, signal, go });
  } catch (problem) {
    if (signal.aborted) return;
    replace(main, head("Mandate"), problemNotice(problem, show));
  }
}

async function drawSession() {
  const place = document.getElementById("session");
  try {
    const { write, api } = await sessionInfo();
    replace(place, h("span", { class: write ? "mode write" : "mode" }, write ? "Changes enabled" : "Read only"), h("span", { class: "api", title: outsideText(api) }, outsideText(new URL(api).host)));
  } catch {
    // The view says what is wrong.
  }
}

document.getElementById("skip").addEventListener("click", (event) => {
  event.preventDefault();
  focusTitle();
});
window.addEventListener("hashchange", show);
drawSession();
show();
