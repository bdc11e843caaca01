#!/usr/bin/env python3
"""Works while the agent of this pod holds the lock. Each unit of work is a PUT to URL, with the fencing token.

    elect.py URL
"""
import json
import os
import sys
import threading
import time
import urllib.error
import urllib.request

AGENT = os.environ.get("LEASEHOLD_AGENT", "http://127.0.0.1:4040")
UNIT = 0.5  # seconds: no unit of work takes longer

held = threading.Event()


def follow():
    """Wakes the work when the lock is acquired, and ends it when it is lost."""
    while True:
        try:
            # The agent says something every 15 s.
            with urllib.request.urlopen(f"{AGENT}/v1/events", timeout=40) as stream:
                for line in stream:
                    event = line.decode().strip().removeprefix("event: ")
                    if event in ("acquired", "safe", "jeopardy"):
                        held.set()
                    elif event in ("lost", "waiting"):
                        held.clear()
        except OSError:
            pass
        held.clear()
        time.sleep(1)


def time_to_work():
    """The fencing token, and for how many seconds from now it may be worked under it."""
    asked = time.monotonic()
    with urllib.request.urlopen(f"{AGENT}/v1/hold", timeout=1) as answer:
        hold = json.load(answer)
    return hold["fencingToken"], asked + hold["stopInMilliseconds"] / 1000 - time.monotonic()


def work(url, token):
    request = urllib.request.Request(url, b"worked", {"Fencing-Token": str(token)}, method="PUT")
    urllib.request.urlopen(request, timeout=UNIT).close()


threading.Thread(target=follow, daemon=True).start()
while held.wait():
    try:
        token, left = time_to_work()
        if left > UNIT:
            work(sys.argv[1], token)
        else:
            time.sleep(0.1)
    except urllib.error.HTTPError as error:
        print("refused:", error.code, file=sys.stderr)
    except OSError as error:
        print(error, file=sys.stderr)
        time.sleep(0.1)
