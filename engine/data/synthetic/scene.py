"""One synthetic source image: a camera over sunlit ground, the terrains in view, and what an annotator would have
drawn.

A `Scene` is a set of random parameters; `render` makes any window of its frame, image and mask, without making the
rest. Coordinates: (u, v) are pixels of the frame, columns to the right and rows down; (x, y) are texels of the ground,
flat below a pinhole camera, so that texture grows finer and flatter towards the horizon. Lengths given in pixels are
for frames `FRAME` rows high and scale with the frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.data.synthetic.ground import Ground

FRAME = 256  # rows of the frame for which pixel lengths are stated: four tiles of 64
SOIL, BEDROCK, SAND, BIG_ROCK = 1, 2, 3, 4

_FOCAL = 1.2  # focal length over frame width: a field of view of 45 degrees
_DEEPEST = 60.0  # times the distance of the bottom row
_SHARPER = 0.4  # levels
_MARGIN = 2  # pixels rendered around a window for the camera's blur


@dataclass(frozen=True, eq=False)
class Star:
    """A star-shaped polygon around (u, v): `radii` in pixels at equal angles from `turn`, squeezed vertically by
    `squeeze`.
    """

    u: float
    v: float
    radii: np.ndarray
    turn: float = 0.0
    squeeze: float = 1.0

    def gauge(self, u: np.ndarray, v: np.ndarray, du: float = 0.0, dv: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        """(rho, sector) of each pixel: rho < 1 inside, 1 on the straight edges, growing linearly outwards. The star is
        moved by (du, dv).
        """
        x = u - np.float32(self.u + du)
        y = (v - np.float32(self.v + dv)) / np.float32(self.squeeze)
        step = 2 * np.pi / len(self.radii)
        sector = np.floor((np.arctan2(y, x) - self.turn) / step).astype(np.int32) % len(self.radii)
        angle = self.turn + step * np.arange(len(self.radii) + 1)
        corner = np.stack([np.cos(angle), np.sin(angle)]) * np.append(self.radii, self.radii[0])  # (2, K + 1)
        edge = np.diff(corner)
        # normal (e_y, -e_x) times the corner: the edge's distance
        offset = corner[0, :-1] * edge[1] - corner[1, :-1] * edge[0]
        normal = (np.stack([edge[1], -edge[0]]) / offset).astype(np.float32)
        return normal[0][sector] * x + normal[1][sector] * y, sector


@dataclass(frozen=True, eq=False)
class Cover:
    """How one terrain looks in one scene: its albedo, and the amplitude and frequency of each texture on it."""

    albedo: float
    layers: tuple[tuple[str, float, float], ...]  # (texture, amplitude, frequency)
    dust: float = -9.0  # bedrock: sand lies where noise exceeds -dust
    ripple: tuple[float, float, float] = (0.0, 1.0, 0.0)  # sand: amplitude, wavelength in texels, direction in radians


@dataclass(frozen=True, eq=False)
class Scene:
    """The parameters of one source image. Angles in radians, lengths in pixels of the frame, light as a factor."""

    shape: tuple[int, int]  # rows, columns of the frame
    horizon: float  # row; negative: above the frame
    scale: float  # texels per pixel at the bottom row
    yaw: float  # direction of the sun, by turning the ground
    origin: np.ndarray  # (2,) texels
    terrains: tuple[int, ...]  # the first covers the frame, each further one a part of it
    levels: tuple[float, ...]  # of each further terrain: it lies where its field exceeds the level
    covers: tuple[Cover, ...]
    transition: float  # width of the change from one terrain to the next, in units of their field
    light: float  # grey level of a surface of albedo 1
    slope: np.ndarray  # (2,) change of light across the frame
    vignette: float
    noise: float  # standard deviation, grey levels
    sharp: float  # 0: full blur of the optics, 1: none
    frame: tuple[int, ...]  # unlabelled rows and columns at the top, bottom, left, right
    reach: tuple[float, float]  # row and tilt of the line beyond which nothing is labelled
    mesh: tuple[float, float, float]  # spacing and offsets of the lattice labelled outlines are drawn on
    gap: float  # half width of the unlabelled strip between two terrains, in units of their field
    holes: tuple[Star, ...]  # unlabelled polygons
    hardware: tuple[Star, ...]  # parts of the rover, unlabelled


def render(
    scene: Scene,
    ground: Ground,
    row: int,
    column: int,
    size: tuple[int, int],
    boulders: tuple[Star, ...],
    random: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """The window of `size` (h, w) at (row, column) of the frame -> image uint8 (h, w), mask uint8 (h, w).

    `boulders` are put on this window only; `random` draws the sensor's noise. All else is the scene's: windows fit
    together.
    """
    v = np.arange(row - _MARGIN, row + size[0] + _MARGIN, dtype=np.float32)[:, None] + 0.5
    u = np.arange(column - _MARGIN, column + size[1] + _MARGIN, dtype=np.float32)[None] + 0.5
    radiance = _ground_radiance(scene, ground, u, v)
    for part in scene.hardware:
        radiance = _with_hardware(radiance, part, u, v)
    for boulder in boulders:
        radiance = _with_boulder(radiance, scene, ground, boulder, u, v)
    inner = slice(_MARGIN, -_MARGIN)
    grey = _exposed(scene, radiance, u, v)[inner, inner] + np.float32(scene.noise) * random.standard_normal(
        size, np.float32
    )
    return np.clip(np.rint(grey), 0, 255).astype(np.uint8), _labels(scene, ground, u[:, inner], v[inner], boulders)


def _ground_position(scene: Scene, u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels (u (1, W), v (H, 1)) -> ground x, y (H, W) in texels and blur level (H, 1).

    Distance over that of the bottom row: d = (H - horizon) / (v - horizon). Before turning and moving, x = (u - W / 2)
    d, y = f d. A pixel spans d by f d^2 / (H - horizon); the level is half the log2 of that area, less a little that
    the camera's blur adds again.
    """
    rows, columns = scene.shape
    below = rows - scene.horizon
    depth = np.clip(below / np.maximum(v - scene.horizon, 1e-3), 0, _DEEPEST).astype(np.float32)
    focal = max(_FOCAL * columns, 0.8 * below)
    across = (u - columns / 2) * depth * scene.scale
    along = focal * depth * scene.scale
    cos = np.float32(np.cos(scene.yaw))
    sin = np.float32(np.sin(scene.yaw))
    x = cos * across - sin * along + np.float32(scene.origin[0])
    y = sin * across + cos * along + np.float32(scene.origin[1])
    return x, y, 0.5 * np.log2(focal / below * depth**3) + np.log2(scene.scale) - _SHARPER


