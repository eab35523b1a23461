"""`kill -9` at random moments: what was promised is there after each restart, and nothing else.

Writers stamp every 512-byte sector with its place and a number that only grows, and note when a
write was sent and when it was answered, on one clock. After a crash each sector tells which write
it holds, so the promise can be checked word by word: the pool equals its state at one point of a
single order of writes over all volumes, at or after the last answered flush of each.

Write A is before write B in that order if A was answered before B was sent. Nothing else about the
order is known from outside, so nothing else is asked for: if anything that was sent at time T has
survived, or a flush that was sent at T was answered, then every write answered before T is there.
"""
import itertools
import random
import struct
import threading
import time

import nbd

from harness import BLOCK, RESTART_SECONDS_MAX, CommandFailed, case

SECTOR = 512
SECTORS = BLOCK // SECTOR
STAMP = struct.Struct("<QQ")
VOLUMES = {"v0": "4G", "v1": "1G"}
# Of each volume only these clusters are used, spread far apart so that they need many tree nodes.
CLUSTERS, CLUSTER = 24, 256 << 10
SPACING = 40 << 20
WRITERS = 8
SNAPSHOTS_MAX = 6


class Sent:
    """One write of one sector: what it holds, when it was sent, when it was answered."""

    __slots__ = ("stamp", "sent", "answered")

    def __init__(self, stamp, sent):
        self.stamp = stamp
        self.sent = sent
        self.answered = None


class History:
    """Every write since the last restart, and what each sector held then."""

    def __init__(self):
        self.clock = itertools.count(1)
        self.base = {(volume, offset): 0 for volume in VOLUMES for offset in offsets()}
        self.writes = {place: [] for place in self.base}
        self.flushed = 0

    def note(self, places, stamp):
        sent = Sent(stamp, next(self.clock))
        for place in places:
            self.writes[place].append(sent)
        return sent

    def restart_from(self, found):
        self.base = found
        self.writes = {place: [] for place in found}
        self.flushed = 0

    def verify(self, found, after, what):
        """`found` is one state of the order, at or after time `after`."""
        held = {}
        for place, stamp in found.items():
            writes = self.writes[place]
            if stamp == self.base[place] and stamp != 0:
                held[place] = -1
                continue
            matching = [index for index, write in enumerate(writes) if write.stamp == stamp]
            if stamp == self.base[place]:
                matching.insert(0, -1)
            assert matching, f"{what}: sector {place} holds {stamp}, which was never written there"
            # Zeroes may be any of several writes; the latest is the kindest reading.
            held[place] = matching[-1]
            if stamp != 0:
                after = max(after, writes[matching[-1]].sent)
        for place, index in held.items():
            for write in self.writes[place][index + 1:]:
                if write.answered is not None and write.answered < after:
                    raise AssertionError(
                        f"{what}: sector {place} lost write {write.stamp}, answered at "
                        f"{write.answered}, though what came at {after} is there; it holds "
                        f"{found[place]}")


def offsets():
    """The offset of each sector in use."""
    for cluster in range(CLUSTERS):
        yield from range(cluster * SPACING, cluster * SPACING + CLUSTER, SECTOR)


