"""Asks an echo server for echoes and compares each with its message: the client of `scripts/peers --check`.

`check.py PORT MODE...`, where a mode is `plain` or `deflate`: without or with permessage-deflate.
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
        print(mode, await echoes(port, mode), end=" echoes as sent; ")


async def echoes(port, mode):
    source = random.Random(1)
    compression = "deflate" if mode == "deflate" else None
    options = {"compression": compression, "max_size": None, "ping_interval": None, "proxy": None}
    count = 0
    async with connect(f"ws://127.0.0.1:{port}/", **options) as client:
        agreed = client.response.headers.get("Sec-WebSocket-Extensions", "")
        if ("permessage-deflate" in agreed) != (mode == "deflate"):
            raise SystemExit(f"{mode}: the server agreed to {agreed or 'no extension'}")
        for size in SIZES:
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


async def send_all(client, messages):
    for message in messages:
        await client.send(message)


asyncio.run(main(int(sys.argv[1]), sys.argv[2:]))
