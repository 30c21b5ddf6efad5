// The consent pages in a real browser, against the real functions in the local stack: each journey once, a picture of
// each page, and an accessibility check of each of ours.
//
//   npm ci && npm test                    starts `cargo dev` by itself
//   node run.mjs --port 8400 --aws URL    uses one that is up; both addresses are what it printed
import { spawn } from "node:child_process";
import { randomUUID } from "node:crypto";
import { mkdir } from "node:fs/promises";
import { createRequire } from "node:module";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { chromium } from "playwright-core";

const here = dirname(fileURLToPath(import.meta.url));
const root = resolve(here, "../..");
const { values: options } = parseArgs({
  options: {
    port: { type: "string" },
    aws: { type: "string" },
    out: { type: "string", default: join(root, "target/browser") },
    chromium: { type: "string", default: "/usr/bin/chromium" },
  },
});
const port = Number(options.port ?? 8480);
const api = `http://localhost:${port}`;
const login = `http://127.0.0.1:${port + 1}`;
/** The local gateway looks at a signature's form, not at its truth. */
const authorization =
  "AWS4-HMAC-SHA256 Credential=local/20260101/eu-central-1/execute-api/aws4_request, SignedHeaders=host, Signature=0";
const axe = createRequire(import.meta.url).resolve("axe-core/axe.min.js");

/** Where the stack's AWS listens. */
let aws = options.aws;

/** `cargo dev`, up to its consent link. */
async function startStack() {
  const stack = spawn("cargo", ["dev", "--port", String(port)], { cwd: root, stdio: ["ignore", "pipe", "inherit"] });
  let said = "";
  await new Promise((ready, failed) => {
    stack.stdout.on("data", (text) => {
      said += text;
      if (said.includes("/consent/")) ready();
    });
    stack.on("exit", (code) => failed(new Error(`cargo dev ended with ${code}:\n${said}`)));
  });
  stack.removeAllListeners("exit");
  aws = /AWS\s+(http:\S+)/.exec(said)[1];
  return stack;
}

async function dynamodb(action, body) {
  const reply = await fetch(aws, {
    method: "POST",
    headers: {
      "content-type": "application/x-amz-json-1.0",
      "x-amz-target": `DynamoDB_20120810.${action}`,
      authorization: authorization.replace("execute-api", "dynamodb"),
    },
    body: JSON.stringify(body),
  });
  if (!reply.ok) throw new Error(`${action}: ${reply.status} ${await reply.text()}`);
  return reply.json();
}

