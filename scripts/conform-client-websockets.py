"""The client of `websockets` in a conformance suite, for the script `conform-clients`.

`conform-client-websockets.py URL AGENT` asks the suite at URL for its cases, echoes in each of them, and asks
for the report.
"""

import asyncio
import sys

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, WebSocketException


async def main():
    url, agent = sys.argv[1:]
    count = int(await messages(f"{url}/getCaseCount", echoes=False))
    for number in range(1, count + 1):
        await messages(f"{url}/runCase?case={number}&agent={agent}", echoes=True)
    await messages(f"{url}/updateReports?agent={agent}", echoes=False)


async def messages(url, echoes):
    """Connects, echoes messages until the connection ends, and returns the first one."""
    first = None
    try:
        # Without pings of its own, as the cases count what comes.
        async with connect(url, max_size=None, ping_interval=None, proxy=None) as connection:
            async for message in connection:
                first = first or message
                if echoes:
                    await connection.send(message)
    except ConnectionClosed:
        pass
    except (WebSocketException, OSError, EOFError):
        # The suite knows why the connection was not opened.
        if not echoes:
            raise
    return first


asyncio.run(main())
