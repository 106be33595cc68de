"use strict";

const PERCENTILES = [50, 90, 99, 99.9, 100];
const BINS = 60;
const DRAW_EVERY_MS = 150;
const element = (id) => document.getElementById(id);
const form = element("settings");
const workerUrl = URL.createObjectURL(new Blob([element("worker").textContent], { type: "text/javascript" }));

let worker = null;
let drawn = 0;

// Settings.

function settings() {
  const isRate = element("at-rate").checked;
  return {
    size: Number(element("size").value),
    messages: Number(element("messages").value),
    type: element("type").value,
    rate: isRate ? Number(element("rate").value) : null,
  };
}

function link(run) {
  const parts = { size: run.size, messages: run.messages, type: run.type };
  if (run.rate !== null) parts.rate = run.rate;
  return `${location.origin}/#${new URLSearchParams(parts)}&run`;
}

function readLink() {
  const parts = new URLSearchParams(location.hash.slice(1));
  for (const name of ["size", "messages", "type", "rate"]) {
    if (parts.has(name)) element(name).value = parts.get(name);
  }
  const pace = parts.has("rate") ? "rate" : "serial";
  form.querySelector(`[name=pace][value=${pace}]`).checked = true;
  showPace();
  if (!parts.has("run")) return;
  if (form.checkValidity()) start();
  else say("The link has settings that this page does not take: look at the marked fields.");
}

function showPace() {
  element("rate").disabled = !element("at-rate").checked;
}

function say(text) {
  element("status").textContent = text;
}

// The run.

function start() {
  const run = settings();
  const { protocol, host } = location;
  run.url = `${protocol === "https:" ? "wss" : "ws"}://${host}${document.documentElement.dataset.path}`;
  const times = [];
  let extension = null;
  element("start").textContent = "Stop";
  element("exports").hidden = true;
  say("Connecting.");
  worker = new Worker(workerUrl);
  worker.onmessage = ({ data }) => {
    switch (data.what) {
      case "open":
        extension = data.extension;
        say("Measuring.");
        break;
      case "times":
        for (const time of data.times) times.push(time * 1000);
        if (performance.now() - drawn > DRAW_EVERY_MS) show(run, times);
        break;
      case "done":
        finish(run, times, extension, data);
        break;
      case "failed":
        fail(run, times, extension, data);
        break;
    }
  };
  worker.onerror = ({ message }) => {
    stop();
    say(`The measurement failed: ${message}`);
  };
  worker.postMessage(run);
}

function stop() {
  worker?.terminate();
  worker = null;
  element("start").textContent = "Start";
}

function fail(run, times, extension, { code, text }) {
  stop();
  if (extension !== null) say(`The connection ended after ${times.length} of ${run.messages} messages: ${text}.`);
  else {
    say(
      `No connection to ${run.url} (code ${code}). The server may be at a limit, or not allow pages of ${location.origin}` +
        " (option --origin).",
    );
  }
}

// Results.

const sorted = (values) => Float64Array.from(values).sort();
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

// The least value that so many per cent are not above.
function percentile(ordered, percent) {
  const rank = Math.max(1, Math.ceil(Number(((ordered.length * percent) / 100).toFixed(6))));
  return ordered[rank - 1];
}

function summary(values) {
  const ordered = sorted(values);
  const result = { count: ordered.length, min: round(ordered[0]), mean: round(mean(ordered)) };
  for (const percent of PERCENTILES) result[percent === 100 ? "max" : `p${percent}`] = round(percentile(ordered, percent));
  return result;
}

const round = (us) => Number(us.toFixed(3));
const micros = (us) => us.toLocaleString("en", { maximumFractionDigits: us < 100 ? 1 : 0 });

