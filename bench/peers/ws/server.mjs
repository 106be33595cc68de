// Echoes messages with the package ws, deflated where the client offers it, and prints its address.
// `node server.mjs [PORT]`: without a port a free one; over TLS if the environment names TLS_CERT and TLS_KEY. ringecho is
// measured against it.

import { readFileSync } from "node:fs";
import { createServer } from "node:https";

const { WebSocketServer } = await import("ws").catch((error) => {
  console.error(`${error.message}\nrun once: npm ci --prefix bench/peers/ws`);
  process.exit(1);
});

const { TLS_CERT, TLS_KEY } = process.env;
const where = { host: "127.0.0.1", port: Number(process.argv[2] ?? 0) };
const secure = TLS_CERT && createServer({ cert: readFileSync(TLS_CERT), key: readFileSync(TLS_KEY) }).listen(where);

const server = new WebSocketServer({
  ...(secure ? { server: secure } : where),
  // The smallest messages are deflated too; level, memory and window are the package's defaults.
  perMessageDeflate: { threshold: 0 },
});

server.on("listening", () => {
  console.log(`ws listening on ${secure ? "wss" : "ws"}://127.0.0.1:${server.address().port}`);
});

server.on("connection", (socket) => {
  // Without a listener, a client that breaks the protocol would end the process.
  socket.on("error", () => {});
  socket.on("message", (message, binary) => socket.send(message, { binary }));
});
