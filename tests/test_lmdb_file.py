"""The check of an LMDB database's pages: what it accepts must not end the process when LMDB reads the file."""

import ast
import os
import re
import resource
import struct
from pathlib import Path

import pytest

from children import FORKS, finish_child, run_child, start_child
from databases import LMDB, datum, image_lmdb, images, write_lmdb
from fastbatch import LMDBSource, Loader, SourceError

pytestmark = pytest.mark.once_a_system  # about files, and nothing of Python

PAGE = 4096


def deep_database(path):
    """Of three levels: long keys, records inside of pages, and larger ones on pages of their own."""
    small, large = images(1, (1, 30, 30))[0], images(1, (3, 50, 50))[0]
    key = "%08d" + "k" * 150
    return write_lmdb(path, [(key.encode() % i, datum(large if i % 10 == 0 else small, i)) for i in range(500)])


def pages_of(content):
    """(page, its flags) of all branch and leaf pages in the file."""
    for page in range(2, len(content) // PAGE):
        number, _, flags = struct.unpack_from("<QHH", content, page * PAGE)
        if number == page and flags in (1, 2):
            yield page, flags


def damage(content, kind, draw):
    """Damages a bytearray at one position."""
    nodes = [page for page, _ in pages_of(content)]
    page = draw.choice(nodes if kind != "any page" else range(len(content) // PAGE))
    begin = page * PAGE
    if kind == "a page of zeros" or (kind == "any page" and draw.random() < 0.5):
        content[begin : begin + PAGE] = bytes(PAGE)
    elif kind in ("a random page", "any page"):
        content[begin : begin + PAGE] = draw.getrandbits(8 * PAGE).to_bytes(PAGE, "little")
    elif kind == "a byte of a header":
        content[begin + draw.randrange(16)] = draw.randrange(256)
    elif kind == "a byte of the offsets":
        count = (struct.unpack_from("<H", content, begin + 12)[0] - 16) // 2
        content[begin + 16 + draw.randrange(max(1, 2 * count))] = draw.randrange(256)
    elif kind == "a byte of a record's header":
        count = (struct.unpack_from("<H", content, begin + 12)[0] - 16) // 2
        (offset,) = struct.unpack_from("<H", content, begin + 16 + 2 * draw.randrange(max(1, count)))
        content[min(begin + offset + draw.randrange(8), len(content) - 1)] = draw.randrange(256)
    elif kind == "a byte of a meta page":
        content[draw.choice([0, PAGE]) + draw.randrange(152)] = draw.randrange(256)
    elif kind == "two pages exchanged":
        other = draw.choice(nodes) * PAGE
        content[begin : begin + PAGE], content[other : other + PAGE] = (
            content[other : other + PAGE],
            content[begin : begin + PAGE],
        )
    else:
        raise AssertionError(kind)


KINDS = (
    "a page of zeros",
    "a random page",
    "any page",
    "a byte of a header",
    "a byte of the offsets",
    "a byte of a record's header",
    "a byte of a meta page",
    "two pages exchanged",
)

# Opens and reads each damaged database in a child of its own, and counts what became of it.
FUZZ = """
    import collections, os, random, signal, sys
    from fastbatch import LMDBSource, Loader, SampleError, SourceError
    from test_lmdb_file import damage
    path, kind, seed, rounds = {path!r}, {kind!r}, {seed}, {rounds}
    data = os.path.join(path, "data.mdb")
    pristine = open(data, "rb").read()
    draw = random.Random(f"{{kind}} {{seed}}")
    counts = collections.Counter()
    for number in range(rounds):
        content = bytearray(pristine)
        damage(content, kind, draw)
        with open(data, "wb") as file:
            file.write(content)
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            sys.stderr.close()
            try:
                with LMDBSource(path) as source:
                    for shuffle in False, True:
                        with Loader(source, threads=1, timeout=20, shuffle=shuffle) as loader:
                            epoch = iter(loader)
                            while True:
                                try:
                                    next(epoch)
                                except SampleError:
                                    pass
                                except StopIteration:
                                    break
            except SourceError as error:
                os._exit(1 if path in str(error) else 3)
            except MemoryError:
                os._exit(1)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        ends = {{0: "read", 1: "refused", 3: "an error without its source"}}
        counts["died" if os.WIFSIGNALED(status) else ends[os.WEXITSTATUS(status)]] += 1
        if os.WIFSIGNALED(status):
            with open(f"{{path}}-{{kind}}-{{number}}", "wb") as file:
                file.write(content)
    with open(data, "wb") as file:
        file.write(pristine)
    print(dict(counts))
"""


def fuzz(path, kind, seed, rounds):
    return ast.literal_eval(run_child(FUZZ.format(path=path, kind=kind, seed=seed, rounds=rounds), *FORKS))


@pytest.mark.parametrize("kind", KINDS)
def test_damage_that_the_check_accepts_can_be_read(tmp_path, kind):
    path = deep_database(tmp_path / "db")
    for seed in range(int(os.environ.get("FASTBATCH_EXAMPLES", "1"))):
        counts = fuzz(path, kind, seed, 10)
        assert set(counts) <= {"read", "refused"}, counts
        assert sum(counts.values()) == 10


def zero_a_page(path, which=-1):
    """Of the branch and leaf pages of a database."""
    data = Path(path, "data.mdb")
    content = bytearray(data.read_bytes())
    page = [page for page, _ in pages_of(content)][which]
    content[page * PAGE : page * PAGE + PAGE] = bytes(PAGE)
    data.write_bytes(content)
    return page


def test_the_error_names_the_page(tmp_path):
    path = deep_database(tmp_path / "db")
    page = zero_a_page(path)
    with pytest.raises(SourceError) as caught:
        LMDBSource(path)
    what = f"data.mdb is damaged: page {page} has another number"
    assert str(caught.value) == f"cannot read the LMDB database {path}: {what}; make it again, or copy it again"


def test_what_was_checked_is_not_checked_again_until_it_changes(tmp_path):
    path = deep_database(tmp_path / "db")
    data = Path(path, "data.mdb")
    with LMDBSource(path) as source:
        status = data.stat()
        page = zero_a_page(path, 100)
        os.utime(data, ns=(status.st_atime_ns, status.st_mtime_ns))  # nobody can see that it has changed
        LMDBSource(path, check=True).close()
        os.utime(data, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
        for make in lambda: Loader(source), lambda: LMDBSource(path):
            with pytest.raises(SourceError, match=f"data.mdb is damaged: page {page} "):
                make()


def test_a_check_takes_a_second_unless_it_is_asked_for(tmp_path, monkeypatch):
    """By a clock that an hour passes on whenever it is looked at."""
    path = image_lmdb(tmp_path / "db", 3000)[0]
    page = zero_a_page(path, 150)
    hours = iter(range(10**9))
    monkeypatch.setattr("time.monotonic", lambda: 3600.0 * next(hours))
    for check in None, False:
        LMDBSource(path, check=check).close()
    with pytest.raises(SourceError, match=f"page {page} "):
        LMDBSource(path, check=True)


@pytest.mark.parametrize("check", [0, 1, "yes"])
def test_check_is_a_bool_or_none(tmp_path, check):
    path, _ = image_lmdb(tmp_path / "db", 1)
    with pytest.raises(TypeError, match=f"check is {check!r}; it can be None, True or False"):
        LMDBSource(path, check=check)


def test_a_database_that_another_process_writes(tmp_path):
    """Each look is at one state of it, however it changes meanwhile."""
    path = deep_database(tmp_path / "db")
    writer = start_child(f"""
        import random, select, sys
        from databases import LMDB, datum, images
        draw = random.Random(0)
        with LMDB({path!r}, map_size=2**28) as database:
            print("ready", flush=True)
            while not select.select([sys.stdin], [], [], 0)[0]:
                sizes = [draw.randrange(1, 90) for _ in range(20)]
                database.put([(b"%08d" % draw.randrange(500), datum(images(1, (1, size, 30))[0], 1)) for size in sizes])
    """)
    assert writer.stdout.readline() == "ready\n"
    for _ in range(100):
        LMDBSource(path, check=True).close()
    finish_child(writer)


# ---- a map that a writer in another process has enlarged


def enlarge(path, lift_limit, records=300):
    """Writes so many records more, in a process of its own, with a larger map."""
    limit = resource.getrlimit(resource.RLIMIT_AS)
    lift_limit()  # the thread sanitizer does not start in a limited process
    run_child(f"""
        from databases import LMDB, datum, images
        picture = images(1, (3, 60, 60))[0]
        with LMDB({path!r}, map_size=2**30) as database:
            database.put([(b"more%06d" % index, datum(picture, index)) for index in range({records})])
    """)
    resource.setrlimit(resource.RLIMIT_AS, limit)


@pytest.mark.parametrize("limit", [False, True], ids=["with room", "without room for a larger map"])
@pytest.mark.parametrize("reading", [False, True])
def test_a_database_that_has_outgrown_its_map(tmp_path, limit, reading):
    """Whoever opens it next sees all of it, as in Caffe, though it is open here; unless it is read in a small map."""
    path, _ = image_lmdb(tmp_path / "db", 3, (3, 60, 60))
    begin = f"""
        from children import limit_memory
        from fastbatch import Loader, LMDBSource, SourceError
        from test_lmdb_file import enlarge
        lift_limit = limit_memory(2**39) if {limit} else limit_memory(2**50)
        source = LMDBSource({path!r})
        loader = Loader(source, timeout=20) if {reading} else None
        enlarge({path!r}, lift_limit)

        def count(source):
            with Loader(source, batch_size=8, timeout=20) as loader:
                return sum(len(batch) for batch in loader)

        def look():
            print(count(source))
            with LMDBSource({path!r}) as another:
                print(len(another), count(another))
    """
    if limit and reading:
        lines = run_child(
            begin
            + """
        try:
            look()
        except SourceError as error:
            print(error)
        print(sum(len(batch) for batch in loader))
        loader.close()
        look()
        """
        ).splitlines()
        assert lines[0].startswith(f"cannot read the LMDB database {path}: MDB_MAP_RESIZED")
        assert lines[0].endswith("it has grown since it was opened: close() every loader of it, then make new ones")
        assert lines[1:] == ["3", "303", "303 303"]
    else:
        assert run_child(begin + "    look()\n").splitlines() == ["303", "303 303"]


def database_of_five_transactions(path):
    """Its path, and where lock.mdb has the number of the last one."""
    image_lmdb(path, 3)
    numbers = []
    for number in range(4):
        with LMDB(path) as database:
            database.put([(b"more%d" % number, datum(images(1)[0], number))])
        content = (path / "lock.mdb").read_bytes()
        numbers.append(
            {at for at in range(0, len(content) - 7, 8) if content[at : at + 8] == bytes([number + 2, *bytes(7)])}
        )
    (at,) = set.intersection(*numbers)
    return str(path), slice(at, at + 8)


def test_no_room_for_the_map_leaves_the_lock_file_alone(tmp_path):
    """LMDB had set the number to 0 before it found that, and other processes took the database for empty."""
    path, number = database_of_five_transactions(tmp_path / "db")
    for room in 2**20, 2**39:  # for no map at all, and for that of the database, but not for a larger one
        run_child(f"""
            from children import limit_memory
            from fastbatch import LMDBSource
            lift_limit = limit_memory({room})
            try:
                assert len(LMDBSource({path!r})) == 7 and {room} > 2**20
            except MemoryError:
                assert {room} == 2**20
        """)
        assert Path(path, "lock.mdb").read_bytes()[number] == struct.pack("<Q", 5)


def test_a_lock_file_that_another_program_left_unfinished(tmp_path):
    """LMDB 0.9.24, for example, would show an empty database, or an older state of it."""
    path, number = database_of_five_transactions(tmp_path / "db")
    script = f"""
        from fastbatch import LMDBSource
        source = LMDBSource({path!r})
        print("open", flush=True)
        input()
    """
    child = start_child(script)
    try:
        assert child.stdout.readline() == "open\n"
        with open(f"{path}/lock.mdb", "r+b") as file:
            file.seek(number.start)
            file.write(bytes(8))
        try:
            with LMDBSource(path) as source:
                assert len(source) == 7  # newer versions of LMDB look into the database itself
        except SourceError as error:
            assert re.search("lock.mdb says that nothing was ever written .* Close all programs that", str(error))
        child.stdin.write("\n")
    finally:
        finish_child(child)
    with LMDBSource(path) as source:
        assert len(source) == 7


def test_many_threads_find_that_it_has_outgrown_its_map(tmp_path):
    path, _ = image_lmdb(tmp_path / "db", 3, (3, 60, 60))
    run_child(f"""
        import sys, threading
        from children import limit_memory
        from fastbatch import Loader, LMDBSource
        from test_lmdb_file import enlarge
        sys.setswitchinterval(1e-6)
        lift_limit = limit_memory(2**39)
        source = LMDBSource({path!r})
        enlarge({path!r}, lift_limit)
        counts = []
        gate = threading.Barrier(8)

        def read():
            gate.wait()
            with Loader(source, batch_size=8, timeout=20) as loader:
                counts.append(sum(len(batch) for batch in loader))

        threads = [threading.Thread(target=read) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert counts == [303] * 8, counts
    """)


def test_a_file_that_is_cut_short_while_it_is_read(tmp_path):
    """Ahead of the reader: to read what is gone would be SIGBUS.

    The reader looks at the file's size every 64 records. The last records, which are gone, are read after record 1000
    with this seed.
    """
    path, _ = image_lmdb(tmp_path / "db", 2000, (3, 30, 30))
    run_child(f"""
        import os, time
        from fastbatch import Loader, LMDBSource, SourceError
        for shuffle in False, True:
            source = LMDBSource({path!r})
            loader = Loader(source, batch_size=1, prefetch=2, threads=1, shuffle=shuffle, seed=193, timeout=20)
            epoch = iter(loader)
            for _ in range(10):
                next(epoch).release()
            while loader.stats().ready < 3:  # nobody reads while the file is cut
                time.sleep(0.01)
            size = os.path.getsize({path!r} + "/data.mdb")
            os.truncate({path!r} + "/data.mdb", size - 4096)
            try:
                for batch in epoch:
                    batch.release()
            except SourceError as error:
                assert "data.mdb was cut short while it was read: it has " in str(error), error
            else:
                raise AssertionError
            os.truncate({path!r} + "/data.mdb", size)
            loader.close()
            source.close()
    """)
