// Invitations: what is open, making one, taking one back.
import { call, pages, sessionInfo } from "./api.js";
import { announce, choice, count, facts, field, h, outside, replace, table, time } from "./dom.js";
import { confirm, copyButton, empty, head, load, notice, problemNotice, state } from "./parts.js";
import { words } from "./words.js";

const TONES = { open: "wait", used: "good", revoked: "off", expired: "off" };
const HOURS = [["24", "1 day"], ["72", "3 days"], ["168", "7 days"], ["336", "14 days"], ["720", "30 days, the most"]];
const ORDER = ["open", "used", "expired", "revoked"];

/** Shows the invitations, and with `--write` the form for one more. */
export async function showInvitations({ main, query, signal }) {
  const { write } = await sessionInfo();
  const outcome = h("div", { class: "outcome", tabindex: "-1" });
  const list = h("section", { "aria-labelledby": "list-title", class: "card" });
  const inside = h("div", {});
  replace(list, h("h2", { id: "list-title" }, "All invitations"), inside);
  const read = () => load(inside, "Reading the invitations …", signal, async () => {
    const all = [];
    for await (const { invitations } of pages("/invitations", { signal })) all.push(...invitations);
    return drawList(all, { write, outcome, read });
  });
  replace(main, head("Invitations"), write ? form(query, outcome, read) : readOnly(), outcome, list);
  await read();
}

function readOnly() {
  return notice("info", "This console is read only", h("p", {}, "Start it with ", h("code", {}, "mandate console --write"), " to invite a customer, or use ", h("code", {}, "mandate invite CUSTOMER"), "."));
}

/** Returns the form of a new invitation, filled in from the address (`customer`, `tenant`). */
function form(query, outcome, read) {
  const customer = h("input", { id: "customer", type: "text", required: true, maxlength: "120", autocomplete: "off", value: query.get("customer") ?? "" });
  const tenant = h("input", { id: "expected", type: "text", autocomplete: "off", spellcheck: "false", value: query.get("tenant") ?? "" });
  const hours = choice("hours", HOURS, "168");
  const submit = async (event) => {
    event.preventDefault();
    const name = customer.value.trim();
    const text = "You get a link for the customer's administrator. Whoever has it can start the consent in this customer's name.";
    if (!name || !await confirm({ title: "Make an invitation?", customer: name, text, button: "Make the invitation" })) return;
    const body = { customer: name, expires_in_hours: Number(hours.value) };
    if (tenant.value.trim()) body.expected_tenant = tenant.value.trim();
    try {
      drawLink(outcome, await call("POST", "/invitations", { body }));
      customer.value = "";
      tenant.value = "";
      await read();
    } catch (problem) {
      replace(outcome, problemNotice(problem));
    }
  };
  return h("form", { class: "card", "aria-labelledby": "form-title", submit },
    h("h2", { id: "form-title" }, "Invite a customer"),
    h("div", { class: "tools wide" },
      field("Customer", customer, "The name that the administrator reads and that you see here."),
      field("Tenant, if you know it", tenant, "Its id or a domain. Only this tenant can then accept."),
      field("Valid for", hours),
      h("button", { type: "submit", class: "accent" }, "Make an invitation")));
}

/** Shows the link of an invitation that was made just now. It cannot be read back. */
function drawLink(outcome, made) {
  const link = h("input", { id: "link", type: "text", readonly: true, value: made.consent_url, focus: () => link.select() });
  replace(outcome, notice("good", "The invitation is made",
    h("p", {}, "Send this link to the administrator by a way that you trust. It is shown once."),
    h("div", { class: "with-copy" }, field("Link", link), copyButton(made.consent_url, "Copy the link")),
    facts([["Customer", outside(made.customer)], ["Tenant", made.expected_tenant ? outside(made.expected_tenant) : "Any"], ["Valid until", time(made.expires_at, { long: true })]])));
  announce("The invitation is made. Its link is in the field Link.");
  link.focus();
}

function drawList(all, view) {
  if (all.length === 0) return empty("No invitation yet");
  const sorted = all.toSorted((one, other) => ORDER.indexOf(one.status) - ORDER.indexOf(other.status) || Date.parse(other.expires_at) - Date.parse(one.expires_at));
  const columns = ["Customer", "State", "Tenant", "Valid until", ...(view.write ? ["Change"] : [])];
  const rows = sorted.map((invitation) => [
    h("div", {}, h("span", { class: "strong" }, outside(invitation.customer)), h("p", { class: "id" }, outside(invitation.invitation_id))),
    state(TONES[invitation.status] ?? "off", words(invitation.status)),
    invitation.expected_tenant ? h("span", { class: "id" }, outside(invitation.expected_tenant)) : h("span", { class: "soft" }, "Any"),
    time(invitation.expires_at),
    ...(view.write ? [revokeButton(invitation, view)] : []),
  ]);
  announce(count(all.length, "invitation"));
  return table("Invitations, the open ones first", columns, rows, { class: "cards invitations" });
}

function revokeButton(invitation, { outcome, read }) {
  if (invitation.status !== "open") return h("span", { class: "soft" }, "–");
  const label = h("span", {}, "Revoke", h("span", { class: "hidden" }, " the invitation of ", outside(invitation.customer)));
  return h("button", { type: "button", "data-key": `revoke-${invitation.invitation_id}`, click: async () => {
    const text = "Its link is of no use any more. This cannot be undone.";
    if (!await confirm({ title: "Revoke this invitation?", customer: invitation.customer, text, button: "Revoke", tone: "danger" })) return;
    try {
      await call("DELETE", `/invitations/${encodeURIComponent(invitation.invitation_id)}`, { body: { customer: invitation.customer } });
      replace(outcome, notice("good", "The invitation is revoked."));
      announce("The invitation is revoked.");
      await read();
      outcome.focus();
    } catch (problem) {
      replace(outcome, problemNotice(problem));
    }
  } }, label);
}