function show(run, times) {
  if (times.length === 0) return;
  drawn = performance.now();
  element("results").hidden = false;
  const ordered = sorted(times);
  draw(ordered);
  const rows = [["least", ordered[0]], ...PERCENTILES.map((at) => [at === 100 ? "most" : `${at} %`, percentile(ordered, at)])];
  fill("times", [...rows, ["mean", mean(ordered)]].map(([name, us]) => [name, micros(us)]));
  fill("facts", [["Messages", `${times.length.toLocaleString("en")} of ${run.messages.toLocaleString("en")}`]]);
  element("clock").textContent = "";
}

function finish(run, times, extension, { step, batch, batches, lates, wrong, lasted }) {
  stop();
  show(run, times);
  const result = {
    program: document.querySelector("footer p").textContent,
    url: run.url,
    browser: navigator.userAgent,
    time: new Date().toISOString(),
    settings: { size_bytes: run.size, messages: run.messages, type: run.type, rate_per_s: run.rate },
    extension,
    duration_s: Number((lasted / 1000).toFixed(6)),
    wrong_echoes: wrong,
    round_trips_us: summary(times),
    clock: { step_us: round(step * 1000), cross_origin_isolated: crossOriginIsolated },
    batches_us: run.rate === null && batches.length > 0 ? { messages: batch, ...summary(batches.map((ms) => ms * 1000)) } : null,
    sent_late_us: run.rate === null ? null : summary(lates.map((ms) => ms * 1000)),
  };
  fill("facts", facts(run, result));
  element("clock").textContent = clock(result);
  element("json").textContent = JSON.stringify(result, null, 2);
  element("hgrm").textContent = hgrm(times);
  element("link").href = link(run);
  element("exports").hidden = false;
  const { p50, p99 } = result.round_trips_us;
  const verdict = wrong === 0 ? "Every echo was right." : `${wrong} echoes were wrong.`;
  say(`Done: half of the round trips took at most ${micros(p50)} µs, 99 % at most ${micros(p99)} µs. ${verdict}`);
}

function facts(run, result) {
  const rows = [
    ["Messages", `${run.messages.toLocaleString("en")} ${run.type} messages of ${run.size.toLocaleString("en")} bytes`],
    ["Pace", run.rate === null ? "one after the other" : `${run.rate.toLocaleString("en")} per second`],
    ["Duration", `${result.duration_s.toFixed(3)} s`],
    ["Extension", result.extension || "none"],
    ["Wrong echoes", String(result.wrong_echoes)],
  ];
  const late = result.sent_late_us;
  if (late) rows.push(["Sent late by", `${micros(late.p50)} µs (50 %), ${micros(late.p99)} µs (99 %)`]);
  return rows;
}

// What the resolution of the clock means for the figures.
function clock(result) {
  const { step_us: step } = result.clock;
  const { p50 } = result.round_trips_us;
  const says = `The clock of this browser moves in steps of ${micros(step)} µs`;
  const finer = crossOriginIsolated ? "" : " Opened over https or from localhost, most browsers give this page a finer clock.";
  if (step <= p50 / 20) return `${says}, which is fine enough for single round trips.${finer}`;
  const coarse = `${says}, so a single round trip is only known to that. `;
  const batch = result.batches_us;
  if (!batch) return `${coarse}Trust the mean rather than the percentiles.${finer}`;
  return (
    `${coarse}Timed together, ${batch.messages.toLocaleString("en")} at a time, a round trip and the check of its echo ` +
    `took ${micros(batch.p50)} µs on average in the middle one of ${batch.count} batches ` +
    `(${micros(batch.min)} to ${micros(batch.max)} µs).${finer}`
  );
}

