"""LevelDB databases with corrupt files that would make LevelDB end the process or wait forever; children open them."""

import os
import struct
from pathlib import Path

import pytest

import fastbatch
from children import run_child
from databases import datum, images, varint, write_leveldb

if fastbatch.features()["leveldb"] is None:
    pytest.skip("fastbatch was built without LevelDB", allow_module_level=True)

from fastbatch import LevelDBSource, SourceError

pytestmark = pytest.mark.once_a_system  # about files, and nothing of Python

FOOTER, TRAILER = 48, 5


def crc32c_table():
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        yield value


CRC_TABLE = list(crc32c_table())


def checksum(data):
    """LevelDB's: CRC-32C, masked."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ CRC_TABLE[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def read_varint(data, at):
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at


class Table:
    """The one table of a database, with what its footer says."""

    def __init__(self, path):
        (self.file,) = Path(path).glob("*.ldb")
        self.content = bytearray(self.file.read_bytes())
        at = len(self.content) - FOOTER
        self.handles = []
        for _ in range(4):
            value, at = read_varint(self.content, at)
            self.handles.append(value)
        self.metaindex, self.index = self.handles[:2], self.handles[2:]

    def write_footer(self, index):
        handles = b"".join(map(varint, [*self.metaindex, *index]))
        self.content[-FOOTER:-8] = handles.ljust(FOOTER - 8, b"\0")
        self.file.write_bytes(self.content)

    def write_index(self, block, compression=0):
        """Overwrites the old index and everything after it; the file keeps its size."""
        offset = self.index[0]
        end = len(self.content) - FOOTER
        stored = block + bytes([compression])
        stored += checksum(stored)
        assert offset + len(stored) <= end
        self.content[offset : offset + len(stored)] = stored
        self.write_footer([offset, len(block)])


def index_block(offset, size, key=b"\xff" * 8 + b"\x01" + bytes(7)):
    handle = varint(offset) + varint(size)
    return varint(0) + varint(len(key)) + varint(len(handle)) + key + handle + struct.pack("<II", 0, 1)


@pytest.fixture
def database(tmp_path):
    """The path of a database with one table of several blocks, which is not compressed."""
    records = [datum(*pair) for pair in zip(images(12, (1, 100, 300)), range(12))]
    return write_leveldb(tmp_path / "db", records, tables=True, compressed=False)


READ = """
    from fastbatch import LevelDBSource, Loader, SourceError
    try:
        with LevelDBSource({path!r}) as source, Loader(source, timeout=20) as loader:
            print([batch.label[0] for batch in loader])
    except SourceError as error:
        print(error)
