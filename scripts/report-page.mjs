// The browser, for the script `report-page`: opens a page and reports what it shows.
//
// `node report-page.mjs DIRECTORY` takes `playwright-core` from the directory it is installed in, and
// the page, the browser and the directory for screenshots as JSON on standard input. For each width and
// colour scheme, it prints what the page shows as JSON. If it cannot, it prints why and exits with 1.

import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";

const { chromium } = createRequire(resolve(process.argv[2], "browser.js"))("playwright-core");

const WIDTHS = [360, 1400];
const SCHEMES = ["light", "dark"];
const ARGUMENTS = [
  "--headless",
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];

const job = JSON.parse(readFileSync(0, "utf8"));
const profile = mkdtempSync(join(tmpdir(), "report-page-"));
const views = [];
try {
  const context = await chromium.launchPersistentContext(profile, {
    executablePath: job.chromium,
    args: ARGUMENTS,
    timeout: 60_000,
  });
  try {
    for (const width of WIDTHS) {
      for (const scheme of SCHEMES) {
        views.push(await viewed(context, width, scheme));
      }
    }
  } finally {
    await context.close();
  }
} catch (error) {
  console.error(error.message);
  process.exitCode = 1;
} finally {
  rmSync(profile, { recursive: true, force: true });
}
console.log(JSON.stringify(views));

async function viewed(context, width, scheme) {
  const page = await context.newPage();
  const requests = [];
  const messages = [];
  page.on("request", (request) => {
    if (request.url() !== job.page) {
      requests.push(request.url());
    }
  });
  page.on("requestfailed", (request) => requests.push(`${request.url()} failed`));
  page.on("console", (message) => messages.push(message.text()));
  page.on("pageerror", (error) => messages.push(error.message));
  await page.setViewportSize({ width, height: 900 });
  await page.emulateMedia({ colorScheme: scheme });
  await page.goto(job.page, { waitUntil: "load" });
  const picture = `${job.pictures}-${width}-${scheme}.png`;
  await page.screenshot({ path: picture, fullPage: true });
  const view = await page.evaluate(look);
  await page.close();
  return { width, scheme, picture, requests, messages, ...view };
}

// Runs within the page.
function look() {
  const root = document.documentElement;
  const charts = [];
  const shown = [...document.querySelectorAll("svg.chart")].filter(
    (chart) => getComputedStyle(chart).display !== "none",
  );
  const figures = document.querySelectorAll("figure").length;
  if (shown.length < figures) {
    charts.push(`${figures} figures, but ${shown.length} charts`);
  }
  for (const chart of shown) {
    const label = (chart.getAttribute("aria-label") ?? "").split(";")[0];
    const box = chart.getBoundingClientRect();
    if (!label) {
      charts.push("a chart has no label");
    }
    if (box.width < 200 || box.height < 60) {
      charts.push(`${label}: ${box.width} by ${box.height} px`);
    }
    const texts = [...chart.querySelectorAll("text")].filter((text) => text.textContent.trim());
    const boxes = texts.map((text) => [text.textContent.trim(), text.getBoundingClientRect()]);
    boxes.forEach(([text, one], index) => {
      if (one.height < 9) {
        charts.push(`${label}: ${text} is ${one.height} px high`);
      }
      if (one.left < box.left - 1 || one.right > box.right + 1 || one.top < box.top - 1 || one.bottom > box.bottom + 1) {
        charts.push(`${label}: ${text} is clipped`);
      }
      for (const [other, two] of boxes.slice(index + 1)) {
        const across = Math.min(one.right, two.right) - Math.max(one.left, two.left);
        const along = Math.min(one.bottom, two.bottom) - Math.max(one.top, two.top);
        // Boxes are higher than the text in them.
        if (across > 1 && along > one.height * 0.4) {
          charts.push(`${label}: ${text} lies on ${other}`);
        }
      }
    });
  }
  // Text with less contrast to what is behind it than the 4.5 that WCAG asks for.
  const light = (colour) => {
    const parts = colour.match(/[\d.]+/g).slice(0, 3).map((part) => part / 255);
    const [red, green, blue] = parts.map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const behind = (element) => {
    const colour = getComputedStyle(element).backgroundColor;
    const isClear = colour === "transparent" || /, 0\)$/.test(colour);
    return isClear && element.parentElement ? behind(element.parentElement) : colour;
  };
  const colours = new Set();
  const texts = "svg.chart text, h1, h2, h3, p, a, pre, span, dt, dd, td, th, small, strong";
  for (const element of document.querySelectorAll(texts)) {
    const style = getComputedStyle(element);
    const colour = element.closest("svg") ? style.fill : style.color;
    const page = behind(element);
    const [darker, lighter] = [light(colour), light(page)].sort((one, two) => one - two);
    if ((lighter + 0.05) / (darker + 0.05) < 4.5) {
      colours.add(`${element.tagName.toLowerCase()} in ${colour} on ${page}`);
    }
  }
  // What a reader who hears the page or uses a keyboard relies on.
  const structure = [];
  const levels = [...document.querySelectorAll("h1, h2, h3, h4")].map((it) => Number(it.tagName[1]));
  if (levels[0] !== 1 || levels.filter((level) => level === 1).length !== 1) {
    structure.push(`the first-level headings are ${levels.filter((level) => level === 1).length}`);
  }
  levels.forEach((level, at) => {
    if (at > 0 && level > levels[at - 1] + 1) {
      structure.push(`heading ${at + 1} of level ${level} follows one of level ${levels[at - 1]}`);
    }
  });
  for (const head of document.querySelectorAll("th:not([scope])")) {
    structure.push(`the head ${head.innerText} has no scope`);
  }
  for (const table of document.querySelectorAll("table")) {
    const frame = table.parentElement;
    if (frame.getAttribute("role") !== "region" || frame.tabIndex !== 0 || !frame.getAttribute("aria-label")) {
      structure.push("a table cannot be scrolled by keyboard, or has no name");
    }
  }
  for (const link of document.querySelectorAll("a[href^='#']")) {
    if (!document.getElementById(link.getAttribute("href").slice(1))) {
      structure.push(`${link.getAttribute("href")} leads nowhere`);
    }
  }
  const plain = (cell) => cell.innerText.replace(/\s+/g, " ").trim();
  const tables = [...document.querySelectorAll("table")].map((table) =>
    [...table.rows].map((row) => [...row.cells].map(plain)),
  );
  const named = document.querySelector("html[lang]") && document.querySelector("meta[name=viewport]");
  return {
    complaint: named ? null : "there is no language or no viewport",
    title: document.title,
    text: document.body.innerText,
    scrollWidth: root.scrollWidth,
    clientWidth: root.clientWidth,
    charts,
    colours: [...colours],
    structure,
    tables,
    lines: document.querySelectorAll("pre.log span").length,
  };
}
