"""What foreign clients are told when they connect: exports, sizes, flags, contexts."""
import json
import errno
import socket
import struct

import nbd

from harness import BLOCK, GIB, MIB, case, fails_with, free_port, need, run

ABILITIES = ["fua", "flush", "trim", "zero", "fast-zero", "df", "cache", "multi-conn",
             "connect", "read", "write", "structured-reply"]


def described(uri):
    """The only export that nbdinfo sees at a URI."""
    answer = json.loads(run("nbdinfo", "--json", uri).stdout)
    [export] = answer["exports"]
    return answer, export


@case(limit=30)
def nbdinfo_sees_every_ability(context):
    need("nbdinfo")
    server = context.serve(volumes={"demo": "4G"})
    uri = server.uri("demo")
    answer, export = described(uri)
    assert answer["protocol"] == "newstyle-fixed" and answer["structured"], answer
    expected = {
        "export-name": "demo", "export-size": 4 * GIB, "is_read_only": False,
        "is_rotational": False, "can_cache": True, "can_df": True, "can_fast_zero": True,
        "can_flush": True, "can_fua": True, "can_multi_conn": True, "can_trim": True,
        "can_zero": True, "block_size_minimum": 1, "block_size_preferred": BLOCK,
        "block_size_maximum": 32 * MIB,
    }
    wrong = {key: export.get(key) for key, value in expected.items() if export.get(key) != value}
    assert not wrong, f"unexpected: {wrong}"
    assert "base:allocation" in export["contexts"], export["contexts"]
    for ability in ABILITIES:
        run("nbdinfo", "--can", ability, uri)
    run("nbdinfo", "--is", "read-only", uri, ok=(2,))
    assert run("nbdinfo", "--size", uri).stdout.strip() == str(4 * GIB)


@case(limit=30)
def every_volume_is_listed(context):
    need("nbdinfo")
    server = context.serve(volumes={"one": "1G", "two": "2G", "größe 3": "3G"})
    answer = json.loads(run("nbdinfo", "--list", "--json", server.uri()).stdout)
    sizes = {export["export-name"]: export["export-size"] for export in answer["exports"]}
    volumes = {name: size for name, size in sizes.items() if name and "@" not in name}
    assert volumes == {"one": GIB, "two": 2 * GIB, "größe 3": 3 * GIB}, sizes
    assert described(server.uri("größe 3"))[1]["export-size"] == 3 * GIB


@case(limit=30)
def a_snapshot_is_a_read_only_export(context):
    need("nbdinfo")
    server = context.serve(volumes={"demo": "64M"})
    writer = server.connect("demo")
    writer.pwrite(b"a" * BLOCK, 0)
    server.cli("snapshot", "create", "demo@first")
    writer.pwrite(b"b" * BLOCK, 0)
    run("nbdinfo", "--is", "read-only", server.uri("demo@first"))
    assert described(server.uri("demo@first"))[1]["export-size"] == 64 * MIB
    reader = server.connect("demo@first")
    assert reader.pread(BLOCK, 0) == b"a" * BLOCK
    # libnbd itself refuses to send these; the server must not rely on that.
    reader.set_strict_mode(0)
    with fails_with(errno.EPERM, "a write to a snapshot"):
        reader.pwrite(b"c" * BLOCK, 0)
    with fails_with(errno.EPERM, "a trim of a snapshot"):
        reader.trim(BLOCK, 0)
    with fails_with(errno.EPERM, "zeroing a snapshot"):
        reader.zero(BLOCK, 0)
    reader.flush()
    assert reader.pread(BLOCK, 0) == b"a" * BLOCK
    assert writer.pread(BLOCK, 0) == b"b" * BLOCK


@case(limit=30)
def the_empty_name_is_the_only_volume(context):
    server = context.serve(volumes={"only": "5M"})
    assert server.connect("").get_size() == 5 * MIB
    server.cli("volume", "create", "second", "--size", "6M")
    with fails_with(errno.ENOENT, "the empty name with two volumes"):
        server.connect("")
    server.cli("volume", "delete", "only")
    eventual = server.connect("")
    assert eventual.get_size() == 6 * MIB


