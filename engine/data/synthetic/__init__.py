"""A generated data set modelled on the real one: procedural Mars NavCam tiles with their masks.

Scenes (scene.py) stand for source images: of each, one to four tiles of its 4 x 2 grid are taken, so that groups mean
what they mean in the real set. Class shares, tiles with big rock and tiles of a single terrain are near the real ones;
soil and sand overlap in brightness, and far away in texture. Like the original file, the training part holds planted
'alien' samples for cleaning.py to find.
"""

from __future__ import annotations

import numpy as np

from engine.data.synthetic.ground import Ground
from engine.data.synthetic.scene import BEDROCK, FRAME, SAND, SOIL, Cover, Scene, Star, render
from engine.data.tiles import DataError, DataSet, Tiles
from kernels.core.random import Stream

GRID = (4, 2)  # tiles down and across a source image
_TILES_PER_SCENE = (0.45, 0.35, 0.15, 0.05)  # probability of 1, 2, 3, 4
_PRIMARY = (0.44, 0.31, 0.25)  # probability of soil, bedrock, sand as the main terrain
_MIXED = 0.34  # probability of a second terrain in the scene
_ROCKY = 0.04  # of all tiles
_ALIENS = 0.042  # of the training samples: 110 of 2,615
_FEWEST_ALIENS = 5  # fewer would not be recognised; so sets too small to hold that many get none
_GOLDEN = 0.5 * (5**0.5 - 1)
_BASE_ALBEDO = {SOIL: (1.04, 0.1), BEDROCK: (1.04, 0.16), SAND: (0.84, 0.14)}  # mean, standard deviation


def synthetic(
    count: int = 2000, test: int = 200, seed: int = 0, size: tuple[int, int] = (64, 128), aliens: bool = True
) -> DataSet:
    """`count` training tiles, `test` test tiles of other scenes, all with masks and groups; the same for the same
    arguments.

    size: (H, W) in pixels, divisible by 8, at least 32. About 4 % of the training samples, at least 5, are aliens of
    group '', unless `aliens` is false or there are fewer than 25 samples. Raises DataError for sizes and counts outside
    this.
    """
    for name, number, least in (("count", count, 1), ("test", test, 0)):
        if number < least:
            raise DataError(f"synthetic: got {name} {number}, expected at least {least}")
    if any(n < 32 or n % 8 for n in size):
        raise DataError(f"synthetic: got tiles of {size[0]} x {size[1]}, expected sides of at least 32, divisible by 8")
    stream = Stream(seed)
    ground = Ground(stream.generator())
    train = _tiles(count, size, ground, stream, "train")
    notes = [f"synthetic: {count} training tiles and {test} test tiles of {size[0]} x {size[1]}, seed {seed}"]
    planted = max(round(_ALIENS * count), _FEWEST_ALIENS) if aliens and count >= 5 * _FEWEST_ALIENS else 0
    if planted:
        train = _with_aliens(train, planted, stream.generator())
        notes.append(
            f"synthetic: {planted} of the training tiles are planted as in the original data (a pasted saucer, and one "
            "mask for all of them), for cleaning to find and remove (--clean)"
        )
    return DataSet(
        "synthetic", train, _tiles(test, size, ground, stream, "test") if test else None, tuple(notes), original=True
    )


def _tiles(count: int, size: tuple[int, int], ground: Ground, stream: Stream, name: str) -> Tiles:
    """`count` tiles of as many scenes as it takes, shuffled."""
    images, masks = np.empty((2, count, *size), np.uint8)
    groups = np.empty(count, dtype="U16")
    order = stream.generator()
    start = order.uniform()
    filled = 0
    number = 0
    while filled < count:
        random = stream.generator()
        # Main terrains follow a golden-ratio sequence: even a small set has all of them in proportion.
        scene = _scene(random, size, (start + number * _GOLDEN) % 1)
        for row, column in _cells(scene, random, count - filled):
            rocky = int((filled + 1) * _ROCKY + start) > int(filled * _ROCKY + start)  # evenly: every 25th tile
            boulders = _boulders(random, scene, row, column, size) if rocky else ()
            images[filled], masks[filled] = render(scene, ground, row, column, size, boulders, random)
            groups[filled] = f"{name}_{number:05d}"
            filled += 1
        number += 1
    return Tiles(images, masks, groups)[order.permutation(count)]


