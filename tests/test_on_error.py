"""`on_error`: bad samples are skipped or replaced as a simple model says, for any number of threads."""

import gc
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
from contracts import outcomes
from databases import datum, images, write_lmdb
from datasets import Images
from fastbatch import (
    ImageListSource,
    LMDBSource,
    Loader,
    PythonSource,
    SampleError,
    SourceError,
    TooManyErrors,
    Transform,
)
from fastbatch._batches import BatchRing
from fastbatch.orders.caffe import CaffeLines, CaffeRecords, CaffeSampling
from interrupts import Interrupted, interrupted_everywhere
from jpegs import encode_jpeg, noise
from planned import PATIENCE, PlannedSource, planned_loader

MOST = 10  # replacements of one sample


# ---- the model


def position_of_replacement(seed, epoch, position, attempt, count):
    counter = (position, 0, epoch, reference.REPLACEMENT + 256 * attempt)
    words = [int(word) for word in reference.philox4x32(counter, reference.key_of(seed))]
    other = (words[1] << 32 | words[0]) % (count - 1)
    return other + (other >= position)


def modelled(plan, batch_size, seed, shuffle, policy, epochs):
    """The samples of each batch; in place of a batch, the index of the sample whose error is raised."""
    count, found = len(plan), []
    for epoch in range(epochs):
        order = reference.permute(seed, epoch, count, range(count)).tolist() if shuffle else list(range(count))
        for first in range(0, count, batch_size):
            batch = []
            for position in range(first, min(first + batch_size, count)):
                index, attempt = order[position], 0
                while plan[index] != "." and policy == "replace" and attempt < MOST and count > 1:
                    attempt += 1
                    index = order[position_of_replacement(seed, epoch, position, attempt, count)]
                if plan[index] == ".":
                    batch.append(index)
                elif policy != "skip":
                    batch = index
                    break
            if batch != []:
                found.append(batch)
    return found


def delivered(loader, epochs):
    found = []
    for _ in range(epochs):
        epoch = iter(loader)
        while True:
            try:
                batch = next(epoch)
            except StopIteration:
                break
            except SampleError as error:
                found.append(error.index)
                continue
            except TooManyErrors:
                continue  # at the end of an epoch without a batch
            assert batch.label.tolist() == batch.sample_keys
            assert (batch.data == batch.label[:, None]).all()
            assert len(batch) == len(batch.sample_keys)
            found.append(batch.sample_keys)
    return found


plans = st.lists(st.sampled_from("......rl"), min_size=1, max_size=24).map("".join)


@settings(max_examples=40)
@given(
    plan=plans,
    batch_size=st.integers(1, 9),
    threads=st.integers(1, 8),
    shuffle=st.booleans(),
    policy=st.sampled_from(["skip", "replace"]),
    asked=st.booleans(),
    varying=st.booleans(),
    at_once=st.sampled_from([0, 5]),
)
def test_as_the_model_says(plan, batch_size, threads, shuffle, policy, asked, varying, at_once):
    on_error = (lambda error: policy) if asked else policy
    options = {"batch_size": batch_size, "threads": threads, "shuffle": shuffle, "seed": 5, "prefetch": 2}
    with planned_loader(plan, varying=varying, at_once=at_once, on_error=on_error, **options) as (source, loader):
        batches = delivered(loader, 2)
        assert batches == modelled(plan, batch_size, 5, shuffle, policy, 2)
        stats, errors = loader.stats(), loader.errors
        outcomes_of = [error.outcome for error in errors]
        assert (
            stats.skipped
            == outcomes_of.count("skipped")
            == (0 if policy == "replace" else 2 * (len(plan) - plan.count(".")))
        )
        assert stats.replaced == outcomes_of.count("replaced")
        places = [(error.epoch, error.batch) for error in errors]
        assert places == sorted(places)
    assert source.located == source.done


@pytest.mark.parametrize("threads", range(1, 9))
@pytest.mark.parametrize("policy", ["skip", "replace"])
@pytest.mark.parametrize("at_once", [0, 64])
def test_the_same_for_any_number_of_threads(threads, policy, at_once):
    plan = "".join(".rl.r"[i * i % 5] if i % 3 else "." for i in range(200))
    with planned_loader(
        plan, varying=True, at_once=at_once, batch_size=16, threads=threads, shuffle=True, seed=3, on_error=policy
    ) as (_, loader):
        assert delivered(loader, 2) == modelled(plan, 16, 3, True, policy, 2)


