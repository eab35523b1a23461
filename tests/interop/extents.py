"""Holes, data and changes since a snapshot, as nbdinfo and qemu see them."""
import json

import nbd

from harness import BLOCK, KIB, MIB, case, need, run

HOLE, DATA = 3, 0


def mapped(uri, context="base:allocation"):
    """What `nbdinfo --map` prints, with neighbours of one type joined: (offset, length, type)."""
    joined = []
    for entry in json.loads(run("nbdinfo", f"--map={context}", "--json", uri).stdout):
        offset, length, kind = entry["offset"], entry["length"], entry["type"]
        if joined and joined[-1][2] == kind:
            joined[-1] = (joined[-1][0], joined[-1][1] + length, kind)
        else:
            joined.append((offset, length, kind))
    return joined


def layout(size, *ranges):
    """The map of a volume where only these ranges (offset, length) are of type 0... as given."""
    expected, at = [], 0
    for offset, length in ranges:
        expected += [(at, offset - at, HOLE)] * (offset > at) + [(offset, length, DATA)]
        at = offset + length
    return expected + [(at, size - at, HOLE)] * (size > at)


def dirty(size, *ranges):
    """The map of a volume where only these ranges have changed."""
    return [(offset, length, 1 if kind == DATA else 0)
            for offset, length, kind in layout(size, *ranges)]


@case(limit=30)
def nbdinfo_map_shows_the_holes(context):
    need("nbdinfo")
    server = context.serve(volumes={"demo": "64M"})
    uri, size = server.uri("demo"), 64 * MIB
    assert mapped(uri) == layout(size)
    handle = server.connect("demo")
    handle.pwrite(b"a" * 64 * KIB, 0)
    handle.pwrite(b"b" * BLOCK, MIB)
    handle.pwrite(b"c" * 4 * MIB, 8 * MIB)
    handle.pwrite(b"d", 20 * MIB + 5000)
    handle.pwrite(b"e" * BLOCK, size - BLOCK)
    tail = (size - BLOCK, BLOCK)
    assert mapped(uri) == layout(size, (0, 64 * KIB), (MIB, BLOCK), (8 * MIB, 4 * MIB),
                                 (20 * MIB + BLOCK, BLOCK), tail)
    # A hole is made of whole blocks; the pieces at the edges are kept.
    handle.trim(MIB + 2 * 512, 9 * MIB - 512)
    handle.zero(BLOCK, MIB)
    expected = layout(size, (0, 64 * KIB), (8 * MIB, MIB), (10 * MIB, 2 * MIB),
                      (20 * MIB + BLOCK, BLOCK), tail)
    found = mapped(uri)
    # The trimmed range is [9 MiB - 512, 10 MiB + 512): its whole blocks are [9 MiB, 10 MiB).
    assert found == expected, found
    server.cli("snapshot", "create", "demo@one")
    handle.zero(size, 0)
    assert mapped(uri) == layout(size)
    assert mapped(server.uri("demo@one")) == expected
    totals = json.loads(run("nbdinfo", "--map", "--totals", "--json", uri).stdout)
    assert [(entry["size"], entry["type"]) for entry in totals] == [(size, HOLE)], totals


@case(limit=30)
def zeroing_without_a_hole_keeps_the_space(context):
    need("nbdinfo")
    server = context.serve(volumes={"demo": "64M"})
    handle = server.connect("demo")
    handle.zero(MIB, 4 * MIB, nbd.CMD_FLAG_NO_HOLE)
    found = mapped(server.uri("demo"))
    assert [(offset, length) for offset, length, kind in found if not kind & 1] \
        == [(4 * MIB, MIB)], found
    assert handle.pread(MIB, 4 * MIB) == bytes(MIB)
    assert server.volumes()["demo"]["used"] >= MIB


