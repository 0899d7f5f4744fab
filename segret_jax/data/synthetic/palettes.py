"""The colors of things and the light of scenes: RGB as floats from 0 to 255."""

from dataclasses import dataclass

import numpy as np


def _palette(colors: str) -> np.ndarray:
    """Hex colors, parted by blanks, as float rows [n, 3]."""
    return np.array([tuple(bytes.fromhex(color)) for color in colors.split()], np.float32)


WALLS = _palette("b5654a d8b98a 9a9da1 c9c2b4 8fa6b5 d99a7c 7d8288 a9b596 e3d3b0")
ROOFS = _palette("8a4b3c 5a5f68 6f5648 454c57")
ROADS = _palette("6b6d72 7a7772 5b6068 857f78")
PAVINGS = _palette("a7a49c 95989c b8a88f a08778 868a8e")
PAINTS = _palette("c8372d 2f5d9b e8e6e0 3a3d42 9aa0a6 4c8055 e0b13a 3f8f98 7b4a36")
CLOTHES = _palette("d1333f 2450a0 f4ead2 e8a02b 2f9a5b 8f4ab0 e0609a 20a0b0")
SKINS = _palette("f2cda8 d9a57c a8734e 6f4a35")
LEAVES = _palette("5c8a3a 4a7a45 7d9a40 3f6b4a 558b4b 6a9a35 b8702f 9c4a32")
METALS = _palette("2e3338 3a4046 27402f 40352e")
SIGNS = _palette("c92f2f 2a5fb0 e6b821 eeeeea")
SIGNALS = _palette("e8402f f0b429 3fbf6a")
GLASS, LAMPLIGHT, BLACK, BARK, HAIR = _palette("3a4a5c ffd98a 222326 604a3a 463228")
HEADLAMP, REAR_LAMP, PLATE, MARKING = _palette("fff3c4 e02b20 e0e1e4 d0d0cc")


@dataclass(frozen=True)
class Light:
    """The light of a scene."""

    sky: np.ndarray  # colors of zenith, horizon and clouds [3, 3]
    tint: tuple[float, float, float]
    lit: float  # share of the windows


_DAY = Light(_palette("4f8fd6 d3e6f2 ffffff"), tint=(1.02, 1.0, 0.98), lit=0.05)
_DUSK = Light(_palette("4a4d86 f7b183 e79a94"), tint=(0.92, 0.80, 0.80), lit=0.55)
_OVERCAST = Light(_palette("98a2ad d5d9db c3c8cd"), tint=(0.90, 0.93, 0.96), lit=0.20)
LIGHTS = (_DAY, _DAY, _DUSK, _OVERCAST)  # equally likely
