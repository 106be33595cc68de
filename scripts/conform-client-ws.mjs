// The client `ws` in a conformance suite, for the script `conform-clients`.
//
// `node conform-client-ws.mjs DIRECTORY URL AGENT` takes `ws` from the directory it is installed in, asks
// the suite at URL for its cases, echoes in each of them, and asks for the report.

import { createRequire } from "node:module";
import { resolve } from "node:path";

const WebSocket = createRequire(resolve(process.argv[2], "client.js"))("ws");
const [url, agent] = process.argv.slice(3);

const count = await connected("/getCaseCount");
for (let number = 1; number <= Number(count); number++) {
  await connected(`/runCase?case=${number}&agent=${agent}`);
}
await connected(`/updateReports?agent=${agent}`);

// Connects, echoes every message until the connection ends, and returns the first one.
function connected(target) {
  return new Promise((done) => {
    let first;
    const socket = new WebSocket(url + target);
    socket.on("message", (message, isBinary) => {
      first ??= message;
      if (target.startsWith("/runCase")) socket.send(message, { binary: isBinary });
    });
    // The suite knows why; `close` follows.
    socket.on("error", () => {});
    socket.on("close", () => done(first));
  });
}
