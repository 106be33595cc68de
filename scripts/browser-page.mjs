// The browser, for the scripts `browser-page` and `pictures`: opens a page, runs it, and reports what it shows.
//
// `node browser-page.mjs DIRECTORY` takes `playwright-core` from the directory it is installed in, and what to do as
// JSON on standard input. Prints what the page showed, in each view, as JSON. If it cannot, it prints why and
// exits with 1.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { resolve } from "node:path";

const playwright = createRequire(resolve(process.argv[2], "browser.js"))("playwright-core");

const WAIT_MS = 60_000;
const KINDS = {
  chromium: { type: "chromium", options: { args: ["--no-sandbox", "--disable-gpu", "--no-first-run"] }, emulates: true },
  // The browser itself, not the build of it that Playwright would load.
  firefox: { type: "firefox", options: { channel: "moz-firefox" }, emulates: false },
};

const job = JSON.parse(readFileSync(0, "utf8"));
const kind = KINDS[job.browser];
let browser = null;
try {
  const options = { ...kind.options, executablePath: job.program, timeout: WAIT_MS };
  browser = await playwright[kind.type].launch(options);
  const views = [];
  if (job.job === "picture") {
    await photographed();
  } else if (job.job === "refused") {
    views.push(await viewed("refused", {}, "", "nothing", (page) => page.click("#start")));
  } else {
    const serial = { size_bytes: 16, messages: 1000, type: "text", rate_per_s: null };
    const byKeys = async (page) => {
      await page.focus("#size");
      // Past the other fields: number, type, pace (one stop for all its choices), and the rate, which is disabled.
      for (let stop = 0; stop < 4; stop += 1) await page.keyboard.press("Tab");
      await page.keyboard.press("Enter");
    };
    views.push(await viewed("keyboard", {}, "#size=16&messages=1000&type=text", serial, byKeys));
    const atRate = { size_bytes: 1024, messages: 200, type: "binary", rate_per_s: 500 };
    views.push(await viewed("link", {}, "#size=1024&messages=200&type=binary&rate=500&run", atRate, null));
    if (kind.emulates) {
      for (const width of [360, 1400]) {
        for (const colorScheme of ["light", "dark"]) {
          const look = { viewport: { width, height: 900 }, colorScheme };
          views.push(await viewed(`${width} px, ${colorScheme}`, look, "#size=65536&messages=20&type=binary&run",
            { size_bytes: 65536, messages: 20, type: "binary", rate_per_s: null }, null));
        }
      }
    }
  }
  console.log(JSON.stringify(views));
} catch (error) {
  console.error(error.message);
  process.exitCode = 1;
} finally {
  await browser?.close();
}

async function photographed() {
  const context = await browser.newContext({ viewport: job.size, colorScheme: "light" });
  const page = await context.newPage();
  await page.goto(job.url, { waitUntil: "load" });
  if (job.awaits) await page.getByText(job.awaits).waitFor({ timeout: WAIT_MS });
  await page.screenshot({ path: job.pictures });
  await context.close();
}

async function viewed(name, look, link, expects, act) {
  const context = await browser.newContext({ ignoreHTTPSErrors: true, ...look });
  const page = await context.newPage();
  const requests = [];
  const messages = [];
  const asked = `${job.url}/${link}`;
  page.on("request", (request) => {
    const url = request.url();
    if (url.split("#")[0] !== `${job.url}/` && !url.startsWith("blob:") && !url.startsWith("data:")) requests.push(url);
  });
  page.on("requestfailed", (request) => requests.push(`${request.url()} failed`));
  page.on("console", (message) => messages.push(message.text()));
  page.on("pageerror", (error) => messages.push(error.message));
  await page.goto(asked, { waitUntil: "load" });
  if (act !== null) await act(page);
  await page.waitForFunction(
    () => /^(Done|No connection|The )/.test(document.getElementById("status").textContent),
    undefined,
    { timeout: WAIT_MS },
  );
  const shown = await page.evaluate(read);
  // A screenshot puts a style into the page, which the page's policy forbids.
  const said = [...messages];
  const picture = `${job.pictures}-${name.replace(/[^a-z0-9]+/g, "-")}.png`;
  await page.screenshot({ path: picture, fullPage: true });
  await context.close();
  const repeats = asked.endsWith("&run") ? asked : `${asked}&run`;
  return { name, picture, expects, asked: repeats, requests, messages: expects === "nothing" ? [] : said, ...shown };
}

// Runs within the page.
function read() {
  const text = (id) => document.getElementById(id).textContent;
  const rows = [...document.querySelectorAll("#times tr")];
  // Text with less contrast to what lies behind it than the 4.5 that WCAG asks for.
  const light = (colour) => {
    const parts = colour.match(/[\d.]+/g).slice(0, 3).map((part) => part / 255);
    const [red, green, blue] = parts.map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if (!/^rgba\(.*, 0\)$/.test(colour) && colour !== "transparent") return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const colours = new Set();
  for (const element of document.querySelectorAll("h1, h2, h3, p, a, th, td, caption, label, legend, button, pre, svg text")) {
    const style = getComputedStyle(element);
    const behind = ground(element.closest("svg") ?? element);
    const [darker, lighter] = [light(element.closest("svg") ? style.fill : style.color), light(behind)].sort((one, two) => one - two);
    if ((lighter + 0.05) / (darker + 0.05) < 4.5) colours.add(`${element.tagName.toLowerCase()} on ${behind}`);
  }
  const controls = [...document.querySelectorAll("input, select, button, pre, svg")];
  const isNamed = (control) =>
    control.labels?.length > 0 || control.textContent.trim() || control.ariaLabel || control.getAttribute("aria-labelledby");
  return {
    status: text("status"),
    json: text("json"),
    hgrm: text("hgrm"),
    times: rows.map((row) => [row.cells[0].textContent, row.cells[1].textContent]),
    link: document.getElementById("link").href,
    sideways: document.documentElement.scrollWidth > document.documentElement.clientWidth,
    nameless: controls.filter((control) => !isNamed(control)).map((control) => `${control.tagName} ${control.id} has no name`),
    colours: [...colours],
  };
}
