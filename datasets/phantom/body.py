"""One synthetic body: its measures, and all outside its lungs (chest wall, skeleton, mediastinum, abdomen, couch).

Functions named ``..._distance`` return implicit functions: approximate distances in mm, negative inside the shape.
Functions named ``paint_...`` change an array of HU (z, y, x) in place.
"""

from dataclasses import dataclass

import numpy as np

from datasets.phantom.geometry import (
    Box,
    Frame,
    ellipse,
    ellipsoid,
    fill_paths,
    intersect,
    paint,
    smooth_field,
    smooth_step,
)

Array = np.ndarray

# HU
AIR, FOAM, COUCH_SHELL = -1000.0, -880.0, -350.0
SKIN, FAT, MUSCLE, SOFT = 10.0, -100.0, 50.0, 40.0
LIVER, SPLEEN, STOMACH = 60.0, 50.0, 15.0
CORTEX, MARROW, CARTILAGE, DISC = 650.0, 180.0, 95.0, 80.0

BLOOD_PLAIN, BLOOD_CONTRAST = 42.0, 230.0
"""HU of blood without and with contrast agent."""

HEART, HEART_REACH = (15.0, -25.0, 30.0), 90.0
"""Centre of the heart's surroundings in the anatomical frame, and their reach, in mm."""


@dataclass(frozen=True)
class Anatomy:
    """Measures of one body, in mm and HU."""

    height: float  # lungs, from the right diaphragm dome to the apex
    half_width: float  # chest cavity
    half_depth: float
    wall: float  # skin to cavity at the side
    fat: float  # subcutaneous
    heart: float  # relative size
    left_drop: float  # left diaphragm dome below the right one
    breast: float  # thickness; 0 for a flat chest
    pitch: float  # distance of ribs and of vertebrae
    blood: float  # HU
    parenchyma: float  # HU of aerated lung at mid-height without vessels
    gravity: float  # HU difference between back and front of the lung

    def profile(self, z: Array) -> tuple[Array, Array, Array]:
        """Half-width, half-depth and centre y of the chest cavity at height ``z``, in mm."""
        t = np.clip(z / self.height, -0.6, 1.0)
        up = np.maximum(t, 0)
        width = self.half_width * (1 - 0.08 * up - 0.26 * up**4 - 0.10 * np.minimum(t, 0) ** 2)
        depth = self.half_depth * (1 - 0.06 * up - 0.36 * up**3)
        return width, depth, 26 * up**2 - 4

    def spine_y(self, z: Array) -> Array:
        """The y of the vertebral bodies' centre at height ``z``, in mm."""
        _, depth, centre = self.profile(z)
        return centre + depth - 20


def draw_anatomy(rng: np.random.Generator) -> Anatomy:
    """Draw the measures of one body."""
    half_width = rng.uniform(122, 144)
    return Anatomy(
        height=rng.uniform(168, 218),
        half_width=half_width,
        half_depth=half_width * rng.uniform(0.64, 0.76),
        wall=rng.uniform(22, 40),
        fat=rng.uniform(6, 20),
        heart=rng.uniform(0.9, 1.1),
        left_drop=rng.uniform(4, 18),
        breast=rng.uniform(30, 48) if rng.random() < 0.4 else 0.0,
        pitch=rng.uniform(24, 29),
        blood=BLOOD_CONTRAST * rng.uniform(0.7, 1.3) if rng.random() < 0.25 else BLOOD_PLAIN,
        parenchyma=rng.uniform(-815, -745),
        gravity=rng.uniform(70, 130),
    )


def cavity_distance(body: Anatomy, g: Frame) -> Array:
    """Chest cavity: a tapering tube, closed by a dome over each lung apex."""
    width, depth, centre = body.profile(g.z)
    tube = ellipse(g.x, g.y - centre, width, depth, 2.4)
    reach = ((np.abs(g.x) - 50) / 48) ** 2 + ((g.y - centre - 4) / 52) ** 2
    dome = (g.z - body.height + 52 * reach) * 0.6
    return intersect(tube, dome, 12)


