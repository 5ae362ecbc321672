"""One picture from a Spec, a labelled data set with its truth, and simulated generators of known failure rates."""

from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import ImageChops

from mtlib.scenes import families_bodies as bodies
from mtlib.scenes import families_physics as physics
from mtlib.scenes.canvas import SUPERSAMPLE, Canvas, sample_nuisance
from mtlib.scenes.captions import caption
from mtlib.scenes.causes import CAUSE_OF

SCENES_PER_SEED = 10_000_000

# family -> (how it is drawn, largest harmless rotation in degrees)
FAMILIES = {
    "hand": (bodies.hand, 60),
    "face": (bodies.face, 25),
    "person": (bodies.person, 12),
    "animal": (bodies.animal, 8),
    "table": (physics.table, 0),
    "light": (physics.light, 0),
    "glass": (physics.glass, 0),
    "blocks": (physics.blocks, 0),
    "water": (physics.water, 0),
}
BOX = ("box_x0", "box_y0", "box_x1", "box_y1")  # columns of the truth: where the error is, see `error_box`
GENERATORS = {"gen_a": 0.10, "gen_b": 0.25, "gen_c": 0.40, "gen_d": 0.55}


@dataclass(frozen=True)
class Spec:
    """One picture: the same scene with error on and off is a pair of twins; `view` draws other nuisances.

    Raises: ValueError if the family is unknown or the scene or view is negative.
    """

    scene: int
    family: str
    error: bool = False
    view: int = 0

    def __post_init__(self):
        if self.family not in FAMILIES:
            raise ValueError(f"family = {self.family!r} is not one of {list(FAMILIES)}")
        if self.scene < 0 or self.view < 0:
            raise ValueError(f"scene = {self.scene} and view = {self.view} must be at least 0")


def nuisance_of(spec):
    """The Nuisance of a Spec, and the generator that goes on to draw the background's details and the noise."""
    rng = np.random.default_rng([spec.scene, 2, spec.view])
    return sample_nuisance(rng, FAMILIES[spec.family][1]), rng


def render(spec, size=128):
    """Draws one picture.

    Args:
        spec: Spec.
        size: side, pixels.
    Returns: (PIL RGB image, dict with variant (how it goes wrong, or a count) and the Nuisance under "nuisance").
    """
    canvas, variant = _drawn(spec, size)
    return canvas.finish(), {"variant": variant, "nuisance": canvas.n}


def _drawn(spec, size):
    """(Canvas, variant) of a Spec, before the nuisance's noise."""
    nuisance, rng = nuisance_of(spec)
    canvas, seeds = Canvas(nuisance, size, rng), ([spec.scene, 0], [spec.scene, 1])
    return canvas, FAMILIES[spec.family][0](canvas, *map(np.random.default_rng, seeds), spec.error)


