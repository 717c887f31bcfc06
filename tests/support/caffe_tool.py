"""Runs the `caffe` command-line tool on a net and its solver."""

import os
import subprocess
import time
from pathlib import Path

REST = """
    layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip"
            inner_product_param { num_output: OUTPUTS weight_filler { type: "gaussian" std: 0.1 } } }
    layer { name: "dropout" type: "Dropout" bottom: "ip" top: "ip" }
    layer { name: "accuracy" type: "Accuracy" bottom: "ip" bottom: "label" top: "accuracy" include { phase: TEST } }
    layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
"""


class Tool:
    """Runs the tool in a folder that holds a net and its solver."""

    def __init__(self, folder, layers, max_iter=20, outputs=10):
        self.folder = folder
        self.log = folder / "log"
        (folder / "net.prototxt").write_text(layers + REST.replace("OUTPUTS", str(outputs)))
        (folder / "solver.prototxt").write_text(f"""
            net: "net.prototxt" test_iter: 4 test_interval: 8 base_lr: 0.01 lr_policy: "fixed" max_iter: {max_iter}
            display: 1 random_seed: 1701 snapshot_prefix: "trained" solver_mode: CPU
        """)

    def start(self, command, *flags):
        support = Path(__file__).parent
        path = os.pathsep.join([*map(str, (self.folder, support)), os.environ.get("PYTHONPATH", "")])
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                ["caffe", command, *flags],
                cwd=self.folder,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": path, "GLOG_minloglevel": "0"},
                start_new_session=True,
            )

    def end(self):
        """Waits for the end; (exit status, all that was said)."""
        try:
            return self.process.wait(timeout=120), self.log.read_text()
        finally:
            self.process.kill()

    def run(self, command, *flags):
        self.start(command, *flags)
        return self.end()

    def wait_for(self, text):
        deadline = time.monotonic() + 120
        while text not in self.log.read_text():
            assert self.process.poll() is None and time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.01)


TRAIN = "--solver=solver.prototxt"
MODEL = "--model=net.prototxt"
