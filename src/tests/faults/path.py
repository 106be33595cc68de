"""A bad path between two interfaces: it loses, repeats, delays and reorders the frames that it carries.

Arguments: the two interfaces, and a seed. Prints a line when it carries, and then does until it is killed.
"""

import heapq
import random
import select
import socket
import sys
import time

# Of each frame.
LOST = 0.005
REPEATED = 0.05
# How long each is held, at random up to this, so that later ones overtake it.
SECONDS_MAX = 0.003

ALL_PROTOCOLS = 3  # ETH_P_ALL (packet(7))
SOL_PACKET = 263
# Frames come and go with what the sending interface left to be done: checksums, and cutting into segments.
PACKET_VNET_HDR = 15
PACKET_OUTGOING = 4


def opened(interface):
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ALL_PROTOCOLS))
    opened.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    opened.bind((interface, 0))
    opened.setblocking(False)
    return opened


def frames(end):
    """What has arrived, without what was sent from here."""
    while True:
        try:
            frame, address = end.recvfrom(1 << 17)
        except BlockingIOError:
            return
        if address[2] != PACKET_OUTGOING:
            yield frame


def main():
    left, right = (opened(interface) for interface in sys.argv[1:3])
    other = {left: right, right: left}
    chance = random.Random(int(sys.argv[3]))
    held = []
    number = 0
    print("carries", flush=True)
    while True:
        wait = max(0.0, held[0][0] - time.monotonic()) if held else None
        ready, _, _ = select.select([left, right], [], [], wait)
        for end in ready:
            for frame in frames(end):
                if chance.random() < LOST:
                    continue
                for _ in range(2 if chance.random() < REPEATED else 1):
                    due = time.monotonic() + chance.random() * SECONDS_MAX
                    heapq.heappush(held, (due, number, other[end], frame))
                    number += 1
        while held and held[0][0] <= time.monotonic():
            _, _, end, frame = heapq.heappop(held)
            try:
                end.send(frame)
            except OSError:
                pass  # one more that is lost


main()
