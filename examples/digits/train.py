"""LeNet learns handwritten digits in the real Caffe, twice: through fastbatch's Data layer and through Caffe's own.

    python examples/digits/train.py [--out FOLDER] [--iterations N]

FOLDER (build/demo) gets the databases, the prototxts, a table of all iterations (digits.csv) and a picture
(digits.png).
"""

import argparse
import csv
import os
import shutil
import statistics
import sys
import time
from pathlib import Path

os.environ.setdefault("GLOG_minloglevel", "2")  # read when Caffe is loaded, whose log would drown the rest

import caffe
from caffe.proto import caffe_pb2
from google.protobuf import text_format
from picture import draw
from tqdm import tqdm

import fastbatch.caffe
from databases import write_digits, write_photos
from fastbatch.cores import usable_cores

HERE = Path(__file__).resolve().parent
LAYERS = {"fastbatch": "fastbatch's Data layer", "caffe": "Caffe's own Data layer"}
ITERATIONS = 600
TEST_EVERY = 25
BATCH_SIZE = 64  # of all the TRAIN nets
ROUNDS, ROUND_SECONDS = 7, 0.4
GOAL = 0.97
NEXT = """\
Your turn. In a prototxt of yours, the data layer

    type: "Data"
    data_param { ... }
    transform_param { ... }

becomes

    type: "Python"
    python_param { module: "fastbatch.caffe" layer: "Data" }
    data_param { ... }
    transform_param { ... }

and everything else stays as it is."""


def read(name, message):
    return text_format.Parse(Path(name).read_text(), message)


def write_message(name, message):
    Path(name).write_text(text_format.MessageToString(message))
    return name


class Training:
    """LeNet, its solver and the measurements so far, with one of the layers."""

    def __init__(self, name, iterations):
        param = read("solver.prototxt", caffe_pb2.SolverParameter())
        param.net = f"lenet_{name}.prototxt"
        param.max_iter = iterations
        param.test_interval = iterations + 1  # no tests within step(), which is timed; train() runs them
        self.solver = caffe.get_solver(write_message(f"solver_{name}.prototxt", param))
        self.solver.test_nets[0].share_with(self.solver.net)
        self.losses = []  # of each iteration
        self.steps = []  # seconds of each iteration: forward, backward and update
        self.waits = []  # seconds of each iteration that were spent in the data layer
        self.accuracies = {}  # after those iterations that a test followed
        time_data_layer(self.solver.net, self.waits)

    def train(self, iterations, bar):
        """Trains for this many more iterations, then tests."""
        for _ in range(iterations):
            start = time.perf_counter()
            self.solver.step(1)
            self.steps.append(time.perf_counter() - start)
            self.losses.append(float(self.solver.net.blobs["loss"].data))
            bar.update()
        # One batch of the test net is the whole test set.
        self.accuracies[self.solver.iter] = float(self.solver.test_nets[0].forward()["accuracy"])

    def images_per_second(self):
        """In the median iteration."""
        return BATCH_SIZE / statistics.median(self.steps)


def train(iterations):
    """Trains through both layers. Returns {name: Training}.

    They take turns of a few iterations, so that other load on the machine affects both.
    """
    trainings = {name: Training(name, iterations) for name in LAYERS}
    interactive = sys.stdout.isatty()
    with tqdm(
        total=iterations * len(trainings),
        bar_format="  {percentage:3.0f}% {bar} {remaining} left{postfix}",
        ncols=100,
        mininterval=0.1 if interactive else 10,
        file=sys.stdout,
    ) as bar:
        bar.set_postfix_str("test accuracy ...")
        for done in range(0, iterations, TEST_EVERY):
            for training in trainings.values():
                training.train(min(TEST_EVERY, iterations - done), bar)
            tested = [f"{training.accuracies[training.solver.iter]:.1%}" for training in trainings.values()]
            bar.set_postfix_str(f"test accuracy {' and '.join(tested)}")
    del trainings["caffe"].solver  # first, so that nobody else has the database open when our layer closes it
    fastbatch.caffe.close_all()
    return trainings


def time_data_layer(net, seconds):
    """Makes every forward() of the net append to `seconds` the time that its first layer, the data layer, took.

    Both data layers deliver a batch that other threads have made, and wait for it if it is not ready.
    """

    def before(layer):
        if layer == 0:
            seconds.append(-time.perf_counter())

    def after(layer):
        if layer == 0:
            seconds[-1] += time.perf_counter()

    net.before_forward(before)
    net.after_forward(after)


