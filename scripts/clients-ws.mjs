// The client `ws`, for the script `clients`: echoes a corpus over one connection and compares.
//
// `node clients-ws.mjs DIRECTORY` takes `ws` from the directory it is installed in, and the URL, the
// offer and the corpus as JSON on standard input. On success it prints as JSON what was agreed on, how
// many echoes there were and how many messages were sent compressed; on failure it prints what differed
// and exits with status 1.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { resolve } from "node:path";

const WebSocket = createRequire(resolve(process.argv[2], "client.js"))("ws");

// How many messages are in flight when the next is sent: none, then many.
const IN_FLIGHT = [1, 16];
const ECHO_SECONDS = 10;

const job = JSON.parse(readFileSync(0, "utf8"));
const corpus = JSON.parse(readFileSync(job.corpus, "utf8")).map((message) => {
  const fragments = message.fragments.map((fragment) => Buffer.from(fragment, "base64"));
  return { ...message, fragments, payload: Buffer.concat(fragments) };
});

const { offer } = job;
const socket = new WebSocket(`${job.url}/`, {
  // The server has made its certificate itself.
  rejectUnauthorized: false,
  perMessageDeflate: {
    // Of the undefined parameters, `ws` offers only `client_max_window_bits`.
    clientMaxWindowBits: offer.client_max_window_bits ?? false,
    serverMaxWindowBits: offer.server_max_window_bits,
    clientNoContextTakeover: offer.client_no_context_takeover,
    serverNoContextTakeover: offer.server_no_context_takeover,
    threshold: 0,
  },
});

let header = null;
let round = 0;
let sent = 0;
let echoed = 0;

const patience = setTimeout(() => {
  fail(`${described(corpus[echoed])}: no echo within ${ECHO_SECONDS} s`);
}, ECHO_SECONDS * 1000);

socket.on("upgrade", (response) => {
  header = response.headers["sec-websocket-extensions"] ?? null;
});
socket.on("open", sendMore);
socket.on("message", (echo, isBinary) => {
  const message = corpus[echoed];
  if (message === undefined) {
    fail("there were more echoes than messages");
  }
  if (isBinary === message.text || !echo.equals(message.payload)) {
    fail(`${described(message)}: ${difference(message.payload, echo, isBinary)}`);
  }
  echoed += 1;
  patience.refresh();
  if (echoed < corpus.length) {
    sendMore();
  } else if (round + 1 < IN_FLIGHT.length) {
    round += 1;
    sent = 0;
    echoed = 0;
    sendMore();
  } else {
    socket.close(1000);
  }
});
socket.on("error", (error) => fail(`${described(corpus[echoed])}: ${error.message}`));
socket.on("close", (code) => {
  if (round + 1 < IN_FLIGHT.length || echoed < corpus.length) {
    fail(`${described(corpus[echoed])}: the connection was closed with code ${code}`);
  }
  if (code !== 1000) {
    fail(`the close was answered with code ${code}`);
  }
  clearTimeout(patience);
  const extensions = socket.extensions ? socket.extensions.split(",") : [];
  const rounds = IN_FLIGHT.length;
  const echoes = rounds * corpus.length;
  const compressed = rounds * corpus.filter((message) => message.compressed).length;
  console.log(JSON.stringify({ extensions, header, echoes, compressed }));
});

function sendMore() {
  while (sent < corpus.length && sent - echoed < IN_FLIGHT[round]) {
    const { fragments, text, compressed } = corpus[sent];
    fragments.forEach((fragment, place) => {
      const fin = place + 1 === fragments.length;
      socket.send(fragment, { binary: !text, compress: compressed, fin });
    });
    sent += 1;
  }
}

function described(message) {
  if (message === undefined) {
    return "after the last echo";
  }
  const { name, text, fragments, payload, compressed } = message;
  return (
    `message ${corpus.indexOf(message)}, "${name}" (${text ? "text" : "binary"}, ${payload.length} bytes ` +
    `in ${fragments.length} frames, ${compressed ? "compressed" : "not compressed"}, ` +
    `${IN_FLIGHT[round]} in flight)`
  );
}

function difference(payload, echo, isBinary) {
  let place = 0;
  while (place < echo.length && echo[place] === payload[place]) {
    place += 1;
  }
  const first = echo.equals(payload) ? "" : `, first difference at byte ${place}`;
  return `the echo was ${isBinary ? "binary" : "text"} of ${echo.length} bytes${first}`;
}

function fail(reason) {
  console.error(reason);
  process.exit(1);
}