@case(limit=60)
def the_dirty_context_shows_what_changed_since_a_snapshot(context):
    need("nbdinfo")
    server = context.serve(volumes={"demo": "64M"})
    uri, size = server.uri("demo"), 64 * MIB
    handle = server.connect("demo")
    handle.pwrite(b"a" * 16 * MIB, 0)
    server.cli("snapshot", "create", "demo@one")
    names = ["qemu:dirty-bitmap:one", "x-basalt:dirty-since:one"]
    for name in names:
        assert mapped(uri, name) == dirty(size), name
    handle.pwrite(b"b" * BLOCK, 4 * MIB)
    handle.trim(MIB, 8 * MIB)
    handle.pwrite(b"c" * MIB, 32 * MIB)
    changed = [(4 * MIB, BLOCK), (8 * MIB, MIB), (32 * MIB, MIB)]
    for name in names:
        assert mapped(uri, name) == dirty(size, *changed), name
    server.cli("snapshot", "create", "demo@two")
    handle.pwrite(b"d" * BLOCK, 40 * MIB)
    assert mapped(uri, "qemu:dirty-bitmap:two") == dirty(size, (40 * MIB, BLOCK))
    for name in names:
        assert mapped(uri, name) == dirty(size, *changed, (40 * MIB, BLOCK)), name
    # An incremental backup: the snapshot and what is marked make the volume.
    ranges = [(extent["offset"], extent["length"])
              for extent in server.json("snapshot", "diff", "demo@one", "demo@two")]
    covered = sorted(block for offset, length in ranges
                     for block in range(offset // BLOCK, (offset + length + BLOCK - 1) // BLOCK))
    expected = sorted(block for offset, length in changed
                      for block in range(offset // BLOCK, (offset + length) // BLOCK))
    assert covered == expected, ranges
    unknown = run("nbdinfo", "--map=qemu:dirty-bitmap:nothing", uri, ok=None)
    assert unknown.returncode != 0, "a context of a snapshot that is not there was accepted"


@case(limit=60)
def qemu_io_agrees_at_any_alignment(context):
    need("qemu-io", "qemu-img")
    server = context.serve(volumes={"demo": "64M"})

    def qemu(*commands):
        words = [word for command in commands for word in ("-c", command)]
        output = run("qemu-io", "-f", "raw", *words, server.uri("demo")).stdout
        assert "failed" not in output and "rror" not in output, output

    qemu("write -P 0xab 1000 5000", "read -P 0xab 1000 5000", "read -P 0 0 1000",
         "read -P 0 6000 4096", "flush")
    qemu("write -P 1 0 1M", "write -P 2 511 1", "write -P 3 65535 2", "read -P 1 0 511",
         "read -P 2 511 1", "read -P 1 512 65023", "read -P 3 65535 2", "read -P 1 65537 983039")
    qemu("write -z 100k 8k", "read -P 0 100k 8k", "write -z -u 200k 64k", "read -P 0 200k 64k",
         "write -z 300001 77", "read -P 0 300001 77", "read -P 1 300078 1000")
    qemu("discard 512k 128k", "read -P 0 512k 128k", "read -P 1 640k 384k")
    qemu("aio_write -P 7 2M 1M", "aio_write -P 8 3M 1M", "aio_flush", "read -P 7 2M 1M",
         "read -P 8 3M 1M", "write -f -P 9 63M 1M", "read -P 9 63M 1M")
    regions = json.loads(run("qemu-img", "map", "-f", "raw", "--output=json",
                             server.uri("demo")).stdout)
    assert sum(region["length"] for region in regions) == 64 * MIB, regions
    for start, length, data in [(0, 96 * KIB, True), (512 * KIB, 128 * KIB, False),
                                (2 * MIB, 2 * MIB, True), (4 * MIB, 59 * MIB, False),
                                (63 * MIB, MIB, True)]:
        inside = [region for region in regions
                  if region["start"] < start + length and region["start"] + region["length"] > start]
        assert all(region["data"] == data for region in inside), (start, length, inside)
