"""Echoes messages with websockets on uvloop, compressed where the client offers it.

`websockets.py PORT`
"""

import sys

# This file has the name of the package, and its folder comes first in the search path.
del sys.path[0]

import uvloop
from websockets.asyncio.server import serve


async def echo(socket):
    async for message in socket:
        await socket.send(message)


async def main(port):
    options = {"max_size": None, "ping_interval": None}
    async with serve(echo, "127.0.0.1", port, **options) as server:
        print(f"websockets listening on ws://127.0.0.1:{port}", flush=True)
        await server.serve_forever()


uvloop.run(main(int(sys.argv[1])))
