"""An srp beside an earlier one, by turns: what each change is held against.

SRP_EARLIER names the earlier program, SRP_ROUNDS how many pairs are measured. Both read the same definitions; each has stores of its own.
"""

import os
import pathlib
import random
import shutil
import subprocess
import tempfile

from measure import SRP, TARGET, fresh, say, timed

FILES, BYTES = 8_000, 26_000
ROUNDS = int(os.environ.get("SRP_ROUNDS", "5"))


def beside_earlier(definitions_in, overhead):
    """500 trivial builds, `srp add`, `--rootfs`, a realise with nothing to do, and gzip's build."""
    before = os.environ.get("SRP_EARLIER")
    if not before:
        print("SRP_EARLIER names no earlier srp: nothing to compare with", flush=True)
        return
    with tempfile.TemporaryDirectory(dir=TARGET) as work:
        # Both were written the same way a moment ago: how a program's file lies in the page cache shows in each start.
        before, now = (shutil.copy(program, f"{work}/srp-{name}") for program, name in [(before, "earlier"), (SRP, "now")])
        definitions = definitions_in(work)
        tree = sample(pathlib.Path(work, "tree"))
        programs = (before, now)
        by_turns("500 trivial builds", lambda srp: builds(srp, work, definitions), programs)
        by_turns("srp add, 8,000 files of 26 kB", lambda srp: add(srp, work, tree), programs)
        roots = {srp: added(srp, work, tree) for srp in (before, now)}
        by_turns("--rootfs of these files", lambda srp: rootfs(srp, work, *roots[srp]), programs)
        stores = {srp: fresh(work, "store") for srp in (before, now)}
        nothing = lambda srp: realise(srp, "bench.x86_64.inputs", stores[srp], definitions)
        by_turns("a realise with nothing to do", lambda srp: min(nothing(srp) for _ in range(10)), programs)
        made = {srp: overhead(f"{fresh(work, 'overhead')}", srp) for srp in (before, now)}
        numbers = iter(range(1, 100))
        by_turns("gzip, configured and built", lambda srp: made[srp].inside(f"bench.x86_64.autotools{next(numbers)}"), programs)
        subprocess.run(["chmod", "-R", "u+w", work], check=True)


def by_turns(name, measure, programs):
    """Measures both, in changing order, after one round that isn't counted."""
    before, now = programs
    seconds = {before: [], now: []}
    for number in range(ROUNDS + 1):
        for srp in (before, now) if number % 2 else (now, before):
            taken = measure(srp)
            if number:
                seconds[srp].append(taken)
    say(f"{name}, earlier", seconds[before])
    ratios = sorted(after / then for after, then in zip(seconds[now], seconds[before]))
    say(name, seconds[now], seconds[before], limit=f"pairs {ratios[0]:.2f} to {ratios[-1]:.2f}; limit: 1.05 x")


def realise(srp, *arguments):
    *goals, store, definitions = arguments
    return timed(srp, "realise", *goals, "--store", store, "--definitions", definitions)


def builds(srp, work, definitions):
    store = fresh(work, "store")
    realise(srp, "bench.x86_64.inputs", store, definitions)
    goals = [f"bench.x86_64.b{index}" for index in range(500)]
    taken = realise(srp, "--no-root", *goals, store, definitions)
    discard(store)
    return taken


def add(srp, work, tree):
    store = fresh(work, "store")
    subprocess.run(["sync", "-f", work], check=True)
    taken = timed(srp, "add", str(tree), "--store", store)
    discard(store)
    return taken


def added(srp, work, tree):
    store = fresh(work, "store")
    run = subprocess.run([srp, "add", str(tree), "--store", store], check=True, text=True, stdout=subprocess.PIPE)
    return store, run.stdout.strip()


def rootfs(srp, work, store, path):
    root = fresh(work, "root")
    taken = timed(srp, "realise", "--no-root", path, "--rootfs", root, "--store", store)
    discard(root)
    return taken


def discard(directory):
    subprocess.run(["chmod", "-R", "u+w", directory], check=True)
    shutil.rmtree(directory)


def sample(tree):
    """Files as they are in a package: below /usr, of one size."""
    generator = random.Random(1)
    for directory in range(FILES // 100):
        path = tree / "usr/share" / f"d{directory}"
        path.mkdir(parents=True)
        for file in range(100):
            (path / f"f{file}").write_bytes(generator.randbytes(BYTES))
    return tree
