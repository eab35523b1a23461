"""What every case stands on: a server to drive as a user would, and what must be tidied up."""
import contextlib
import errno
import hashlib
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.parse

import nbd

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
BLOCK = 4096
# A restart after `kill -9` must serve within this time.
RESTART_SECONDS_MAX = 2.0
COMMAND_SECONDS_MAX = 60
# A line of the server's log begins with the time.
LOG_LINE = re.compile(r"\d{4}-\d\d-\d\dT\S+Z +(INFO|DEBUG) ")


class Skip(Exception):
    """The machine lacks what a case needs."""


class CommandFailed(Exception):
    """A command ended with another status than it should have."""

    def __init__(self, result):
        self.result = result
        text = " ".join((result.stderr + " " + result.stdout).split())
        super().__init__(f"{' '.join(result.args)[:200]}: status {result.returncode}: {text[:400]}")


def case(limit):
    """Marks a function as a case that must be done in `limit` seconds."""
    def mark(function):
        function.limit = limit
        return function
    return mark


def cases_of(module):
    """The cases of a theme, in the order of its file."""
    return [value for value in vars(module).values()
            if callable(value) and hasattr(value, "limit") and value.__module__ == module.__name__]


def one_line(error):
    text = " ".join(str(error).split())
    name = type(error).__name__
    return text if isinstance(error, (AssertionError, CommandFailed)) and text else f"{name}: {text}"


def run(*command, ok=(0,), limit=COMMAND_SECONDS_MAX, **options):
    """Runs a command to its end; anything but an expected status is a failure."""
    command = [str(part) for part in command]
    result = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, timeout=limit, **options)
    if ok is not None and result.returncode not in ok:
        raise CommandFailed(result)
    return result


def essence(log):
    """The lines of a server's log that say why it failed: a panic and what it said, or the end."""
    lines = log.read_text(errors="replace").splitlines()
    panics = [index for index, line in enumerate(lines) if " panicked at " in line]
    said = [line for index in panics[:3] for line in lines[index:index + 2]]
    return said + [line for line in lines[-5:] if line not in said]


def need(*commands):
    """Skips the case where a command is missing."""
    for command in commands:
        if not shutil.which(command):
            raise Skip(f"no {command}")


def need_root():
    if os.geteuid() != 0:
        raise Skip("not root")


def eventually(what, limit, probe, pause=0.02):
    """Polls until `probe` returns something true, and returns that; fails after `limit` seconds."""
    end = time.monotonic() + limit
    while True:
        value = probe()
        if value:
            return value
        assert time.monotonic() < end, f"not within {limit} s: {what}"
        time.sleep(pause)


