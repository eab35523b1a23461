"""Real file systems and disk images go in and come out through other people's tools."""
import contextlib
import os
import pathlib
import shutil
import subprocess

from harness import MIB, Skip, case, eventually, need, need_root, run

# A real directory tree: the first of these that is big enough to be one.
TREES = ["/usr/share/doc", "/usr/lib/python3.11", "/usr/include", "/usr/lib/python3", "/usr/share"]
TREE_BYTES_MIN, TREE_BYTES_MAX = 16 * MIB, 400 * MIB


def size_of(tree):
    return int(run("du", "--summarize", "--bytes", tree, ok=None).stdout.split()[0])


def real_tree():
    """A directory of this machine with many files of many sizes, and its size."""
    for tree in TREES:
        if os.path.isdir(tree) and TREE_BYTES_MIN <= size_of(tree) <= TREE_BYTES_MAX:
            return tree, size_of(tree)
    raise Skip("no directory tree of a fitting size")


def ext4_image(path):
    """Makes a file system filled with a real tree; returns the tree and the image's size."""
    tree, used = real_tree()
    size = (used * 2 // MIB + 128) // 4 * 4 * MIB
    run("truncate", "--size", size, path)
    run("mkfs.ext4", "-q", "-F", "-d", tree, path)
    return tree, size


@case(limit=120)
def an_ext4_image_goes_in_and_comes_out_identical(context):
    need("nbdcopy", "mkfs.ext4", "e2fsck")
    tree, size = ext4_image("image")
    server = context.serve()
    server.cli("volume", "create", "disk", "--size", size)
    server.cli("snapshot", "create", "disk@empty")
    run("nbdcopy", "--connections=4", "--requests=32", "--flush", "image", server.uri("disk"))
    run("nbdcopy", "--connections=4", "--requests=32", server.uri("disk"), "back")
    run("cmp", "image", "back")
    server.cli("volume", "clone", "disk", "copy")
    server.restart()
    run("nbdcopy", "--synchronous", server.uri("copy"), "copied")
    run("cmp", "image", "copied")
    run("e2fsck", "-fn", "copied")
    # nbdcopy sends only what the map says is data: much of a file system is not.
    volume = server.volumes()["disk"]
    assert volume["used"] < size, f"{volume['used']} of {size} bytes are used"
    run("nbdcopy", server.uri("disk@empty"), "empty")
    with open("empty", "rb") as file:
        assert all(not any(chunk) for chunk in iter(lambda: file.read(MIB), b""))
    server.stop()
    server.check()
    context.note(f"{tree}: {size // MIB} MiB, {volume['used'] // MIB} MiB used")


@contextlib.contextmanager
def mounted(server, export):
    """Mounts an export's file system through nbdfuse and a loop device, as root can anywhere."""
    here = pathlib.Path.cwd()
    for name in ("fuse", "mnt"):
        (here / name).mkdir(exist_ok=True)
    fuse = subprocess.Popen(["nbdfuse", "--pidfile", "nbdfuse.pid", "fuse/disk",
                             server.uri(export)], stdin=subprocess.DEVNULL)
    loop = None
    try:
        def ready():
            if fuse.poll() is not None:
                raise Skip("nbdfuse cannot mount here")
            return os.path.exists("nbdfuse.pid")
        eventually("nbdfuse is ready", 10, ready)
        attached = run("losetup", "--find", "--show", here / "fuse/disk", ok=None)
        if attached.returncode != 0:
            raise Skip(f"no loop device: {attached.stderr.strip()}")
        loop = attached.stdout.strip()
        done = run("mount", "-t", "ext4", loop, here / "mnt", ok=None)
        if done.returncode != 0:
            raise Skip(f"cannot mount ext4: {done.stderr.strip()}")
        yield here / "mnt"
    finally:
        run("umount", here / "mnt", ok=None)
        if loop:
            run("losetup", "--detach", loop)
            eventually("the loop device is free", 10, lambda: not run(
                "losetup", loop, ok=None).stdout)
        run("fusermount3", "-u", here / "fuse", ok=None)
        fuse.wait(10)
        pathlib.Path("nbdfuse.pid").unlink(missing_ok=True)


@case(limit=240)
def a_mounted_file_system_is_written_to_and_stays_clean(context):
    need_root()
    need("nbdfuse", "nbdcopy", "mkfs.ext4", "e2fsck", "losetup", "fusermount3")
    if not os.path.exists("/dev/fuse"):
        raise Skip("no /dev/fuse")
    tree, size = ext4_image("image")
    server = context.serve()
    server.cli("volume", "create", "disk", "--size", size)
    run("nbdcopy", "--flush", "image", server.uri("disk"))
    server.cli("snapshot", "create", "disk@fresh")
    with mounted(server, "disk") as mount:
        top = sorted(entry for entry in mount.iterdir() if entry.name != "lost+found")
        for entry in top[::3]:
            run("rm", "-rf", entry)
        pathlib.Path("added").mkdir()
        for number in range(200):
            pathlib.Path(f"added/{number}").write_bytes(context.rng.randbytes(number * 997))
        shutil.copytree("added", mount / "added")
        run("sync", "--file-system", mount)
        # Cut while mounted: consistent as after a power failure, so a journal replay mends it.
        server.cli("snapshot", "create", "disk@mounted")
        pathlib.Path("added/after").write_bytes(b"later" * 100_000)
        shutil.copy("added/after", mount / "added")
    with mounted(server, "disk") as mount:
        run("diff", "--recursive", "--brief", "added", mount / "added")
        kept = sorted(entry.name for entry in mount.iterdir())
    for entry in top[1::3]:
        assert entry.name in kept, f"{entry.name} is gone"
    server.restart()
    run("nbdcopy", server.uri("disk"), "back")
    run("e2fsck", "-fn", "back")
    run("nbdcopy", server.uri("disk@mounted"), "cut")
    run("e2fsck", "-fy", "cut", ok=(0, 1))
    run("e2fsck", "-fn", "cut")
    run("nbdcopy", server.uri("disk@fresh"), "fresh")
    run("cmp", "image", "fresh")
    server.stop()
    server.check()
    context.note(f"{tree}: {size // MIB} MiB")


@case(limit=120)
def qemu_img_converts_in_and_out(context):
    need("qemu-img", "mkfs.ext4")
    _, size = ext4_image("image")
    server = context.serve()
    server.cli("volume", "create", "disk", "--size", size)
    uri = server.uri("disk")
    run("qemu-img", "convert", "-n", "-W", "-m", "8", "-f", "raw", "-O", "raw", "image", uri)
    run("qemu-img", "compare", "-f", "raw", "-F", "raw", "image", uri)
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", uri, "back.qcow2")
    run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", uri, "back.qcow2")
    run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", "image", "back.qcow2")
    run("qemu-img", "convert", "-n", "--target-is-zero", "-f", "qcow2", "-O", "raw", "back.qcow2",
        uri)
    run("qemu-img", "compare", "-f", "raw", "-F", "raw", "image", uri)
