"""Benchmarks of garbage collection: `tests/bench/run gc_plan gc_delete`."""

import os
import pathlib
import random
import shutil
import subprocess
import tempfile
import time

from measure import REPO, SRP, TARGET, fresh, say, timed

OBJECTS, REFERENCES, TREES = 1_000_000, 10, 50_000


def measured(*command):
    """The seconds that a command took, and the most memory that it had, in MiB."""
    start = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - start
    assert status == 0, command
    return seconds, usage.ru_maxrss / 1024


def forget(store):
    """Has the kernel forget inodes and names, and the file of the graph; false where only root may."""
    subprocess.run(["sync"], check=True)
    with open(pathlib.Path(store, "graph"), "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    try:
        pathlib.Path("/proc/sys/vm/drop_caches").write_text("2")
    except OSError:
        return False
    return True


def gc_plan():
    """What a collection of 1,000,000 objects with 10 references each would remove: marked and planned."""
    with tempfile.TemporaryDirectory(dir=TARGET) as work:
        store = fresh(work, "store")
        cargo = ["cargo", "build", "--quiet", "--release", "-p", "srp-store", "--example", "many_objects"]
        subprocess.run(cargo, cwd=REPO, check=True)
        fill = [str(TARGET / "release/examples/many_objects"), store, str(OBJECTS), str(REFERENCES), str(TREES)]
        print(f"filled in {timed(*fill):.0f} s", flush=True)
        plan = [SRP, "--store", store, "store", "gc", "--dry-run", "--quiet", "--older-than"]
        first, memory = measured(*plan, "365d")
        say(f"the graph made from {OBJECTS} records ({memory:.0f} MiB)", [first])
        times, peaks = zip(*(measured(*plan, "365d") for _ in range(5)))
        say(f"all of it young ({max(peaks):.0f} MiB)", times, limit="limit: 3000 ms, 1024 MiB")
        measured(*plan, "0s")
        times, peaks = zip(*(measured(*plan, "0s") for _ in range(5)))
        say(f"a third of it garbage ({max(peaks):.0f} MiB)", times, limit="limit: 3000 ms, 1024 MiB")
        if forget(store):
            say("the same, cold: inodes and names not in memory", [measured(*plan, "0s")[0]])
        remove(work)


def gc_delete():
    """Deleting 100,000 files of 200 trees, beside rm -rf of the same."""
    with tempfile.TemporaryDirectory(dir=TARGET) as work:
        generator = random.Random(1)
        trees = []
        for tree in range(200):
            for directory in range(10):
                path = pathlib.Path(work, f"tree{tree}", f"d{directory}")
                path.mkdir(parents=True)
                for file in range(50):
                    (path / f"f{file}").write_bytes(generator.randbytes(generator.randrange(9000)))
            trees.append(str(pathlib.Path(work, f"tree{tree}")))
        ours, theirs = [], []
        for _ in range(3):
            store, copy = fresh(work, "store"), fresh(work, "copy")
            timed(SRP, "--store", store, "add", *trees)
            timed("cp", "-a", store, copy)
            subprocess.run(["chmod", "-R", "u+w", copy], check=True)
            for directory in (store, copy):
                subprocess.run(["sync", "-f", directory], check=True)
            theirs.append(timed("rm", "-rf", f"{copy}/trees"))
            subprocess.run(["sync", "-f", work], check=True)
            ours.append(timed(SRP, "--store", store, "store", "gc", "--older-than", "0s"))
            subprocess.run(["sync", "-f", work], check=True)
        say("rm -rf of the trees", theirs)
        say("srp store gc", ours, theirs, limit="limit: 1.20 x")
        remove(work)


def remove(work):
    subprocess.run(["chmod", "-R", "u+w", work], check=True)
    shutil.rmtree(work)
    pathlib.Path(work).mkdir()