// The percentile distribution as HdrHistogram prints it, with five steps for each halving of what is left.
function hgrm(times) {
  const ordered = sorted(times);
  const lines = [`${"Value".padStart(12)} ${"Percentile".padStart(14)} ${"TotalCount".padStart(10)} ${"1/(1-Percentile)".padStart(14)}`, ""];
  const line = (part, count) => {
    const words = [ordered[count - 1].toFixed(3).padStart(12), part.toFixed(12), String(count).padStart(10)];
    if (part < 1) words.push((1 / (1 - part)).toFixed(2).padStart(14));
    lines.push(words.join(" "));
  };
  for (let part = 0, step = 0.1; ordered.length * (1 - part) >= 1; step /= 2) {
    for (let at = 0; at < 5; at += 1, part += step) line(part, Math.max(1, Math.ceil(ordered.length * part)));
  }
  line(1, ordered.length);
  const middle = mean(ordered);
  const deviation = Math.sqrt(mean(ordered.map((us) => (us - middle) ** 2)));
  const number = (value) => value.toFixed(3).padStart(12);
  lines.push(`#[Mean    = ${number(middle)}, StdDeviation   = ${number(deviation)}]`);
  lines.push(`#[Max     = ${number(ordered.at(-1))}, Total count    = ${String(ordered.length).padStart(12)}]`);
  return `${lines.join("\n")}\n`;
}

// Drawing.

function fill(id, rows) {
  const body = element(id);
  body.replaceChildren(
    ...rows.map(([name, value]) => {
      const row = document.createElement("tr");
      const head = document.createElement("th");
      head.scope = "row";
      head.textContent = name;
      const cell = document.createElement("td");
      cell.textContent = value;
      row.append(head, cell);
      return row;
    }),
  );
}

function shape(name, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function draw(ordered) {
  const [width, height, top, bottom] = [600, 200, 40, 30];
  // A round trip that the clock did not see has no logarithm.
  const least = Math.max(ordered[0], 0.5) * 0.9;
  const most = Math.max(ordered.at(-1), least * 2) * 1.1;
  const place = (us) => (Math.log(Math.max(us, least) / least) / Math.log(most / least)) * width;
  const counts = new Array(BINS).fill(0);
  for (const us of ordered) counts[Math.min(BINS - 1, Math.floor((place(us) / width) * BINS))] += 1;
  const highest = Math.max(...counts);
  const floor = height - bottom;
  const shapes = counts.map((count, at) => {
    const tall = (count / highest) * (floor - top);
    return shape("rect", { class: "bar", x: (at * width) / BINS + 1, width: width / BINS - 2, y: floor - tall, height: tall });
  });
  shapes.push(shape("line", { class: "axis", x1: 0, x2: width, y1: floor, y2: floor }));
  const first = micros(least);
  shapes.push(shape("text", { x: 4, y: height - 8 }, `${first} µs`));
  shapes.push(shape("text", { x: width - 4, y: height - 8, "text-anchor": "end" }, `${micros(most)} µs`));
  // Labels stand in two rows, so that neighbours do not overlap.
  [50, 99].forEach((percent, at) => {
    const x = place(percentile(ordered, percent));
    shapes.push(shape("line", { class: "mark", x1: x, x2: x, y1: 18 + at * 18, y2: floor }));
    const anchor = x > width * 0.7 ? "end" : "start";
    const label = `${percent} %: ${micros(percentile(ordered, percent))} µs`;
    shapes.push(shape("text", { class: "percentile", x: x + (anchor === "end" ? -5 : 5), y: 16 + at * 18, "text-anchor": anchor }, label));
  });
  element("histogram").replaceChildren(...shapes);
  element("histogram").setAttribute(
    "aria-label",
    `Histogram of ${ordered.length} round trips, on a logarithmic scale from ${first} to ${micros(most)} µs; ` +
      `half took at most ${micros(percentile(ordered, 50))} µs, 99 % at most ${micros(percentile(ordered, 99))} µs`,
  );
}

// Wiring.

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (worker === null) return start();
  stop();
  say("Stopped.");
});
form.addEventListener("change", showPace);
for (const button of document.querySelectorAll("[data-copies]")) {
  button.addEventListener("click", async () => {
    const text = element(button.dataset.copies);
    try {
      await navigator.clipboard.writeText(text.textContent);
      say("Copied.");
    } catch {
      // Pages of plain http on another machine may not write to the clipboard.
      getSelection().selectAllChildren(text);
      say("This browser lets the page not copy by itself: the text is selected, copy it with the keyboard.");
    }
  });
}
addEventListener("hashchange", readLink);
readLink();
