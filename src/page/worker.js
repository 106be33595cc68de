// Measures round trips, away from the thread that draws. Told once what to do, it says with "open", "times" and
// "done" or "failed" what came of it. Times are in milliseconds, as performance.now() gives them.
"use strict";

const WARM_UP = 50;
const SHOW_EVERY_MS = 100;
// A mean over this many steps of the clock is exact to a hundredth.
const BATCH_STEPS = 100;

onmessage = ({ data: run }) => new Measurement(run);

// The smallest step that the clock was seen to make.
function clockStep() {
  let least = Infinity;
  for (let steps = 0, end = performance.now() + 50; steps < 100; steps += 1) {
    const before = performance.now();
    let after = before;
    while (after === before) after = performance.now();
    least = Math.min(least, after - before);
    if (after > end) break;
  }
  return least;
}

class Measurement {
  constructor(run) {
    this.run = run;
    this.step = clockStep();
    this.payload = run.type === "text" ? text(run.size) : bytes(run.size);
    this.left = WARM_UP;
    this.times = [];
    this.lates = [];
    this.sentAt = [];
    this.batches = [];
    this.count = this.sent = this.wrong = 0;
    this.shown = performance.now();
    this.socket = new WebSocket(run.url);
    this.socket.binaryType = "arraybuffer";
    this.socket.onopen = () => {
      postMessage({ what: "open", extension: this.socket.extensions });
      this.begun = performance.now();
      this.socket.onmessage = ({ data }) => this.warmUp(data);
      this.socket.send(this.payload);
    };
    this.socket.onclose = ({ code, reason }) => {
      const because = reason ? `: ${reason}` : "";
      postMessage({ what: "failed", code, text: `closed with code ${code}${because}` });
    };
  }

  warmUp(data) {
    this.check(data);
    this.left -= 1;
    if (this.left > 0) return this.socket.send(this.payload);
    const mean = (performance.now() - this.begun) / WARM_UP;
    const most = Math.max(1, Math.floor(this.run.messages / 10));
    this.batch = Math.min(most, Math.max(1, Math.ceil((BATCH_STEPS * this.step) / Math.max(mean, 0.001))));
    this.begun = performance.now();
    if (this.run.rate === null) {
      this.batchBegun = this.begun;
      this.socket.onmessage = (event) => this.nextOfSeries(event.data);
      this.last = performance.now();
      this.socket.send(this.payload);
    } else {
      this.socket.onmessage = (event) => this.nextAtRate(event.data);
      this.tick();
    }
  }

  nextOfSeries(data) {
    const now = performance.now();
    this.times.push(now - this.last);
    this.count += 1;
    this.check(data);
    if (this.count % this.batch === 0) {
      const end = performance.now();
      this.batches.push((end - this.batchBegun) / this.batch);
      this.show(end);
      this.batchBegun = performance.now();
    }
    if (this.count === this.run.messages) return this.end();
    this.last = performance.now();
    this.socket.send(this.payload);
  }

  // Sends all that is due, whether or not earlier echoes have come. Timers of browsers come late by milliseconds;
  // that is reported apart, so a round trip counts from when its message was sent. Waiting awake for the right moment
  // would be exact, but keeps Firefox from handing out the echoes.
  tick() {
    const { messages, rate } = this.run;
    const due = () => this.begun + (this.sent * 1000) / rate;
    while (this.sent < messages && due() <= performance.now()) {
      const now = performance.now();
      this.lates.push(now - due());
      this.sentAt.push(now);
      this.socket.send(this.payload);
      this.sent += 1;
    }
    if (this.sent < messages) setTimeout(() => this.tick(), Math.max(0, due() - performance.now()));
  }

  nextAtRate(data) {
    const now = performance.now();
    this.times.push(now - this.sentAt[this.count]);
    this.count += 1;
    this.check(data);
    this.show(now);
    if (this.count === this.run.messages) this.end();
  }

  check(data) {
    const { type, size } = this.run;
    const isRight =
      type === "text" ? data === this.payload : data.byteLength === size && isSame(new Uint8Array(data), this.payload);
    if (!isRight) this.wrong += 1;
  }

  show(now) {
    if (now - this.shown < SHOW_EVERY_MS) return;
    this.shown = now;
    postMessage({ what: "times", times: this.times });
    this.times = [];
  }

  end() {
    const { step, batch, batches, lates, wrong } = this;
    const lasted = performance.now() - this.begun;
    this.socket.onclose = null;
    this.socket.close(1000);
    postMessage({ what: "times", times: this.times });
    postMessage({ what: "done", step, batch, batches, lates, wrong, lasted });
  }
}

function text(size) {
  let letters = "";
  for (let at = 0; at < size; at += 1) letters += String.fromCharCode(97 + Math.floor(Math.random() * 26));
  return letters;
}

function bytes(size) {
  const all = new Uint8Array(size);
  // One call gives 64 KiB at most.
  for (let at = 0; at < size; at += 65536) crypto.getRandomValues(all.subarray(at, at + 65536));
  return all;
}

function isSame(one, other) {
  for (let at = 0; at < one.length; at += 1) if (one[at] !== other[at]) return false;
  return true;
}
