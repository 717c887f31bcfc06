"""Transform.imagenet() of JPEG images, against torchvision's transforms in torch's DataLoader.

The images become tensors of 3 x 224 x 224, with as many threads on our side as there are processes on theirs. They are
like ImageNet's photographs in size: 500 x 375, 46 KB. The steps are the same, but not the pixels. PIL's resize, which
torchvision uses, smooths where it shrinks. OpenCV's, which we have, does not.
"""

import pytest

pytest.importorskip("torch")
pytest.importorskip("torchvision")
import numpy
import torch
from PIL import Image
from torchvision import transforms

from fastbatch import ImageListSource, Transform
from fastbatch.torch import TorchLoader
from interleave import QUICK, Loop, in_turns

BATCH = 32
IMAGES = 64 if QUICK else 512
NORMALIZED = [transforms.ToTensor(), transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
TRANSFORMS = {
    "train": [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip()],
    "test": [transforms.Resize(256), transforms.CenterCrop(224)],
}


class Photographs(torch.utils.data.Dataset):
    """The samples as torchvision's ImageFolder makes them."""

    def __init__(self, samples, transform):
        self.samples, self.transform = samples, transform

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        path, label = self.samples[index]
        with Image.open(path) as image:
            return self.transform(image.convert("RGB")), label


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """Paths of images, with labels. Their noise has four scales, and the weights that make it as hard to encode."""
    folder, random = tmp_path_factory.mktemp("images"), numpy.random.RandomState(0)
    found = []
    for number in range(IMAGES):
        values = numpy.zeros((375, 500, 3), numpy.float32)
        for width, weight in (4, 0.45), (16, 0.3), (64, 0.15), (256, 0.1):
            noise = random.randint(0, 256, (3 * width // 4, width, 3)).astype(numpy.uint8)
            values += weight * numpy.asarray(Image.fromarray(noise).resize((500, 375), Image.BICUBIC))
        path = folder / f"{number}.jpg"
        Image.fromarray(values.clip(0, 255).astype(numpy.uint8)).save(path, quality=90)
        found.append((str(path), number))
    return found


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("phase", ["train", "test"])
def bench_imagenet_transform(benchmark, report, samples, phase, workers):
    dataset = Photographs(samples, transforms.Compose(TRANSFORMS[phase] + NORMALIZED))
    options = dict(batch_size=BATCH, shuffle=True, drop_last=True)
    theirs = torch.utils.data.DataLoader(dataset, num_workers=workers, persistent_workers=True, **options)
    usual = endless(theirs)
    source, transform = ImageListSource(samples), Transform.imagenet(train=phase == "train")
    with TorchLoader(source, transform, batch_size=BATCH, shuffle=True, last_batch="drop", threads=workers) as loader:
        batches = endless(loader)
        # DataLoader prepares two batches for each worker, which are used up before a turn.
        sides = {"torchvision": Loop(lambda: next(usual), BATCH, skip=2 * workers + 1)}
        rates = in_turns(benchmark, Loop(lambda: next(batches), BATCH, skip=5), sides)
    target = {"at_least": 2} if phase == "train" else {}
    name = f"imagenet(), {phase}, {workers} worker{'s' * (workers > 1)}"
    report.ratio(f"{name}: against torchvision", rates["ours"], rates["torchvision"], **target)
    report.values(f"{name}: ours", rates["ours"], "img/s")
    report.values(f"{name}: torchvision", rates["torchvision"], "img/s")


def endless(loader):
    """Epoch after epoch."""
    while True:
        yield from loader