/** Lets an invitation's time pass: the functions go by the real clock, so its end is moved instead. */
async function expire(invitation_id) {
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

async function call(method, url, body) {
  const reply = await fetch(url, {
    method,
    headers: { "content-type": "application/json", authorization },
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  if (!reply.ok) throw new Error(`${method} ${url}: ${reply.status} ${await reply.text()}`);
  const text = await reply.text();
  return text ? JSON.parse(text) : undefined;
}

/** A tenant of its own at Microsoft, with an administrator and a clerk. */
async function tenant(name, more = {}) {
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

const faults = [];
let pictures = 0;

/** A browser with an empty profile, in one language and colour scheme. */
async function visit(chrome, journey, settings = {}) {
  const context = await chrome.newContext({ locale: "en-GB", viewport: { width: 900, height: 1000 }, ...settings });
  const page = await context.newPage();
  page.on("console", (message) => {
    const ours = message.location().url.startsWith(api);
    // A page with an error has its status, and Chromium says so; it also asks for an icon that nobody has.
    const expected = /Failed to load resource|favicon/.test(message.text());
    if (ours && message.type() === "error" && !expected) faults.push(`${journey}: console: ${message.text()}`);
  });
  const check = async (title, step) => {
    await page.waitForLoadState("load");
    const heading = (await page.textContent("h1"))?.trim() ?? "";
    if (!heading.includes(title)) throw new Error(`${journey}: wanted "${title}", got "${heading}" at ${page.url()}`);
    pictures += 1;
    await page.screenshot({ path: join(options.out, `${journey}-${step}.png`), fullPage: true });
    if (!page.url().startsWith(api)) return;
    // Our policy lets no script in; the checker is put in by the debugger, outside of the page's own world.
    const found = await check.axe();
    for (const violation of found) faults.push(`${journey}-${step}: ${violation}`);
  };
  const session = await context.newCDPSession(page);
  check.axe = async () => {
    const source = (await import("node:fs")).readFileSync(axe, "utf8");
    const { frameTree } = await session.send("Page.getFrameTree");
    const world = { frameId: frameTree.frame.id, worldName: "axe", grantUniveralAccess: true };
    const { executionContextId: contextId } = await session.send("Page.createIsolatedWorld", world);
    const expression = `${source};axe.run().then(r => r.violations.map(v => v.id + ": " + v.nodes.map(n => n.html).join(" | ")))`;
    const run = { expression, contextId, awaitPromise: true, returnByValue: true };
    const { result, exceptionDetails } = await session.send("Runtime.evaluate", run);
    if (exceptionDetails) throw new Error(`${journey}: the accessibility check failed: ${exceptionDetails.text}`);
    return result.value;
  };
  const signIn = async (user) => {
    await page.click("form button");
    await page.click(`button[data-user="${user}"]`);
  };
  return { context, page, check, signIn };
}

const journeys = {
  async accept(chrome) {
    const { id, admin, customer } = await tenant("tailspin");
    const { consent_url } = await invite(customer);
    for (const colorScheme of ["dark", "light"]) {
      const { context, page, check, signIn } = await visit(chrome, `accept-${colorScheme}`, { colorScheme });
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

  async german(chrome) {
    const { consent_url } = await invite("Alpenglühen & Söhne");
    const { context, page, check } = await visit(chrome, "german", { locale: "de-AT", viewport: { width: 390, height: 800 } });
    await page.goto(consent_url);
    await check("bittet um Einsicht", "1-invitation");
    await context.close();
  },

  async cancel(chrome) {
    const { admin, customer } = await tenant("adatum");
    const { consent_url } = await invite(customer);
    const { context, page, check, signIn } = await visit(chrome, "cancel");
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

  async clerk(chrome) {
    const { clerk, customer } = await tenant("proseware");
    const { consent_url } = await invite(customer);
    const { context, page, check, signIn } = await visit(chrome, "clerk");
    await page.goto(consent_url);
    await signIn(clerk);
    await page.waitForSelector("#need-admin");
    await check("", "1-microsoft");
    await page.click("#cancel");
    await page.waitForURL(`${api}/**`);
    await check("", "2-back");
    await context.close();
  },

  async otherCustomer(chrome) {
    const { id, admin, customer } = await tenant("wingtip");
    const first = await visit(chrome, "other-customer-first");
    await first.page.goto((await invite(customer)).consent_url);
    await first.signIn(admin);
    await first.page.click("#accept");
    await first.check("can read your incidents", "1-result");
    await first.context.close();
    const { context, page, check, signIn } = await visit(chrome, "other-customer");
    await page.goto((await invite("Somebody Else")).consent_url);
    await signIn(admin);
    await check("belongs to another customer", "1-refused");
    await context.close();
    if ((await call("GET", `${api}/tenants/${id}`)).customer !== customer) throw new Error("the tenant was taken over");

    const again = await visit(chrome, "again");
    await again.page.goto((await invite(customer)).consent_url);
    await again.signIn(admin);
    await again.page.click("#accept");
    await again.check("can read your incidents", "1-result");
    await again.context.close();
  },

  async wrongTenant(chrome) {
    const invited = await tenant("litware");
    const other = await tenant("lucerne");
    const { consent_url } = await invite("litware");
    const { context, page, check, signIn } = await visit(chrome, "wrong-tenant");
    await page.goto(consent_url);
    await signIn(invited.admin);
    // Whoever sits at the browser changes the tenant in the address that Microsoft sends back.
    await page.route(`${login}/consent`, async (route) => {
      const reply = await route.fetch({ maxRedirects: 0 });
      const location = reply.headers().location.replace(invited.id, other.id);
      await route.fulfill({ status: reply.status(), headers: { location } });
    });
    await page.click("#accept");
    await check("not the tenant that was invited", "1-refused");
    await context.close();
  },

  async pending(chrome) {
    const propagation = { refused: 2, code: 7000229, roleless: 1 };
    const { admin, customer } = await tenant("fourthcoffee", { propagation });
    const { consent_url } = await invite(customer);
    const { context, page, check, signIn } = await visit(chrome, "pending");
    await page.goto(consent_url);
    await signIn(admin);
    await page.click("#accept");
    await check("still spreading", "1-pending");
    // Nobody touches it: the page renews itself.
    await page.waitForFunction(() => document.querySelector("h1").textContent.includes("can read"), null, { timeout: 90_000 });
    await check("can read your incidents", "2-active");
    await context.close();
  },

  async oldLink(chrome) {
    const { invitation_id, consent_url } = await invite("relecloud");
    await call("DELETE", `${api}/invitations/${invitation_id}`);
    const { context, page, check } = await visit(chrome, "old-link");
    await page.goto(consent_url);
    await check("no longer valid", "1-revoked");
    const old = await invite("relecloud");
    await expire(old.invitation_id);
    await page.goto(old.consent_url);
    await check("has expired", "2-expired");
    await page.goto(`${api}/consent/AAAA`);
    await check("There is no such invitation", "3-unknown");
    await page.goto(`${api}/consent/callback?code=x&state=y`);
    await check("does not belong together", "4-foreign");
    await context.close();
  },
};

await mkdir(options.out, { recursive: true });
const stack = options.port ? undefined : await startStack();
const chrome = await chromium.launch({
  executablePath: options.chromium,
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"],
});
try {
  for (const [name, journey] of Object.entries(journeys)) {
    try {
      await journey(chrome);
      console.log(`ok      ${name}`);
    } catch (error) {
      faults.push(error.message);
      console.log(`failed  ${name}`);
    }
  }
} finally {
  await chrome.close();
  stack?.kill("SIGINT");
}
for (const fault of faults) console.error(fault);
console.log(`${pictures} pictures in ${options.out}`);
const failed = faults.length;
const passed = Math.max(0, Object.keys(journeys).length - failed);
console.log(`test result: ${failed ? "FAILED" : "ok"}. ${passed} passed; ${failed} failed`);
process.exitCode = faults.length > 0 ? 1 : 0;
