"""What all benchmarks stand on: the program, time taken, and how it is said."""

import json
import os
import pathlib
import random
import statistics
import subprocess
import time

REPO = pathlib.Path(__file__).resolve().parents[2]
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", REPO / "target"))
SRP = str(TARGET / "release/srp")
QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


def fresh(work, name):
    """The path of a new directory in `work`, in another part of the disk than earlier ones, where that can be had.

    An ext4 without a journal passes over inodes that were deleted in the last minutes, one by one, whenever it makes a
    file: what an earlier measurement deleted nearby would be measured, too. It chooses the place by the name.
    """
    subprocess.run(["chattr", "+T", str(work)], **QUIET)
    return f"{work}/{name}{random.getrandbits(48):x}"


def asked(*arguments):
    """What srp answers in JSON."""
    return json.loads(subprocess.run([SRP, *arguments], cwd=REPO, check=True, stdout=subprocess.PIPE).stdout)


def timed(*command, **options):
    start = time.perf_counter()
    subprocess.run(command, check=True, **(QUIET | options))
    return time.perf_counter() - start


def say(name, seconds, peer=None, limit=""):
    median = statistics.median(seconds)
    line = f"{name:<46} {median * 1000:10.1f} ms  ({min(seconds) * 1000:.1f} to {max(seconds) * 1000:.1f})"
    if peer:
        line += f"  {median / statistics.median(peer):.2f} x"
    print(f"{line}  {limit}".rstrip(), flush=True)
    return median


def say_bytes(name, size, peer=None, limit=""):
    line = f"{name:<46} {size / 1e6:10.3f} MB"
    if peer:
        line += f"  {size / peer:.3f} x"
    print(f"{line}  {limit}".rstrip(), flush=True)
