"""Random commands at any alignment agree with an array of bytes, over several connections."""
import nbd

from harness import BLOCK, MIB, case

SIZE = 8 * MIB


class Model:
    """The volumes and snapshots as they must be, and the server beside them."""

    def __init__(self, context):
        self.rng = context.rng
        self.server = context.serve(volumes={"v0": "8M", "v1": "8M"})
        self.bytes = {"v0": bytearray(SIZE), "v1": bytearray(SIZE)}
        self.connections = {}
        self.made = 2
        for name in self.bytes:
            self.connect(name)

    def connect(self, name):
        self.connections[name] = [self.server.connect(name) for _ in range(3)]

    def close(self, name):
        for handle in self.connections.pop(name, []):
            handle.shutdown()

    def range(self):
        """An offset and a length: mostly small, mostly unaligned."""
        length = self.rng.choice([1, 511, 512, 4095, BLOCK, 4097, 3 * BLOCK, 100_000, MIB])
        length = self.rng.randint(1, length) if self.rng.random() < 0.5 else length
        offset = self.rng.randrange(SIZE - length + 1)
        return (offset - offset % self.rng.choice([1, 512, BLOCK]), length)

    def volume(self):
        return self.rng.choice([name for name in self.bytes if "@" not in name])

    def new_name(self):
        self.made += 1
        return f"v{self.made}"

    def flags(self, *others):
        """FUA now and then, and any of the others."""
        flags = nbd.CMD_FLAG_FUA if self.rng.random() < 0.1 else 0
        for flag in others:
            flags |= flag if self.rng.random() < 0.5 else 0
        return flags

    # Each operation below does the same to the server and to the bytes.

    def write(self):
        name, (offset, length) = self.volume(), self.range()
        data = self.rng.randbytes(length)
        self.rng.choice(self.connections[name]).pwrite(data, offset, self.flags())
        self.bytes[name][offset:offset + length] = data

    def zero(self):
        name, (offset, length) = self.volume(), self.range()
        flags = self.flags(nbd.CMD_FLAG_NO_HOLE)
        self.rng.choice(self.connections[name]).zero(length, offset, flags)
        self.bytes[name][offset:offset + length] = bytes(length)

    def trim(self):
        """What a trim leaves is up to the server, but only within the range."""
        name, (offset, length) = self.volume(), self.range()
        connection = self.rng.choice(self.connections[name])
        connection.trim(length, offset, self.flags())
        after, before = connection.pread(length, offset), self.bytes[name]
        for index in range(0, length):
            if after[index] not in (0, before[offset + index]):
                raise AssertionError(f"{name}: byte {offset + index} changed by a trim")
        self.bytes[name][offset:offset + length] = after

    def read(self):
        name, (offset, length) = self.rng.choice(list(self.bytes)), self.range()
        connection = self.rng.choice(self.connections[name])
        if self.rng.random() < 0.3:
            chunks = []
            found = connection.pread_structured(
                length, offset, lambda _data, at, kind, _error: chunks.append((at, kind)),
                nbd.CMD_FLAG_DF)
            assert len(chunks) == 1, f"{length} bytes at {offset} with DF came as {chunks}"
        else:
            found = connection.pread(length, offset)
        assert found == self.bytes[name][offset:offset + length], \
            f"{name}: {length} bytes at {offset} differ"

    def cache(self):
        offset, length = self.range()
        self.connections[self.volume()][0].cache(length, offset)

    def flush(self):
        self.connections[self.volume()][0].flush()

    def snapshot(self):
        if len(self.bytes) > 12:
            return self.delete()
        names = [name for name in self.bytes if "@" not in name]
        chosen = self.rng.sample(names, self.rng.randint(1, len(names)))
        label = self.new_name()
        self.server.cli("snapshot", "create", *[f"{name}@{label}" for name in chosen])
        for name in chosen:
            self.bytes[f"{name}@{label}"] = bytearray(self.bytes[name])
            self.connect(f"{name}@{label}")
        return None

    def clone(self):
        if len(self.bytes) > 12:
            return self.delete()
        source, name = self.rng.choice(list(self.bytes)), self.new_name()
        self.server.cli("volume", "clone", source, name)
        self.bytes[name] = bytearray(self.bytes[source])
        self.connect(name)
        return None

    def rollback(self):
        snapshots = [name for name in self.bytes if "@" in name
                     and name.split("@")[0] in self.bytes]
        if snapshots:
            snapshot = self.rng.choice(snapshots)
            volume = snapshot.split("@")[0]
            self.close(volume)
            self.when_idle("volume", "rollback", snapshot)
            self.bytes[volume] = bytearray(self.bytes[snapshot])
            self.connect(volume)

    def delete(self):
        volumes = [name for name in self.bytes if "@" not in name]
        candidates = [name for name in self.bytes if "@" in name or len(volumes) > 2]
        if candidates:
            name = self.rng.choice(candidates)
            self.close(name)
            self.when_idle("snapshot" if "@" in name else "volume", "delete", name)
            del self.bytes[name]

    def when_idle(self, *command):
        """A volume is free once the server has seen its clients go, which they do not wait for."""
        while True:
            try:
                return self.server.cli(*command)
            except Exception as error:
                if "connect" not in str(error) and "use" not in str(error):
                    raise

    def compare_all(self):
        for name, expected in self.bytes.items():
            found = bytearray()
            for offset in range(0, SIZE, MIB):
                found += self.connections[name][0].pread(MIB, offset)
            assert found == expected, f"{name} differs"

    def holes_read_as_zeroes(self):
        """And block status covers the volume without a gap."""
        for name, expected in self.bytes.items():
            extents = []
            self.connections[name][0].block_status(
                SIZE, 0, lambda _context, _offset, entries, _error: extents.extend(entries))
            offset = 0
            for length, flags in zip(extents[::2], extents[1::2]):
                if flags & nbd.STATE_ZERO:
                    end = min(offset + length, SIZE)
                    assert not any(expected[offset:end]), f"{name}: data in a hole at {offset}"
                offset += length
            assert offset > 0, f"{name}: no extents"


OPERATIONS = {Model.write: 30, Model.read: 25, Model.zero: 6, Model.trim: 6, Model.cache: 2,
              Model.flush: 4, Model.snapshot: 2, Model.clone: 1, Model.rollback: 1,
              Model.delete: 2}


@case(limit=150)
def random_commands_agree_with_an_array(context):
    model = Model(context)
    operations = context.rng.choices(list(OPERATIONS), list(OPERATIONS.values()), k=3000)
    for number, operation in enumerate(operations):
        operation(model)
        if number % 500 == 499:
            model.compare_all()
            model.holes_read_as_zeroes()
        if number % 1500 == 1499:
            for name in list(model.bytes):
                model.close(name)
            model.server.restart()
            for name in model.bytes:
                model.connect(name)
            model.compare_all()
    for name in list(model.bytes):
        model.close(name)
    model.server.stop()
    model.server.check()
    context.note(f"{len(operations)} operations")
