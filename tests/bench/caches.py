"""Binary caches beside what one would do without them: tar, zstd, curl, and zstd's own deltas.

SRP_BENCH_SCALE, 1 unless it is set, makes everything so many times as large: 0.01 tries the benchmarks themselves.
"""

import asyncio
import concurrent.futures
import contextlib
import hashlib
import json
import os
import pathlib
import random
import shutil
import socket
import subprocess
import tempfile
import threading
import time

from measure import QUIET, REPO, SRP, TARGET, fresh, say, say_bytes, timed

SCALE = float(os.environ.get("SRP_BENCH_SCALE", "1"))


class Bench:
    """Definitions of some sources, a builder that has realised them, and others who have not."""

    def __init__(self, work):
        self.work = pathlib.Path(work)
        self.definitions = self.work / "definitions"
        shutil.copytree(REPO / "tests/bench/caches", self.definitions)
        (self.work / "home/.config/srp").mkdir(parents=True)
        self.builder = fresh(work, "builder")
        self.ask(None)

    def define(self, trees):
        """Makes tar files of these directories, and says that they are the sources."""
        sources = []
        for name, tree in trees.items():
            tar = self.work / f"{name}{random.getrandbits(48):x}.tar"
            subprocess.run(["tar", "--sort=name", "-C", tree, "-cf", tar, "."], check=True)
            digest = hashlib.file_digest(tar.open("rb"), "sha256").hexdigest()
            sources.append({"name": name, "sha256": digest, "url": f"mirror://bench/{tar.name}"})
        (self.definitions / "sources.json").write_text(json.dumps(sources))

    def ask(self, url):
        """Lets srp ask this cache, and believe it."""
        cache = f"[[caches]]\nurl = '{url}'\ntrusted_unsigned = true\n" if url else ""
        config = self.work / "home/.config/srp/config.toml"
        config.write_text(f"[mirrors]\nbench = 'file://{self.work}'\n{cache}")

    def options(self, arguments, store, prefix=()):
        command = [*prefix, SRP, *arguments, "--store", store, "--definitions", self.definitions]
        return [str(part) for part in command], {"env": os.environ | {"HOME": str(self.work / "home")}}

    def timed(self, *arguments, store, prefix=()):
        command, options = self.options(arguments, store, prefix)
        return timed(*command, **options)

    def srp(self, *arguments, store, prefix=()):
        """What it printed."""
        command, options = self.options(arguments, store, prefix)
        run = subprocess.run(command, capture_output=True, text=True, **options)
        if run.returncode:
            raise SystemExit(run.stderr)
        return run.stdout

    def push(self, attribute, cache):
        """Realises it if need be; what `srp cache push` said."""
        self.srp("realise", attribute, store=self.builder)
        pushed = self.srp("cache", "push", attribute, "--unsigned", "--json", "--to", cache, store=self.builder)
        return json.loads(pushed)["published"][0]


@contextlib.contextmanager
def workplace():
    with tempfile.TemporaryDirectory(dir=TARGET) as work:
        yield Bench(work)
        subprocess.run(["chmod", "-R", "u+w", work], check=True)


@contextlib.contextmanager
def nginx(root, host="127.0.0.1", prefix=()):
    """Serves a directory; its URL, and a function that says how many bytes and requests that was so far."""
    with socket.socket() as found, tempfile.TemporaryDirectory() as at:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
        found.close()
        temporary = " ".join(f"{kind}_temp_path {at}/{kind};" for kind in ["proxy", "fastcgi", "uwsgi", "scgi"])
        pathlib.Path(at, "conf").write_text(
            f"daemon off; user root; worker_processes auto; pid {at}/pid; error_log {at}/error; events {{}} http {{ sendfile on;"
            f" keepalive_requests 100000; log_format bytes '$bytes_sent'; access_log {at}/access bytes;"
            f" client_body_temp_path {at}/body; {temporary} server {{ listen {host}:{port}; root {root}; }} }}"
        )
        server = subprocess.Popen([*prefix, "nginx", "-p", at, "-c", f"{at}/conf"], **QUIET)
        try:
            while not pathlib.Path(at, "pid").exists() and server.poll() is None:
                time.sleep(0.01)

            def sent():
                lines = pathlib.Path(at, "access").read_text().split()
                return sum(map(int, lines)), len(lines)

            yield f"http://{host}:{port}", sent
        finally:
            server.terminate()
            server.wait()


