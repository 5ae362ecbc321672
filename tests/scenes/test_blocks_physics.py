import numpy as np
import pytest

from mtlib.scenes import families_physics as physics
from mtlib.scenes.canvas import box


class Recorder:
    """Stands in for a Canvas and keeps the boxes that the blocks family draws."""

    ground, ink = np.zeros(3), (0, 0, 0)

    def __init__(self):
        self.boxes = []

    def main(self, i):
        return (0, 0, 0)

    def floor(self, *args):
        pass

    plain = line = floor

    def group(self, shapes, fill):
        self.boxes += shapes


def margins(scene, error):
    recorder = Recorder()
    physics.blocks(recorder, np.random.default_rng([scene, 0]), np.random.default_rng([scene, 1]), error)
    b = np.array(recorder.boxes)  # (n, 4, 2), bottom to top
    widths, heights = np.ptp(b[:, :, 0], 1), np.ptp(b[:, :, 1], 1)
    return physics.stack_margins(widths, b[:, :, 0].mean(1), widths * heights)


def test_plausible_stacks_stand_and_implausible_ones_topple():
    assert min(margins(s, False).min() for s in range(300)) > 0.05
    assert max(margins(s, True).min() for s in range(300)) < -0.05


@pytest.mark.parametrize("slope", [0.0, 0.5])
def test_clip_below_halves_a_square(slope):
    part = physics.clip_below(box(-1, -1, 1, 1), 0.0, slope)
    x, y = part.T
    area = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2
    assert area == pytest.approx(2.0)