"""


def refusal(path, *before):
    """What a process of its own says of a database."""
    text = run_child("\n    ".join(["", *before]) + READ.format(path=path))
    assert text.startswith((f"Failed to open leveldb {path}: ", f"{path} cannot be read")), text
    return text


@pytest.mark.parametrize(
    "offset, size",
    [
        (0, 2**60),
        (0, 2**64 - 1),
        (0, 2**63),
        (2**64 - 1, 2),
        (2**64 - 6, 1),
        (2**63, 2**63),
        (0, None),
        (None, 0),
        (None, 1),
        (2**40, 5),
    ],
)
@pytest.mark.parametrize("where", ["footer", "index"])
def test_a_block_that_lies_outside_of_its_table(database, where, offset, size):
    """std::bad_alloc, or a read of other memory, ended the process. None: the size of the file."""
    table = Table(database)
    there = [len(table.content) if each is None else each for each in (offset, size)]
    if where == "footer":
        table.write_footer(there)
    else:
        table.write_index(index_block(*there))
    text = refusal(database)
    size = len(table.content)
    assert f"its table {table.file.name} is damaged: its {where} says that a block of {there[1]} bytes lies at" in text
    assert f"lies at byte {there[0]}, but the table has {size} bytes; it is damaged: make it again, or copy" in text


def test_an_index_that_says_it_is_large_uncompressed(database):
    table = Table(database)
    table.write_index(varint(2**32 - 1) + b"\0" * 20, compression=1)
    text = refusal(database)
    if "its index of 25 bytes says that it is 4294967295 bytes uncompressed" not in text:
        assert "LevelDB says: Corruption" in text  # a LevelDB without Snappy


def test_the_index_of_a_large_table_is_compressed(tmp_path):
    """And read all the same."""
    records = [
        (b"key" * 100 + b"%08d" % i, datum(*pair)) for i, pair in enumerate(zip(images(40, (1, 100, 300)), range(40)))
    ]
    path = write_leveldb(tmp_path / "db", records, tables=True)
    tables = list(Path(path).glob("*.ldb"))
    assert tables
    with LevelDBSource(path) as source:
        assert len(source) == 40


def test_no_memory_for_an_index(database):
    """That is as large as the table."""
    table = Table(database)
    size = 2**33
    with open(table.file, "r+b") as file:
        file.truncate(size)
    table.write_footer([0, size - 100])
    with open(table.file, "r+b") as file:
        file.truncate(size)
        content = table.content[-FOOTER:]
        file.seek(len(table.content) - FOOTER)
        file.write(content)
    limit = "from children import limit_memory; limit_memory(2**32)"
    assert f"no memory for the {size - 100} bytes of the index of its table {table.file.name}" in refusal(
        database, limit
    )


def log_record(content, at):
    """(the record at an offset in MANIFEST, the offset of the next one)."""
    length, kind = struct.unpack_from("<HB", content, at + 4)
    assert kind == 1
    return content[at + 7 : at + 7 + length], at + 7 + length


def test_a_footer_in_a_record_that_the_manifest_takes_for_the_tables(tmp_path):
    """The footer is looked for where MANIFEST says that the table ends."""
    footer = (varint(0) + varint(0) + varint(0) + varint(2**60)).ljust(FOOTER - 8, b"\0") + bytes.fromhex(
        "57fb808b247547db"
    )
    pictures = images(12, (1, 100, 300))
    pictures[3].reshape(-1)[1000:1048] = list(footer)
    path = write_leveldb(
        tmp_path / "db", [datum(*pair) for pair in zip(pictures, range(12))], tables=True, compressed=False
    )
    table = Table(path)
    size = varint(len(table.content))
    lie = varint(table.content.index(footer) + FOOTER)
    lie = (
        lie
        if len(lie) == len(size)
        else lie[:-1] + bytes([lie[-1] | 0x80]) + b"\x80" * (len(size) - len(lie) - 1) + b"\0"
    )
    (manifest,) = Path(path).glob("MANIFEST-*")
    content = manifest.read_bytes()
    at, done = 0, 0
    number = varint(int(table.file.stem))
    while at + 7 <= len(content):
        record, after = log_record(content, at)
        if number + size in record:
            record = record.replace(number + size, number + lie)
            content = content[:at] + checksum(b"\x01" + record) + content[at + 4 : at + 7] + record + content[after:]
            done += 1
        at = after
    assert done == 1
    manifest.write_bytes(content)
    assert (
        f"its table {table.file.name} is damaged: its footer says that a block of {2**60} bytes lies at byte 0"
        in refusal(path)
    )


def test_bits_of_a_footer(database):
    """What comes of one that is flipped is all records, or an error."""
    table = Table(database)
    program = f"""
        from fastbatch import LevelDBSource, Loader, SourceError
        content = bytearray(open({str(table.file)!r}, "rb").read())
        good = refused = 0
        for bit in range(0, 8 * {FOOTER}, 5):
            content[-1 - bit // 8] ^= 1 << bit % 8
            with open({str(table.file)!r}, "wb") as file:
                file.write(content)
            content[-1 - bit // 8] ^= 1 << bit % 8
            try:
                with LevelDBSource({database!r}) as source, Loader(source, timeout=20) as loader:
                    assert [batch.label[0] for batch in loader] == list(range(12))
                good += 1
            except SourceError as error:
                refused += 1
        print(good, refused)
    """
    good, refused = map(int, run_child(program).split())
    assert good + refused == 77
    assert refused > 13  # those of the magic number alone


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_footers_and_indices_damaged_at_random(database, seed):
    """Also with a checksum that fits."""
    program = f"""
        import random
        from test_leveldb_files import FOOTER, TRAILER, Table, checksum
        from fastbatch import LevelDBSource, Loader, SourceError
        table = Table({database!r})
        pristine = bytes(table.content)
        offset, size = table.index
        draw = random.Random({seed})
        good = refused = 0
        for _ in range(300):
            table.content[:] = pristine
            for _ in range(draw.randrange(1, 4)):
                where = draw.choice([range(len(pristine) - FOOTER, len(pristine)), range(offset, offset + size)])
                table.content[draw.choice(where)] = draw.choice([0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)])
            stored = table.content[offset:offset + size + 1]
            table.content[offset + size + 1:offset + size + TRAILER] = checksum(stored)
            table.file.write_bytes(table.content)
            try:
                with LevelDBSource({database!r}) as source, Loader(source, timeout=20) as loader:
                    good += sum(len(batch) for batch in loader) > 0
            except SourceError:
                refused += 1
        print(good, refused)
    """
    _, refused = map(int, run_child(program).split())
    assert refused > 30


@pytest.mark.parametrize("name", ["CURRENT", "LOCK", "MANIFEST-*", "*.ldb", "*.log"])
@pytest.mark.parametrize("kind", ["a pipe", "a directory", "a device"])
def test_a_file_that_is_none(database, name, kind):
    """A pipe was waited for."""
    (path,) = Path(database).glob(name)
    path.unlink()
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a directory":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    assert f"its {path.name} is not a file but {kind}" in refusal(database)


def test_a_current_that_names_something_else(database, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    Path(database, "CURRENT").write_text("../pipe\n")
    assert "its ../pipe is not a file but a pipe" in refusal(database)
    with open(Path(database, "CURRENT"), "r+b") as file:
        file.truncate(2**40)
    assert "its CURRENT has more than 4096 bytes, and not the name of a file" in refusal(database)


def test_a_link_to_a_file_is_one(database, tmp_path):
    (table,) = Path(database).glob("*.ldb")
    os.rename(table, tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", table)
    with LevelDBSource(database) as source:
        assert len(source) == 12


def test_a_table_that_is_missing_or_cut_short(database):
    (table,) = Path(database).glob("*.ldb")
    size = os.path.getsize(table)
    os.truncate(table, size - 1)
    with pytest.raises(
        SourceError,
        match=f"its table {table.name} was cut short: it has {size - 1} bytes of {size}; it is damaged: make",
    ):
        LevelDBSource(database)
    table.unlink()
    with pytest.raises(SourceError, match="Corruption: 1 missing files"):
        LevelDBSource(database)