def sample(tree, files=16_000, size=832_000_000):
    """Fills a directory with files of this machine's /usr: as many, and as large, as a toolchain."""
    files, size = int(files * SCALE), int(size * SCALE)
    found = []
    for directory, _, names in os.walk("/usr", followlinks=False):
        paths = (pathlib.Path(directory, name) for name in names)
        found += [path for path in paths if path.is_file() and not path.is_symlink()]
    random.Random(1).shuffle(found)
    taken, number = 0, 0
    for path in found:
        if number == files:
            break
        length = path.stat().st_size
        # Neither is one file most of it, nor do the many tiny ones keep the sum from being reached.
        share = max((size - taken) / (files - number), 1)
        if length > 50 * share or (taken < size / files * number and length < share / 4):
            continue
        to = pathlib.Path(tree, f"usr/d{number % 160}", f"{number}-{path.name}")
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, to)
        taken, number = taken + length, number + 1
    print(f"{number} files of this machine's /usr, {taken / 1e6:.0f} MB", flush=True)


def cache_push():
    """16,000 files and 832 MB into a cache in a directory, beside tar | zstd -3 -T2."""
    with workplace() as bench:
        sample(bench.work / "tree")
        bench.define({"tree": bench.work / "tree"})
        bench.srp("realise", "bench.x.tree", store=bench.builder)
        (tree,) = pathlib.Path(bench.builder).glob("trees/*/usr")
        peer, push = [], []
        for _ in range(3):
            packed = bench.work / "tree.tar.zst"
            script = f"tar -C {tree.parent} -c . | zstd -q -f -3 -T2 -o {packed} && sync {packed}"
            peer.append(timed("sh", "-c", script))
            cache = fresh(bench.work, "cache")
            push.append(bench.timed("cache", "push", "bench.x.tree", "--unsigned", "--to", cache, store=bench.builder))
        say("tar | zstd -3 -T2, and sync", peer)
        say("srp cache push", push, peer, limit="limit: 1 x")
        packs = sum(path.stat().st_size for path in pathlib.Path(cache, "packs").iterdir())
        say_bytes("tar.zst", packed.stat().st_size)
        say_bytes("packs", packs, packed.stat().st_size, limit="limit: 1.05 x")
        again = bench.timed("cache", "push", "bench.x.tree", "--unsigned", "--to", cache, store=bench.builder)
        say("srp cache push, when all is there", [again])


def cache_fetch():
    """The same from nginx on this machine, beside curl | zstd -d | tar x."""
    with workplace() as bench:
        sample(bench.work / "tree")
        bench.define({"tree": bench.work / "tree"})
        bench.push("bench.x.tree", bench.work / "www/cache")
        subprocess.run(f"tar -C {bench.work}/tree -c . | zstd -q -3 -T2 -o {bench.work}/www/tar.zst", shell=True, check=True)
        with nginx(bench.work / "www") as (url, sent):
            bench.ask(f"{url}/cache")
            peer, fetch = [], []
            for _ in range(3):
                into = fresh(bench.work, "into")
                os.mkdir(into)
                script = f"curl -sf {url}/tar.zst | zstd -q -d | tar -x -C {into} && sync -f {into}"
                peer.append(timed("sh", "-c", script))
                before = sent()
                store = fresh(bench.work, "store")
                fetch.append(bench.timed("realise", "--no-build", "bench.x.tree", store=store))
                after = sent()
            say("curl | zstd -d | tar x, and sync -f", peer)
            say("srp realise --no-build", fetch, peer, limit="limit: 1 x")
            say_bytes(f"in {after[1] - before[1]} requests", after[0] - before[0])


