// Echoes messages with Bun's own server, which is built on its fork of uWebSockets, compressed where the client
// offers it.
//
// `bun server.mjs PORT`

const server = Bun.serve({
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
console.log(`bun listening on ws://127.0.0.1:${server.port}`);
