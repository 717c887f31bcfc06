"""Pictures, and files of them as OpenCV writes them."""

import cv2
import numpy as np

JPEG = (".jpg", cv2.IMWRITE_JPEG_QUALITY, 85)
PROGRESSIVE = (*JPEG, cv2.IMWRITE_JPEG_PROGRESSIVE, 1)


def picture(number, height, width, channels=3):
    """Something that a codec has work with: waves, and a little noise."""
    random = np.random.RandomState(number)
    y, x = np.mgrid[:height, :width]
    waves = [127 + 90 * np.sin(x / (3.0 + c + number) + y / (9.0 - c)) for c in range(channels)]
    noisy = np.stack(waves, axis=2) + random.randint(-30, 31, (height, width, channels))
    return np.clip(noisy, 0, 255).astype(np.uint8)


def encode(image, extension, *options):
    done, data = cv2.imencode(extension, image, list(options))
    assert done
    return data.tobytes()