def paint_outside(rng: np.random.Generator, hu: Array, body: Anatomy, g: Frame) -> None:
    """Paint couch, skin, subcutaneous fat and muscles."""
    back = body.half_depth + 0.75 * body.wall + 22
    scan_y, scan_x = np.meshgrid(
        np.arange(hu.shape[1]) * g.spacing[1] - g.centre[1],
        np.arange(hu.shape[2]) * g.spacing[0] - g.centre[0],
        indexing="ij",
    )
    couch = np.abs(scan_y - back - 16 + scan_x**2 / 2200) - 9
    flat = np.full(couch.shape, AIR, np.float32)
    paint(flat, couch, COUCH_SHELL, g.spacing[0])
    paint(flat, couch + 3, FOAM, g.spacing[0])
    hu += flat - AIR

    taper = 1 - 0.45 * smooth_step(g.z, body.height - 20, body.height + 60)
    width, depth = (body.half_width + body.wall) * taper, (body.half_depth + 0.75 * body.wall + 12) * taper
    skin = ellipse(g.x, g.y - 3 - 0.7 * body.profile(g.z)[2], width, depth, 2.5)
    shoulder = ellipsoid(g.x, g.y - 22, g.z - body.height - 8, (220, 62 + 0.3 * body.wall, 85))
    neck = ellipse(g.x, g.y - 18, 62, 64)
    skin = -intersect(-skin, -np.minimum(shoulder, neck + np.maximum(body.height - g.z, 0)), 25)
    muscle = skin + body.fat * (1 + 0.5 * np.clip(-g.y / 100, -0.6, 1))
    if body.breast:
        bulge = (np.abs(g.x) - 0.6 * body.half_width, g.y + body.half_depth + 8, g.z - 30)
        skin = -intersect(-skin, -ellipsoid(*bulge, (62, body.breast, 60)), 20)
    paint(hu, skin, SKIN, g.spacing[0])
    paint(hu, skin + 2, FAT, g.spacing[0])
    paint(hu, muscle, MUSCLE, 2 * g.spacing[0])
    # Thin fat planes between the muscles: sheets where a smooth field changes sign.
    sheet = 3 * np.abs(smooth_field(rng, hu.shape, g.spacing, 28)) / 0.3 - 1.2
    paint(hu, np.maximum(muscle + 4, sheet), 0.7 * FAT, 2 * g.spacing[0])


def paint_ribs(hu: Array, cavity: Array, body: Anatomy, g: Frame) -> None:
    """Paint the ribs: a shell around the cavity, descending from the spine, becoming cartilage in front."""
    near = (cavity > -4) & (cavity < 15)
    x, y, z, out = g.x[near], g.y[near], g.z[near], cavity[near]
    values = hu[near]
    _, depth, centre = body.profile(z)
    front = np.clip((centre + depth + 6 - y) / (2 * depth), 0, 1)
    along = z + 95 * front - 40 * smooth_step(front, 0.8, 1.05) - body.height
    rib = (along % body.pitch) - body.pitch / 2
    distance = ellipse(rib, out - 6, 7.5, 4.5)
    distance = np.where((along < -2) & (np.abs(x) > 14), distance, 9.0)
    bone = np.where(front > 0.8, CARTILAGE, CORTEX)
    paint(values, distance, bone, g.spacing[0])
    paint(values, distance + 2.2, np.where(front > 0.8, CARTILAGE, MARROW), g.spacing[0])
    hu[near] = values
    # Fat between the muscle layers outside the ribs.
    near = (cavity > 12) & (cavity < 20) & (hu > 0) & (g.z < 0.75 * body.height)
    values = hu[near]
    paint(values, np.abs(cavity[near] - 15.5) - 1.2, FAT, g.spacing[0])
    hu[near] = values


def paint_shoulders(hu: Array, cavity: Array, body: Anatomy, g: Frame) -> None:
    """Paint the scapulae (thin plates behind the ribs, narrowing downwards), clavicles and humeral heads."""
    near = (cavity > 12) & (cavity < 40) & (np.abs(g.z - body.height + 45) < 75)
    x, y, z = np.abs(g.x[near]), g.y[near], g.z[near]
    down = np.clip((body.height + 5 - z) / 115, 0, 1)
    edge = np.maximum(np.abs(x - 105 + 10 * down) - 42 * (1 - down), np.abs(z - body.height + 52) - 60)
    plate = np.maximum(np.abs(cavity[near] - 23) - 2.5 - 3 * smooth_step(x, 105, 140), np.maximum(edge, 10 - y))
    values = hu[near]
    paint(values, plate, 0.6 * CORTEX, g.spacing[0])
    hu[near] = values
    top, front = body.height, -0.5 * body.half_depth + 22
    for side in (-1, 1):
        clavicle = [(side * 18, front, top - 22), (side * 70, front - 4, top - 2), (side * 145, 12, top + 14)]
        hu += fill_paths(g, [(clavicle, 6.5)]) * (0.7 * CORTEX - hu)
        where = g.box((side * 168, 24, top - 2), 26)
        head = ellipsoid(g.x[where] - side * 168, g.y[where] - 24, g.z[where] - top + 2, (24, 24, 24))
        paint(hu[where], head, CORTEX, g.spacing[0])
        paint(hu[where], head + 3, MARROW, g.spacing[0])


