"""Seamless textures of Martian ground, lit by a low sun: the material synthetic tiles are cut from.

Each texture is a height map shaded once (slope towards the sun, cast shadow), or plain noise. It repeats every `SIZE`
texels in both axes, has mean 0 and standard deviation 1, and is stored blurred at `LEVELS` scales, like mip maps but
all of one size: far ground, seen through large footprints, is looked up in a coarse level and loses its detail as it
    does in a photograph.
"""

from __future__ import annotations

import numpy as np

SIZE = 512
LEVELS = 6

_SUN_TANGENT = 0.55  # of the sun's elevation: about 29 degrees, the long shadows of morning and afternoon images
_SHADOW_STEPS = 12


class Ground:
    """The texture set. `broad`, `cloud`: smooth and fractal noise. `swell`, `grain`, `pebbles`, `plates`, `strata`: lit
    relief.

    The sun stands towards (-1, -1) in texture coordinates (x, y); who rotates the coordinates rotates the sun for all
    textures alike.
    """

    def __init__(self, random: np.random.Generator) -> None:
        broad, cloud = _noise(random, 3.2), _noise(random, 1.9)
        grain = _noise(random, 0.6, shortest=3.0)
        plates, tone = _plates(random, 22, cloud)
        textures = {
            "broad": broad,
            "cloud": cloud,
            "swell": _lit(14 * broad + 0.3 * cloud),
            "grain": _lit(0.55 * grain),
            "pebbles": _lit(_stones(random) + 0.12 * grain),
            "plates": _lit(plates + 0.3 * cloud + 0.15 * grain) + tone,
            "strata": _lit(_strata(_noise(random, 2.6), cloud) + 0.15 * grain) + 0.2 * cloud,
        }
        self._texels = {name: _pyramid(texture).ravel() for name, texture in textures.items()}

    def sample(self, name: str, x: np.ndarray, y: np.ndarray, level: np.ndarray | float) -> np.ndarray:
        """Texels at (x, y) of one blur level, nearest in all three. x, y: float32, texels, any shape; level: log2 of
        the footprint.
        """
        scale = np.clip(np.rint(level), 0, LEVELS - 1).astype(np.int32)
        column = np.floor(x).astype(np.int32) & (SIZE - 1)
        row = np.floor(y).astype(np.int32) & (SIZE - 1)
        return self._texels[name].take((scale * SIZE + row) * SIZE + column)


def _wavenumber() -> np.ndarray:
    """Cycles per texel of each real-FFT bin, (SIZE, SIZE / 2 + 1)."""
    return np.hypot(np.fft.fftfreq(SIZE)[:, None], np.fft.rfftfreq(SIZE))


def _standard(texture: np.ndarray) -> np.ndarray:
    return (texture - texture.mean()) / texture.std()


def _noise(random: np.random.Generator, slope: float, shortest: float = 0.0) -> np.ndarray:
    """Gaussian noise with amplitude spectrum k^(-slope / 2 - 1/2), without wavelengths much below `shortest` texels."""
    k = _wavenumber()
    k[0, 0] = 1  # the mean; taken out when the texture is standardised
    spectrum = (
        np.fft.rfft2(random.standard_normal((SIZE, SIZE))) * k ** (-0.5 * slope - 0.5) * np.exp(-((k * shortest) ** 2))
    )
    return _standard(np.fft.irfft2(spectrum, (SIZE, SIZE)))


def _pyramid(texture: np.ndarray) -> np.ndarray:
    """float32 (LEVELS, SIZE, SIZE): standardised, then blurred by Gaussians of sigma 2^level / 2 texels (level 0: not
    at all).
    """
    spectrum = np.fft.rfft2(_standard(texture))
    k = _wavenumber()
    levels = [np.exp(-2 * (np.pi * k * (0.5 * 2**level if level else 0.0)) ** 2) for level in range(LEVELS)]
    return np.stack([np.fft.irfft2(spectrum * blur, (SIZE, SIZE)) for blur in levels]).astype(np.float32)


