"""Ports for the servers of tests."""

import os
import random
import socket

BELOW = 32_000  # from there on the system takes ports for those who connect
BLOCK = 10  # a server's engines take the ports after its own


def free_port() -> int:
    """One on which nothing listens, nor on those after it; no other worker of pytest draws it."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    blocks = range(20_000 + BLOCK * worker, BELOW - BLOCK, BLOCK * workers)
    while True:
        port = random.SystemRandom().choice(blocks)
        try:
            for one in range(port, port + BLOCK):
                socket.create_server(("127.0.0.1", one)).close()
        except OSError:
            continue
        return port
