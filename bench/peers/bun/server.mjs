// Echoes messages with Bun's own server, which is built on its fork of uWebSockets, compressed where the client
// offers it.
//
// `bun server.mjs PORT`; over TLS if the environment names TLS_CERT and TLS_KEY.

const { TLS_CERT, TLS_KEY } = process.env;
const server = Bun.serve({
  tls: TLS_CERT && { cert: Bun.file(TLS_CERT), key: Bun.file(TLS_KEY) },
  hostname: "127.0.0.1",
  port: Number(process.argv[2] ?? 0),
  fetch(request, server) {
    return server.upgrade(request) ? undefined : new Response("not a WebSocket", { status: 400 });
  },
  websocket: {
    perMessageDeflate: true,
    maxPayloadLength: 64 << 20,
    backpressureLimit: 64 << 20,
    message(socket, message) {
      socket.send(message, true);
    },
  },
});
console.log(`bun listening on ${TLS_CERT ? "wss" : "ws"}://127.0.0.1:${server.port}`);
