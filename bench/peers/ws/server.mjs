// Echoes messages with the package ws, deflated where the client offers it, and prints its address.
// `node server.mjs [PORT]`: without a port a free one. ringecho is measured against it.

const { WebSocketServer } = await import("ws").catch((error) => {
  console.error(`${error.message}\nrun once: npm ci --prefix bench/peers/ws`);
  process.exit(1);
});

const server = new WebSocketServer({
  host: "127.0.0.1",
  port: Number(process.argv[2] ?? 0),
  // The smallest messages are deflated too; level, memory and window are the package's defaults.
  perMessageDeflate: { threshold: 0 },
});

server.on("listening", () => {
  console.log(`ws listening on ws://127.0.0.1:${server.address().port}`);
});

server.on("connection", (socket) => {
  // Without a listener, a client that breaks the protocol would end the process.
  socket.on("error", () => {});
  socket.on("message", (message, binary) => socket.send(message, { binary }));
});
