"""What every layer that prepares batches ahead must do, whatever it reads."""

import caffe
import numpy as np

from fastbatch.caffe.runtime.lifetime import registry
from nets import assert_same_bits, run

DRAWING = """
    layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip"
            inner_product_param { num_output: 2 weight_filler { type: "gaussian" std: 1 } } }
"""
"""A layer that draws from Caffe's stream when the net is built, after the data layer."""


def check_same_batches(build, texts, forwards, seeds, phase=caffe.TRAIN):
    """These nets show the same bits, for each seed of Caffe's stream; with DRAWING, they leave the stream alike."""
    for seed in seeds:
        results = []
        for text in texts:
            names = ["data", "label", "ip"] if DRAWING in text else ["data", "label"]
            results.append(run(build, text, forwards, seed=seed, phase=phase, names=names))
        assert_same_bits(*results)


def trained(folder, layers, outputs, *, loss="SoftmaxWithLoss", std=0.0001, base_lr=0.00001, solver="", steps=20):
    """The losses of a short training on these data layers, after each step, and the weights after the last.

    solver: what else stands in the solver. If it tests, the losses include those of the test.
    """
    (folder / "net.prototxt").write_text(
        layers
        + f"""
        layer {{ name: "ip" type: "InnerProduct" bottom: "data" top: "ip"
                inner_product_param {{ num_output: {outputs} weight_filler {{ type: "gaussian" std: {std} }} }} }}
        layer {{ name: "loss" type: "{loss}" bottom: "ip" bottom: "label" top: "loss" }}
        """
    )
    path = folder / "solver.prototxt"
    path.write_text(
        f'net: "{folder}/net.prototxt" base_lr: {base_lr} lr_policy: "fixed" momentum: 0.9 random_seed: 3 display: 0 '
        f"{solver}"
    )
    training = caffe.SGDSolver(str(path))
    losses = []
    for _ in range(steps):
        training.step(1)
        losses += [net.blobs["loss"].data.copy() for net in (training.net, *training.test_nets)]
    assert np.isfinite(losses).all()
    weights = training.net.params["ip"][0].data.copy()
    del training
    registry.sweep()  # a LevelDB can be opened again when the layer that reads it is gone
    return [*losses, weights]


FORK = """
    import os
    pid = os.fork()
    if not pid:
        try:
            net.forward()
        except RuntimeError as error:
            print(error)
        net.layers[0].close()
        del net
        net = caffe.Net("net.prototxt", caffe.TRAIN)
        net.forward()
        print(net.blobs["label"].data[:3].tolist(), flush=True)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    net.forward()
    print(net.blobs["label"].data[:3].tolist(), flush=True)
"""


def check_in_a_forked_child(start, script, childs, parents):
    """A child may not use its parent's net, which goes on; a net of its own begins anew.

    script: ends with a net, in net.prototxt, after its first forward(). childs, parents: the first three labels of the
    child's own net, and of the parent's after another forward().
    """
    process = start(script + FORK)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    refusal, *labels = output.splitlines()
    assert "built before the process forked" in refusal
    assert labels == [str(childs), str(parents)]


SPOILT = {
    "missing": "Could not open or find file",
    "empty": "is empty",
    "folder": "is not a file",
    "no image": "neither JPEG nor PNG",
    "truncated": "truncated",
}
"""What an image file can be replaced by, and the error that follows."""


def spoil(path, what):
    """Makes `path`, the file of an image, one of SPOILT."""
    content = path.read_bytes()
    path.unlink()
    if what == "folder":
        path.mkdir()
    elif what != "missing":
        path.write_bytes({"empty": b"", "no image": b"nonsense", "truncated": content[: len(content) // 2]}[what])
