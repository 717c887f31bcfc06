"""The picture of the demo."""

import statistics

import matplotlib

matplotlib.use("Agg")  # into a file, without a screen

from matplotlib import pyplot

COLORS = {"fastbatch": "#0a5ca8", "caffe": "#f0a030"}  # distinguishable in gray, too
NAMES = {"fastbatch": "fastbatch", "caffe": "Caffe's own layer"}
SMOOTHED = 21  # iterations: one pass over the digits
STYLE = {
    "figure.dpi": 120,
    "font.size": 10,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e8e8e8",
    "legend.frameon": False,
}


def draw(path, trainings, alone):
    """Draws loss, test accuracy and waits of both trainings, and the speed of both layers alone.

    trainings: {name: Training}. alone: {what was read: {name: images/s of each round}}.
    """
    with pyplot.rc_context(STYLE):
        figure, ((loss, accuracy), (wait, speed)) = pyplot.subplots(2, 2, figsize=(12, 8))
        draw_losses(loss, trainings)
        draw_accuracies(accuracy, trainings)
        draw_waits(wait, trainings)
        draw_speeds(speed, alone)
        figure.tight_layout(h_pad=3, w_pad=3)
        figure.savefig(path)
        pyplot.close(figure)


def lines():
    """For curves that coincide: Caffe's is a broad band, and fastbatch's a thin line on it."""
    for name, width in ("caffe", 6), ("fastbatch", 1.5):
        yield name, {"color": COLORS[name], "label": NAMES[name], "linewidth": width}


def draw_losses(axes, trainings):
    for name, line in lines():
        losses = trainings[name].losses
        means = [statistics.mean(losses[max(0, end - SMOOTHED) : end]) for end in range(1, len(losses) + 1)]
        axes.plot(range(1, len(losses) + 1), means, **line)
    axes.set(title="Training loss: the same, digit for digit", xlabel=f"iteration (means of {SMOOTHED})", yscale="log")
    axes.legend()


def draw_accuracies(axes, trainings):
    for name, line in lines():
        accuracies = trainings[name].accuracies
        axes.plot(list(accuracies), [100 * accuracy for accuracy in accuracies.values()], **line)
    last = 100 * list(trainings["fastbatch"].accuracies.values())[-1]
    axes.set(title=f"Test accuracy: {last:.1f} % at the end", xlabel="iteration", ylabel="% of digits never trained on")
    axes.set_ylim(min(90, last - 5), 100.2)
    axes.legend(loc="lower right")


def draw_waits(axes, trainings):
    for name in "caffe", "fastbatch":
        waits = [1e3 * seconds for seconds in trainings[name].waits]
        line = {"color": COLORS[name], "label": f"{NAMES[name]}, median {statistics.median(waits):.2f} ms"}
        axes.plot(range(1, len(waits) + 1), waits, ".", markersize=5, markeredgewidth=0, **line)
    step = 1e3 * statistics.median(seconds for training in trainings.values() for seconds in training.steps)
    axes.axhline(step, color="#666666", linewidth=1, linestyle="--", label=f"the whole iteration, median {step:.1f} ms")
    axes.set(title="Waiting for data in each iteration", xlabel="iteration", ylabel="ms in the layer", yscale="log")
    axes.set_ylim(top=axes.get_ylim()[1] * 30)  # room for the legend
    axes.legend(loc="upper left", markerscale=2)


def draw_speeds(axes, alone):
    height = 0.38
    for row, rates in enumerate(alone.values()):
        caffe = statistics.median(rates["caffe"])
        for offset, name in (-height / 2, "fastbatch"), (height / 2, "caffe"):
            rate = statistics.median(rates[name])
            axes.barh(row + offset, rate / caffe, height, color=COLORS[name], label=None if row else NAMES[name])
            axes.text(rate / caffe, row + offset, f"  {rate:,.0f} images/s", va="center")
    axes.set(title="The data layers alone", xlabel="speed, Caffe's own layer = 1")
    axes.set(yticks=range(len(alone)), yticklabels=[what.replace(", ", "\n") for what in alone])
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    axes.set_xlim(right=axes.get_xlim()[1] * 1.3)
    axes.legend(loc="upper right")
