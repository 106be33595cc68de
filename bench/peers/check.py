"""Asks an echo server for echoes and compares each with its message: the client of `scripts/peers --check`.

`check.py PORT MODE...`, where a mode is `plain` or `deflate`, without or with permessage-deflate, or `bytes`,
without WebSocket.
"""

import asyncio
import random
import sys

from websockets.asyncio.client import connect

# The borders of the three forms of a frame's length, then what is measured, to the largest.
SIZES = (0, 1, 16, 125, 126, 1024, 4096, 65535, 65536, 1 << 20, 16 << 20)
BEYOND_ASCII = "äß漢"


async def main(port, modes):
    for mode in modes:
        count = await (echoed_bytes(port) if mode == "bytes" else echoes(port, mode))
        print(mode, count, end=" echoes as sent; ")


async def echoes(port, mode):
    source = random.Random(1)
    compression = "deflate" if mode == "deflate" else None
    options = {"compression": compression, "max_size": None, "ping_interval": None, "proxy": None}
    count = 0
    async with connect(f"ws://127.0.0.1:{port}/", **options) as client:
        agreed = client.response.headers.get("Sec-WebSocket-Extensions", "")
        if ("permessage-deflate" in agreed) != (mode == "deflate"):
            raise SystemExit(f"{mode}: the server agreed to {agreed or 'no extension'}")
        # Three of the libraries fail at an empty compressed message, which nothing here measures.
        for size in SIZES if mode == "plain" else SIZES[1:]:
            data = source.randbytes(size)
            text = data.hex()[: size - len(BEYOND_ASCII.encode())] + BEYOND_ASCII if size > 8 else "a" * size
            for message in (data, text):
                await client.send(message)
                echo = await client.recv()
                if echo != message:
                    raise SystemExit(f"{mode}: the echo of {type(message).__name__} of {size} bytes differs")
                count += 1
        # Several in flight, so that the server finds more than one frame in what it receives.
        burst = [source.randbytes(source.choice((3, 200, 3000))) for _ in range(200)]
        sending = asyncio.create_task(send_all(client, burst))
        for message in burst:
            if await client.recv() != message:
                raise SystemExit(f"{mode}: an echo among several in flight differs")
            count += 1
        await sending
    return count


async def echoed_bytes(port):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    sizes = [size for size in SIZES if size > 0]
    for size in sizes:
        message = random.Random(size).randbytes(size)
        writer.write(message)
        if await reader.readexactly(size) != message:
            raise SystemExit(f"bytes: the echo of {size} bytes differs")
    writer.close()
    return len(sizes)


async def send_all(client, messages):
    for message in messages:
        await client.send(message)


asyncio.run(main(int(sys.argv[1]), sys.argv[2:]))