def cache_delta():
    """A large library of which one function was edited, beside zstd --patch-from and the whole pack."""
    with workplace() as bench:
        libraries = library(bench.work, int(80 * SCALE) or 1)
        packs, deltas = [], []
        for number, path in enumerate(libraries):
            tree = bench.work / f"tree{number}"
            (tree / "usr/lib").mkdir(parents=True)
            shutil.copyfile(path, tree / "usr/lib/lib.so")
            bench.define({"lib": tree})
            published = bench.push("bench.x.lib", bench.work / "www")
            packs.append(published["pack_bytes"])
            deltas.append(published["delta_bytes"])
            with nginx(bench.work / "www") as (url, sent):
                bench.ask(url)
                bench.srp("realise", "--no-build", "bench.x.lib", store=bench.work / "user")
                update = sent()[0]
        old, new = libraries
        patch = bench.work / "patch"
        timed("zstd", "-q", "-3", "--long=27", f"--patch-from={old}", new, "-o", patch)
        say_bytes("the library", new.stat().st_size)
        say_bytes("its whole pack", packs[1])
        say_bytes("zstd -3 --patch-from", patch.stat().st_size, packs[1])
        say_bytes("srp's delta", deltas[1], packs[1], limit="limit: 0.25 x")
        say_bytes("all that an update transferred", update, packs[1])


def cache_update():
    """A stage of 40 packages of which one became another, beside that package by itself."""
    with workplace() as bench:
        sample(bench.work / "all")
        trees = {}
        for number, directory in enumerate(sorted((bench.work / "all/usr").iterdir())):
            tree = bench.work / f"package{number % 40}"
            (tree / "usr").mkdir(parents=True, exist_ok=True)
            directory.rename(tree / "usr" / directory.name)
            trees[f"p{number % 40}"] = tree
        with nginx(bench.work / "www") as (url, sent):

            def updated():
                bench.define(trees)
                published = bench.push("bench.x", bench.work / "www")
                bench.ask(url)
                before = sent()[0]
                bench.srp("realise", "--no-build", "bench.x", store=bench.work / "user")
                bench.ask(None)
                return published["pack_bytes"], sent()[0] - before

            say_bytes("the stage, the first time", updated()[1])
            generator = random.Random(5)
            for path in sorted(trees["p7"].glob("usr/*/*")):
                # As well compressible as it was, and nothing that a delta could use.
                content = bytearray(path.read_bytes())
                key = bytes(generator.sample(range(256), 256))
                path.write_bytes(content.translate(key))
            package, update = updated()
            say_bytes("the package's pack", package)
            say_bytes("all that an update of the stage transferred", update, package, limit="limit: 1.02 x")