def _field(ground: Ground, x: np.ndarray, y: np.ndarray, which: int) -> np.ndarray:
    """Where the terrain number `which` lies: smooth noise, standard deviation about 1, another stretch of it for each
    terrain.
    """
    shift = np.float32(171.0 * which)
    return ground.sample("broad", 0.9 * x + shift, 0.9 * y - shift, 4)


def _ground_radiance(scene: Scene, ground: Ground, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Reflectance of ground, hills and sky, before light and camera. float32 (H, W), a dark plain being about 1."""
    x, y, level = _ground_position(scene, u, v)
    radiance = _covered(scene.covers[0], ground, x, y, level)
    for which, (cover, threshold) in enumerate(zip(scene.covers[1:], scene.levels, strict=True), start=1):
        # The terrain's true edge is ragged, and sometimes gradual; the annotator's outline is neither.
        field = _field(ground, x, y, which) + 0.15 * ground.sample("cloud", 2.3 * x, 2.3 * y, level)
        part = np.clip(0.5 + (field - threshold) / np.float32(scene.transition), 0, 1)
        radiance = radiance + part * (_covered(cover, ground, x, y, level) - radiance)
    radiance = radiance * (1 + 0.09 * ground.sample("broad", 0.9 * x, 0.9 * y, 3))
    if v[0, 0] < scene.horizon + 0.2 * scene.shape[0]:
        radiance = _with_sky(radiance, scene, ground, u, v)
    return radiance


def _covered(cover: Cover, ground: Ground, x: np.ndarray, y: np.ndarray, level: np.ndarray) -> np.ndarray:
    out: np.ndarray = np.ones((), np.float32)
    for name, amplitude, frequency in cover.layers:
        f = np.float32(frequency)
        out = out + np.float32(amplitude) * ground.sample(name, f * x, f * y, level + np.log2(frequency))
    amplitude, wavelength, direction = cover.ripple
    if amplitude:
        phase = (x * np.float32(np.cos(direction)) + y * np.float32(np.sin(direction))) * np.float32(
            2 * np.pi / wavelength
        )
        phase = phase + 2.2 * ground.sample("broad", 3 * x, 3 * y, 3) + 0.5 * ground.sample("cloud", x, y, 3)
        # narrower than the footprint: averaged away
        seen = np.clip(1.6 - 3.5 * 2.0**level / wavelength, 0, 1).astype(np.float32)
        patchy = np.clip(0.6 + 0.5 * ground.sample("broad", y, x, 3), 0, 1.3)
        out = out + np.float32(amplitude) * seen * patchy * np.sin(phase + 0.6 * np.sin(phase))
    if cover.dust > -3:
        drift = ground.sample("cloud", 1.4 * x, 1.4 * y, np.maximum(level, 1))
        sandy = np.clip(2.5 * (drift + cover.dust), 0, 1)
        out = out + sandy * (0.68 + 0.03 * ground.sample("grain", x, y, level) - out)
    return np.float32(cover.albedo) * np.maximum(out, 0.12)


def _with_sky(radiance: np.ndarray, scene: Scene, ground: Ground, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Haze towards the horizon, a dark rim of far hills, pale mountains above it, sky above those."""
    unit = scene.shape[0] / FRAME
    above = (scene.horizon - v) / unit  # (H, 1) pixels of a standard frame
    profile = [ground.sample("cloud", 0.9 * u + 60 * i, np.full_like(u, scene.origin[i]), 2) for i in range(2)]
    far = np.where(above > 0, 0.75, radiance + np.clip(1 + above / 14, 0, 1) * (0.75 - radiance))
    mountain = 1.15 + 0.03 * profile[1] + 0.004 * above
    sky = 1.6 + 0.002 * above
    far = np.where(above > 4 + 2.5 * profile[0], mountain, far)
    return np.where(above > 18 + 7 * profile[1], sky, far).astype(np.float32)


def _with_hardware(radiance: np.ndarray, part: Star, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """A dark metal part: facets of different brightness, a bright rim, seams;
    and its shadow on the ground beside it.
    """
    shadow, _ = part.gauge(u, v, -0.15 * part.radii.mean(), 0.1 * part.radii.mean())
    rho, sector = part.gauge(u, v)
    facet = np.float32(0.22) + np.float32(0.28) * (sector * 7 % 5 / 4).astype(np.float32) * (rho > 0.45)
    facet = np.where((rho > 0.93) | (np.abs(rho - 0.45) < 0.03), np.float32(1.15), facet)
    return np.where(rho < 1, facet, np.where(shadow < 1, 0.55 * radiance, radiance))


def _with_boulder(
    radiance: np.ndarray, scene: Scene, ground: Ground, rock: Star, u: np.ndarray, v: np.ndarray
) -> np.ndarray:
    """A faceted boulder: bright on the sun's side, dark on the other, rough, with a cast shadow away from the sun."""
    right, down = _sun(scene)
    size = float(rock.radii.mean())
    shadow, _ = rock.gauge(u, v, -0.8 * size * right, 0.3 * size - 0.4 * size * down)
    radiance = np.where(shadow < 1, radiance * (0.25 + 0.35 * np.clip(shadow, 0, 1) ** 4), radiance)
    rho, sector = rock.gauge(u, v)
    middle = rock.turn + (sector + 0.5) * np.float32(2 * np.pi / len(rock.radii))
    # the outward direction of the pixel's facet towards the sun
    facing = np.cos(middle) * right + np.sin(middle) * down
    shade = 0.95 + np.float32(0.75) * facing * np.clip(2.2 * rho - 0.6 + 0.2 * (sector % 2), 0, 1)  # the top is flat
    rough = ground.sample("strata", 2.2 * u + 40 * rock.turn, 2.2 * v, 1) + ground.sample("grain", 1.3 * u, 1.3 * v, 1)
    return np.where(rho < 1, np.maximum(scene.covers[0].albedo * (shade + 0.13 * rough), 0.12), radiance)


def _sun(scene: Scene) -> tuple[float, float]:
    """Unit vector to the sun in the image, (right, down): (-1, -1) of the turned ground, whose y runs away from the
    camera, flattened.
    """
    right = -(np.cos(scene.yaw) + np.sin(scene.yaw))
    down = 0.5 * (np.cos(scene.yaw) - np.sin(scene.yaw))
    return float(right / np.hypot(right, down)), float(down / np.hypot(right, down))


def _exposed(scene: Scene, radiance: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Radiance as grey levels: light and its slope, vignetting, soft highlights, the blur of the optics."""
    rows, columns = scene.shape
    x = u / columns - np.float32(0.5)
    y = v / rows - np.float32(0.5)
    slope = 1 + np.float32(scene.slope[0]) * x + np.float32(scene.slope[1]) * y
    grey = np.float32(scene.light) * radiance * slope * (1 - np.float32(scene.vignette) * (x * x + y * y))
    grey = np.where(grey > 72, 72 + 52 * np.tanh((grey - 72) / 52), grey)  # the camera's tone curve
    wide = grey.copy()
    wide[1:-1] = 0.25 * (grey[:-2] + grey[2:]) + 0.5 * grey[1:-1]
    soft = wide.copy()
    soft[:, 1:-1] = 0.25 * (wide[:, :-2] + wide[:, 2:]) + 0.5 * wide[:, 1:-1]
    return soft + np.float32(scene.sharp) * (grey - soft)


def _labels(scene: Scene, ground: Ground, u: np.ndarray, v: np.ndarray, boulders: tuple[Star, ...]) -> np.ndarray:
    """The annotator's mask, uint8 (H, W): outlines of straight pieces, strips left out between terrains, parts left
    out.
    """
    mask = np.full((v.size, u.size), scene.terrains[0], np.uint8)
    for which, (terrain, threshold) in enumerate(zip(scene.terrains[1:], scene.levels, strict=True), start=1):
        field = _faceted_field(scene, ground, u, v, which) - threshold
        mask[field > -scene.gap] = 0
        mask[field > scene.gap] = terrain
    for hole in scene.holes:
        mask[hole.gauge(u, v)[0] < 1] = 0
    for part in scene.hardware:
        mask[part.gauge(u, v)[0] < 1.2] = 0
    row, tilt = scene.reach
    mask[np.broadcast_to(v < row + tilt * (u - scene.shape[1] / 2), mask.shape)] = 0
    for rock in boulders:
        rho = rock.gauge(u, v)[0]
        mask[rho < 1.25] = 0
        mask[rho < 1] = BIG_ROCK
    top, bottom, left, right = scene.frame
    rows, columns = scene.shape
    mask[(v[:, 0] < top) | (v[:, 0] > rows - bottom)] = 0
    mask[:, (u[0] < left) | (u[0] > columns - right)] = 0
    return mask


def _faceted_field(scene: Scene, ground: Ground, u: np.ndarray, v: np.ndarray, which: int) -> np.ndarray:
    """The terrain's field sampled on a coarse lattice and interpolated linearly over its triangles: level lines are
    polygons.
    """
    spacing, offset_u, offset_v = scene.mesh
    p = (v[:, 0] + offset_v) / spacing
    q = (u[0] + offset_u) / spacing
    i, j = np.floor(p).astype(int), np.floor(q).astype(int)
    node_v = (np.arange(i[0], i[-1] + 2) * spacing - offset_v)[:, None].astype(np.float32)
    node_u = (np.arange(j[0], j[-1] + 2) * spacing - offset_u)[None].astype(np.float32)
    x, y, _ = _ground_position(scene, node_u, node_v)
    nodes = _field(ground, x, y, which)
    a = (p - i)[:, None]
    b = (q - j)[None]
    row = (i - i[0])[:, None]
    column = j - j[0]
    f00, f01, f10, f11 = (nodes[row + di, column + dj] for di, dj in np.ndindex(2, 2))
    return np.where(
        a + b < 1, f00 + a * (f10 - f00) + b * (f01 - f00), f11 + (1 - a) * (f01 - f11) + (1 - b) * (f10 - f11)
    )