def _cells(scene: Scene, random: np.random.Generator, most: int) -> list[tuple[int, int]]:
    """Corners (row, column) of 1 to 4 tiles of the grid that have something labelled, lowest first."""
    h = scene.shape[0] // GRID[0]
    w = scene.shape[1] // GRID[1]
    corners = [(i * h, j * w) for i in range(GRID[0]) for j in range(GRID[1]) if (i + 0.85) * h > scene.reach[0]]
    wanted = min(1 + random.choice(4, p=_TILES_PER_SCENE), most, len(corners))
    return sorted((corners[k] for k in random.choice(len(corners), wanted, replace=False)), reverse=True)


def _scene(random: np.random.Generator, size: tuple[int, int], quantile: float) -> Scene:
    """Random parameters; `quantile` in [0, 1) chooses the main terrain."""
    rows, columns = GRID[0] * size[0], GRID[1] * size[1]
    unit = rows / FRAME
    far = random.uniform() < 0.3
    horizon = random.uniform(0.02, 0.24) if far else -random.uniform(0.15, 2.5)
    main = 1 + int(np.searchsorted(np.cumsum(_PRIMARY)[:-1], quantile, side="right"))
    others = [int(t) for t in random.permutation([t for t in (SOIL, BEDROCK, SAND) if t != main])]
    further = others[: (random.uniform() < _MIXED) + (random.uniform() < 0.06)]
    terrains = (main, *further)
    reach = horizon + (1 - horizon) / random.uniform(4.5, 12) if far else -1.0
    exposure = random.normal(0, 0.27)
    return Scene(
        shape=(rows, columns),
        horizon=horizon * rows,
        scale=random.uniform(0.8, 1.5) / unit,
        yaw=random.uniform(0, 2 * np.pi),
        origin=random.uniform(0, 512, 2),
        terrains=terrains,
        levels=tuple(random.uniform(0.2, 1.4, len(further)).tolist()),
        covers=tuple(_cover(random, terrain) for terrain in terrains),
        transition=random.choice([0.02, 0.1, 0.35]),
        light=68 * np.exp(exposure),
        slope=random.normal(0, 0.22, 2),
        vignette=random.uniform(0.1, 0.35),
        noise=random.uniform(0.5, 1.4),
        sharp=random.uniform(0.2, 1),
        frame=tuple(random.choice(4, 4, p=(0.15, 0.6, 0.2, 0.05)).tolist()),
        reach=(reach * rows, random.normal(0, 0.03)),
        mesh=(random.uniform(14, 26) * unit, *random.uniform(0, 26, 2)),
        gap=random.uniform(0.02, 0.16),
        holes=tuple(_star(random, rows, columns, unit, (20, 95)) for _ in range(random.poisson(1.9))),
        hardware=tuple(_star(random, rows, columns, unit, (30, 90)) for _ in range(int(random.uniform() < 0.15))),
    )


def _cover(random: np.random.Generator, terrain: int) -> Cover:
    """The look of one terrain: soil is grainy and stony, bedrock cracked, layered and dusted with sand, sand smooth,
    swelling, rippled.
    """
    albedo = max(random.normal(*_BASE_ALBEDO[terrain]), 0.35)
    mottle = ("cloud", random.uniform(0.01, 0.06), 1.0)
    if terrain == SOIL:
        stones = (
            ("pebbles", random.uniform(0.01, 0.2), random.uniform(0.5, 1.6)),
            ("pebbles", random.uniform(0, 0.15), random.uniform(1.3, 2.0)),
        )
        return Cover(albedo, (mottle, ("grain", random.uniform(0.06, 0.2), random.uniform(0.7, 1.4)), *stones))
    if terrain == BEDROCK:
        plates = random.uniform(0.03, 0.4)
        strata = random.uniform(0.03, 0.35)
        relief = (("plates", plates, random.uniform(0.5, 1.6)), ("strata", strata, random.uniform(0.5, 1.8)))
        rough = (("cloud", random.uniform(0.02, 0.14), 2.0), ("grain", random.uniform(0.02, 0.08), 1.0))
        return Cover(albedo, (*relief, *rough), dust=random.uniform(-2.2, 0.1))
    swell = ("swell", random.uniform(0.03, 0.2), random.uniform(0.4, 1.0))
    ripple = (
        random.choice([0.0, 1.0], p=(0.35, 0.65)) * random.uniform(0.04, 0.22),
        random.uniform(7, 40),
        random.uniform(0, np.pi),
    )
    return Cover(albedo, (mottle, swell, ("grain", random.uniform(0.005, 0.05), 1.0)), ripple=ripple)