def library(work, files):
    """Two builds of a library of a thousand functions a file; in the second, one function has become longer."""
    generator = random.Random(2)
    source = work / "source"
    source.mkdir()
    functions = 1000

    def any_function():
        return f"f{generator.randrange(files)}_{generator.randrange(functions)}"

    def compiled(name, text):
        path = source / f"{name}.c"
        path.write_text(text)
        flags = ["-O1", "-fPIC", "-fvisibility=hidden", "-w"]
        subprocess.run(["cc", *flags, "-c", path, "-o", path.with_suffix(".o")], check=True)
        return path.with_suffix(".o")

    def content(file):
        lines = ["int use(const char *, int);"]
        for function in range(functions):
            a, b, number = any_function(), any_function(), generator.randrange(1 << 30)
            lines.append(
                f"int {a}(int); int {b}(int); static int t{function}[8];"
                f"int f{file}_{function}(int n) {{ for (int i = 0; i < n; i++) t{function}[i & 7] += {a}(n ^ {number});"
                f' if (n & {number % 255}) use("function {number:x} of file {file}", {b}(n / {number % 97 + 2}));'
                f" return t{function}[n & 7] * {number}; }}"
            )
        return "\n".join(lines)

    public = '__attribute__((visibility("default"))) int'
    texts = {str(file): content(file) for file in range(files)}
    texts["use"] = f"{public} use(const char *s, int n) {{ return s[n & 3]; }}"
    texts["all"] = f"int f0_0(int); {public} all(int n) {{ return f0_0(n); }}"
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
        objects = list(threads.map(compiled, texts, texts.values()))

    def linked(name):
        subprocess.run(["cc", "-shared", "-o", work / name, *objects], check=True)
        return work / name

    old = linked("old.so")
    edited, head = str(files // 3), f"int f{files // 3}_500(int n) {{"
    more = 'for (int j = 0; j < n; j++) use("an edit", j * n);'
    compiled(edited, texts[edited].replace(head, f"{head} {more}"))
    return old, linked("new.so")


def cache_line():
    """40 objects over a line of 100 Mbit/s and 50 ms; and what it takes to know that 500 are there."""
    with workplace() as bench, line() as (enter, host, through):
        generator = random.Random(3)
        for count, size in [(40, int(2_500_000 * SCALE)), (500, 100)]:
            trees = {}
            for number in range(count):
                tree = bench.work / f"{count}-{number}"
                tree.mkdir()
                (tree / f"{count}-{number}").write_bytes(generator.randbytes(size))
                trees[f"o{number}"] = tree
            bench.define(trees)
            bench.ask(None)
            bench.push("bench.x", bench.work / "www")

            def seconds(*arguments):
                return bench.timed("realise", "bench.x", *arguments, store=fresh(bench.work, "store"), prefix=enter)

            with nginx(bench.work / "www", host) as (url, sent), through(url) as url:
                alone = min(seconds("--dry-run") for _ in range(3))
                bench.ask(url)
                asked = min(seconds("--dry-run") for _ in range(3))
                print(
                    f"{count} objects are found in {sent()[1] // 3} requests: {(asked - alone) / DELAY:.1f} round trips"
                    " more than without a cache, one of them to connect  limit: 3",
                    flush=True,
                )
                if count == 40:
                    before = sent()[0]
                    took = seconds("--no-build")
                    print(f"{(sent()[0] - before) * 8 / took / 1e6:.1f} Mbit/s  limit: 90", flush=True)


def cache_serve():
    """srp serve beside nginx with the same files: 16 connections that fetch 300 objects, and one large one."""
    with workplace() as bench:
        generator = random.Random(4)
        trees = {}
        for number in range(300):
            trees[f"o{number}"] = tree = bench.work / f"small-{number}"
            tree.mkdir()
            (tree / f"small-{number}").write_bytes(generator.randbytes(100_000))
        trees["large"] = large = bench.work / "large"
        large.mkdir()
        with (large / "large").open("wb") as file:
            for _ in range(int(1000 * SCALE)):
                file.write(generator.randbytes(1_000_000))
        bench.define(trees)
        bench.push("bench.x", bench.work / "www")
        packs = sorted((bench.work / "www/packs").iterdir(), key=lambda path: path.stat().st_size)
        paths = [f"packs/{pack.name}" for pack in packs]
        with nginx(bench.work / "www") as (theirs, _), serving(bench) as (ours, peak_bytes):
            for name, files, rounds in [("300 objects of 100 kB", paths[:-1], 9), ("an object of 1 GB", paths[-1:], 3)]:
                peak_bytes()
                peer, serve = [], []
                for _ in range(rounds):
                    peer.append(fetched(theirs, files))
                    serve.append(fetched(ours, files))
                say(f"nginx, {name}, 16 times", peer)
                say(f"srp serve, {name}, 16 times", serve, peer, limit="limit: 1.5 x")
                say_bytes("srp serve's memory at most", peak_bytes())


@contextlib.contextmanager
def serving(bench):
    """Serves the builder's store; the URL, and a function that says what its memory was at most since the last call."""
    command, options = bench.options(["serve", "--unsigned", "--listen", "127.0.0.1:0"], bench.builder)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, **options) as server:

        def peak_bytes():
            lines = pathlib.Path(f"/proc/{server.pid}/status").read_text().splitlines()
            (peak,) = [line.split()[1] for line in lines if line.startswith("VmHWM")]
            pathlib.Path(f"/proc/{server.pid}/clear_refs").write_text("5")
            return int(peak) * 1024

        try:
            yield server.stdout.readline().split()[-1].rstrip("/"), peak_bytes
        finally:
            server.terminate()


