// The console of `mandate` in a real browser, against the local stack.
import { spawn } from "node:child_process";
import { createServer } from "node:http";
import { mkdtemp, readFile, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { delimiter, join } from "node:path";

const CONTOSO = "c0c0a000-1111-4111-8111-c0c0a0000001";
const NORTHWIND = "b0a7d000-3333-4333-8333-b0a7d0000003";
/** Markup, a character that reorders the line, and a control character. */
const HOSTILE = "<img src=x onerror=\"window.marked=1\">\u202Egnp.exe \u0007<b>bold</b>";

function expect(holds, what) {
  if (!holds) throw new Error(what);
}

/**
 * The journeys through the console. `program` is the binary of `mandate`; the rest is what all journeys
 * share.
 */
export function consoleJourneys({ program, api, login, call, createTenant, openBrowser, ownOrigins }) {
  /** Starts a console on a free port; `end` presses Ctrl-C and returns the exit status. */
  async function startConsole(...options) {
    return started(["--no-open", ...options], process.env);
  }

  async function started(options, env) {
    const process_ = spawn(program, ["--api", api, "console", ...options], { env, stdio: ["ignore", "pipe", "pipe"] });
    const ended = new Promise((resolve) => process_.on("exit", resolve));
    let printed = "";
    const address = await new Promise((found, failed) => {
      process_.stdout.on("data", (text) => {
        printed += text;
        const match = /http:\/\/127\.0\.0\.1:\d+\/\?token=\w+/.exec(printed);
        if (match) found(match[0]);
      });
      process_.on("exit", (code) => failed(new Error(`mandate console ended with ${code}`)));
    });
    const { origin } = new URL(address);
    ownOrigins.add(origin);
    return { address, origin, end: () => (process_.kill("SIGINT"), ended) };
  }

  /** Runs a journey in a console of its own and checks that Ctrl-C ends it. */
  async function withConsole(options, journey) {
    const console_ = await startConsole(...options);
    try {
      await journey(console_);
    } finally {
      const status = await console_.end();
      expect(status === 0, `mandate console ended with ${status}`);
    }
  }

  /**
   * Opens the console in a browser of its own. `visit` goes to a view and waits until it has loaded. `origin` is the one
   * that this start of the console alone has.
   */
  async function enter(chrome, name, { address }, settings) {
    const opened = await openBrowser(chrome, name, { viewport: { width: 1280, height: 900 }, ...settings });
    const { page } = opened;
    let origin;
    page.on("framenavigated", (frame) => {
      const url = new URL(frame.url());
      if (frame !== page.mainFrame() || !/^mandate-[0-9a-f]{32}\.localhost$/.test(url.hostname)) return;
      ({ origin } = url);
      ownOrigins.add(origin);
    });
    const settled = () => page.waitForFunction(() => document.querySelector("h1") && !document.querySelector(".loading"));
    const visit = async (hash) => {
      // A change of the part behind # alone would be no new load, and `settled` could see the view before.
      await page.goto("about:blank");
      await page.goto(`${origin}/${hash}`);
      await settled();
    };
    await page.goto(address);
    await settled();
    expect(origin, `the console stays at ${page.url()}`);
    return { ...opened, origin, visit, settled, main: page.locator("main") };
  }

  async function addIncident(tenant_id, incident) {
    const { id } = await call("POST", `${login}/_sim/tenants/${tenant_id}/incidents`, incident);
    return id;
  }

  /** Consents for a tenant of its own, so that a journey may change it. */
  async function onboard(chrome, customer) {
    const tenant = await createTenant(customer);
    const { consent_url } = await call("POST", `${api}/invitations`, { customer });
    await accept(chrome, consent_url, tenant, `console-onboard-${customer}`);
    return tenant;
  }

  /** The tenant's administrator opens a link and consents, in another browser. */
  async function accept(chrome, consent_url, tenant, name) {
    const { context, page, signIn, check } = await openBrowser(chrome, name);
    await page.goto(consent_url);
    await signIn(tenant.admin);
    await page.click("#accept");
    await check("can read your incidents", "result");
    await context.close();
  }

  /** Looks at all views as they are now, with a picture and the accessibility check of each. */
  async function picture(opened, name) {
    await opened.page.mouse.move(0, 0);
    await opened.check("", name);
    const wider = await opened.page.evaluate(() => document.documentElement.scrollWidth - window.innerWidth);
    expect(wider <= 0, `${name}: the page is ${wider} pixels wider than the window`);
  }

  const text = (page, selector) => page.textContent(selector).then((found) => found.replace(/\s+/g, " "));

  async function readTenants(opened, scheme) {
    const { page } = opened;
    await opened.visit("#/tenants");
    await page.waitForSelector("table.tenants");
    const table = await text(page, "table.tenants");
    for (const name of ["Contoso", "Northwind", "Active"]) expect(table.includes(name), `the tenants lack ${name}`);
    await picture(opened, `${scheme}-tenants`);
    await page.click(`a[href="#/tenants/${CONTOSO}"]`);
    await page.waitForSelector("h1:has-text('Contoso')");
    expect((await text(page, "main")).includes("This console is read only"), "a read-only console does not say so");
    expect(await page.locator("section[aria-labelledby=changes-title] button", { hasText: /Pause|Offboard/ }).count() === 0, "a read-only console shows changes");
    await picture(opened, `${scheme}-tenant`);
    await opened.visit("#/tenants/no-such-tenant");
    expect((await text(page, "main")).includes("Not found"), "an unknown tenant has no message");
    await picture(opened, `${scheme}-tenant-unknown`);
  }

  async function readIncidents(opened, scheme, { plain }) {
    const { page } = opened;
    await opened.visit("#/incidents");
    await page.waitForSelector("table.incidents");
    for (const name of ["Contoso", "Northwind", "Credential dumping tool detected"]) {
      expect((await text(page, "table.incidents")).includes(name), `the incidents lack ${name}`);
    }
    await picture(opened, `${scheme}-incidents`);
    await page.selectOption("#severity", "high");
    await page.waitForFunction(() => [...document.querySelectorAll("table.incidents tbody tr")].every((row) => row.textContent.includes("High")));
    expect(page.url().includes("severity=high"), "the filter is not in the address");
    await opened.visit(`#/incidents/${CONTOSO}/${plain}`);
    await page.click("details.alert > summary");
    await page.waitForSelector("table.evidence");
    const portal = page.locator("a.portal").first();
    expect(new URL(await portal.getAttribute("href")).hostname === "security.microsoft.com", "the portal's link leads elsewhere");
    expect(await portal.getAttribute("rel") === "noopener noreferrer", "the portal's link hands our page over");
    await picture(opened, `${scheme}-incident`);
  }

  /** Runs a hunt over both tenants, of which one has no such table, and reads the download. */
  async function hunt(opened, scheme) {
    const { page } = opened;
    await opened.visit("#/hunting");
    await page.fill("#query", "DeviceInfo");
    await page.press("#query", "Control+Enter");
    // A tenant that fails in passing is tried again after 15 and after 30 seconds more.
    await page.waitForSelector("table.rows", { timeout: 120_000 });
    expect((await text(page, "main")).includes("Northwind"), "the tenant without a result is not named");
    const [file] = await Promise.all([page.waitForEvent("download"), page.click("text=Download CSV")]);
    const csv = await readFile(await file.path(), "utf8");
    for (const line of ["customer,tenant_id,DeviceName,RiskScore", `Contoso,${CONTOSO},w11-017,-3`, `"'=HYPERLINK(""http://evil.example"")",5`, `"'+1",`, "\\u{1b}[2J\\u{9b}1mred\\u{d}x,7"]) {
      expect(csv.includes(line), `the file lacks ${line}: ${csv}`);
    }
    await picture(opened, `${scheme}-hunting`);
  }

  return {
    async consoleReading(chrome) {
      const rows = [["w11-017", -3], ["=HYPERLINK(\"http://evil.example\")", 5], ["+1", null], ["\u001b[2J\u009b1mred\rx", 7]].map(([DeviceName, RiskScore]) => ({ DeviceName, RiskScore }));
      const columns = [["DeviceName", "String"], ["RiskScore", "Int64"]];
      await call("POST", `${login}/_sim/tenants/${CONTOSO}/hunting`, { name: "DeviceInfo", columns, rows });
      const plain = await addIncident(CONTOSO, { display_name: "Multi-stage incident on one endpoint", severity: "high", alerts: 2 });
      await withConsole([], async (console_) => {
        const opened = await enter(chrome, "console", console_, { colorScheme: "light" });
        expect(!opened.page.url().includes("token"), "the token stays in the address");
        const looks = { light: [1280, 900], dark: [1280, 900], phone: [390, 844] };
        for (const [scheme, [width, height]] of Object.entries(looks)) {
          await opened.page.emulateMedia({ colorScheme: scheme === "dark" ? "dark" : "light" });
          await opened.page.setViewportSize({ width, height });
          await readTenants(opened, scheme);
          await readIncidents(opened, scheme, { plain });
          await hunt(opened, scheme);
          await opened.visit("#/invitations");
          await picture(opened, `${scheme}-invitations`);
        }
        await opened.context.close();
      });
    },

    async consoleWriting(chrome) {
      const { id, customer } = await onboard(chrome, "coho");
      await withConsole(["--write"], async (console_) => {
        const opened = await enter(chrome, "console-write", console_);
        const { page } = opened;
        const confirmed = async (button) => {
          expect((await text(page, "dialog")).includes(customer), "the confirmation does not name the customer");
          await page.click(`dialog button:has-text("${button}")`);
        };
        await opened.visit(`#/tenants/${id}`);
        // A change that is not confirmed is not made.
        await page.click("text=Pause");
        await page.keyboard.press("Escape");
        expect((await call("GET", `${api}/tenants/${id}`)).status === "active", "Escape has paused the tenant");
        await page.click("text=Pause");
        await picture(opened, "confirm");
        await confirmed("Pause");
        await page.waitForSelector("text=is paused");
        expect((await call("GET", `${api}/tenants/${id}`)).reason === "operator", "the tenant is not paused");
        await page.click("button:has-text('Resume')");
        await confirmed("Resume");
        await page.waitForSelector("text=is resumed");
        await page.waitForSelector(".history li:nth-child(4)");
        const states = await text(page, ".history");
        expect(/Active.*Paused.*An operator has paused it.*Active.*Pending/.test(states), `the history is ${states}`);
        await page.click("button:has-text('Sweep')");
        await confirmed("Start the sweep");
        await page.waitForSelector(".job progress");
        await picture(opened, "job");

        await page.click("text=Invite again");
        await page.waitForSelector("#customer");
        expect(await page.inputValue("#customer") === customer && await page.inputValue("#expected") === id, "the form is not filled in");
        await page.click("form .accent");
        await confirmed("Make the invitation");
        await page.waitForSelector("#link");
        expect((await page.inputValue("#link")).startsWith(`${api}/consent/`), "the link is not shown");
        await picture(opened, "invitation");
        // The link is only where it was made.
        await page.reload();
        await page.waitForSelector("table.invitations");
        expect(!(await page.content()).includes("/consent/"), "the list has a link");
        await page.click(`tr:has-text("${customer}"):has-text("Open") button`);
        await confirmed("Revoke");
        await page.waitForSelector("text=The invitation is revoked.");

        await opened.visit(`#/tenants/${id}`);
        await page.click("button:has-text('Offboard')");
        expect(await page.isDisabled("dialog .danger"), "offboarding needs no typed name");
        await page.fill("#typed-name", customer);
        await confirmed("Offboard");
        await page.waitForSelector("text=/Offboarded/");
        expect((await call("GET", `${api}/tenants/${id}`)).status === "offboarded", "the tenant is not offboarded");
        await picture(opened, "offboarded");
        await opened.context.close();
      });
    },

    /** One customer from the invitation to the offboarding, by somebody who has only the console. */
    async consoleCustomer(chrome) {
      const tenant = await createTenant("wingtip");
      const { id, customer } = tenant;
      await call("POST", `${login}/_sim/tenants/${id}/hunting`, { name: "DeviceInfo", columns: [["DeviceName", "String"]], rows: [{ DeviceName: "fs-01" }] });
      await withConsole(["--write"], async (console_) => {
        const opened = await enter(chrome, "console-customer", console_);
        const { page } = opened;
        const invite = async () => {
          await page.click("form .accent");
          await page.click('dialog button:has-text("Make the invitation")');
          await page.waitForSelector("#link");
          return page.inputValue("#link");
        };
        await opened.visit("#/invitations");
        await page.fill("#customer", customer);
        await accept(chrome, await invite(), tenant, "console-customer-onboard");
        await opened.visit("#/tenants");
        await page.waitForSelector(`tr:has-text("${customer}"):has-text("Active")`);

        const incident = await addIncident(id, { display_name: "Ransomware on a file server", severity: "high", alerts: 1 });
        await opened.visit(`#/incidents?tenant=${id}`);
        await page.click("a:has-text('Ransomware on a file server')");
        await page.waitForSelector("h1:has-text('Ransomware on a file server')");
        expect(page.url().includes(`${id}/${incident}`), "the incident is another one");

        // The customer removes the app. The page says what has happened and what to do.
        const [{ client_id }] = await call("GET", `${login}/_sim/tenants/${id}/grants`);
        await call("DELETE", `${login}/_sim/tenants/${id}/grants/${client_id}`);
        await call("POST", `${login}/_sim/faults`, { kind: { kind: "status", status: 401 }, host: "graph", tenant_id: id, times: 4 });
        await opened.visit(`#/tenants/${id}`);
        await page.waitForSelector("text=The consent is missing or was withdrawn", { timeout: 60_000 });
        await page.waitForSelector("text=Invite the customer again.");
        await call("DELETE", `${login}/_sim/faults`);
        await picture(opened, "paused");
        await page.click("text=Invite again");
        await page.waitForSelector("#customer");
        await accept(chrome, await invite(), tenant, "console-customer-again");
        await opened.visit(`#/tenants/${id}`);
        await page.waitForSelector(".head .state:has-text('Active')", { timeout: 60_000 });
        const states = await text(page, ".history");
        expect(/Active.*Pending.*Paused.*The consent is missing or was withdrawn.*Active/.test(states), `the history is ${states}`);

        await opened.visit(`#/hunting?tenant=${id}`);
        await page.fill("#query", "DeviceInfo");
        await page.press("#query", "Control+Enter");
        await page.waitForSelector("table.rows td:has-text('fs-01')", { timeout: 120_000 });
        await opened.visit(`#/tenants/${id}`);
        await page.click("button:has-text('Offboard')");
        await page.fill("#typed-name", customer);
        await page.click('dialog button:has-text("Offboard")');
        await page.waitForSelector("text=/Offboarded/");
        expect((await call("GET", `${api}/tenants/${id}`)).status === "offboarded", "the tenant is not offboarded");
        await opened.context.close();
      });
    },

    async consoleHostileText(chrome) {
      const { id } = await onboard(chrome, "<b>evil</b>");
      const hostile = await addIncident(CONTOSO, { display_name: HOSTILE, custom_tags: [HOSTILE], assigned_to: HOSTILE, alerts: 1, extra: { description: HOSTILE, summary: HOSTILE } });
      const elsewhere = await addIncident(CONTOSO, { display_name: "Linked elsewhere", alerts: 1, extra: { incidentWebUrl: "https://security.microsoft.com.evil.example/x" } });
      const script = await addIncident(CONTOSO, { display_name: "Linked to a script", alerts: 1, extra: { incidentWebUrl: "javascript:window.marked=1" } });
      await withConsole([], async (console_) => {
        const opened = await enter(chrome, "console-hostile", console_);
        const { page } = opened;
        const asText = async (hash, ...parts) => {
          await opened.visit(hash);
          const shown = await text(page, "main");
          for (const part of parts) expect(shown.includes(part), `${hash} does not show ${part}: ${shown.slice(0, 400)}`);
          expect(await page.locator("main img, main b").count() === 0, `${hash}: text has become markup`);
          expect(await page.evaluate(() => window.marked) === undefined, `${hash}: text has run as a script`);
          expect(!/[\u202e\u0007]/.test(shown), `${hash}: an unseen character is in the text`);
        };
        const parts = ["<img src=x onerror=\"window.marked=1\">", "U+202E", "U+0007", "<b>bold</b>"];
        await asText("#/tenants", "<b>evil</b>");
        await asText(`#/tenants/${id}`, "<b>evil</b>");
        await asText("#/incidents", ...parts);
        await asText(`#/incidents/${CONTOSO}/${hostile}`, ...parts);
        await page.click(".raw > summary");
        await picture(opened, "incident");
        for (const linked of [elsewhere, script]) {
          await opened.visit(`#/incidents/${CONTOSO}/${linked}`);
          expect(await page.locator(".head a").count() === 0, "a foreign address has become a link");
        }
        await opened.context.close();
      });
    },

    async consoleKeyboard(chrome) {
      await withConsole(["--write"], async (console_) => {
        const opened = await enter(chrome, "console-keyboard", console_);
        const { page } = opened;
        const focused = () => page.evaluate(() => document.activeElement.textContent.trim().slice(0, 40) || document.activeElement.id);
        const tabTo = async (name, most = 30) => {
          for (let presses = 0; presses < most; presses += 1) {
            await page.keyboard.press("Tab");
            if ((await focused()) === name) return;
          }
          throw new Error(`Tab does not reach ${name}`);
        };
        await page.keyboard.press("Tab");
        expect(await focused() === "Skip to content", "the first Tab does not reach the skip link");
        await picture(opened, "skip");
        await page.keyboard.press("Enter");
        expect(await page.evaluate(() => document.activeElement.tagName) === "H1", "the skip link does not lead to the title");
        await tabTo("Contoso");
        const ring = await page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle);
        expect(ring !== "none", "the focus is not visible");
        await page.keyboard.press("Enter");
        await page.waitForSelector("h1:has-text('Contoso')");
        await page.waitForFunction(() => document.activeElement.tagName === "H1");
        await tabTo("Pause");
        await page.keyboard.press("Enter");
        expect(await focused() === "Cancel", "a confirmation does not start at Cancel");
        for (let presses = 0; presses < 4; presses += 1) {
          await page.keyboard.press("Tab");
          expect(await page.evaluate(() => document.activeElement === document.body || document.activeElement.closest("dialog") !== null), "the focus leaves the dialog");
        }
        await page.keyboard.press("Escape");
        expect(await focused() === "Pause", "the focus does not return");
        const announced = await page.getAttribute("#announcements", "role");
        expect(announced === "status", "there is no live region");
        await opened.context.close();
      });
    },

    /** The way of the browser that the console itself starts: a file leads it in, which is another site. */
    async consoleFromFile(chrome) {
      const folder = await mkdtemp(join(tmpdir(), "console-opener-"));
      const opener = join(folder, "xdg-open");
      await writeFile(opener, '#!/bin/sh\necho "$1" > "$0.part" && mv "$0.part" "$0.page"\n', { mode: 0o755 });
      const console_ = await started([], { ...process.env, PATH: `${folder}${delimiter}${process.env.PATH}` });
      try {
        let file = "";
        for (let waits = 0; !file && waits < 100; waits += 1) {
          file = await readFile(`${opener}.page`, "utf8").then((text) => text.trim(), () => "");
          await new Promise((resolve) => { setTimeout(resolve, 50); });
        }
        const opened = await openBrowser(chrome, "console-from-file", { viewport: { width: 1280, height: 900 } });
        const { page } = opened;
        await page.goto(`file://${file}`);
        await page.waitForURL((url) => url.hostname.endsWith(".localhost") && /^\/[0-9a-f]{32}\/$/.test(url.pathname) && !url.search);
        await page.waitForSelector("table.tenants");
        expect((await text(page, "main")).includes("Contoso"), "the file does not lead in");
        expect(await stat(file).then(() => false, () => true), "the file is still there");
        await opened.context.close();
      } finally {
        const status = await console_.end();
        await rm(folder, { recursive: true });
        expect(status === 0, `mandate console ended with ${status}`);
      }
    },

    async consoleOtherSites(chrome) {
      // A page of another port of this host: for cookies and SameSite the same site, for the browser another origin.
      const attacker = createServer((_, response) => {
        response.setHeader("content-type", "text/html");
        response.end("<h1>Attacker</h1>");
      });
      await new Promise((ready) => attacker.listen(0, "127.0.0.1", ready));
      const evil = `http://127.0.0.1:${attacker.address().port}`;
      try {
        await withConsole(["--write"], async (console_) => {
          const opened = await enter(chrome, "console-other-sites", console_);
          const { page, context } = opened;
          const { address } = console_;
          const other = await context.newPage();
          for (const origin of [console_.origin, opened.origin]) await otherSite(other, origin);
          // The address works once, also in another browser.
          const stranger = await chrome.newContext();
          const second = await stranger.newPage();
          expect((await second.goto(address)).status() === 403, "the address works twice");
          expect((await second.goto(opened.origin)).status() === 401, "a browser without a session is let in");
          await stranger.close();
          await page.reload();
          await opened.settled();
          expect((await text(page, "main")).includes("Northwind"), "the session has ended");
          // The same place under the name that was printed.
          await page.goto(`${console_.origin}/#/invitations`);
          await opened.settled();
          expect(page.url().startsWith(opened.origin) && page.url().endsWith("#/invitations"), `the browser is at ${page.url()}`);
          await context.close();
        });
      } finally {
        attacker.close();
      }

      async function otherSite(other, origin) {
        await other.goto(evil);
        const pause = `${origin}/api/tenants/${NORTHWIND}/pause`;
        const outcomes = await other.evaluate(async ([target, change]) => {
          const tried = async (url, options) => {
            try {
              const response = await fetch(url, { credentials: "include", ...options });
              return response.type === "opaque" ? "opaque" : response.status;
            } catch {
              return "refused";
            }
          };
          return [
            await tried(`${target}/api/tenants`),
            await tried(`${target}/api/tenants`, { headers: { "x-mandate-console": "0" } }),
            await tried(`${target}/session/key`, { method: "POST", body: "{}", headers: { "content-type": "application/json" } }),
            await tried(change, { method: "POST", mode: "no-cors", body: '{"customer": "Northwind"}' }),
          ];
        }, [origin, pause]);
        expect(outcomes.every((outcome) => ["refused", "opaque"].includes(outcome)), `another site's requests: ${outcomes}`);
        expect((await call("GET", `${api}/tenants/${NORTHWIND}`)).status === "active", "another site has paused a tenant");
        // A form, a frame and a link.
        await other.evaluate(([target]) => {
          document.body.innerHTML = `<iframe src="${target}/"></iframe><a href="${target}/">link</a>`;
        }, [origin]);
        await other.waitForTimeout(300);
        expect(!other.frames().some((frame) => frame.url().startsWith(origin)), "the console is shown in a frame");
        const [response] = await Promise.all([other.waitForNavigation(), other.click("a")]);
        expect(response.status() === 403, `a link of another site leads in: ${response.status()}`);
      }
    },

    /** A program had the port before, and left a service worker that sees the visit and follows it. */
    async consoleEarlierProgram(chrome) {
      const worker = `
        self.addEventListener("install", () => self.skipWaiting());
        self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));
        self.addEventListener("fetch", (event) => event.waitUntil((async () => {
          const headers = { "content-type": "application/json" };
          for (let tries = 0; tries < 300; tries += 1) {
            const response = await fetch("/session/key", { method: "POST", headers, body: "{}" });
            if (response.ok) console.log("The service worker has " + await response.text());
            await new Promise((resolve) => { setTimeout(resolve, 5); });
          }
        })()));`;
      const register = `<h1></h1><script>
        navigator.serviceWorker.register("/worker.js").then(() => navigator.serviceWorker.ready)
          .then(() => { document.querySelector("h1").textContent = "Registered"; });</script>`;
      const earlier = createServer(({ url }, response) => {
        response.setHeader("content-type", url === "/worker.js" ? "text/javascript" : "text/html");
        response.end(url === "/worker.js" ? worker : register);
      });
      await new Promise((ready) => earlier.listen(0, "127.0.0.1", ready));
      const { port } = earlier.address();
      const { context, page } = await openBrowser(chrome, "console-earlier-program");
      const said = [];
      context.on("serviceworker", (found) => found.on("console", (message) => said.push(message.text())));
      await page.goto(`http://127.0.0.1:${port}/`);
      await page.waitForSelector("h1:has-text('Registered')");
      earlier.closeAllConnections();
      await new Promise((closed) => earlier.close(closed));
      await withConsole(["--port", String(port)], async ({ address }) => {
        await page.goto(address);
        await page.waitForSelector("table.tenants");
        await page.waitForTimeout(2000);
        expect(said.length === 0, `${said}`);
        await context.close();
      });
    },
  };
}