def _lit(height: np.ndarray) -> np.ndarray:
    """Brightness of a height map (texels): the slope facing the sun, less the cast shadow."""
    towards = np.roll(height, (1, 1), (0, 1))
    away = np.roll(height, (-1, -1), (0, 1))
    slope = np.clip((away - towards) / np.sqrt(8.0), -0.8, 0.8)
    blocked = np.zeros_like(height)
    for step in range(1, _SHADOW_STEPS + 1):
        np.maximum(
            blocked, np.roll(height, (step, step), (0, 1)) - height - step * np.sqrt(2.0) * _SUN_TANGENT, out=blocked
        )
    return slope - 0.9 * np.minimum(blocked, 1.0)


def _stones(random: np.random.Generator) -> np.ndarray:
    """Heights of scattered half-buried stones, many small and few large."""
    height = np.zeros((SIZE, SIZE))
    for radius, count in ((1.6, 2200), (2.5, 700), (4.0, 150), (6.5, 28)):
        reach = np.arange(-int(2 * radius), int(2 * radius) + 1)
        for x, y, stretch, size in random.uniform((0, 0, 0.6, 0.7), (SIZE, SIZE, 1.5, 1.2), (count, 4)):
            square = (size * radius) ** 2 - (reach / stretch) ** 2 - (reach[:, None] * stretch) ** 2
            patch = np.ix_((int(y) + reach) % SIZE, (int(x) + reach) % SIZE)
            height[patch] = np.maximum(height[patch], np.sqrt(np.maximum(square, 0)))
    return height


def _plates(random: np.random.Generator, cells: int, warp: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Heights and tones of cracked plates: a Voronoi pattern of `cells` x `cells` jittered seeds,
    its borders warped.
    """
    seeds = random.uniform(0, 1, (2, cells, cells))
    step = cells / SIZE
    level = random.normal(0, 1.3, (cells, cells))
    tone = random.normal(0, 0.25, (cells, cells))
    tilt = random.normal(0, 0.05, (2, cells, cells))
    y, x = np.mgrid[:SIZE, :SIZE] * step
    y = y + 0.2 * warp
    x = x + 0.2 * np.roll(warp, SIZE // 2, 0)
    nearest = second = np.full((SIZE, SIZE), np.inf)
    height, brightness = np.zeros((SIZE, SIZE)), np.zeros((SIZE, SIZE))
    for dy, dx in np.ndindex(3, 3):
        row = np.floor(y).astype(int) + dy - 1
        column = np.floor(x).astype(int) + dx - 1
        cell = row % cells, column % cells
        from_y = y - row - seeds[0][cell]
        from_x = x - column - seeds[1][cell]
        distance = np.hypot(from_y, from_x)
        closer = distance < nearest
        second = np.minimum(second, np.where(closer, nearest, distance))
        nearest = np.where(closer, distance, nearest)
        plane = level[cell] + (tilt[0][cell] * from_y + tilt[1][cell] * from_x) / step
        height = np.where(closer, plane, height)
        brightness = np.where(closer, tone[cell], brightness)
    crack = np.clip(1 - (second - nearest) / 0.1, 0, 1)
    return height - 3.0 * crack, brightness - 0.5 * crack


def _strata(warp: np.ndarray, cloud: np.ndarray) -> np.ndarray:
    """Heights of stacked layers: terraces that run along x, rise slowly and break off, wavering and of uneven
    thickness.
    """
    y = np.arange(SIZE)[:, None] / SIZE
    layer = 22 * y + 1.1 * warp + 0.12 * cloud  # a whole number of layers, so that the texture repeats
    rise = layer - np.floor(layer)
    return 4.0 * rise * (0.75 + 0.25 * np.tanh(2 * np.roll(cloud, SIZE // 3, 1)))
