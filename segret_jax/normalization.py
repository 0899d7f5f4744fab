"""How images are normalized for every model: per channel, as for ImageNet."""

import numpy as np

MEAN = np.array([123.675, 116.28, 103.53], np.float32)  # of R, G, B from 0 to 255
STD = np.array([58.395, 57.12, 57.375], np.float32)