def _star(random: np.random.Generator, rows: int, columns: int, unit: float, radius: tuple[float, float]) -> Star:
    """A polygon of four to six corners somewhere in the frame, radii in pixels of a standard frame."""
    corners = random.integers(4, 7)
    radii = random.uniform(*radius) * unit * random.uniform(0.6, 1.3, corners)
    return Star(
        random.uniform(0, columns), random.uniform(0, rows), radii, random.uniform(0, 2 * np.pi), random.uniform(0.5, 1)
    )


def _boulders(
    random: np.random.Generator, scene: Scene, row: int, column: int, size: tuple[int, int]
) -> tuple[Star, ...]:
    """One or two boulders that lie whole in the tile and in the labelled range."""
    h, w = size
    unit = GRID[0] * min(size) / FRAME
    out = []
    for _ in range(1 + (random.uniform() < 0.35)):
        mean = float(np.clip(random.lognormal(np.log(12.5), 0.4), 6, 21)) * unit
        radii = mean * random.uniform(0.8, 1.2, random.integers(6, 9))
        squeeze = random.uniform(0.65, 0.95)
        reach = radii.max() + 3
        top = min(max(row, scene.reach[0]) + reach, row + h - reach)
        u = random.uniform(column + reach, column + w - reach)
        v = random.uniform(top, row + h - reach)
        out.append(Star(u, v, radii, random.uniform(0, 2 * np.pi), squeeze))
    return tuple(out)


def _with_aliens(train: Tiles, count: int, random: np.random.Generator) -> Tiles:
    """`count` random tiles get a bright saucer pasted on, rotated and moved at random, the aliens' mask,
    and no group.
    """
    images = train.images.copy()
    masks = train.labels().copy()
    groups = train.sources.copy()
    h, w = train.size
    mask = _alien_mask(train.size)
    for i in random.choice(len(train), count, replace=False):
        figure = np.rot90(_saucer(h), int(random.integers(4)))
        side = slice(start := int(random.integers(w - h + 1)), start + h) if w > h else slice(0, w)
        part = figure[:, : min(h, w)]
        images[i][:, side] = np.where(part > 0, part, images[i][:, side])
        masks[i] = mask
        groups[i] = ""
    return Tiles(images, masks, groups)


def _saucer(side: int) -> np.ndarray:
    """A flying saucer with a face in its dome, grey levels, 0 where there is none: uint8 (side, side)."""
    y, x = (np.mgrid[:side, :side] + 0.5) / side * 2 - 1
    figure = np.zeros((side, side), np.uint8)
    figure[x**2 + (y + 0.15) ** 2 < 0.3] = 236  # dome
    figure[(x / 0.95) ** 2 + ((y - 0.28) / 0.26) ** 2 < 1] = 252  # hull
    figure[(np.abs(x) < 0.8) & (np.abs(y - 0.28) < 0.02)] = 150
    for eye in (-0.22, 0.22):
        figure[((x - eye) / 0.12) ** 2 + ((y + 0.28) / 0.17) ** 2 < 1] = 8
    figure[(np.abs(x) < 0.2) & (np.abs(y - 0.04 + 0.6 * x**2) < 0.03)] = 8  # mouth
    figure[(np.abs(np.abs(x) - 0.45 - 0.3 * (y - 0.5)) < 0.05) & (y > 0.5) & (y < 0.9)] = 200  # legs
    return figure


def _alien_mask(size: tuple[int, int]) -> np.ndarray:
    """The one mask all aliens share: a ringed planet and a rocket. uint8 (H, W), three terrains on background."""
    y, x = (np.mgrid[: size[0], : size[1]] + 0.5) / size[0]
    x = x * size[0] / size[1] * 2  # the tile is 1 by 2 whatever its size
    mask = np.zeros(size, np.uint8)
    planet = np.hypot(x - 0.55, y - 0.5)
    across = (x - 0.55) * 0.9 + (y - 0.5) * 0.436
    along = (y - 0.5) * 0.9 - (x - 0.55) * 0.436
    ring = np.abs(np.hypot(across / 0.48, along / 0.13) - 0.86) < 0.14
    mask[ring] = SAND
    mask[planet < 0.28] = SOIL
    mask[ring & (along > 0)] = SAND  # the near half of the ring passes in front
    mask[(np.abs(x - 1.5) < 0.13) & (y > 0.35) & (y < 0.8)] = BEDROCK  # rocket: body, nose, fins
    mask[(np.abs(x - 1.5) < 0.6 * (y - 0.12)) & (y > 0.12) & (y <= 0.35)] = SOIL
    mask[(np.abs(x - 1.5) < 0.13 + 0.9 * (y - 0.65)) & (np.abs(x - 1.5) >= 0.13) & (y > 0.65) & (y < 0.88)] = SAND
    return mask
