"""A thousand volumes and ten thousand snapshots in one pool: everything stays ordinary."""
import statistics
import time

from harness import BLOCK, MIB, case

VOLUMES, GROUPS = 1000, 10
# 64 MiB and the caches: 64 MiB of unchanged and 256 MiB of changed mapping nodes.
RESIDENT_MAX = (64 + 64 + 256) * MIB
# How many times slower than in an empty pool a command may be: to catch what grows, not to measure.
SLOWER_MAX = 10


class Clock:
    """Times commands, by name."""

    def __init__(self, server):
        self.server = server
        self.seconds = {}

    def run(self, name, *command):
        start = time.monotonic()
        self.server.cli(*command)
        self.seconds.setdefault(name, []).append(time.monotonic() - start)

    def median(self, name):
        return statistics.median(self.seconds[name])

    def worst(self, name):
        return max(self.seconds[name])


def few_commands(clock, label, rng, names):
    """The commands of a day, on some of the volumes."""
    for name in rng.sample(names, 20):
        new = f"new-{name}"
        clock.run(f"create {label}", "volume", "create", new, "--size", "1G")
        clock.run(f"snapshot {label}", "snapshot", "create", f"{new}@one")
        clock.run(f"clone {label}", "volume", "clone", f"{new}@one", f"{new}-clone")
        clock.run(f"show {label}", "volume", "show", name)
        clock.run(f"delete {label}", "volume", "delete", f"{new}-clone")
        clock.run(f"delete {label}", "snapshot", "delete", f"{new}@one")
        clock.run(f"delete {label}", "volume", "delete", new)
    clock.run(f"status {label}", "status")


@case(limit=400)
def a_thousand_volumes_and_ten_thousand_snapshots(context):
    server = context.serve(create="16G", volumes={"first": "1G"})
    clock = Clock(server)
    clock.run("create first", "volume", "create", "warm", "--size", "1G")
    few_commands(clock, "empty", context.rng, ["first", "warm"] * 20)
    empty = server.resident()
    names = [f"volume-{number:04}" for number in range(VOLUMES)]
    for name in names:
        clock.run("create", "volume", "create", name, "--size", "10G")
    for number in range(GROUPS):
        for name in context.rng.sample(names, 50):
            handle = server.connect(name)
            handle.pwrite(context.rng.randbytes(BLOCK), context.rng.randrange(10 << 30))
            handle.shutdown()
        # A group is one record of the journal; two of half the volumes are as good.
        for half in (names[:VOLUMES // 2], names[VOLUMES // 2:]):
            clock.run("group of 500", "snapshot", "create", *[f"{name}@{number}" for name in half])
    few_commands(clock, "full", context.rng, names)
    clock.run("list volumes", "volume", "list", "--json")
    clock.run("list snapshots", "snapshot", "list", "--json")
    status = server.status()
    assert status["volumes"] == VOLUMES + 2 and status["snapshots"] == VOLUMES * GROUPS, status
    full = server.resident()
    assert full < RESIDENT_MAX, f"{full // MIB} MiB resident, at most {RESIDENT_MAX // MIB}"

    server.stop()
    start = time.monotonic()
    server.start()
    opened = time.monotonic() - start
    idle = server.resident()
    server.kill()
    killed = server.start()
    assert len(server.snapshots()) == VOLUMES * GROUPS
    for name in context.rng.sample(names, 100):
        clock.run("delete", "snapshot", "delete", f"{name}@{context.rng.randrange(GROUPS)}")
    for name in context.rng.sample(names, 100):
        clock.run("delete", "volume", "delete", name)
    for name in ("create", "snapshot", "clone", "show", "delete", "status"):
        before, after = clock.median(f"{name} empty"), clock.median(f"{name} full")
        assert after < SLOWER_MAX * max(before, 0.005), \
            f"{name}: {before * 1000:.0f} ms in an empty pool, {after * 1000:.0f} ms in a full one"
    server.stop()
    server.check()
    times = ", ".join(f"{name} {clock.median(name) * 1000:.0f} ms" for name in clock.seconds)
    context.note(f"medians with the command's own start: {times}; open {opened * 1000:.0f} ms, "
                 f"after kill -9 {killed * 1000:.0f} ms; resident {empty // MIB} MiB empty, "
                 f"{full // MIB} MiB full, {idle // MIB} MiB after opening")