def paint_spine(hu: Array, body: Anatomy, g: Frame) -> None:
    """Paint the vertebrae with discs, arches, canal and processes, and the muscles beside them."""
    where = g.strip(75)
    x, y, z, part = g.x[where], g.y[where], g.z[where], hu[where]
    back = y - body.spine_y(z)
    phase = np.abs((z % body.pitch) - body.pitch / 2)  # 0 in the middle of a vertebra
    wide = g.spacing[0]
    paint(part, ellipse(np.abs(x) - 30, back - 34, 26, 17), MUSCLE, wide)
    vertebra = ellipse(x, back, 17.5, 14.5, 2.5)
    paint(part, vertebra, np.where(phase < body.pitch / 2 - 3, 0.7 * CORTEX, DISC), wide)
    paint(part, vertebra + 2, np.where(phase < body.pitch / 2 - 3, MARROW, DISC), wide)
    arch = ellipse(x, back - 23, 16, 13)
    spinous = np.maximum(np.abs(x) - 3.5, np.abs(back - 39) - 10)
    transverse = np.maximum(np.abs(back - 24 - 0.15 * np.abs(x)) - 5, np.abs(x) - 36)
    process = np.minimum(spinous, transverse) + np.maximum(phase - 7, 0)
    paint(part, np.minimum(arch, process), 0.6 * CORTEX, wide)
    paint(part, ellipse(x, back - 23, 9.5, 8), 25.0, wide)


def paint_sternum(hu: Array, body: Anatomy, g: Frame) -> None:
    """Paint the sternum."""
    where = g.strip(40)
    x, z, part = g.x[where], g.z[where], hu[where]
    _, depth, centre = body.profile(z)
    top, low = body.height - 25, 0.18 * body.height
    bone = ellipse(x, g.y[where] - centre + depth + 6, 17 + 9 * smooth_step(z, top - 50, top), 6.5, 3)
    bone = np.maximum(bone, np.maximum(z - top, low - z))
    paint(part, bone, CORTEX * 0.7, g.spacing[0])
    paint(part, bone + 2.2, MARROW, g.spacing[0])


def heart_distance(body: Anatomy, g: Frame, where: Box) -> Array:
    """The heart within the slices ``where``: two merged ellipsoids, long axis to the left, front and below."""
    x, y, z = g.x[where] - 8, g.y[where] + 0.32 * body.half_depth, g.z[where] - 32
    turn = np.deg2rad(32)
    u, v = x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)
    k = body.heart
    ventricles = ellipsoid(u - 20, v + 4, z + 8 + 0.25 * u, (56 * k, 37 * k, 40 * k))
    atria = ellipsoid(x + 6, y - 18, z - 8, (46 * k, 32 * k, 42 * k))
    return -intersect(-ventricles, -atria, 14)


def height_above_diaphragm(body: Anatomy, g: Frame) -> Array:
    """Height in mm above the diaphragm, which falls off to the sides and deeply to the back."""
    left = smooth_step(g.x, -15, 15)
    reach = ((np.abs(g.x) - 62) / 80) ** 2 + ((g.y + 22) / 86) ** 2
    dome = -left * body.left_drop - 92 * (np.sqrt(1 + 1.7 * reach) - 1)
    return g.z - dome


