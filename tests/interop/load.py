"""fio verifies every block it wrote while the pool is snapshotted, cloned, rolled back and grown."""
import concurrent.futures
import json
import subprocess
import threading

from harness import GIB, MIB, case, need

SECONDS = 40
SNAPSHOTS_MAX = 5


def fio(server, *more):
    """Two connections, each with half of a GiB, 4 KiB at queue depth 32, verified as it goes."""
    return ["fio", "--name=verify", "--ioengine=nbd", f"--uri={server.uri('loaded')}",
            "--rw=randrw", "--rwmixread=30", "--bs=4k", "--iodepth=32", "--numjobs=2",
            "--size=512M", "--offset_increment=512M", "--verify=crc32c", "--verify_fatal=1",
            "--verify_backlog=4096", "--group_reporting", "--output-format=json",
            "--randrepeat=0", *more]


class Operations(threading.Thread):
    """What an administrator does, without a pause, until told to stop."""

    def __init__(self, context, server):
        super().__init__(daemon=True)
        self.rng = context.rng
        self.server = server
        self.stopped = threading.Event()
        self.unexpected = None
        self.snapshots = []
        self.digests = {}
        self.counts = {}
        self.size = 64 * MIB

    def run(self):
        try:
            number = 0
            while not self.stopped.is_set():
                number += 1
                self.once(number)
        except BaseException as error:
            self.unexpected = error

    def do(self, *command):
        self.server.cli(*command)
        name = " ".join(command[:2])
        self.counts[name] = self.counts.get(name, 0) + 1

    def once(self, number):
        snapshot = f"loaded@s{number}"
        self.do("snapshot", "create", snapshot, f"other@s{number}")
        self.snapshots.append(snapshot)
        if number % 4 == 1 and len(self.digests) < SNAPSHOTS_MAX:
            # Read once while its blocks are being overwritten, and again when all is over.
            self.digests[snapshot] = self.server.digest(snapshot)
        self.do("volume", "clone", snapshot, f"clone{number}")
        self.do("volume", "clone", "loaded", f"copy{number}")
        other = self.server.connect("other")
        other.pwrite(self.rng.randbytes(MIB), self.rng.randrange(63) * MIB)
        other.shutdown()
        self.roll_back(f"other@s{self.rng.randint(max(1, number - 3), number)}")
        self.size += MIB
        self.do("volume", "resize", "grown", "--size", str(self.size))
        self.do("volume", "delete", f"clone{number}")
        self.do("volume", "delete", f"copy{number}")
        kept = [name for name in self.snapshots if name not in self.digests]
        if len(kept) > 3:
            chosen = self.rng.choice(kept)
            self.snapshots.remove(chosen)
            self.do("snapshot", "delete", chosen)
        if number > 4:
            self.do("snapshot", "delete", f"other@s{number - 4}")

    def roll_back(self, snapshot):
        """The server learns that a client has gone a moment after the client has."""
        while True:
            try:
                return self.do("volume", "rollback", snapshot)
            except Exception as error:
                if "writer" not in str(error):
                    raise


@case(limit=300)
def fio_verifies_while_everything_else_happens(context):
    need("fio", "nbdcopy")
    server = context.serve(create="24G", volumes={"loaded": "1G", "other": "64M", "grown": "64M"})
    operations = Operations(context, server)
    operations.start()
    load = subprocess.run(fio(server, "--time_based", f"--runtime={SECONDS}"),
                          stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=200)
    operations.stopped.set()
    operations.join(120)
    assert not operations.is_alive(), "the control operations hang"
    if operations.unexpected:
        raise operations.unexpected
    said = load.stderr.strip()[-300:]
    assert load.returncode == 0, f"fio: status {load.returncode}: {said}"
    [job] = json.loads(load.stdout[load.stdout.index("{"):])["jobs"]
    assert job["error"] == 0, said
    assert not operations.digests == {}, "no snapshot was cut under load"
    # Every snapshot cut under load reads back the same twice, and once more after a restart.
    server.settled(120)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        again = dict(zip(operations.snapshots, pool.map(server.digest, operations.snapshots)))
        server.restart()
        last = dict(zip(operations.snapshots, pool.map(server.digest, operations.snapshots)))
    for name in operations.snapshots:
        assert again[name] == last[name], f"{name} reads back differently after a restart"
        first = operations.digests.get(name, again[name])
        assert first == again[name], f"{name} changed since it was read under load"
    # And the volume is what fio wrote last, as a run that only verifies would say of its own.
    assert server.volumes()["grown"]["size"] == operations.size
    server.stop()
    server.check()
    counts = ", ".join(f"{count} × {name}" for name, count in operations.counts.items())
    writes, reads = job["write"], job["read"]
    context.note(f"{writes['total_ios']} writes and {reads['total_ios']} reads, "
                 f"{(writes['io_bytes'] + reads['io_bytes']) / GIB:.1f} GiB; {counts}; "
                 f"{len(operations.digests)} snapshots read under load")


@case(limit=120)
def fio_finds_all_it_wrote_after_a_restart(context):
    need("fio")
    server = context.serve(volumes={"loaded": "1G"})
    same = ["--randseed=" + str(context.rng.randrange(1 << 31)), "--io_size=128M"]
    command = [part for part in fio(server, *same) if not part.startswith(("--rw", "--verify_b"))]
    for extra in (["--rw=randwrite", "--do_verify=0", "--end_fsync=1"],
                  ["--rw=randwrite", "--verify_only"]):
        done = subprocess.run([*command, *extra], stdin=subprocess.DEVNULL, capture_output=True,
                              text=True, timeout=60)
        assert done.returncode == 0, done.stderr.strip()[-300:]
        server.kill()
        server.start()
    server.stop()
    server.check()