def free_port():
    """A TCP port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# --- What is left on the machine ------------------------------------------------------------------

def mounts_below(directory):
    """Mount points below a directory, innermost first."""
    prefix = str(directory) + "/"
    points = [line.split()[4].encode().decode("unicode_escape")
              for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines()]
    return sorted((point for point in points if point.startswith(prefix)), key=len, reverse=True)


def loops_below(directory):
    """Loop devices whose file is below a directory."""
    found = []
    for backing in pathlib.Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            if backing.read_text().startswith(str(directory) + "/"):
                found.append(f"/dev/{backing.parts[3]}")
    return found


def unmount_below(directory):
    """Takes down every mount and loop device below a directory, whatever state they are in."""
    def mounts(of_fuse):
        for mount in mounts_below(directory):
            if mount.startswith(str(directory)) and is_fuse(mount) == of_fuse:
                run("umount", "--lazy", mount, ok=None)
    # The file systems first, then the loop devices under them, then the files under those.
    mounts(of_fuse=False)
    for loop in loops_below(directory):
        run("losetup", "--detach", loop, ok=None)
    mounts(of_fuse=True)


def is_fuse(mount):
    for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[4].encode().decode("unicode_escape") == mount:
            return fields[fields.index("-") + 1].startswith("fuse")
    return False


def processes_of(session):
    """Command lines of the live processes of a session, its leader apart."""
    found = []
    for status in pathlib.Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            pid, rest = status.read_text().split(" (", 1)
            fields = rest.rsplit(") ", 1)[1].split()
            if int(fields[3]) == session and int(pid) != session and fields[0] != "Z":
                command = status.with_name("cmdline").read_bytes().replace(b"\0", b" ")
                found.append(command.decode(errors="replace").strip()[:100])
    return found


# --- One case -------------------------------------------------------------------------------------

class Case:
    """What a case is given. Its working directory is its own."""

    def __init__(self, binary, rng, rounds, sockets):
        self.binary = binary
        self.rng = rng
        self.rounds = rounds
        self.sockets = sockets
        self.notes = []
        self.servers = []
        self.stack = contextlib.ExitStack()

    def note(self, text):
        """Adds to the line that is printed for this case."""
        self.notes.append(text)

    def serve(self, create="8G", volumes=None, pool="pool", arguments=()):
        """Starts a server on a new pool (or the one that is there) and waits until it serves."""
        server = Server(self, pool, arguments)
        self.servers.append(server)
        server.start(create, volumes or {})
        return server

    def cli(self, *command, ok=(0,), limit=COMMAND_SECONDS_MAX):
        """Runs `basalt` without a server."""
        return run(self.binary, *command, ok=ok, limit=limit)

    def close(self):
        """Stops what still runs; returns what was wrong with that."""
        faults = []
        for server in self.servers:
            with contextlib.suppress(Exception):
                if server.process and server.process.poll() not in (None, *server.ends_expected):
                    faults.append(f"the server ended with status {server.process.returncode}")
                server.kill()
        self.stack.close()
        return faults


class Server:
    """One `basalt serve`, and the command line that talks to it."""

    count = 0

    def __init__(self, context, pool, arguments):
        Server.count += 1
        self.context = context
        self.pool = pool
        self.arguments = list(arguments)
        self.socket = f"{context.sockets}/nbd{Server.count}"
        self.control = f"{context.sockets}/control{Server.count}"
        self.log = f"server{Server.count}.log"
        self.process = None
        self.ends_expected = ()

    def start(self, create=None, volumes=None):
        """Starts it and waits until it serves; returns the seconds that took."""
        command = [self.context.binary, "serve", self.pool, "--control", self.control,
                   "--listen", f"unix:{self.socket}", *self.arguments]
        if create:
            command += ["--create", create]
        for name, size in (volumes or {}).items():
            command += ["--volume", f"{name}={size}"]
        self.ends_expected = ()
        start = time.monotonic()
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen([str(part) for part in command], stdout=log, stderr=log,
                                            stdin=subprocess.DEVNULL)
        # Making a pool writes its whole file; opening one must not take long, which callers check.
        eventually("the server serves", COMMAND_SECONDS_MAX, self.serves, pause=0.005)
        return time.monotonic() - start

    def serves(self):
        """Answers on both sockets; fails if it has ended instead."""
        assert self.process.poll() is None, f"the server ended at once: {self.last_words()}"
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.settimeout(COMMAND_SECONDS_MAX)
                probe.connect(self.socket)
                greeting = probe.recv(18, socket.MSG_WAITALL)
            except OSError:
                return False
        return greeting[:8] == b"NBDMAGIC" and os.path.exists(self.control)

    def last_words(self):
        lines = pathlib.Path(self.log).read_text(errors="replace").splitlines()
        return lines[-1] if lines else "nothing on its output"

    def stop(self, number=signal.SIGTERM, limit=COMMAND_SECONDS_MAX):
        """Stops it in order; it must end well, and in time."""
        self.ends_expected = (0,)
        self.process.send_signal(number)
        status = self.process.wait(limit)
        assert status == 0, f"stopped with status {status}: {self.last_words()}"

    def kill(self):
        """`kill -9`, and waits until it is gone."""
        self.ends_expected = (-signal.SIGKILL, 0)
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def restart(self):
        """Stops it in order and starts it again."""
        self.stop()
        return self.start()

    def check(self):
        """Runs `basalt check` on the pool, which nobody may have open; it must be clean."""
        result = self.context.cli("check", self.pool, ok=None, limit=120)
        text = (result.stdout + result.stderr).strip()
        assert result.returncode == 0, f"check: status {result.returncode}: {text[-600:]}"

    def cli(self, *command, ok=(0,), limit=COMMAND_SECONDS_MAX):
        """Runs a command of the control API; returns its output."""
        return run(self.context.binary, *command, "--control", self.control, ok=ok,
                   limit=limit).stdout

    def json(self, *command):
        """Runs a command with `--json`; returns what it prints."""
        return json.loads(self.cli(*command, "--json"))

    def refused(self, *command, status=1, says=()):
        """Runs a command that must fail with one clear line; returns that line."""
        result = run(self.context.binary, *command, "--control", self.control, ok=None)
        return clear_error(result, status, says)

    def status(self):
        """The figures of the pool."""
        return self.json("status")["pool"]

    def volumes(self):
        """Volumes by name."""
        return {volume["name"]: volume for volume in self.json("volume", "list")}

    def snapshots(self, *volume):
        """Snapshots by `VOLUME@NAME`."""
        return {f"{snapshot['volume']}@{snapshot['name']}": snapshot
                for snapshot in self.json("snapshot", "list", *volume)}

    def settled(self, limit=60):
        """The status once background work is done and nothing waits for a checkpoint."""
        def probe():
            status = self.status()
            return status if status["jobs"] == 0 and status["gated"] == 0 else None
        return eventually("no jobs and nothing gated", limit, probe)

    def uri(self, export=""):
        return f"nbd+unix:///{urllib.parse.quote(export, safe='@')}?socket={self.socket}"

    def connect(self, export=""):
        """A libnbd handle."""
        handle = nbd.NBD()
        handle.add_meta_context("base:allocation")
        handle.connect_uri(self.uri(export))
        return handle

    def digest(self, export):
        """The SHA-256 of an export, as nbdcopy reads it over several connections."""
        command = ["nbdcopy", "--", self.uri(export), "-"]
        reader = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
        digest = hashlib.sha256()
        while chunk := reader.stdout.read(MIB):
            digest.update(chunk)
        assert reader.wait() == 0, f"nbdcopy of {export} failed"
        return digest.hexdigest()

    def resident(self):
        """Bytes of memory that it holds."""
        text = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", text)[1]) * KIB


def clear_error(result, status=1, says=()):
    """An error is one line on stderr that says what a person needs to know."""
    lines = [line for line in result.stderr.strip().splitlines() if not LOG_LINE.match(line)]
    shown = " | ".join(lines)
    command = " ".join(result.args[1:])
    assert result.returncode == status, \
        f"`{command}`: status {result.returncode}, not {status}: {shown}"
    assert "panick" not in result.stderr, f"`{command}` panicked: {shown}"
    if status == 1:
        assert len(lines) == 1, f"`{command}`: {len(lines)} lines on stderr: {shown}"
    for word in says:
        assert word.lower() in shown.lower(), f"`{command}` does not say `{word}`: {shown}"
    return shown


@contextlib.contextmanager
def fails_with(number, what):
    """The block must raise an NBD error of this number."""
    try:
        yield
    except nbd.Error as error:
        assert error.errnum == number, \
            f"{what}: {errno.errorcode.get(error.errnum, error.errnum)} instead of " \
            f"{errno.errorcode[number]} ({error.string})"
    else:
        raise AssertionError(f"{what}: no error instead of {errno.errorcode[number]}")