def paint_abdomen(hu: Array, cavity: Array, above: Array, body: Anatomy, g: Frame) -> None:
    """Paint liver, spleen and stomach with a gas bubble, in fat below the diaphragm."""
    wide = g.spacing[0]
    where = np.s_[: int(np.clip((g.centre[2] + 25) / g.spacing[2], 1, hu.shape[0]))]
    x, y, z = g.x[where], g.y[where], g.z[where]
    below = np.maximum(cavity[where] + 3, above[where] + 3)
    part = hu[where]
    paint(part, below, FAT, wide)
    liver = np.maximum(below + 1, 0.55 * (x - 30 + 0.8 * (y + 20)))
    paint(part, liver, LIVER, wide)
    stomach = ellipsoid(x - 58, y + 12, z + body.left_drop + 48, (42, 46, 44))
    stomach = np.maximum(stomach, below + 3)
    paint(part, stomach, SOFT, wide)
    gas = y + 30 + np.zeros_like(x)
    paint(part, stomach + 4, np.where(gas < 0, AIR + 20, STOMACH), wide)
    spleen = ellipsoid(x - 92, y - 38, z + body.left_drop + 58, (28, 40, 52))
    paint(part, np.maximum(spleen, below + 2), SPLEEN, wide)


def airway_paths(body: Anatomy) -> list[tuple[list, list]]:
    """Trachea and main bronchi as (points, radii) in the anatomical frame, in mm, see `fill_paths`."""
    top, carina, hilum = body.height, 0.60 * body.height, 0.50 * body.height
    trachea = [(0, 2, top + 60), (1, 10, top), (2, 20, 0.8 * top), (2, 25, carina)]
    right = [(2, 25, carina), (-20, 24, carina - 18), (-36, 22, hilum)]
    left = [(2, 25, carina), (24, 24, carina - 14), (44, 23, hilum)]
    return [(trachea, [9, 9, 9, 9.5]), (right, [8, 7, 6]), (left, [7.5, 6.5, 5.5])]


def great_vessels(body: Anatomy) -> list[tuple[list, list]]:
    """Aorta, pulmonary arteries, vena cava, neck vessels and oesophagus as (points, radii), see `airway_paths`."""
    top, arch, hilum = body.height, 0.74 * body.height, 0.52 * body.height
    back = [float(body.spine_y(np.float64(z))) - 18 for z in (0.66 * top, 0.3 * top, -140)]
    aorta = [
        (-4, -22, 0.4 * top),
        (-14, -18, 0.62 * top),
        (-6, -6, arch - 4),
        (10, 12, arch),
        (24, 30, arch - 6),
    ]
    aorta += [(27, back[0], 0.66 * top), (24, back[1], 0.3 * top), (8, back[2] + 10, -140)]
    trunk = [(14, -30, 0.4 * top), (18, -20, 0.52 * top), (22, 4, 0.57 * top)]
    right = [(20, -2, 0.55 * top), (-8, 4, 0.54 * top), (-38, 14, hilum)]
    left = [(22, 4, 0.57 * top), (34, 14, 0.56 * top), (46, 20, hilum + 4)]
    cava = [(-20, -12, 0.35 * top), (-23, -10, 0.65 * top), (-20, -10, 0.85 * top), (-30, 0, top + 40)]
    carotid = [(8, -4, arch), (22, 0, top), (30, 10, top + 50)]
    subclavian = [(18, 4, arch), (32, 10, top - 20), (60, 8, top + 10), (150, 15, top + 5)]
    brachial = [(-4, -8, arch), (-18, 0, top - 15), (-30, 8, top + 50)]
    veins = [(side * 26, 14, 0.4 * top) for side in (-1, 1)]
    return [
        (aorta, [16, 16, 14, 13, 13, 12.5, 12, 11]),
        (trunk, [14, 13, 12]),
        (right, [11, 10, 8]),
        (left, [11, 10, 8]),
        (cava, [10, 9, 9, 7]),
        (carotid, [5, 4, 4]),
        (subclavian, [6, 5, 5, 4]),
        (brachial, [7, 5, 4]),
        ([veins[0], (0, 6, 0.36 * top), veins[1]], [7, 16, 7]),
        ([(4, 32, top + 50), (4, 34, 0.5 * top), (10, 40, -120)], [6, 6, 7]),  # oesophagus
    ]


def mediastinum_distance(body: Anatomy, g: Frame) -> Array:
    """The space between the lungs: wide at the great vessels, narrow in front of and behind them."""
    _, depth, centre = body.profile(g.z)
    v = (g.y - centre) / depth
    t = g.z / body.height
    half = 7 + 20 * np.exp(-(((v - 0.1) / 0.42) ** 2)) + 12 * smooth_step(t, 0.68, 0.95) + 6 * smooth_step(-t, 0, 0.3)
    half = half * (1 - 0.5 * smooth_step(v, 0.45, 0.8) * smooth_step(0.8 - t, 0, 0.2))
    return (np.abs(g.x - 3) - half) * 0.85
