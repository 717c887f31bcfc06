"""Window files of Caffe's WindowData, and windows of every kind."""

import numpy as np


def window_file(folder, listed, name="windows.txt", ending="\n"):
    """Writes a list: of (path, (height, width), [(class, overlap, x1, y1, x2, y2), ...])."""
    lines = []
    for number, (path, (height, width), windows) in enumerate(listed):
        lines += [f"# {number}", str(path), "3", str(height), str(width), str(len(windows))]
        lines += [" ".join(map(str, window)) for window in windows]
    (folder / name).write_bytes("".join(line + ending for line in lines).encode())
    return str(folder / name)


def windows_of(height, width, seed):
    """All kinds: the whole image, each corner, one pixel, a row, a column, and random ones; half are foreground."""
    random = np.random.RandomState(seed)
    right, bottom, middle = width - 1, height - 1, (width // 2, height // 2)
    boxes = [
        (0, 0, right, bottom),
        (0, 0, 0, 0),
        (right, bottom, right, bottom),
        (0, bottom, middle[0], bottom),
        (*middle, *middle),
        (0, middle[1], right, middle[1]),
        (middle[0], 0, middle[0], bottom),
        (0, 0, *middle),
        (*middle, right, bottom),
    ]
    for _ in range(12):
        x, y = sorted(random.randint(0, width, 2)), sorted(random.randint(0, height, 2))
        boxes.append((x[0], y[0], x[1], y[1]))
    return [
        (random.randint(1, 21) if i % 2 else 0, random.uniform(0.5, 1) if i % 2 else random.uniform(0, 0.5), *box)
        for i, box in enumerate(boxes)
    ]