def fetched(url, files):
    """How long 16 clients take to fetch all of these, each over one connection."""
    command = ["curl", "-sf", *(word for file in files for word in ["-o", "/dev/null", f"{url}/{file}"])]
    start = time.perf_counter()
    clients = [subprocess.Popen(command) for _ in range(16)]
    if any(client.wait() for client in clients):
        raise SystemExit(f"{url} doesn't serve what it should")
    return time.perf_counter() - start


# Of the line: there and back, and bytes a second.
DELAY = 0.05
RATE = 12_500_000


def line():
    """How to be behind a slow line: what to put before a command, where to serve, and what a URL becomes.

    With the kernel's netem it is between two network namespaces. Where there is none, or one may not, it is a process in
    between that delays what it passes on: that has a round trip to connect, and the rate, but none of TCP's slow start.
    """
    tried = "tc qdisc add dev lo root netem delay 1ms"
    if shutil.which("tc") and subprocess.run(["unshare", "-n", *tried.split()], **QUIET).returncode == 0:
        return namespaces()
    print("without netem: the line is a process in between", flush=True)
    return in_between()


@contextlib.contextmanager
def namespaces():
    name, host, guest = f"srp{os.getpid()}", "10.213.77.1", "10.213.77.2"
    here, there = f"{name}a", f"{name}b"

    def run(command):
        subprocess.run(command.split(), check=True)

    run(f"ip netns add {name}")
    try:
        run(f"ip link add {here} type veth peer name {there} netns {name}")
        for enter, link, address in [("", here, host), (f"ip netns exec {name} ", there, guest)]:
            run(f"{enter}ip address add {address}/30 dev {link}")
            run(f"{enter}ip link set {link} up")
            run(f"{enter}tc qdisc add dev {link} root netem delay {DELAY * 500}ms rate {RATE * 8}bit limit 10000")
        yield ["ip", "netns", "exec", name], host, contextlib.nullcontext
    finally:
        run(f"ip netns delete {name}")


@contextlib.contextmanager
def in_between():
    yield [], "127.0.0.1", slowly


@contextlib.contextmanager
def slowly(url):
    """Another URL of the same server, behind the line; one line for all connections."""
    port = int(url.rsplit(":", 1)[1])
    free = {}  # when the line is free again, by direction

    async def carry(reader, writer, direction):
        queue = asyncio.Queue()

        async def arrive():
            while (entry := await queue.get()) is not None:
                at, data = entry
                await asyncio.sleep(at - time.monotonic())
                writer.write(data)
                await writer.drain()
            writer.close()

        arriving = asyncio.create_task(arrive())
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(16 << 10):
                free[direction] = max(free.get(direction, 0), time.monotonic()) + len(data) / RATE
                queue.put_nowait((free[direction] + DELAY / 2, data))
                await asyncio.sleep(free[direction] - time.monotonic())
        queue.put_nowait(None)
        with contextlib.suppress(ConnectionError):
            await arriving

    async def connected(reader, writer):
        await asyncio.sleep(DELAY)
        to_server = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(carry(reader, to_server[1], "up"), carry(to_server[0], writer, "down"))

    async def end():
        server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(connected, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        asyncio.run_coroutine_threadsafe(end(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
