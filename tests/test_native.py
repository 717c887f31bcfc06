"""Compiles the C tests, most with sanitizers, and runs them: the leaf C code alone, without Python."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fastbatch import features

ROOT = Path(__file__).resolve().parent.parent
TESTS = ROOT / "tests" / "native"

sys.path.append(str(ROOT))  # at the end: the fastbatch that is installed comes first
from build_support.extensions import INCLUDES, NATIVE, c_sources

CC = shlex.split(os.environ.get("CC", "")) or ["gcc"]
FLAGS = [
    "-std=gnu11",
    "-ffp-contract=off",
    "-Wall",
    "-Wextra",
    "-g",
    "-pthread",
    *(f"-I{ROOT / folder}" for folder in INCLUDES),
]
SANITIZED = ["-O2", "-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all"]

pytestmark = [
    pytest.mark.once_a_system,
    pytest.mark.skipif(shutil.which(CC[0]) is None, reason=f"no C compiler ({CC[0]})"),
    pytest.mark.skipif(not (ROOT / NATIVE).is_dir(), reason="the C sources are in the checkout only"),
]


def sources_of(extension):
    """The C files that are compiled into an extension."""
    return [ROOT / source for source in c_sources(extension)]


def build(program, sources, *flags, libraries=()):
    """Compiles C sources to a program."""
    done = subprocess.run(
        [*CC, *FLAGS, *flags, *map(str, sources), "-o", str(program), *libraries, "-lm"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return program


def run(program, *arguments):
    """Runs the program and returns its standard output. Detects leaks if the system allows it (not under ptrace)."""
    done = subprocess.run([str(program), *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module", autouse=True)
def sanitizers(tmp_path_factory):
    """The sanitizers' libraries are packages of their own on some systems."""
    folder = tmp_path_factory.mktemp("sanitizers")
    source = folder / "empty.c"
    source.write_text("int main(void) { return 0; }\n")
    command = [*CC, *SANITIZED, str(source), "-o", str(folder / "empty")]
    if subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip(f"{CC[0]} has no sanitizers here")


@pytest.mark.parametrize(
    "fault, report",
    [
        # the pointer itself volatile: gcc 16 would know the size of what it points to, and undefined behavior speak
        # first
        ("volatile char *volatile bytes = calloc(argc, 1); return bytes[argc + 3];", "heap-buffer-overflow"),
        ("volatile int large = 0x7fffffff; return large + argc;", "signed integer overflow"),
    ],
)
def test_the_sanitizers_find_what_they_should(tmp_path, fault, report):
    source = tmp_path / "fault.c"
    source.write_text(f"#include <stdlib.h>\nint main(int argc, char **argv) {{ (void)argv; {fault} }}\n")
    program = build(tmp_path / "fault", [source], *SANITIZED)
    done = subprocess.run([str(program)], capture_output=True, text=True)
    assert done.returncode != 0
    assert report in done.stderr


def test_random_numbers_are_the_published_ones_and_the_shuffle_is_fair(tmp_path):
    run(build(tmp_path / "random", [TESTS / "test_random.c"], *SANITIZED))


def test_copies_into_a_batch(tmp_path):
    run(build(tmp_path / "collate", [TESTS / "test_collate.c"], *SANITIZED))


def test_boxes_of_random_bits(tmp_path):
    source = ROOT / NATIVE / "pixels" / "boxes.c"
    run(build(tmp_path / "boxes", [TESTS / "test_boxes.c", source], *SANITIZED))


def test_draws_of_rand_are_foretold(tmp_path):
    run(build(tmp_path / "rand", [TESTS / "test_rand.c"], *SANITIZED))


def test_which_files_their_times_identify(tmp_path):
    run(build(tmp_path / "file", [TESTS / "test_file.c"], *SANITIZED))


def test_memory_of_batches(tmp_path):
    run(build(tmp_path / "memory", [TESTS / "test_memory.c", *sources_of("fastbatch._workers")], *SANITIZED))


def test_keys_of_batches(tmp_path):
    run(build(tmp_path / "keys", [TESTS / "test_keys.c", *sources_of("fastbatch._workers")], *SANITIZED, "-pthread"))


@pytest.mark.parametrize("flags", [SANITIZED, ["-O2", "-fsanitize=thread"]], ids=["sanitized", "threads"])
def test_cache_of_images(tmp_path, flags):
    (tmp_path / "folder").mkdir()
    program = build(tmp_path / "cache", [TESTS / "test_cache.c", *sources_of("fastbatch._cache")], *flags)
    run(program, str(tmp_path / "folder"))


