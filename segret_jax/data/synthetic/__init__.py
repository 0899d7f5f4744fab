"""Street scenes drawn from a seed, with a label for every pixel.

A scene is a small town in meters (x to the right, y up, z away from the viewer) seen by a pinhole
camera. It is painted from far to near, so that what is near hides what is far, and each stroke
paints image and label together, hence they agree to the pixel.

Color alone tells little: houses, road and pavement share their grays, cars come in green, trees
in autumn red, and each scene has its own light. Shape, texture and place tell the classes apart.
"""

from segret_jax.data.synthetic.canvas import Label
from segret_jax.data.synthetic.scene import SyntheticSource, render_scene

__all__ = ["Label", "SyntheticSource", "render_scene"]