def error_box(spec, canvas):
    """Where the error is: the box around all that differs from the scene's plausible twin, which shares everything else.

    So it holds what is wrongly there and also the place where something is missing (a limb, the shadow as it should fall).
    Args: canvas: on which `spec` is drawn.
    Returns: x0, y0, x1, y1 in pixels of the finished picture, x1 and y1 beyond the last; NaN for a plausible scene, which has
        no error, and where the error makes no difference to see.
    """
    twin = _drawn(replace(spec, error=False), canvas.size)[0].img if spec.error else canvas.img
    box = ImageChops.difference(canvas.img, twin).getbbox()
    return (np.nan,) * 4 if box is None else tuple(float(v // SUPERSAMPLE) for v in np.add(box, (0, 0, 1, 1)))


def twins(truth, n_pairs=3, seed=0):
    """Some scenes of every cause, each drawn plausibly and with its one error.

    Args: truth: as `write_dataset` returns it.
    Returns: (cause -> images, plausible and implausible in turn; DataFrame of family, cause, scene, place of what is shown).
    """
    wrong = truth[(truth["label"] == 1) & (truth["generator"] == "")]
    images, shown = {}, []
    for cause, own in wrong.groupby("cause"):
        family, scenes = own["family"].iloc[0], own["scene"].sort_values()
        chosen = [int(s) for s in scenes.sample(min(n_pairs, len(scenes)), random_state=seed)]
        images[cause] = [render(Spec(scene, family, error))[0] for scene in chosen for error in (False, True)]
        shown += [{"family": family, "cause": cause, "scene": s, "place": i} for i, s in enumerate(chosen)]
    return images, pd.DataFrame(shown)


def _one(job):
    """Draws and writes one picture of a data set; returns its row of the truth."""
    folder, name, spec, generator, size = job
    canvas, variant = _drawn(spec, size)
    path, nuisance = Path(folder) / name, asdict(canvas.n)
    canvas.finish().save(path, "PNG", compress_level=1)  # a third of the time for 6% more bytes
    text, _ = caption(np.random.default_rng([spec.scene, 3]), spec.family, spec.error, variant, nuisance)
    return {
        "path": name,
        "scene": spec.scene,
        "family": spec.family,
        "cause": CAUSE_OF[spec.family] if spec.error else "",
        "variant": variant,
        "label": int(spec.error),
        "generator": generator,
        "caption": text,
        **nuisance,
        **dict(zip(BOX, error_box(spec, canvas), strict=True)),
    }


def plan(n_scenes, seed, n_per_generator):
    """Which pictures a data set holds; families are balanced, and half of the labelled ones are implausible.

    Args:
        n_scenes:        labelled pictures.
        seed:            0 <= seed < 900,000,000,000; below 1000 for data, from 100,000 on for training the encoder.
        n_per_generator: pictures per simulated generator; its failure rate is met exactly, up to rounding.
    Returns: list of (path relative to the folder, Spec, generator name or "").
    Raises: ValueError if a number is negative or too large for one seed.
    """
    if not (0 <= n_scenes < 5_000_000 and 0 <= n_per_generator < 1_000_000 and seed >= 0):
        raise ValueError(
            f"n_scenes = {n_scenes}, n_per_generator = {n_per_generator}, seed = {seed} must lie in "
            "[0, 5,000,000), [0, 1,000,000) and [0, inf)"
        )
    names, first, jobs = list(FAMILIES), seed * SCENES_PER_SEED, []
    n = len(names)
    for i in range(n_scenes):
        spec = Spec(first + i, names[i % n], error=bool((i // n + i % n) % 2))
        jobs.append((f"human_{'error' if spec.error else 'correct'}/{spec.family}/{spec.scene}.png", spec, ""))
    for g, (name, rate) in enumerate(GENERATORS.items()):
        rng = np.random.default_rng([seed, 4, g])
        fails = rng.permutation(n_per_generator) < round(rate * n_per_generator)
        families = rng.permutation(np.arange(n_per_generator) % n)
        for i in range(n_per_generator):
            spec = Spec(first + 5_000_000 + g * 1_000_000 + i, names[families[i]], error=bool(fails[i]))
            jobs.append((f"generators/{name}/{spec.scene}.png", spec, name))
    return jobs


def write_dataset(folder, n_scenes, seed, *, size=128, n_per_generator=400, workers=1):
    """Writes labelled pictures, four simulated generators and the truth of every picture.

    Makes folder/human_correct/<family>/<scene>.png, folder/human_error/<family>/<scene>.png,
    folder/generators/<name>/<scene>.png and folder/truth.parquet; the bytes do not depend on the number of workers.

    Args:
        folder:          where to write; existing pictures of the same names are replaced.
        n_scenes:        labelled pictures, every one its own scene.
        seed:            int; data sets of different seeds share no scene.
        size:            side of the pictures, pixels.
        n_per_generator: pictures per generator.
        workers:         processes.
    Returns: DataFrame, one row per picture: path (posix, relative to folder), scene (int64, unique over all seeds), family,
    cause ("" when plausible), variant, label (1 = implausible), generator ("" for the labelled data), caption, and the
    nuisances background, palette, style, scale (share of the image per unit), position_x, position_y (share of the
    image), flip, rotation (degrees), noise (grey levels), shift; and BOX, where the error is (`error_box`).
    Raises: ValueError if a number is out of range.
    """
    folder = Path(folder)
    if size < 16 or workers < 1:
        raise ValueError(f"size = {size} must be at least 16 and workers = {workers} at least 1")
    jobs = [
        (str(folder), name, spec, generator, size) for name, spec, generator in plan(n_scenes, seed, n_per_generator)
    ]
    for sub in sorted({Path(name).parent for _, name, *_ in jobs}):
        (folder / sub).mkdir(parents=True, exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    if workers == 1:
        rows = [_one(job) for job in jobs]
    else:
        # an executor ends with an error where a script without a main guard starts it; a Pool would start workers for ever
        with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
            rows = list(pool.map(_one, jobs, chunksize=64))
    truth = pd.DataFrame(rows)
    truth.to_parquet(folder / "truth.parquet", index=False)
    return truth