def time_alone(nets):
    """Runs the training data layers of `nets` ("lenet" or "photos") without other layers, in turns.

    Returns {name: [images/s of each round]}.
    """
    built, rates = {}, {name: [] for name in LAYERS}
    for name in LAYERS:
        param = read(f"{nets}_{name}.prototxt", caffe_pb2.NetParameter())
        del param.layer[1:]
        built[name] = caffe.Net(write_message(f"{nets}_{name}_data_only.prototxt", param), caffe.TRAIN)
    for _ in range(ROUNDS):
        for name, net in built.items():
            for _ in range(10):
                net.forward()  # uses up the batches that were prepared during the other's turn
            batches, start = 0, time.perf_counter()
            while time.perf_counter() < start + ROUND_SECONDS:
                net.forward()
                batches += 1
            rates[name].append(BATCH_SIZE * batches / (time.perf_counter() - start))
    del built["caffe"], net  # first, so that nobody else has the database open when our layer closes it
    fastbatch.caffe.close_all()
    return rates


def write_table(path, trainings):
    """All iterations: losses and accuracies with all digits, times in milliseconds."""
    with open(path, "w", newline="") as file:
        table = csv.writer(file)
        columns = "loss", "accuracy", "wait_ms", "step_ms"
        table.writerow(["iteration", *(f"{name}_{column}" for name in trainings for column in columns)])
        for row in range(len(trainings["fastbatch"].losses)):
            values = []
            for training in trainings.values():
                times = [f"{1000 * seconds[row]:.4f}" for seconds in (training.waits, training.steps)]
                values += [training.losses[row], training.accuracies.get(row + 1, ""), *times]
            table.writerow([row + 1, *values])


def print_speeds(trainings, alone):
    print(f"  {'images/s':40}{'fastbatch':>10}{'Caffe':>10}{'ratio':>8}")
    for what, rates in alone.items():
        ours, caffes = (statistics.median(rates[name]) for name in LAYERS)
        ratios = [ours / caffes for ours, caffes in zip(*(rates[name] for name in LAYERS))]
        spread = f"{min(ratios):.1f} to {max(ratios):.1f} in {ROUNDS} rounds"
        print(f"  data layer alone, {what:22}{ours:10,.0f}{caffes:10,.0f}{statistics.median(ratios):7.1f}x   {spread}")
    ours, caffes = (trainings[name].images_per_second() for name in LAYERS)
    print(f"  {'training, where LeNet takes the time':40}{ours:10,.0f}{caffes:10,.0f}{ours / caffes:7.1f}x")
    waits = [f"{sum(trainings[name].waits):.2f} s in {LAYERS[name]}" for name in LAYERS]
    waited = trainings["fastbatch"].solver.net.layers[0].stats()["waited_for_data"]
    seconds = sum(trainings["fastbatch"].steps)
    print(f"\n  Of the {seconds:.0f} s of each training, the net spent {' and '.join(waits)}.")
    print(f"  It waited for fastbatch for {waited:.2f} s of these; the rest is the call itself, through Python.")
    print(f"  fastbatch had {usable_cores()} threads, one for each core; Caffe's layer always has one.")


def compare(trainings):
    """Prints whether the two are equal. Ends the program if they are not, or if the accuracy is too low."""
    ours, caffes = (trainings[name] for name in LAYERS)
    for name, training in trainings.items():
        accuracy, loss = training.accuracies[len(training.losses)], training.losses[-1]
        print(f"  {LAYERS[name]:22}  test accuracy {accuracy:.2%}   last loss {loss!r}")
    if (ours.losses, ours.accuracies) != (caffes.losses, caffes.accuracies):
        sys.exit("\nThey did not learn the same: digits.csv has all losses. This is a bug, please report it.")
    print(f"  The losses of all {len(ours.losses)} iterations are the same, digit for digit.")
    if len(ours.losses) >= ITERATIONS and accuracy < GOAL:
        sys.exit(f"\n{GOAL:.0%} or more was expected. This is a bug, please report it.")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE.parents[1] / "build/demo", help="for all that is written")
    parser.add_argument("--iterations", type=int, default=ITERATIONS, help="of each training")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    shown = out.relative_to(Path.cwd()) if Path.cwd() in out.parents else out
    for prototxt in HERE.glob("*.prototxt"):
        shutil.copy(prototxt, out)
    os.chdir(out)  # the prototxts name their databases by relative paths

    learned, tested = write_digits(".")
    print(f"scikit-learn's handwritten digits: {learned:,} to learn from, {tested} others to be tested with.")
    print(f"LeNet learns them in Caffe {caffe.__version__}, through each of the two data layers:\n", flush=True)
    trainings = train(arguments.iterations)
    write_table("digits.csv", trainings)
    compare(trainings)
    print("\nThe data layers alone, by turns ...\n", flush=True)
    write_photos(".")
    alone = {"digits, 28x28": time_alone("lenet"), "photos, 3x227x227": time_alone("photos")}
    print_speeds(trainings, alone)
    draw("digits.png", trainings, alone)
    print(f"\nThe picture of it: {shown / 'digits.png'}\n\n{NEXT}")


if __name__ == "__main__":
    main()