@case(limit=30)
def an_unknown_export_is_refused_and_the_next_option_works(context):
    server = context.serve(volumes={"demo": "64M"})
    handle = nbd.NBD()
    handle.set_opt_mode(True)
    handle.connect_uri(server.uri("demo"))
    for name in ["nothing", "demo@nothing", "nothing@nothing", "@", "demo@", "x" * 4096]:
        handle.set_export_name(name)
        with fails_with(errno.ENOENT, f"NBD_OPT_GO of {name[:20]}"):
            handle.opt_go()
    names = []
    handle.opt_list(lambda name, _description: names.append(name))
    assert "demo" in names, names
    handle.set_export_name("demo")
    handle.opt_info()
    assert handle.get_size() == 64 * MIB
    contexts = []
    handle.opt_list_meta_context(contexts.append)
    assert "base:allocation" in contexts, contexts
    handle.opt_go()
    assert handle.pread(512, 512) == bytes(512)
    handle.shutdown()


@case(limit=30)
def a_grown_volume_shows_its_size_to_new_connections(context):
    server = context.serve(volumes={"demo": "64M"})
    before = server.connect("demo")
    before.pwrite(b"x" * BLOCK, 64 * MIB - BLOCK)
    server.cli("volume", "resize", "demo", "--size", "128M")
    after = server.connect("demo")
    assert after.get_size() == 128 * MIB
    assert after.pread(2 * BLOCK, 64 * MIB - BLOCK) == b"x" * BLOCK + bytes(BLOCK)
    after.pwrite(b"y" * BLOCK, 128 * MIB - BLOCK)
    assert before.pread(BLOCK, 0) == bytes(BLOCK), "the old connection still works"
    with fails_with(errno.ENOSPC, "a write past the end"):
        after.set_strict_mode(0)
        after.pwrite(b"z" * BLOCK, 128 * MIB)
    with fails_with(errno.EINVAL, "a read past the end"):
        after.pread(BLOCK, 128 * MIB - 512)


@case(limit=30)
def clients_without_modern_options_are_served(context):
    server = context.serve(volumes={"demo": "64M"})
    for structured in (True, False):
        for fixed in (True, False):
            handle = nbd.NBD()
            handle.set_request_structured_replies(structured)
            handle.set_handshake_flags(nbd.HANDSHAKE_FLAG_MASK if fixed else 0)
            handle.connect_uri(server.uri("demo"))
            mark = bytes([structured, fixed]) * 256
            handle.pwrite(mark, 512 * (2 * structured + fixed) + 100)
            assert handle.pread(512, 512 * (2 * structured + fixed) + 100) == mark
            assert handle.pread(MIB, MIB) == bytes(MIB)
            handle.shutdown()


@case(limit=30)
def an_unknown_option_is_answered_with_unsupported(context):
    server = context.serve(volumes={"demo": "64M"})
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(server.socket)
        client.recv(18, socket.MSG_WAITALL)
        client.sendall(struct.pack(">I", 3))
        for option, data in [(99, b"data"), (0xFFFF_FFFF, b"")]:
            client.sendall(b"IHAVEOPT" + struct.pack(">II", option, len(data)) + data)
            reply = client.recv(20, socket.MSG_WAITALL)
            magic, echoed, kind, length = struct.unpack(">QIII", reply)
            assert (magic, echoed) == (0x3E889045565A9, option), reply
            assert kind == (1 << 31) + 1, f"{kind:#x} is not NBD_REP_ERR_UNSUP"
            client.recv(length, socket.MSG_WAITALL)


@case(limit=60)
def tcp_serves_as_the_unix_socket_does(context):
    need("nbdinfo", "nbdcopy")
    port = free_port()
    server = context.serve(volumes={"demo": "64M"}, arguments=["--listen", f"tcp:127.0.0.1:{port}"])
    uri = f"nbd://127.0.0.1:{port}/demo"
    assert described(uri)[1]["can_multi_conn"]
    with open("data", "wb") as file:
        file.write(context.rng.randbytes(64 * MIB))
    run("nbdcopy", "--flush", "data", uri)
    run("nbdcopy", server.uri("demo"), "back")
    run("cmp", "data", "back")


@case(limit=60)
def a_foreign_proxy_in_front_changes_nothing(context):
    need("nbdkit", "nbdcopy")
    server = context.serve(volumes={"demo": "64M"})
    with open("data", "wb") as file:
        for _ in range(8):
            file.write(context.rng.randbytes(MIB))
            file.seek(7 * MIB, 1)
        file.truncate(64 * MIB)
    for shared in ("true", "false"):
        run("nbdkit", "--unix", "-", "nbd", f"uri={server.uri('demo')}", f"shared={shared}",
            "--run", 'nbdcopy --flush data "$uri" && nbdcopy "$uri" back && cmp data back')