def contents(server, export):
    """What an export holds: a stamp for each sector, 0 for zeroes."""
    handle = server.connect(export)
    volume, found = export.partition("@")[0], {}
    for cluster in range(CLUSTERS):
        data = handle.pread(CLUSTER, cluster * SPACING)
        for start in range(0, CLUSTER, SECTOR):
            sector, offset = data[start:start + SECTOR], cluster * SPACING + start
            at, stamp = STAMP.unpack_from(sector)
            expected = bytes(SECTOR) if stamp == 0 else STAMP.pack(offset, stamp) * (SECTOR // 16)
            assert sector == expected, f"{export}: sector {offset} is torn or misplaced"
            found[volume, offset] = stamp
    handle.shutdown()
    return found


class Writer(threading.Thread):
    """One connection that writes, zeroes, trims and flushes its own sectors until it is cut off.

    Even clusters are owned by whole blocks, odd ones by single sectors, so that unaligned writes of
    several connections meet in one block.
    """

    def __init__(self, server, history, stamps, number, seed):
        super().__init__(daemon=True)
        self.rng = random.Random(seed)
        self.history = history
        self.stamps = stamps
        self.number = number
        self.handles = {volume: server.connect(volume) for volume in VOLUMES}
        self.unexpected = None

    def run(self):
        try:
            while True:
                choice = self.rng.random()
                if choice < 0.03:
                    self.flush()
                else:
                    self.change(choice)
        except nbd.Error as error:
            # Cut off, as intended; any answer of the server is a failure.
            if error.errnum in (5, 22, 28, 1, 75, 95):
                self.unexpected = error.string
        except BaseException as error:
            self.unexpected = repr(error)

    def flush(self):
        sent = next(self.history.clock)
        self.rng.choice(list(self.handles.values())).flush()
        # A flush covers every write of every connection that was answered before it was sent.
        self.history.flushed = max(self.history.flushed, sent)

    def change(self, choice):
        volume = self.rng.choice(list(VOLUMES))
        cluster = self.rng.randrange(CLUSTERS)
        blocks = CLUSTER // BLOCK
        block = self.rng.randrange(blocks // WRITERS) * WRITERS + self.number
        offset, length = cluster * SPACING + block * BLOCK, BLOCK
        if cluster % 2:
            block = self.rng.randrange(blocks)
            offset = cluster * SPACING + block * BLOCK + self.number * SECTOR
            length = SECTOR
        places = [(volume, at) for at in range(offset, offset + length, SECTOR)]
        flags = nbd.CMD_FLAG_FUA if self.rng.random() < 0.02 else 0
        handle = self.handles[volume]
        if choice < 0.1:
            write = self.history.note(places, 0)
            if length == BLOCK and choice < 0.06:
                handle.trim(length, offset, flags)
            else:
                handle.zero(length, offset, flags)
        else:
            stamp = next(self.stamps)
            data = b"".join(STAMP.pack(at, stamp) * (SECTOR // 16) for _, at in places)
            write = self.history.note(places, stamp)
            handle.pwrite(data, offset, flags)
        write.answered = next(self.history.clock)
        if flags:
            self.history.flushed = max(self.history.flushed, write.sent)


class Control(threading.Thread):
    """Runs the command line until the time of the kill, while the writers write."""

    def __init__(self, crash, end):
        super().__init__(daemon=True)
        self.crash = crash
        self.end = end
        self.unexpected = None

    def run(self):
        try:
            while time.monotonic() < self.end:
                self.crash.control_once()
        except CommandFailed as error:
            # Only a command that the kill cut off may fail.
            if time.monotonic() < self.end:
                self.unexpected = str(error)
        except BaseException as error:
            self.unexpected = repr(error)


class Crash:
    """The rounds of one run."""

    def __init__(self, context):
        self.context = context
        self.rng = context.rng
        self.server = context.serve(volumes=VOLUMES)
        self.history = History()
        self.stamps = itertools.count(1)
        self.snapshots = {}
        self.cut = itertools.count(1)
        self.slowest = 0.0
        self.writes = 0
        self.recovered = 0

    def round(self, number):
        # What had survived a crash but was not flushed since must survive the next one all the same.
        writers = [Writer(self.server, self.history, self.stamps, index, self.rng.random())
                   for index in range(WRITERS)]
        for writer in writers:
            writer.start()
        end = time.monotonic() + self.rng.uniform(0.1, 1.0)
        control = Control(self, end)
        control.start()
        time.sleep(max(0, end - time.monotonic()))
        ended = [writer for writer in writers if not writer.is_alive()]
        self.server.kill()
        for thread in [*writers, control]:
            thread.join(30)
            assert not thread.is_alive(), "a client hangs although its server is gone"
        wrong = [thread.unexpected for thread in [*ended, *writers, control] if thread.unexpected]
        assert not wrong, f"before the kill: {wrong[0]}"
        assert not ended, "the server hung up before it was killed"
        self.writes += sum(map(len, self.history.writes.values()))
        if number % 5 == 0:
            self.server.check()
        self.restart()
        self.verify(number)
        if number % 5 == 2:
            self.server.stop()
            self.server.check()
            self.restart()

    def restart(self):
        took = self.server.start()
        assert took < RESTART_SECONDS_MAX, f"it served only after {took:.1f} s"
        self.slowest = max(self.slowest, took)

    def control_once(self):
        """Snapshots of both volumes at one instant, clones and deletes."""
        name = f"s{next(self.cut)}"
        if len(self.snapshots) >= SNAPSHOTS_MAX:
            chosen = self.rng.choice(list(self.snapshots))
            del self.snapshots[chosen]
            for volume in VOLUMES:
                self.server.cli("snapshot", "delete", f"{volume}@{chosen}")
        before = next(self.history.clock)
        # Known from here on as possibly there: its command may be killed half way.
        self.snapshots[name] = {"after": before, "certain": False, "found": None}
        self.server.cli("snapshot", "create", *[f"{volume}@{name}" for volume in VOLUMES])
        self.snapshots[name]["certain"] = True
        if self.rng.random() < 0.3:
            self.server.cli("volume", "clone", f"v0@{name}", f"clone-{name}")
            self.server.cli("volume", "delete", f"clone-{name}")

    def verify(self, number):
        present = self.server.snapshots()
        for name, state in list(self.snapshots.items()):
            there = [f"{volume}@{name}" in present for volume in VOLUMES]
            assert len(set(there)) == 1, f"only a part of the group {name} is there"
            if not there[0]:
                assert not state["certain"], f"snapshot {name} is gone after round {number}"
                del self.snapshots[name]
                continue
            found = self.everything(f"@{name}")
            if state["found"] is None:
                self.history.verify(found, state["after"], f"round {number}, snapshot {name}")
                state.update(found=found, certain=True)
            assert found == state["found"], f"snapshot {name} changed in round {number}"
        found = self.everything("")
        self.history.verify(found, self.history.flushed, f"round {number}")
        self.recovered += sum(stamp != self.history.base[place] for place, stamp in found.items())
        self.history.restart_from(found)
        for name in self.server.volumes():
            if name.startswith("clone-"):
                self.server.cli("volume", "delete", name)
        for snapshot in present:
            if snapshot.partition("@")[2] not in self.snapshots:
                self.server.cli("snapshot", "delete", snapshot)

    def everything(self, suffix):
        found = {}
        for volume in VOLUMES:
            found.update(contents(self.server, volume + suffix))
        return found


@case(limit=900)
def no_promise_is_broken_by_kill_9(context):
    crash = Crash(context)
    for number in range(context.rounds):
        crash.round(number)
    crash.server.stop()
    crash.server.check()
    context.note(f"{context.rounds} rounds, {crash.writes} sector writes, "
                 f"{crash.recovered} changed sectors found again, slowest restart "
                 f"{crash.slowest * 1000:.0f} ms")
