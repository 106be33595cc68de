"""Echoes messages with picows on uvloop. It leaves compression and the assembly of fragments to its user; nothing is
compressed here, and a fragment is echoed as a fragment.

`picows.py PORT`
"""

import logging
import sys

# This file has the name of the package, and its folder comes first in the search path.
del sys.path[0]

import uvloop
from picows import WSFrame, WSListener, WSMsgType, WSTransport, ws_create_server


class Echo(WSListener):
    def on_ws_frame(self, transport: WSTransport, frame: WSFrame):
        if frame.msg_type == WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code(), frame.get_close_message())
            transport.disconnect()
        elif frame.msg_type in (WSMsgType.TEXT, WSMsgType.BINARY, WSMsgType.CONTINUATION):
            transport.send(frame.msg_type, frame.get_payload_as_memoryview(), frame.fin)


async def main(port):
    server = await ws_create_server(lambda request: Echo(), "127.0.0.1", port, max_frame_size=64 << 20)
    print(f"picows listening on ws://127.0.0.1:{port}", flush=True)
    await server.serve_forever()


# It warns whenever a peer reads slowly.
logging.disable(logging.WARNING)
uvloop.run(main(int(sys.argv[1])))
