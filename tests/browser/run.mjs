// The consent pages and the console in a real browser, with the real functions in the local stack. Each journey runs
// once. Each page gets a picture, and each of our own pages an accessibility check.
//
//   npm ci && npm test                    starts `cargo dev`
//   node run.mjs --port 8400 --aws URL    uses a running `cargo dev`, with the port and the AWS address that it printed
//   node run.mjs --only console           runs the journeys whose names begin like this
//   node run.mjs --pictures               replaces the pictures of the front page
import { spawn } from "node:child_process";
import { randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";
import { copyFile, mkdir } from "node:fs/promises";
import { createRequire } from "node:module";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { chromium } from "playwright-core";
import { consoleJourneys } from "./console.mjs";

const here = dirname(fileURLToPath(import.meta.url));
const root = resolve(here, "../..");
const { values: options } = parseArgs({
  options: {
    port: { type: "string" },
    aws: { type: "string" },
    out: { type: "string", default: join(root, "target/browser") },
    chromium: { type: "string", default: "/usr/bin/chromium" },
    only: { type: "string" },
    // `cargo dev` has built it.
    mandate: { type: "string", default: join(process.env.CARGO_TARGET_DIR ?? join(root, "target"), "debug/mandate") },
    pictures: { type: "boolean", default: false },
  },
});
const port = Number(options.port ?? 8480);
const api = `http://localhost:${port}`;
const login = `http://127.0.0.1:${port + 1}`;
/** The local gateway checks the form of a signature only. */
const authorization =
  "AWS4-HMAC-SHA256 Credential=local/20260101/eu-central-1/execute-api/aws4_request, SignedHeaders=host, Signature=0";
const axe = createRequire(import.meta.url).resolve("axe-core/axe.min.js");

/** URL of the stack's AWS. */
let awsUrl = options.aws;

/** Starts `cargo dev` and waits until it has printed its consent link. */
async function startStack() {
  const stack = spawn("cargo", ["dev", "--port", String(port)], { cwd: root, stdio: ["ignore", "pipe", "inherit"] });
  let printed = "";
  await new Promise((ready, failed) => {
    stack.stdout.on("data", (text) => {
      printed += text;
      if (printed.includes("/consent/")) ready();
    });
    stack.on("exit", (code) => failed(new Error(`cargo dev ended with ${code}:\n${printed}`)));
  });
  stack.removeAllListeners("exit");
  awsUrl = /AWS\s+(http:\S+)/.exec(printed)[1];
  return stack;
}

/** Calls DynamoDB in the stack's AWS. */
async function dynamodb(action, body) {
  const response = await fetch(awsUrl, {
    method: "POST",
    headers: {
      "content-type": "application/x-amz-json-1.0",
      "x-amz-target": `DynamoDB_20120810.${action}`,
      authorization: authorization.replace("execute-api", "dynamodb"),
    },
    body: JSON.stringify(body),
  });
  if (!response.ok) throw new Error(`${action}: ${response.status} ${await response.text()}`);
  return response.json();
}

/** Expires an invitation by changing its end in the table, because the functions use the real clock. */
async function expireInvitation(invitation_id) {
  const { TableNames } = await dynamodb("ListTables", {});
  const key = `INVITATION#${invitation_id}`;
  const keys = { TableName: TableNames[0], KeyConditionExpression: "pk = :pk", ExpressionAttributeValues: { ":pk": { S: key } } };
  const { Items } = await dynamodb("Query", keys);
  await dynamodb("UpdateItem", {
    TableName: TableNames[0],
    Key: { pk: Items[0].pk, sk: Items[0].sk },
    UpdateExpression: "SET valid_until = :past",
    ExpressionAttributeValues: { ":past": { S: "2026-01-01T00:00:00Z" } },
  });
}

/** Calls our HTTP API or the simulator and returns the JSON of the response, if it has a body. */
async function call(method, url, body) {
  const response = await fetch(url, {
    method,
    headers: { "content-type": "application/json", authorization },
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  if (!response.ok) throw new Error(`${method} ${url}: ${response.status} ${await response.text()}`);
  const text = await response.text();
  return text ? JSON.parse(text) : undefined;
}

/** Creates a tenant in the simulator, with an administrator and a clerk who may not consent. */
async function createTenant(name, more = {}) {
  const tenant_id = randomUUID();
  const domain = `${name}-${tenant_id.slice(0, 8)}.example`;
  const seed = {
    tenant_id,
    domain,
    display_name: name,
    users: [
      { name: `admin@${domain}`, wids: ["62e90394-69f5-4237-9190-012177145e10"] },
      { name: `clerk@${domain}`, wids: [] },
    ],
    ...more,
  };
  await call("POST", `${login}/_sim/tenants`, seed);
  return { id: seed.tenant_id, admin: `admin@${domain}`, clerk: `clerk@${domain}`, customer: name };
}

const invite = (customer, expected_tenant) => call("POST", `${api}/invitations`, { customer, expected_tenant });

const failures = [];
const pictures = new Set();
/** The origins of our own pages: the HTTP API, and the consoles that journeys start. */
const ownOrigins = new Set([api]);
const isOwn = (url) => URL.canParse(url) && ownOrigins.has(new URL(url).origin);

/** Opens a browser context with an empty profile, in one language and colour scheme. */
async function openBrowser(chrome, journey, settings = {}) {
  const context = await chrome.newContext({ locale: "en-GB", viewport: { width: 900, height: 1000 }, ...settings });
  const page = await context.newPage();
  page.on("console", (message) => {
    const isOurs = isOwn(message.location().url);
    // Chromium reports the status of an error page, and the missing favicon.
    const isExpected = /Failed to load resource|favicon/.test(message.text());
    if (isOurs && message.type() === "error" && !isExpected) failures.push(`${journey}: console: ${message.text()}`);
  });
  /** Checks that the heading contains a text, takes a picture, and checks one of our own pages for accessibility. */
  const check = async (title, step) => {
    await page.waitForLoadState("load");
    const heading = (await page.textContent("h1"))?.trim() ?? "";
    if (!heading.includes(title)) throw new Error(`${journey}: expected "${title}", found "${heading}" at ${page.url()}`);
    const picture = `${journey}-${step}`;
    pictures.add(picture);
    await page.screenshot({ path: join(options.out, `${picture}.png`), fullPage: true });
    if (!isOwn(page.url())) return;
    const violations = await accessibilityViolations();
    for (const violation of violations) failures.push(`${journey}-${step}: ${violation}`);
  };
  const session = await context.newCDPSession(page);
  /** Runs axe-core in an isolated world of the debugger, because our content security policy permits no script. */
  const accessibilityViolations = async () => {
    const source = readFileSync(axe, "utf8");
    const { frameTree } = await session.send("Page.getFrameTree");
    const world = { frameId: frameTree.frame.id, worldName: "axe", grantUniveralAccess: true };
    const { executionContextId: contextId } = await session.send("Page.createIsolatedWorld", world);
    const expression = `${source};axe.run().then(r => r.violations.map(v => v.id + ": " + v.nodes.map(n => n.html).join(" | ")))`;
    const run = { expression, contextId, awaitPromise: true, returnByValue: true };
    const { result, exceptionDetails } = await session.send("Runtime.evaluate", run);
    if (exceptionDetails) throw new Error(`${journey}: the accessibility check failed: ${exceptionDetails.text}`);
    return result.value;
  };
  /** Submits our form and selects an account at Microsoft. */
  const signIn = async (user) => {
    await page.click("form button");
    await page.click(`button[data-user="${user}"]`);
  };
  return { context, page, check, signIn };
}

/** The pages of refusals by Microsoft: the error, its number, and the title of its page. */
const refusalTexts = {
  en: {
    code: "could not be verified",
    unchanged: "Nothing was changed.",
    stays: "A consent that was given at Microsoft stays there.",
    foreign: "does not belong together",
    wrongTenant: "not the tenant that was invited",
    errors: {
      declined: ["access_denied", 65004, "You have declined"],
      account: ["access_denied", 50020, "This account does not belong to the organization"],
      license: ["access_denied", 65005, "Your tenant has no license"],
      resource: ["access_denied", 500014, "Defender is switched off in your tenant"],
      app: ["access_denied", 7000112, "is switched off in your tenant"],
      role: ["access_denied", 90094, "Your account may not consent"],
      policy: ["access_denied", 53003, "A policy of your organization forbids it"],
      registration: ["invalid_request", 50011, "is not set up right"],
      unavailable: ["server_error", undefined, "Microsoft cannot do this now"],
      unknown: ["unknown_error", undefined, "Microsoft has not granted it"],
    },
  },
  de: {
    code: "ließ sich nicht überprüfen",
    unchanged: "Nichts wurde geändert.",
    stays: "Eine Zustimmung, die bei Microsoft erteilt wurde, bleibt dort bestehen.",
    foreign: "Das gehört nicht zusammen",
    wrongTenant: "nicht der eingeladene Mandant",
    errors: {
      declined: ["access_denied", 65004, "Sie haben abgelehnt"],
      account: ["access_denied", 50020, "Dieses Konto gehört nicht zur Organisation"],
      license: ["access_denied", 65005, "Ihrem Mandanten fehlt die Lizenz"],
      resource: ["access_denied", 500014, "Defender ist in Ihrem Mandanten abgeschaltet"],
      app: ["access_denied", 7000112, "ist in Ihrem Mandanten abgeschaltet"],
      role: ["access_denied", 90094, "Ihr Konto darf nicht zustimmen"],
      policy: ["access_denied", 53003, "Eine Richtlinie Ihrer Organisation"],
      registration: ["invalid_request", 50011, "ist nicht richtig eingerichtet"],
      unavailable: ["server_error", undefined, "Microsoft kann das gerade nicht"],
      unknown: ["unknown_error", undefined, "Microsoft hat es nicht erteilt"],
    },
  },
};

const journeys = {
  async accept(chrome) {
    const { id, admin, customer } = await createTenant("tailspin");
    const { consent_url } = await invite(customer);
    for (const colorScheme of ["dark", "light"]) {
      const { context, page, check, signIn } = await openBrowser(chrome, `accept-${colorScheme}`, { colorScheme });
      await page.goto(consent_url);
      await check("asks to read your security incidents", "1-invitation");
      if (colorScheme === "light") {
        await signIn(admin);
        await check("", "2-microsoft");
        await page.click("#accept");
        await check("can read your incidents", "3-result");
        await page.goto(consent_url);
        await check("was used", "4-used");
      }
      await context.close();
    }
    const { status } = await call("GET", `${api}/tenants/${id}`);
    if (status !== "active") throw new Error(`accept: the tenant is ${status}`);
  },

  async germanPage(chrome) {
    const { consent_url } = await invite("Alpenglühen & Söhne");
    const { context, page, check } = await openBrowser(chrome, "german", { locale: "de-AT", viewport: { width: 390, height: 800 } });
    await page.goto(consent_url);
    await check("bittet um Einsicht", "1-invitation");
    await context.close();
  },

  async cancelThenAccept(chrome) {
    const { admin, customer } = await createTenant("adatum");
    const { consent_url } = await invite(customer);
    const { context, page, check, signIn } = await openBrowser(chrome, "cancel");
    await page.goto(consent_url);
    await signIn(admin);
    await page.click("#cancel");
    await check("You have declined", "1-declined");
    await page.goto(`${api}/consent/result`);
    await check("One step is left", "2-result");
    await page.click("a.button");
    await page.click("#accept");
    await check("can read your incidents", "3-accepted");
    await context.close();
  },

  async clerkWithoutRole(chrome) {
    const { clerk, customer } = await createTenant("proseware");
    const { consent_url } = await invite(customer);
    const { context, page, check, signIn } = await openBrowser(chrome, "clerk");
    await page.goto(consent_url);
    await signIn(clerk);
    await page.waitForSelector("#need-admin");
    await check("", "1-microsoft");
    await page.click("#cancel");
    await page.waitForURL(`${api}/**`);
    await check("", "2-back");
    await context.close();
  },

  async tenantOfAnotherCustomer(chrome) {
    const { id, admin, customer } = await createTenant("wingtip");
    const first = await openBrowser(chrome, "other-customer-first");
    await first.page.goto((await invite(customer)).consent_url);
    await first.signIn(admin);
    await first.page.click("#accept");
    await first.check("can read your incidents", "1-result");
    await first.context.close();
    const { context, page, check, signIn } = await openBrowser(chrome, "other-customer");
    await page.goto((await invite("Somebody Else")).consent_url);
    await signIn(admin);
    await check("belongs to another customer", "1-refused");
    await context.close();
    if ((await call("GET", `${api}/tenants/${id}`)).customer !== customer) throw new Error("the tenant was taken over");

    const again = await openBrowser(chrome, "again");
    await again.page.goto((await invite(customer)).consent_url);
    await again.signIn(admin);
    await again.page.click("#accept");
    await again.check("can read your incidents", "1-result");
    await again.context.close();
  },

  async forgedTenant(chrome) {
    const invited = await createTenant("litware");
    const other = await createTenant("lucerne");
    const { consent_url } = await invite("litware");
    const { context, page, check, signIn } = await openBrowser(chrome, "wrong-tenant");
    await page.goto(consent_url);
    await signIn(invited.admin);
    // The user replaces the tenant in the address that Microsoft redirects to.
    await page.route(`${login}/consent`, async (route) => {
      const response = await route.fetch({ maxRedirects: 0 });
      const location = response.headers().location.replace(invited.id, other.id);
      await route.fulfill({ status: response.status(), headers: { location } });
    });
    await page.click("#accept");
    await check("not the tenant that was invited", "1-refused");
    await context.close();
  },

  async pendingUntilActive(chrome) {
    const propagation = { refused: 2, code: 7000229, roleless: 1 };
    const { admin, customer } = await createTenant("fourthcoffee", { propagation });
    const { consent_url } = await invite(customer);
    const { context, page, check, signIn } = await openBrowser(chrome, "pending");
    await page.goto(consent_url);
    await signIn(admin);
    await page.click("#accept");
    await check("still spreading", "1-pending");
    // The page reloads itself until the tenant is active.
    await page.waitForFunction(() => document.querySelector("h1").textContent.includes("can read"), null, { timeout: 90_000 });
    await check("can read your incidents", "2-active");
    await context.close();
  },

  async refusals(chrome) {
    for (const [locale, texts] of Object.entries(refusalTexts)) {
      const { admin, customer } = await createTenant("woodgrove");
      const { consent_url } = await invite(customer);
      const { context, page, check, signIn } = await openBrowser(chrome, `refused-${locale}`, { locale });
      const shows = async (text) => {
        if (!(await page.textContent("main")).includes(text)) throw new Error(`refused-${locale}: "${text}" is missing`);
      };
      const stateAt = async (path) => {
        await page.waitForURL((url) => url.href.startsWith(login) && url.pathname.endsWith(path));
        return new URL(page.url()).searchParams.get("state");
      };
      // A code that Microsoft did not issue.
      await page.goto(consent_url);
      await page.click("form button");
      await page.goto(`${api}/consent/callback?code=made-up&state=${await stateAt("/authorize")}`);
      await check(texts.code, "code");
      await shows(texts.unchanged);
      // The refusals of a consent leave the attempt as it is.
      await page.goto(consent_url);
      await signIn(admin);
      const state = await stateAt("/adminconsent");
      for (const [step, [error, number, title]] of Object.entries(texts.errors)) {
        const query = new URLSearchParams({ error, state });
        if (number) query.set("error_description", `AADSTS${number}: x`);
        await page.goto(`${api}/consent/callback?${query}`);
        await check(title, step);
      }
      // A consent that is refused stays at Microsoft.
      const consented = `${api}/consent/callback?admin_consent=True&tenant=${randomUUID()}&state=`;
      await page.goto(`${consented}x`);
      await check(texts.foreign, "foreign-consent");
      await shows(texts.stays);
      await page.goto(consented + state);
      await check(texts.wrongTenant, "wrong-tenant");
      await shows(texts.stays);
      await context.close();
    }
  },

  async unusableLinks(chrome) {
    const { invitation_id, consent_url } = await invite("relecloud");
    await call("DELETE", `${api}/invitations/${invitation_id}`);
    const { context, page, check } = await openBrowser(chrome, "old-link");
    await page.goto(consent_url);
    await check("no longer valid", "1-revoked");
    const old = await invite("relecloud");
    await expireInvitation(old.invitation_id);
    await page.goto(old.consent_url);
    await check("has expired", "2-expired");
    await page.goto(`${api}/consent/AAAA`);
    await check("There is no such invitation", "3-unknown");
    await page.goto(`${api}/consent/callback?code=x&state=y`);
    await check("does not belong together", "4-foreign");
    await context.close();
  },
};

/** What the pages show that a failed journey left open. Closes them. */
async function openPages(chrome) {
  const shown = [];
  for (const context of chrome.contexts()) {
    for (const page of context.pages()) {
      const text = await page.innerText("body").catch((error) => error.message);
      shown.push(`${page.url().replace(/token=[^&]*/, "token=…")} shows:`, text.slice(0, 3_000));
    }
    await context.close();
  }
  return shown;
}

Object.assign(journeys, consoleJourneys({ program: options.mandate, api, login, call, createTenant, openBrowser, ownOrigins }));
const chosen = options.only ? Object.entries(journeys).filter(([name]) => name.startsWith(options.only)) : Object.entries(journeys);
await mkdir(options.out, { recursive: true });
const stack = options.port ? undefined : await startStack();
const chrome = await chromium.launch({
  executablePath: options.chromium,
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"],
});
try {
  for (const [name, journey] of chosen) {
    try {
      await journey(chrome);
      console.log(`ok      ${name}`);
    } catch (error) {
      failures.push([error.message, ...await openPages(chrome)].join("\n"));
      console.log(`failed  ${name}`);
    }
  }
} finally {
  await chrome.close();
  stack?.kill("SIGINT");
}
for (const failure of failures) console.error(failure);
if (options.pictures) {
  const shown = {
    "accept-light-1-invitation": join(here, "pictures/invitation.png"),
    "accept-light-3-result": join(here, "pictures/result.png"),
    "console-light-tenants": join(root, "infra/mandate/pictures/tenants.png"),
    "console-dark-incident": join(root, "infra/mandate/pictures/incident.png"),
  };
  for (const [name, to] of Object.entries(shown)) {
    if (!pictures.has(name)) continue;
    await mkdir(dirname(to), { recursive: true });
    await copyFile(join(options.out, `${name}.png`), to);
  }
}
console.log(`${pictures.size} pictures in ${options.out}`);
const failed = failures.length;
const passed = Math.max(0, chosen.length - failed);
console.log(`test result: ${failed ? "FAILED" : "ok"}. ${passed} passed; ${failed} failed`);
process.exitCode = failed > 0 ? 1 : 0;