def shown(ring):
    """The samples of the next batch of Caffe's order, and its epoch; or what is raised in its place."""
    try:
        batch = ring.next(PATIENCE)
    except (SampleError, TooManyErrors) as error:
        return type(error), str(error)
    assert batch["label"].tolist() == batch.sample_keys
    return batch.sample_keys, batch.epoch


@settings(max_examples=40)
@given(plan=plans, batch_size=st.integers(1, 7), policy=st.sampled_from(["raise", "replace"]), data=st.data())
def test_orders_of_caffe_go_on_anywhere_with_the_same_replacements(plan, batch_size, policy, data):
    kind = data.draw(st.sampled_from(["records", "lines", "shuffled lines", "windows"]))
    if kind == "records":
        ranks = data.draw(st.integers(1, 3))
        order = CaffeRecords(5, rank=data.draw(st.integers(0, ranks - 1)), ranks=ranks)
    elif kind == "windows":
        plan += "." * (4 - len(plan)) + "r" * (len(plan) % 2 if len(plan) > 4 else 0)
        background = data.draw(st.integers(1, len(plan) // 2 - 1))
        foreground = data.draw(st.integers(0, batch_size))
        order = CaffeSampling(5, background, len(plan) // 2 - background, batch_size, foreground, mirror=True)
    else:
        skip = data.draw(st.integers(0, len(plan) - 1))
        order = CaffeLines(5, shuffle_seed=None if kind == "lines" else 7, skip=skip)

    def ring(plan, threads, slots, first=0):
        options = {"threads": threads, "slots": slots, "batch": first, "on_error": policy, "order": order}
        return BatchRing(PlannedSource(plan), batch_size=batch_size, label_dtype="float32", **options)

    plain, damaged = ring("." * len(plan), 1, 2), ring(plan, 1, 2)
    good, found = [[shown(each) for _ in range(12)] for each in (plain, damaged)]
    for wanted, batch in zip(good, found):
        if isinstance(batch[0], list):
            assert all(plan[index] == "." for index in batch[0]) and batch[1] == wanted[1]
            assert all(index == own for own, index in zip(wanted[0], batch[0]) if plan[own] == ".")
    first = data.draw(st.integers(0, 11))
    again = ring(plan, data.draw(st.integers(1, 4)), data.draw(st.integers(2, 5)), first)
    assert [shown(again) for _ in range(first, 12)] == found[first:]
    for first in data.draw(st.lists(st.integers(0, 11), max_size=3)):  # as restore() has it
        again.start_epoch(0, first)
        assert (again.taken, shown(again)) == (first, found[first])
    for each in plain, damaged, again:
        each.close()


@pytest.mark.parametrize("rank, ranks", [(0, 1), (0, 3), (2, 3)])
@pytest.mark.parametrize("last_batch", ["partial", "drop", "pad", "wrap"])
def test_a_replacement_belongs_to_the_same_epoch_and_rank(last_batch, rank, ranks):
    bad = "..r..rr.........r....r."
    options = {
        "batch_size": 3,
        "threads": 2,
        "shuffle": True,
        "seed": 8,
        "last_batch": last_batch,
        "rank": rank,
        "ranks": ranks,
        "on_error": "replace",
    }
    found = []
    for plan in ("." * len(bad), bad):
        with planned_loader(plan, **options) as (_, loader):
            found.append([(batch.epoch, batch.sample_keys) for _ in range(3) for batch in loader])
    good, replaced = ([key for _, keys in batches for key in keys] for batches in found)
    whole = len(good) // 3 if last_batch != "wrap" else len(bad)
    for position, (wanted, got) in enumerate(zip(good, replaced)):
        assert bad[got] == "."
        if last_batch == "wrap":
            place = rank + position * ranks
            epoch = place // whole
            own = reference.permute(8, epoch, whole, range(whole))[(rank - epoch * whole) % ranks :: ranks].tolist()
        else:
            epoch = position // whole
            own = reference.permute(8, epoch, len(bad), range(len(bad)))[rank::ranks].tolist()
        assert wanted in own or last_batch == "pad"
        assert got == wanted if bad[wanted] == "." else got in own
    assert len(good) == len(replaced) > 0


def test_skipped_samples_are_no_real_ones():
    with planned_loader(".r.....r", batch_size=5, last_batch="pad", on_error="skip") as (_, loader):
        assert [(len(batch), batch.real) for batch in loader] == [(4, 4), (3, 2)]


# ---- what is said of it


def test_the_errors_are_listed_with_what_became_of_them():
    with planned_loader("..r..l..", batch_size=4, threads=2, on_error="skip") as (_, loader):
        assert delivered(loader, 1) == [[0, 1, 3], [4, 6, 7]]
        first, second = loader.errors
        assert str(first) == (
            "planned, sample 2: planned failure of read. It failed in stage 'read'; it was left out of batch 0 of "
            "epoch 0."
        )
        assert (second.index, second.stage, second.outcome, second.batch) == (5, "locate", "skipped", 1)
        assert (loader.stats().skipped, loader.stats().replaced) == (2, 0)
        loader.errors.clear()  # a copy
        assert len(loader.errors) == 2
        copy = pickle.loads(pickle.dumps(second))
        assert (copy.outcome, str(copy)) == ("skipped", str(second))
    assert len(loader.errors) == 2


def test_a_replaced_sample_is_listed():
    with planned_loader("..r.", batch_size=2, on_error="replace", seed=1) as (_, loader):
        first, second = delivered(loader, 1)
        assert first == [0, 1] and second[1] == 3 and second[0] in (0, 1, 3)
        [error] = loader.errors
        assert str(error).endswith("; another sample takes its place in batch 1 of epoch 0.")
        assert loader.stats().replaced == 1


def test_what_is_raised_is_listed():
    with planned_loader("r...", batch_size=2) as (_, loader):
        error, rest = outcomes(iter(loader))
        assert (error.index, error.outcome, rest) == (0, "raised", [2, 3])
        [listed] = loader.errors
        assert str(listed) == str(error) and listed is not error


def test_a_listed_error_holds_no_frames():
    """The one that is raised holds the frames that it passes, and whatever their variables refer to."""

    def loop(loader):
        with pytest.raises(SampleError):
            for batch in loader:
                batch.data

    with planned_loader(".r", on_error=lambda error: "raise") as (_, loader):
        loop(loader)
        gc.collect()
        assert loader.stats().held == 0
        assert loader.errors[0].__traceback__ is None


def test_only_the_first_thousand_are_kept():
    with planned_loader("r" * 1500 + ".", batch_size=100, on_error="skip", at_once=64) as (_, loader):
        assert delivered(loader, 1) == [[1500]]
        assert len(loader.errors) == 1000 and loader.stats().skipped == 1500


def test_after_a_bounded_number_of_replacements_the_error_is_raised():
    with planned_loader("rrrr", batch_size=2, on_error="replace") as (_, loader):
        for error in outcomes(iter(loader)):
            assert "(it was to replace a sample that had failed, as number 10 of at most 10)" in error.reason
        assert [error.outcome for error in loader.errors] == 2 * (MOST + 1) * ["raised"]


def test_a_single_sample_cannot_be_replaced():
    with planned_loader("r", on_error="replace") as (_, loader):
        [error] = outcomes(iter(loader))
        assert (error.index, error.outcome, error.reason) == (0, "raised", "planned failure of read")


def test_a_batch_without_samples_is_left_out():
    with planned_loader("..rr..rr", batch_size=2, on_error="skip", threads=3) as (_, loader):
        for epoch in range(3):
            batches = [(batch.epoch, batch.number, batch.sample_keys) for batch in loader]
            assert batches == [(epoch, 0, [0, 1]), (epoch, 2, [4, 5])]
        assert len(loader) == 4


def test_an_epoch_without_samples_is_an_error():
    with planned_loader("rrrr", batch_size=2, on_error="skip") as (_, loader):
        for epoch in range(2):
            batches = iter(loader)
            with pytest.raises(
                TooManyErrors, match=f"^no sample of epoch {epoch} of planned could be loaded. The first"
            ):
                next(batches)
            assert list(batches) == []


@pytest.mark.parametrize("policy", ["skip", "replace"])
def test_memory_for_a_batch_is_no_error_of_a_sample(policy):
    """A batch that is too large for any memory is raised, whatever becomes of samples."""
    large = np.broadcast_to(np.float32(1), (4, 2**40, 2**17))
    with Loader(large, batch_size=2, on_error=policy, timeout=PATIENCE) as loader:
        for error in outcomes(iter(loader)):
            assert error.reason.startswith("no memory for a batch of 2 such samples")


@pytest.mark.parametrize("policy", ["skip", "replace", lambda error: "skip"])
@pytest.mark.parametrize("action", "fF")
def test_a_lost_source_is_never_skipped(policy, action):
    with planned_loader("...." + action + "...", batch_size=2, threads=2, on_error=policy) as (_, loader):
        epoch = iter(loader)
        assert [next(epoch).sample_keys, next(epoch).sample_keys] == [[0, 1], [2, 3]]
        for _ in range(2):
            with pytest.raises(SourceError, match="planned cannot be read any further: .* \\(at sample 4\\)"):
                next(epoch)


def test_a_loop_can_go_on_after_an_error():
    found = []
    with planned_loader("r...rr..", batch_size=2, threads=2) as (_, loader):
        batches = iter(loader)
        while True:
            try:
                for batch in batches:
                    found.append(batch.sample_keys)
                break
            except SampleError as error:
                found.append(error.index)
    assert found == [0, [2, 3], 4, [6, 7]]


# ---- a function that decides


def test_a_function_decides_for_each_sample():
    asked = []

    def decide(error):
        assert error.outcome is None
        asked.append((error.index, str(error).rpartition("; ")[2]))
        return {1: "skip", 2: "replace", 5: "raise"}[error.index]

    replacement = position_of_replacement(5, 0, 2, 1, 8)
    assert replacement == 7  # a good one
    with planned_loader(".rr..r..", batch_size=4, threads=3, seed=5, on_error=decide) as (_, loader):
        assert delivered(loader, 1) == [[0, replacement, 3], 5]
        batch = "it belongs to batch 0 of epoch 0."
        assert asked == [(1, batch), (2, batch), (5, "it belongs to batch 1 of epoch 0.")]
        assert [error.outcome for error in loader.errors] == ["skipped", "replaced", "raised"]


def test_what_the_function_raises_ends_the_batch():
    def decide(error):
        raise KeyError(error.index)

    with planned_loader(".r..", batch_size=2, on_error=decide) as (_, loader):
        epoch = iter(loader)
        with pytest.raises(KeyError, match="1"):
            next(epoch)
        assert next(epoch).sample_keys == [2, 3]


def test_an_answer_that_is_none_of_the_words():
    for answer in (None, "ignore", np.zeros(2)):
        with planned_loader(".r..", batch_size=2, on_error=lambda error: answer) as (_, loader):
            epoch = iter(loader)
            with pytest.raises(ValueError, match='"replace", and for sample 1 of planned it returned ') as caught:
                next(epoch)
            assert str(caught.value).endswith(f"returned {answer!r}")
            assert isinstance(caught.value.__cause__, SampleError) and caught.value.__cause__.outcome == "raised"
            assert next(epoch).sample_keys == [2, 3]


def test_a_function_that_closes_the_loader():
    from fastbatch import Closed

    def decide(error):
        loader.close()
        return "skip"

    with planned_loader("r...", batch_size=2, on_error=decide) as (_, loader), pytest.raises(Closed):
        next(iter(loader))


def test_a_function_that_asks_for_the_next_batch():
    uses = [lambda: next(epoch), lambda: next(iter(loader)), lambda: loader.load_state_dict(state)]

    def decide(error):
        uses.pop()()

    with planned_loader("r...", batch_size=2, on_error=decide) as (_, loader):
        while uses:
            state = loader.state_dict()
            epoch = iter(loader)
            with pytest.raises(RuntimeError, match="or a loop is, whose on_error function this is"):
                next(epoch)
            epoch.close()


@pytest.mark.parametrize("asks", [False, True])
@pytest.mark.parametrize("policy", ["skip", "replace"])
def test_an_interrupt_loses_neither_a_batch_nor_an_error(policy, asks):
    wanted = iter(modelled(".rr...", 3, 1, False, policy, 200))
    dropped = 0
    on_error = (lambda error: policy) if asks else policy
    with planned_loader(".rr...", batch_size=3, seed=1, prefetch=1, on_error=on_error) as (_, loader):
        batches = iter(loader)
        for outcome in interrupted_everywhere(lambda: next(batches)):
            if isinstance(outcome, Interrupted):
                outcome = next(batches)
            number = outcome.number
            dropped += number  # the first batch, by the lambda: an interrupt came after next()
            expected = [next(wanted), next(wanted)]
            assert outcome.sample_keys == expected[number]
            outcome = None
            assert [batch.sample_keys for batch in batches] == expected[number + 1 :]
            assert {(error.epoch, error.index) for error in loader.errors} == {
                (epoch, index) for epoch in range(batches.number + 1) for index in (1, 2)
            }
            batches = iter(loader)
        assert dropped <= 1
        assert loader.stats().held == 0


# ---- the budget


@pytest.mark.parametrize("policy", ["skip", "replace"])
def test_a_budget_in_samples(policy):
    with planned_loader("r.r.r..." * 2, batch_size=2, on_error=policy, error_budget=2, seed=4) as (_, loader):
        epoch = iter(loader)
        taken = 0
        with pytest.raises(TooManyErrors) as caught:
            while True:
                next(epoch)
                taken += 1
        error = caught.value
        assert error.count == 3 and len(error.errors) == 3
        assert taken == 2 if policy == "skip" else taken <= 2
        assert str(error).startswith(
            f"3 of {2 * taken + 2} samples of planned could not be loaded, more than error_budget=2 allows. The first "
            "errors:\n  planned, sample 0: planned failure of read."
        )
        assert pickle.loads(pickle.dumps(error)).count == 3
        if policy == "skip":
            assert next(epoch).sample_keys == [6, 7]


def test_a_budget_of_nothing():
    with planned_loader("..r.", batch_size=2, on_error="skip", error_budget=0) as (_, loader):
        epoch = iter(loader)
        assert next(epoch).sample_keys == [0, 1]
        with pytest.raises(TooManyErrors):
            next(epoch)


@pytest.mark.parametrize("share, raises", [(0.25, False), (0.24, True)])
def test_a_budget_as_a_share_counts_an_epoch_at_least(share, raises):
    with planned_loader("rr......", batch_size=2, on_error="skip", error_budget=share) as (_, loader):
        if raises:
            with pytest.raises(TooManyErrors, match="2 of 2 samples of planned"):
                next(iter(loader))
        else:
            assert delivered(loader, 3) == 3 * [[2, 3], [4, 5], [6, 7]]


def test_options_that_make_no_sense():
    data = np.zeros((4, 2))
    with pytest.raises(ValueError, match='error_budget has no effect with on_error="raise"'):
        Loader(data, error_budget=3)
    with pytest.raises(ValueError, match='on_error must be "raise", "skip", "replace", or a function'):
        Loader(data, on_error="ignore")
    with pytest.raises(ValueError, match='on_error must be "raise", "skip", "replace", or a function'):
        Loader(data, on_error=np.zeros(2))
    for budget in (-1, 1.5, float("nan")):
        with pytest.raises(ValueError, match="error_budget must be a number of samples, a share between 0 and 1"):
            Loader(data, on_error="skip", error_budget=budget)
    for budget in (True, "3"):
        with pytest.raises(TypeError, match="error_budget must be"):
            Loader(data, on_error="skip", error_budget=budget)
    with Loader(data, on_error="replace", error_budget=0.5) as loader:
        assert (loader.on_error, loader.error_budget, loader.errors) == ("replace", 0.5, [])


# ---- real sources


@pytest.mark.parametrize("policy", ["skip", "replace"])
def test_a_damaged_jpeg_in_a_list(tmp_path, policy):
    for number in range(12):
        jpeg = encode_jpeg(noise(20, 24, seed=number))
        (tmp_path / f"{number}.jpg").write_bytes(jpeg[: len(jpeg) // 2] if number == 5 else jpeg)
    source = ImageListSource([(tmp_path / f"{number}.jpg", number) for number in range(12) if number != 9])
    found = []
    for threads in (1, 2, 5, 8):
        with Loader(
            source, Transform(crop_size=9, mirror=True), batch_size=4, seed=2, threads=threads, on_error=policy
        ) as loader:
            found.append([(batch.label.tolist(), batch.data.tobytes()) for batch in loader])
            [error] = loader.errors
            assert (error.index, error.stage) == (5, "decode")
            assert error.key == str(tmp_path / "5.jpg").encode()
    assert found[1:] == 3 * found[:1]
    labels = [label for label, _ in found[0]]
    if policy == "skip":
        assert labels == [[0, 1, 2, 3], [4, 6, 7], [8, 10, 11]]
    else:
        assert labels[1][0::2] + labels[1][3:] == [4, 6, 7] and labels[1][1] != 5


@pytest.mark.parametrize("transform", [None, Transform(mirror=True)])
@pytest.mark.parametrize("policy", ["skip", "replace"])
def test_a_damaged_image_decides_no_shape(tmp_path, policy, transform):
    """Although its header, which says another size, can be read; and wherever it is in its batch."""
    for number in range(8):
        size = 40 if number in (0, 1, 6) else 32
        jpeg = encode_jpeg(noise(size, size, seed=number))
        (tmp_path / f"{number}.jpg").write_bytes(jpeg[: len(jpeg) // 2] if size == 40 else jpeg)
    source = ImageListSource([(tmp_path / f"{number}.jpg", number) for number in range(8)])
    found = []
    for threads in (1, 2, 8):
        with Loader(
            source, transform, batch_size=4, seed=2, threads=threads, on_error=policy, timeout=PATIENCE
        ) as loader:
            found.append([(batch.label.tolist(), batch.data.tobytes()) for batch in loader])
            assert {error.index for error in loader.errors} == {0, 1, 6}
            assert {error.stage for error in loader.errors} == {"decode"}
    assert found[1:] == 2 * found[:1]
    labels = [label for label, _ in found[0]]
    if policy == "skip":
        assert labels == [[2, 3], [4, 5, 7]]
    else:
        assert [labels[0][2:], labels[1][:2] + labels[1][3:]] == [[2, 3], [4, 5, 7]]
        assert not {0, 1, 6}.intersection(labels[0] + labels[1])


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("policy", ["skip", "replace"])
def test_a_damaged_record(tmp_path, policy, shuffle):
    pixels = images(10, (3, 6, 5))
    records = [(b"%04d" % number, datum(pixels[number], number)) for number in range(10)]
    records[3] = (records[3][0], b"no Datum")
    write_lmdb(tmp_path / "db", records)
    found = []
    for threads in (1, 2, 8):
        with Loader(
            LMDBSource(tmp_path / "db"), batch_size=4, seed=2, threads=threads, on_error=policy, shuffle=shuffle
        ) as loader:
            batches = [(batch.label.tolist(), batch.data.tobytes()) for batch in loader]
            found.append(batches)
            [error] = loader.errors
            assert (error.index, error.key, error.stage) == (3, b"0003", "read")
    assert found[1:] == 2 * found[:1]
    labels = [label for batch, _ in found[0] for label in batch]
    assert 3 not in labels and len(labels) == (9 if policy == "skip" else 10)
    for batch, content in found[0]:
        assert np.stack([pixels[label] for label in batch]).tobytes() == content


@pytest.mark.parametrize("kind", ["thread", "process"])
@pytest.mark.parametrize("transform", [None, Transform(scale=2)])
def test_a_python_function_that_fails(kind, transform):
    source = PythonSource(Images(9, raises=4), workers=2, kind=kind)
    for policy in ("skip", "replace"):
        with Loader(source, transform, batch_size=3, seed=7, on_error=policy, timeout=PATIENCE) as loader:
            labels = [batch["label"].tolist() for batch in loader]
            [error] = loader.errors
            assert isinstance(error.__cause__, LookupError)
            assert labels[0] == [0, 1, 2] and labels[2] == [6, 7, 8]
            assert labels[1] == [3, 5] if policy == "skip" else (labels[1][::2] == [3, 5] and labels[1][1] != 4)


def test_a_worker_process_that_dies_is_an_error_of_its_sample():
    source = PythonSource(Images(6, dies=2), workers=1)
    with Loader(source, batch_size=3, on_error="skip", timeout=PATIENCE) as loader:
        assert [batch["label"].tolist() for batch in loader] == [[0, 1], [3, 4, 5]]
        assert "another one takes its place" in loader.errors[0].reason


def test_a_sample_of_another_shape():
    with planned_loader("..s...", varying=True, batch_size=3, on_error="skip", threads=2) as (_, loader):
        assert delivered(loader, 1) == [[0, 1], [3, 4, 5]]


def test_the_first_good_sample_decides_the_shape():
    """The first one fails after the others were read, and they wait for it."""
    source = PlannedSource("Wr....", varying=True)
    with Loader(source, batch_size=6, threads=4, on_error="skip", timeout=PATIENCE) as loader:
        epoch = iter(loader)
        source.open_gate()
        assert next(epoch).sample_keys == [2, 3, 4, 5]
