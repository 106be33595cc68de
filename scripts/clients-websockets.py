"""The client `websockets`, for the script `clients`: echoes a corpus over one connection and compares.

Takes the URL, the offer and the corpus as JSON on standard input. On success it prints as JSON what
was agreed on, how many echoes there were and how many messages were sent compressed, which with this
client is all; on failure it prints what differed and exits with status 1.
"""

import asyncio
import base64
import collections
import json
import ssl
import sys
from pathlib import Path

from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory

# How many messages are in flight when the next is sent: none, then many.
UNDER_WAY = (1, 16)
ECHO_SECONDS = 10

Message = collections.namedtuple("Message", "number name text fragments payload")


async def main():
    job = json.load(sys.stdin)
    corpus = list(messages(job["corpus"]))
    # The defaults offer parameters, so those that are not offered are turned off.
    offer = {"client_max_window_bits": None, **job["offer"]}
    # The server has made its certificate itself.
    unverified = ssl.create_default_context()
    unverified.check_hostname = False
    unverified.verify_mode = ssl.CERT_NONE
    async with connect(
        f"{job['url']}/",
        ssl=unverified if job["url"].startswith("wss:") else None,
        compression=None,
        extensions=[ClientPerMessageDeflateFactory(**offer)],
        max_size=None,
        # Otherwise this client would stop receiving, and then the server too, while it still sends.
        max_queue=None,
        proxy=None,
    ) as connection:
        extensions = [extension.name for extension in connection.protocol.extensions]
        header = connection.response.headers.get("Sec-WebSocket-Extensions")
        for most in UNDER_WAY:
            await echo(connection, corpus, most)
    if connection.close_code != 1000:
        sys.exit(f"the close was answered with code {connection.close_code}")
    echoes = len(UNDER_WAY) * len(corpus)
    answer = {"extensions": extensions, "header": header, "echoes": echoes, "compressed": echoes}
    print(json.dumps(answer))


def messages(path):
    for number, entry in enumerate(json.loads(Path(path).read_text())):
        fragments = [base64.b64decode(fragment) for fragment in entry["fragments"]]
        yield Message(number, entry["name"], entry["text"], fragments, b"".join(fragments))


async def echo(connection, corpus, most):
    """Sends the corpus and compares its echoes, with at most this many messages in flight."""
    waiting = collections.deque()
    for message in corpus:
        if len(waiting) == most:
            await compare(connection, waiting.popleft(), most)
        whole = len(message.fragments) == 1
        try:
            await connection.send(message.payload if whole else message.fragments, text=message.text)
        except WebSocketException as exception:
            sys.exit(f"{described(message, most)}: while sending: {exception}")
        waiting.append(message)
    while waiting:
        await compare(connection, waiting.popleft(), most)


async def compare(connection, message, most):
    try:
        received = await asyncio.wait_for(connection.recv(), ECHO_SECONDS)
    except TimeoutError:
        sys.exit(f"{described(message, most)}: no echo within {ECHO_SECONDS} s")
    except WebSocketException as exception:
        sys.exit(f"{described(message, most)}: {exception}")
    text = isinstance(received, str)
    payload = received.encode() if text else received
    if text != message.text or payload != message.payload:
        sys.exit(f"{described(message, most)}: {difference(message.payload, payload, text)}")


def described(message, most):
    kind = "text" if message.text else "binary"
    # An iterable is sent with an empty frame at its end.
    frames = len(message.fragments) + (len(message.fragments) > 1)
    return (
        f'message {message.number}, "{message.name}" ({kind}, {len(message.payload)} bytes '
        f"in {frames} frames, {most} in flight)"
    )


def difference(payload, received, text):
    first = ""
    if received != payload:
        pairs = enumerate(zip(payload, received))
        place = next((place for place, (a, b) in pairs if a != b), min(len(payload), len(received)))
        first = f", first difference at byte {place}"
    return f"the echo was {'text' if text else 'binary'} of {len(received)} bytes{first}"


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except (WebSocketException, OSError) as failure:
        sys.exit(f"{type(failure).__name__}: {failure}")