@pytest.mark.parametrize(
    "flags", [SANITIZED, ["-O3"], ["-O3", "-march=native"]], ids=["sanitized", "as built", "native"]
)
def test_every_kernel_is_bit_equal_to_the_reference(tmp_path, flags):
    program = build(tmp_path / "transform", [TESTS / "test_transform.c", *sources_of("fastbatch._workers")], *flags)
    kernels = run(program).split()
    assert kernels[-1] in ("generic", "neon")  # every processor's; better ones come first


def test_datum_reader_keeps_protobufs_rules(tmp_path):
    run(build(tmp_path / "datum", [TESTS / "test_datum.c", *sources_of("fastbatch.sources._database")], *SANITIZED))


def test_datum_reader_survives_random_bytes(tmp_path):
    fuzzed = [TESTS / "fuzz_datum.c", *sources_of("fastbatch.sources._database")]
    run(build(tmp_path / "fuzz", fuzzed, "-DSTANDALONE", *SANITIZED), "300000")


IMAGE_SOURCES = [*sources_of("fastbatch.images._codec"), TESTS / "encode_jpeg.c"]
IMAGE_LIBRARIES = ["-ljpeg", "-lpng", "-lz", *(["-DFB_LIBDEFLATE", "-ldeflate"] if features()["deflate"] else [])]


@pytest.fixture(scope="module")
def image_libraries(tmp_path_factory):
    source = tmp_path_factory.mktemp("libraries") / "libraries.c"
    source.write_text(
        "#include <stdio.h>\n#include <jpeglib.h>\n#include <png.h>\n#include <zlib.h>\nint main(void) { return 0; }\n"
    )
    if (
        subprocess.run(
            [*CC, str(source), *IMAGE_LIBRARIES, "-o", str(source.with_suffix(""))], capture_output=True
        ).returncode
        != 0
    ):
        pytest.skip("needs the headers of libjpeg-turbo and libpng")


@pytest.mark.parametrize("flags", [SANITIZED, ["-O3", "-DCOUNT_ALLOCATIONS"]], ids=["sanitized", "allocations counted"])
def test_image_codec(tmp_path, image_libraries, flags):
    run(build(tmp_path / "image", [TESTS / "test_image.c", *IMAGE_SOURCES], *flags, libraries=IMAGE_LIBRARIES))


def test_image_codec_survives_random_bytes(tmp_path, image_libraries):
    sources = [TESTS / "fuzz_image.c", *IMAGE_SOURCES]
    run(build(tmp_path / "fuzz", sources, "-DSTANDALONE", *SANITIZED, libraries=IMAGE_LIBRARIES), "20000")


@pytest.mark.parametrize("flags", [SANITIZED, ["-O3"]], ids=["sanitized", "as built"])
def test_own_jpeg_decoder_agrees_with_libjpeg(tmp_path, image_libraries, flags):
    sources = [TESTS / "fuzz_jpeg.c", *IMAGE_SOURCES]
    program = build(tmp_path / "fuzz", sources, "-DSTANDALONE", *flags, libraries=IMAGE_LIBRARIES)
    said = run(program, os.environ.get("FASTBATCH_EXAMPLES", "5000"))
    if said:  # nothing: the own decoder is not in use here
        own, times, indexed = map(int, re.findall(r"\d+", said))
        assert own > times // 5 and indexed > times


@pytest.mark.parametrize("flags", [SANITIZED, ["-O2", "-fsanitize=thread"]], ids=["sanitized", "threads"])
def test_threads_share_an_index(tmp_path, image_libraries, flags):
    sources = [TESTS / "test_jpeg_index.c", *IMAGE_SOURCES]
    run(build(tmp_path / "program", sources, *flags, libraries=IMAGE_LIBRARIES), str(tmp_path))


def test_a_damaged_index_file_changes_nothing(tmp_path, image_libraries):
    times = os.environ.get("FASTBATCH_EXAMPLES", "300")
    sources = [TESTS / "test_index_file.c", *IMAGE_SOURCES]
    run(build(tmp_path / "program", sources, *SANITIZED, libraries=IMAGE_LIBRARIES), str(tmp_path), times)


@pytest.mark.parametrize("flags", [SANITIZED, ["-O3"]], ids=["sanitized", "as built"])
def test_windows_and_their_list(tmp_path, flags):
    # With the workers' choice of a kernel.
    sources = [*sources_of("fastbatch.sources._windows"), *sources_of("fastbatch._workers")]
    run(build(tmp_path / "window", [TESTS / "test_window.c", *sources], *flags))


def test_limit_program_prints_its_result(tmp_path):
    program = build(tmp_path / "limit", [ROOT / "bench" / "limit.c"], "-O2")
    answer = json.loads(run(program, "--threads", "2", "--images", "8", "--seconds", "0.05", "--rounds", "1"))
    assert answer["threads"] == 2
    assert answer["images_per_second"] == max(answer["normal"], answer["streaming"]) > 0
