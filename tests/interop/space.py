"""Space accounting: it adds up after every step, and all of it is free when everything is gone."""
import itertools

from harness import BLOCK, MIB, case, eventually

VOLUME = 16 * MIB
# Metadata that an empty pool may hold more of than one that never held anything, in blocks.
EMPTY_SLACK = 4


class Tree:
    """Volumes, snapshots and clones on one server, grown and taken down at random."""

    def __init__(self, context, server):
        self.rng = context.rng
        self.server = server
        self.names = []
        self.made = itertools.count(1)
        self.steps = 0

    def add_up(self):
        """The figures of this moment agree, whatever runs in the background."""
        status = self.server.status()
        total = status["used"] + status["gated"] + status["free"]
        assert total == status["usable"], f"step {self.steps}: {total} of {status}"
        assert status["reserved"] <= status["free"], f"step {self.steps}: {status}"
        assert status["ghost"] <= status["used"], f"step {self.steps}: {status}"
        self.steps += 1
        return status

    def volumes(self):
        return [name for name in self.names if "@" not in name]

    def snapshots(self):
        return [name for name in self.names if "@" in name]

    def create(self):
        name = f"v{next(self.made)}"
        self.server.cli("volume", "create", name, "--size", str(VOLUME))
        self.names.append(name)

    def write(self):
        if self.volumes():
            handle = self.server.connect(self.rng.choice(self.volumes()))
            for _ in range(self.rng.randint(1, 12)):
                blocks = self.rng.choice([1, 1, 3, 100, 300])
                first = self.rng.randrange(VOLUME // BLOCK - blocks)
                if self.rng.random() < 0.2:
                    handle.trim(blocks * BLOCK, first * BLOCK)
                else:
                    handle.pwrite(self.rng.randbytes(blocks * BLOCK), first * BLOCK)
            if self.rng.random() < 0.5:
                handle.flush()
            handle.shutdown()

    def snapshot(self):
        if self.volumes():
            name = f"{self.rng.choice(self.volumes())}@s{next(self.made)}"
            self.server.cli("snapshot", "create", name)
            self.names.append(name)

    def clone(self):
        if self.names:
            name = f"v{next(self.made)}"
            self.server.cli("volume", "clone", self.rng.choice(self.names), name)
            self.names.append(name)

    def rollback(self):
        rolled = [name for name in self.snapshots() if name.partition("@")[0] in self.names]
        if rolled:
            self.when_idle("volume", "rollback", self.rng.choice(rolled))

    def delete(self, name=None):
        if self.names:
            name = name or self.rng.choice(self.names)
            self.when_idle("snapshot" if "@" in name else "volume", "delete", name)
            self.names.remove(name)

    def when_idle(self, *command):
        volume = command[-1].partition("@")[0]
        if volume in self.names:
            eventually(f"{volume} is not in use", 10,
                       lambda: self.server.volumes()[volume]["writers"] == 0)
        self.server.cli(*command)


STEPS = {Tree.create: 2, Tree.write: 8, Tree.snapshot: 5, Tree.clone: 4, Tree.rollback: 2,
         Tree.delete: 3}


@case(limit=240)
def everything_deleted_in_any_order_is_free_again(context):
    server = context.serve(create="2G")
    empty = server.settled()
    tree = Tree(context, server)
    for scenario in range(12):
        tree.create()
        for step in context.rng.choices(list(STEPS), list(STEPS.values()), k=25):
            step(tree)
            tree.add_up()
        if scenario % 4 == 3:
            server.restart() if scenario % 8 == 3 else (server.kill(), server.start())
            tree.add_up()
        context.rng.shuffle(tree.names)
        while tree.names:
            tree.delete(tree.names[-1])
            tree.add_up()
        status = server.settled()
        left = (status["used"] - empty["used"]) // BLOCK
        assert left <= EMPTY_SLACK, f"scenario {scenario}: {left} blocks are not free: {status}"
        assert (status["ghost"], status["volumes"], status["snapshots"]) == (0, 0, 0), status
    server.stop()
    server.check()
    context.note(f"{tree.steps} steps")


@case(limit=240)
def a_family_is_deleted_in_every_order(context):
    """A volume, two snapshots of it, a clone of each, and a clone of a clone: all orders."""
    server = context.serve(create="1G")
    empty = server.settled()
    family = ["a@1", "a@2", "a", "b", "c"]
    orders = list(itertools.permutations(family))
    context.rng.shuffle(orders)
    orders = orders[:40]
    for order in orders:
        server.cli("volume", "create", "a", "--size", str(VOLUME))
        tree = Tree(context, server)
        tree.names = ["a"]
        tree.write()
        server.cli("snapshot", "create", "a@1")
        tree.write()
        tree.when_idle("snapshot", "create", "a@2")
        tree.write()
        server.cli("volume", "clone", "a@1", "b")
        server.cli("volume", "clone", "b", "c")
        tree.names = ["b", "c"]
        tree.write()
        tree.names = list(family)
        for name in order:
            tree.delete(name)
            tree.add_up()
        status = server.settled()
        left = (status["used"] - empty["used"]) // BLOCK
        assert left <= EMPTY_SLACK, f"order {order}: {left} blocks are not free: {status}"
    server.stop()
    server.check()
    context.note(f"{len(orders)} of 120 orders")


@case(limit=120)
def exclusive_is_what_a_delete_gives_back(context):
    server = context.serve(create="1G", volumes={"v": "256M"})
    handle = server.connect("v")
    handle.pwrite(context.rng.randbytes(32 * MIB), 0)
    server.cli("snapshot", "create", "v@one")
    handle.pwrite(context.rng.randbytes(8 * MIB), 0)
    handle.flush()
    one, volume = server.snapshots()["v@one"], server.volumes()["v"]
    assert one["used"] >= 32 * MIB and volume["used"] >= 32 * MIB, (one, volume)
    # What is shared belongs to neither alone: each has 8 MiB of its own and its own mapping.
    for name, usage in (("v@one", one), ("v", volume)):
        assert 8 * MIB <= usage["exclusive"] < 9 * MIB, f"{name}: {usage}"
    before = server.settled()
    server.cli("snapshot", "delete", "v@one")
    after = server.settled()
    gained = after["free"] - before["free"]
    assert abs(gained - one["exclusive"]) <= 16 * BLOCK, f"{gained} came back of {one}"
    handle.trim(256 * MIB, 0)
    trimmed = server.settled()
    assert trimmed["free"] - after["free"] >= 32 * MIB, (after, trimmed)
    assert server.volumes()["v"]["used"] < MIB, server.volumes()["v"]


@case(limit=60)
def a_reservation_is_kept_for_its_volume(context):
    server = context.serve(create="1G")
    server.cli("volume", "create", "kept", "--size", "256M", "--reserve")
    server.cli("volume", "create", "thin", "--size", "2G")
    assert server.status()["reserved"] >= 256 * MIB, server.status()
    thin, kept = server.connect("thin"), server.connect("kept")
    offset = 0
    try:
        while True:
            thin.pwrite(context.rng.randbytes(MIB), offset)
            offset += MIB
    except Exception as error:
        assert "No space" in str(error), error
    assert offset > 256 * MIB, f"only {offset} bytes fitted"
    for offset in range(0, 256 * MIB, MIB):
        kept.pwrite(context.rng.randbytes(MIB), offset)
    kept.flush()
    server.refused("volume", "create", "more", "--size", "512M", "--reserve", says=["more"])
    server.stop()
    server.check()
