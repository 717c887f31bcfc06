"""What every layer that prepares batches ahead must do, whatever it reads."""

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
