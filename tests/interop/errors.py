"""What goes wrong in ordinary life: each gives one clear line, and harms nothing."""
import errno
import os
import pathlib
import shutil
import signal
import socket
import subprocess

import nbd

from harness import BLOCK, KIB, MIB, case, clear_error, eventually, fails_with, run

MAGIC = b"BASALTSB"


def fill(handle, rng, size):
    """Writes 1 MiB pieces until the pool is full; returns what was acknowledged, by offset."""
    written = {}
    for offset in range(0, size, MIB):
        data = rng.randbytes(MIB)
        try:
            handle.pwrite(data, offset)
        except nbd.Error as error:
            assert error.errnum == errno.ENOSPC, f"a full pool answers {error.string}"
            return written
        written[offset] = data
    raise AssertionError(f"{size} bytes were written to a pool that is smaller")


def holds(handle, written):
    for offset, data in written.items():
        assert handle.pread(len(data), offset) == data, f"the data at {offset} differs"


@case(limit=150)
def a_full_pool_fails_writes_and_nothing_else(context):
    server = context.serve(create="512M", volumes={"kept": "64M", "big": "4G", "other": "4G"})
    kept = server.connect("kept")
    kept_data = {offset: context.rng.randbytes(MIB) for offset in range(0, 16 * MIB, MIB)}
    for offset, data in kept_data.items():
        kept.pwrite(data, offset)
    other = server.connect("other")
    other.pwrite(b"o" * 32 * MIB, 0)
    server.cli("snapshot", "create", "kept@one")
    big = server.connect("big")
    written = fill(big, context.rng, 4096 * MIB)
    assert len(written) > 256, f"only {len(written)} MiB fitted into a pool of 512 MiB"
    # Full: what needs space fails, again and again, on every volume.
    for handle in (big, kept, other):
        with fails_with(errno.ENOSPC, "a write to a full pool"):
            for offset in range(0, 32 * MIB, MIB):
                handle.pwrite(context.rng.randbytes(MIB), 2048 * MIB + offset
                              if handle is not kept else 32 * MIB + offset)
    # All the rest works.
    big.flush()
    holds(big, dict(context.rng.sample(sorted(written.items()), 64)))
    holds(server.connect("kept@one"), kept_data)
    for command in (["status"], ["volume", "list"], ["snapshot", "list"], ["volume", "show", "big"]):
        server.cli(*command)
    full = server.status()
    assert full["used"] + full["gated"] + full["free"] == full["usable"], full
    # Killed while full: nothing acknowledged and flushed is lost.
    server.kill()
    server.check()
    server.start()
    big, kept, other = (server.connect(name) for name in ("big", "kept", "other"))
    holds(big, written)
    holds(kept, kept_data)
    # Deleting and trimming need no space, and give it back.
    server.cli("snapshot", "delete", "kept@one")
    other.shutdown()
    eventually("the other volume is not in use", 5, lambda: server.volumes()["other"]["writers"] == 0)
    server.cli("volume", "delete", "other")
    trimmed = [offset for offset in written][::2]
    for offset in trimmed:
        big.trim(MIB, offset)
        del written[offset]
    big.flush()
    roomy = server.settled()
    assert roomy["free"] > full["free"] + (len(trimmed) + 30) * MIB, (full, roomy)
    for offset in trimmed[:len(trimmed) // 2]:
        written[offset] = context.rng.randbytes(MIB)
        big.pwrite(written[offset], offset)
    big.flush()
    holds(big, written)
    holds(kept, kept_data)
    server.stop()
    server.check()
    context.note(f"{len(written)} MiB held")


def used_pool(context):
    """A closed pool that holds something; returns it and what it holds."""
    server = context.serve(create="256M", volumes={"demo": "64M"})
    data = context.rng.randbytes(32 * MIB)
    server.connect("demo").pwrite(data[:MIB], 0)
    with open("data", "wb") as file:
        file.write(data)
    run("nbdcopy", "--flush", "data", server.uri("demo"))
    server.cli("snapshot", "create", "demo@one")
    server.stop()
    return server


def refused_to_serve(context, pool, says):
    """`serve` of this pool must end at once with one clear line."""
    result = context.cli("serve", pool, "--control", "./c", "--listen", "unix:./s", ok=None,
                         limit=20)
    return clear_error(result, 1, says)


def still_holds(server):
    """The pool serves, unharmed."""
    server.check()
    server.start()
    run("nbdcopy", server.uri("demo@one"), "back")
    run("cmp", "--bytes", str(32 * MIB), "data", "back")
    server.stop()


@case(limit=60)
def a_truncated_pool_is_refused(context):
    server = used_pool(context)
    size = os.path.getsize("pool")
    for length in (size // 2, size - BLOCK, 64 * KIB, 100, 0):
        shutil.copyfile("pool", "short")
        os.truncate("short", length)
        refused_to_serve(context, "short", ["short", "truncated" if length > BLOCK else "small"])
        result = context.cli("check", "short", ok=None)
        assert result.returncode == 1, f"check of {length} bytes: status {result.returncode}"
        assert os.path.getsize("short") == length, "a refused pool was changed"
    still_holds(server)


@case(limit=60)
def a_pool_of_another_version_is_refused(context):
    server = used_pool(context)
    content = bytearray(pathlib.Path("pool").read_bytes())
    places = [at for at in range(0, len(content), BLOCK) if content[at:at + 8] == MAGIC]
    assert len(places) >= 2, f"superblocks at {places}"
    for at in places:
        content[at + 8:at + 12] = (77).to_bytes(4, "little")
    pathlib.Path("newer").write_bytes(content)
    refused_to_serve(context, "newer", ["version 77"])
    clear_error(context.cli("check", "newer", ok=None), 1, ["version 77"])
    assert pathlib.Path("newer").read_bytes() == content, "a refused pool was changed"
    still_holds(server)


@case(limit=60)
def what_is_no_pool_is_refused(context):
    pathlib.Path("zeroes").write_bytes(bytes(64 * MIB))
    pathlib.Path("noise").write_bytes(context.rng.randbytes(64 * MIB))
    pathlib.Path("text").write_text("precious\n")
    os.mkdir("directory")
    for name in ("zeroes", "noise", "text", "directory", "missing", "/dev/null"):
        refused_to_serve(context, name, [os.path.basename(name)])
        clear_error(context.cli("check", name, ok=None), 1, [os.path.basename(name)])
    # A file that is there is not made into a pool, unless it is said twice.
    clear_error(context.cli("init", "text", "--size", "128M", ok=None), 1, ["text", "--force"])
    result = context.cli("serve", "text", "--create", "128M", "--control", "./c", "--listen",
                         "unix:./s", ok=None, limit=20)
    clear_error(result, 1, ["text"])
    assert pathlib.Path("text").read_text() == "precious\n"
    clear_error(context.cli("init", "tiny", "--size", "1M", ok=None), 1, ["64 MiB"])
    assert not os.path.exists("tiny"), "a pool that could not be made was left behind"
    clear_error(context.cli("init", "none", "--size", "0", ok=None), 2, ["zero"])


@case(limit=60)
def an_open_pool_is_not_opened_twice(context):
    server = context.serve(create="256M", volumes={"demo": "64M"})
    pid = str(server.process.pid)
    refused_to_serve(context, "pool", ["pool", pid])
    clear_error(context.cli("check", "pool", ok=None), 1, ["pool", pid])
    clear_error(context.cli("init", "pool", "--size", "256M", "--force", ok=None), 1, [pid])
    os.link("pool", "another-name")
    refused_to_serve(context, "another-name", [pid])
    handle = server.connect("demo")
    handle.pwrite(b"a" * BLOCK, 0)
    assert handle.pread(BLOCK, 0) == b"a" * BLOCK
    # The sockets of the server that runs are not taken from it either.
    result = context.cli("serve", "second", "--create", "128M", "--control", server.control,
                         "--listen", f"unix:{server.socket}", ok=None, limit=20)
    clear_error(result, 1, [])
    assert server.volumes(), "the first server lost its control socket"
    server.connect("demo").shutdown()
    server.stop()
    server.check()


@case(limit=60)
def requests_that_make_no_sense_are_refused(context):
    server = context.serve(create="256M", volumes={"demo": "64M", "other": "64M"})
    server.cli("snapshot", "create", "demo@one")
    before = server.volumes(), server.snapshots()
    create = ("volume", "create")
    refusals = [
        # The command, its status, and what the line must say.
        ((*create, "demo", "--size", "1G"), 1, ["demo"]),
        ((*create, "new", "--size", "0"), 2, ["zero"]),
        ((*create, "new", "--size", "-5"), 2, ["negative"]),
        ((*create, "new", "--size", "ten"), 2, ["ten"]),
        ((*create, "new", "--size", "1E"), 1, ["new", "64"]),
        ((*create, "new", "--size", "65T"), 1, ["new", "64"]),
        ((*create, "new", "--size", "1G", "--reserve"), 1, ["new"]),
        ((*create, "new"), 2, ["--size"]),
        ((*create, "a/b", "--size", "1M"), 1, ["a/b"]),
        ((*create, "a@b", "--size", "1M"), 1, ["a@b"]),
        ((*create, "", "--size", "1M"), 1, []),
        ((*create, "n" * 129, "--size", "1M"), 1, ["128"]),
        ((*create, "a\nb", "--size", "1M"), 1, []),
        (("volume", "resize", "demo", "--size", "32M"), 1, ["demo", "shrink"]),
        (("volume", "resize", "demo", "--size", "1E"), 1, ["demo"]),
        (("volume", "resize", "nothing", "--size", "1G"), 1, ["nothing"]),
        (("volume", "rename", "demo", "other"), 1, ["other"]),
        (("volume", "rename", "nothing", "new"), 1, ["nothing"]),
        (("volume", "clone", "demo@nothing", "new"), 1, ["nothing"]),
        (("volume", "clone", "demo@one", "other"), 1, ["other"]),
        (("volume", "rollback", "demo@nothing"), 1, ["nothing"]),
        (("volume", "delete", "nothing"), 1, ["nothing"]),
        (("volume", "show", "nothing"), 1, ["nothing"]),
        (("snapshot", "create", "demo@one"), 1, ["demo@one"]),
        (("snapshot", "create", "demo@two", "nothing@two"), 1, ["nothing"]),
        (("snapshot", "create", "demo@two", "demo@two"), 1, ["demo", "twice"]),
        (("snapshot", "create", "demo"), 2, ["VOLUME@NAME"]),
        (("snapshot", "delete", "demo@nothing"), 1, ["nothing"]),
        (("snapshot", "diff", "demo@nothing", "demo"), 1, ["nothing"]),
        (("snapshot", "list", "nothing"), 1, ["nothing"]),
        (("volume", "explode", "demo"), 2, ["explode"]),
    ]
    for command, status, says in refusals:
        server.refused(*command, status=status, says=says)
    assert (server.volumes(), server.snapshots()) == before, "a refused command changed something"
    writer = server.connect("demo")
    writer.pwrite(b"w" * BLOCK, 0)
    server.refused("volume", "rollback", "demo@one", says=["demo"])
    server.refused("volume", "delete", "demo", says=["demo"])
    assert writer.pread(BLOCK, 0) == b"w" * BLOCK
    nobody = context.cli("status", "--control", "./nobody", ok=None)
    clear_error(nobody, 1, ["nobody"])
    # The largest volume there can be is thin, like any other.
    server.cli(*create, "huge", "--size", "64T")
    huge = server.connect("huge")
    huge.pwrite(b"end", (64 << 40) - 3)
    assert huge.pread(3, (64 << 40) - 3) == b"end"
    context.note(f"{len(refusals) + 3} refusals")


@case(limit=60)
def garbage_on_the_sockets_harms_nobody(context):
    server = context.serve(create="256M", volumes={"demo": "64M"})
    good = server.connect("demo")
    good.pwrite(b"good" * KIB, 0)
    noises = [b"GET / HTTP/1.1\r\n\r\n", b"\0" * 4096, b"\xff" * 65536, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
              + b"\xff" * 4096, context.rng.randbytes(100_000), b""]
    for path in (server.socket, server.control):
        for noise in noises:
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(30)
                client.connect(path)
                try:
                    client.sendall(noise)
                    client.shutdown(socket.SHUT_WR)
                    while client.recv(65536):
                        pass
                except (BrokenPipeError, ConnectionResetError):
                    pass
        assert good.pread(4 * KIB, 0) == b"good" * KIB
        server.cli("status")
    server.stop()
    server.check()


@case(limit=60)
def it_stops_in_order_on_either_signal(context):
    for number in (signal.SIGTERM, signal.SIGINT):
        server = context.serve(create="256M", volumes={"demo": "64M"}, pool=f"pool{number}")
        handle = server.connect("demo")
        mark = bytes([number]) * MIB
        handle.pwrite(mark, MIB)
        server.stop(number, limit=20)
        left = [path for path in (server.socket, server.control) if os.path.exists(path)]
        assert not left, f"left behind: {left}"
        server.check()
        server.start()
        assert server.connect("demo").pread(MIB, MIB) == mark, "an orderly stop lost a write"
        server.stop()


@case(limit=60)
def the_quick_start_works_as_written(context):
    """No root, no sockets named: what `serve` prints is enough to go on."""
    command = [context.binary, "serve", "demo.pool", "--create", "1G", "--volume", "demo=256M"]
    unprivileged = {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}
    if unprivileged:
        os.mkdir("home", 0o777)
        os.chmod("home", 0o777)
        os.chdir("home")
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                              **unprivileged)
    try:
        lines = []
        for line in server.stdout:
            lines.append(line.strip())
            if line.startswith("export BASALT_CONTROL="):
                break
        [uri] = [line for line in lines if line.startswith("nbd+unix://")]
        [tried] = [line for line in lines if line.startswith("try:")]
        run("sh", "-c", tried.removeprefix("try:"))
        assert nbd.NBD().connect_uri(uri) is None
        control = lines[-1].partition("=")[2].strip("'\"")
        run("sh", "-c", f"{lines[-1]}; {context.binary} status && {context.binary} volume list")
        for path in (control, "demo.pool.sock"):
            assert os.stat(path).st_mode & 0o077 == 0, f"others may open {path}"
    finally:
        server.terminate()
        assert server.wait(20) == 0
    assert sorted(os.listdir()) == ["demo.pool"], f"left behind: {os.listdir()}"
