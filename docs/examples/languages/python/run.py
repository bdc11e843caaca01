#!/usr/bin/env python3
"""Does COUNT units of work under `leasehold run`. Each is a PUT to URL, with the fencing token.

    leasehold run --lock NAME -- run.py URL COUNT
"""
import os
import signal
import sys
import threading
import time
import urllib.request

TOKEN = os.environ["LEASEHOLD_TOKEN"]
UNIT = 0.5  # seconds: no unit of work takes longer

# The lock is lost, or somebody wants us to end: the unit that was begun is finished.
stop = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())


def left():
    """For how many seconds it is held; less than 0 once it is lost."""
    with open(os.environ["LEASEHOLD_DEADLINE_FILE"]) as file:
        deadline, standing = file.read().split()
    return -1 if standing == "lost" else float(deadline) - time.clock_gettime(time.CLOCK_BOOTTIME)


def work(url):
    request = urllib.request.Request(url, b"worked", {"Fencing-Token": TOKEN}, method="PUT")
    urllib.request.urlopen(request, timeout=UNIT).close()


for _ in range(int(sys.argv[2])):
    if stop.is_set() or left() < UNIT:
        sys.exit("stopped before the end")
    work(sys.argv[1])
