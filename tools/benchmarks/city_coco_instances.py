"""Scenes with network-like costs, of two kinds: ``city`` (K = 19) and ``coco`` (K = 133).

``solver_instances`` has two kinds of its own; these are drawn in another way, so that a figure does
not rest on one generator. ``tests/solver/instances/reference.json`` knows the objectives of some.
NumPy and SciPy only.
"""

import numpy as np
from scipy import ndimage as ndi

CITY_DISTANCES = (1, 4, 16, 32, 64, 128)
COCO_DISTANCES = (1, 4, 16, 32, 64)
# Classes that each class is confused with, in Cityscapes' order; 11 to 18 are things.
# fmt: off
CONF_CITY = {
    0: (1, 9), 1: (0, 9, 2), 2: (3, 4, 8), 3: (2, 4), 4: (3, 2, 8), 5: (2, 8), 6: (5, 7, 8),
    7: (6, 2), 8: (9, 2), 9: (8, 1), 10: (2, 8), 11: (12,), 12: (11, 17), 13: (14, 15),
    14: (13, 15, 2), 15: (14, 16, 13), 16: (15, 14), 17: (18, 12), 18: (17, 12),
}
# fmt: on
# Class margin, amplitude of its smooth and its pixel noise, share of wrong blobs; edge margin and
# its noise likewise; displacement in pixels; share of instances falsely split, merged or confused.
LEVELS = dict(
    easy=(8.0, 1.0, 0.5, 0.01, 5.0, 0.8, 0.5, 0.5, 0.03),
    medium=(7.0, 1.3, 0.7, 0.03, 4.0, 1.4, 0.8, 0.8, 0.08),
    hard=(6.2, 1.5, 0.9, 0.06, 3.2, 1.8, 1.0, 1.1, 0.14),
)


def smooth(rng, H, W, sigma):
    """Noise of unit variance, smooth on the scale of sigma pixels."""
    f = max(1, int(sigma // 2))
    h, w = -(-H // f) + 8, -(-W // f) + 8
    a = ndi.gaussian_filter(rng.standard_normal((h, w)).astype(np.float32), sigma / f, mode="wrap")
    if f > 1:
        a = ndi.zoom(a, f, order=1)
    o = (a.shape[0] - H) // 2, (a.shape[1] - W) // 2
    a = a[o[0] : o[0] + H, o[1] : o[1] + W]
    return a / (a.std() + 1e-9)


def multi(rng, H, W, sigmas=(1.5, 5, 16), amps=(0.5, 0.6, 0.6)):
    """Sum of smooth noise on several scales."""
    return sum(a * smooth(rng, H, W, s) for s, a in zip(sigmas, amps))


class Scene:
    """A canvas of classes ``c`` and instance numbers ``i``, (H, W)."""

    def __init__(self, H, W):
        self.H, self.W = H, W
        self.c = np.zeros((H, W), np.int32)
        self.i = np.zeros((H, W), np.int32)
        self.n = 0
        self.cls_of = [0]

    def put(self, m, c, thing=False, y0=0, x0=0):
        """Paint mask m, cropped, at (y0, x0); a thing gets the next instance number."""
        H, W = self.H, self.W
        h, w = m.shape
        ya, xa, yb, xb = max(0, y0), max(0, x0), min(H, y0 + h), min(W, x0 + w)
        if ya >= yb or xa >= xb:
            return 0
        mm = m[ya - y0 : yb - y0, xa - x0 : xb - x0]
        if thing:
            self.n += 1
            self.cls_of.append(c)
        self.c[ya:yb, xa:xb][mm] = c
        self.i[ya:yb, xa:xb][mm] = self.n if thing else 0
        return self.n if thing else 0


def ell(h, w, p=2.0):
    """A superellipse that fills h x w."""
    y, x = np.mgrid[0:h, 0:w]
    return (np.abs((y + 0.5) / h * 2 - 1) ** p + np.abs((x + 0.5) / w * 2 - 1) ** p) <= 1


def car_mask(h, w):
    """A body with a cabin on it."""
    m = np.zeros((h, w), bool)
    m[h // 3 :] = ell(h - h // 3, w, 6)
    cw = max(1, int(w * 0.62))
    x0 = (w - cw) // 2
    m[: h // 2 + 1, x0 : x0 + cw] |= ell(2 * (h // 2 + 1), cw, 3)[: h // 2 + 1]
    return m


def person_mask(h, w, rng):
    """A head, a torso and legs."""
    m = np.zeros((h, w), bool)
    hh = max(1, h // 6)
    hw = max(1, min(w, int(w * 0.5)))
    m[: hh + 1, (w - hw) // 2 : (w - hw) // 2 + hw] |= ell(hh + 1, hw)
    m[hh : int(h * 0.6) + 1] |= ell(int(h * 0.6) + 1 - hh, w, 3)
    lw = max(1, w // 3)
    m[int(h * 0.55) :, max(0, w // 2 - lw - rng.integers(0, 2)) : w // 2] = True
    m[int(h * 0.55) :, w // 2 : w // 2 + lw] = True
    return m


def bike_mask(h, w):
    """Two rings and a frame."""
    m = np.zeros((h, w), bool)
    r = max(2, int(min(h * 0.8, w * 0.45)))
    ring = (
        ell(r, r)
        & ~np.pad(ell(max(1, r - 4), max(1, r - 4)), ((2, r - max(1, r - 4) - 2),) * 2)[:r, :r]
        if r > 6
        else ell(r, r)
    )
    m[h - r :, :r] |= ring
    m[h - r :, w - r :] |= ring
    m[h - r // 2 - 1 : h - r // 2 + 1, r // 2 : w - r // 2] = True
    m[: h - r // 2, w // 3 : w // 3 + max(1, w // 12)] = True
    return m


def city(H, W, rng):
    """A street: buildings, road, poles, rows of parked cars, groups of people."""
    s = Scene(H, W)
    yy, xx = np.mgrid[0:H, 0:W]
    hz = int(H * rng.uniform(0.38, 0.48))
    s.c[:] = 10
    # buildings: a skyline of piecewise constant heights, a canyon opening at the vanishing point
    vx = W * rng.uniform(0.35, 0.65)
    top = np.zeros(W)
    x = 0
    while x < W:
        w = int(rng.integers(W // 20 + 1, W // 8 + 2))
        d = abs((x + w / 2) - vx) / W
        top[x : x + w] = hz - H * (0.05 + 1.1 * d * rng.uniform(0.6, 1.2))
        x += w
    s.c[(yy >= top[None]) & (yy < hz + H * 0.1)] = 2
    for _ in range(rng.integers(4, 10)):  # vegetation
        h, w = int(H * rng.uniform(0.12, 0.5)), int(W * rng.uniform(0.05, 0.2))
        cx = int(rng.uniform(0, W))
        m = ell(h, w) & (smooth(rng, h, w, 3) > -1.0)
        s.put(m, 8, False, int(hz + H * 0.04 - h * rng.uniform(0.7, 1.0)), cx - w // 2)
    s.c[yy >= hz] = 1  # sidewalk
    t = np.clip((yy - hz) / (H - hz), 0, 1)
    half = W * (0.03 + rng.uniform(0.35, 0.6) * t)
    road = (yy >= hz) & (np.abs(xx - (vx + (W / 2 - vx) * t)) < half)
    for _ in range(rng.integers(1, 4)):  # terrain
        h, w = int(H * rng.uniform(0.03, 0.1)), int(W * rng.uniform(0.1, 0.3))
        s.put(ell(h, w), 9, False, int(hz + H * rng.uniform(0, 0.12)), int(rng.uniform(-w / 2, W)))
    for cls in (3, 4):  # wall, fence strips
        for _ in range(rng.integers(0, 3)):
            h, w = int(H * rng.uniform(0.03, 0.09)), int(W * rng.uniform(0.08, 0.3))
            s.put(
                np.ones((h, w), bool),
                cls,
                False,
                int(hz + H * rng.uniform(-0.05, 0.05)),
                int(rng.uniform(-w / 2, W)),
            )
    s.c[road] = 0
    objs = []
    for _ in range(rng.integers(4, 12)):  # poles, signs, lights (thin)
        objs.append((hz + (H - hz) * rng.uniform(0.02, 0.5) ** 1.5, "pole", None))
    rows = rng.integers(1, 4)
    for _ in range(rows):  # parked rows: heavy same-class occlusion
        side = rng.choice([-1, 1])
        for k in range(rng.integers(3, 9)):
            tt = 0.04 + 0.42 * (k / 8.0) ** 1.3
            objs.append(
                (
                    hz + (H - hz) * tt,
                    "car",
                    vx + (W / 2 - vx) * tt + side * (W * (0.02 + 0.55 * tt)),
                )
            )
    for _ in range(rng.integers(2, 9)):
        objs.append((hz + (H - hz) * rng.uniform(0.04, 0.6) ** 1.4, "car", None))
    for _ in range(rng.integers(1, 4)):  # pedestrian groups
        tt, cx = rng.uniform(0.05, 0.4), rng.uniform(0, W)
        for _ in range(rng.integers(1, 7)):
            objs.append(
                (
                    hz + (H - hz) * (tt + rng.uniform(-0.02, 0.02)),
                    "person",
                    cx + rng.normal() * W * 0.12 * tt + rng.normal() * 2,
                )
            )
    for _ in range(rng.integers(0, 4)):
        objs.append((hz + (H - hz) * rng.uniform(0.06, 0.35), "rider", None))
    for _ in range(rng.integers(0, 5)):
        objs.append((hz + (H - hz) * rng.uniform(0.06, 0.35), "bicycle", None))
    if rng.random() < 0.5:
        objs.append(
            (hz + (H - hz) * rng.uniform(0.06, 0.3), rng.choice(["truck", "bus", "train"]), None)
        )
    for yb, kind, cx in sorted(objs, key=lambda o: o[0]):
        t = (yb - hz) / (H - hz)
        sc = H * max(0.012, 0.85 * t)  # height of ~2 m
        cx = rng.uniform(0, W) if cx is None else cx
        if kind == "pole":
            h, w = int(sc * rng.uniform(1.5, 3)) + 6, 1 + (t > 0.12) + (t > 0.3)
            y0 = int(yb - h)
            s.put(np.ones((h, w), bool), 5, False, y0, int(cx))
            r = max(2, int(sc * 0.25))
            if rng.random() < 0.7:
                s.put(
                    ell(r + 1, r), 7, False, y0 + 1, int(cx) - r // 2
                ) if rng.random() < 0.5 else s.put(
                    np.ones((r + 1, max(2, r // 2)), bool), 6, False, y0, int(cx) + w
                )
        elif kind == "car":
            h = max(3, int(sc * rng.uniform(0.6, 0.75)))
            w = max(4, int(h * rng.uniform(1.1, 2.4)))
            s.put(car_mask(h, w), 13, True, int(yb - h), int(cx - w / 2))
        elif kind == "person":
            h = max(4, int(sc * rng.uniform(0.6, 0.9)))
            w = max(2, int(h * rng.uniform(0.28, 0.42)))
            s.put(person_mask(h, w, rng), 11, True, int(yb - h), int(cx - w / 2))
        elif kind in ("rider", "bicycle"):
            h = max(4, int(sc * 0.5))
            w = max(5, int(h * 1.6))
            motor = rng.random() < 0.3
            s.put(
                car_mask(h, w) if motor else bike_mask(h, w),
                17 if motor else 18,
                True,
                int(yb - h),
                int(cx - w / 2),
            )
            if kind == "rider":
                h2 = max(4, int(sc * 0.75))
                w2 = max(2, int(h2 * 0.35))
                s.put(person_mask(h2, w2, rng), 12, True, int(yb - h * 0.35 - h2), int(cx - w2 / 2))
        else:
            h = max(6, int(sc * rng.uniform(1.2, 1.7)))
            w = max(8, int(h * rng.uniform(0.9, 3 if kind == "train" else 2)))
            s.put(
                ell(h, w, 10),
                dict(truck=14, bus=15, train=16)[kind],
                True,
                int(yb - h),
                int(cx - w / 2),
            )
    return s


def coco(H, W, rng, K=133, nth=80):
    """Stuff regions with up to 40 things, and the classes that each class is confused with."""
    s = Scene(H, W)
    stuff = rng.permutation(np.arange(nth, K))[: rng.integers(3, 8)]
    f = np.stack([smooth(rng, H, W, rng.uniform(12, 40)) + rng.normal() for _ in stuff])
    s.c[:] = stuff[f.argmax(0)]
    cls = rng.permutation(nth)[: rng.integers(1, 6)]
    n = int(np.clip(rng.geometric(0.1), 1, 40))
    objs = sorted(
        [
            (
                rng.uniform(0.04, 0.7) ** 1.2 if rng.random() < 0.8 else rng.uniform(0.3, 0.9),
                rng.choice(cls),
            )
            for _ in range(n)
        ],
        reverse=True,
    )
    for size, c in objs:
        h = max(3, int(H * size * rng.uniform(0.4, 1)))
        w = max(3, int(W * size * rng.uniform(0.4, 1)))
        kind = c % 5
        m = (
            [
                ell(h, w),
                ell(h, w, 6),
                person_mask(h, max(3, w // 2), rng),
                car_mask(h, w),
                bike_mask(h, w),
            ][kind]
            if min(h, w) > 5
            else np.ones((h, w), bool)
        )
        if min(m.shape) > 10:
            m = m & (smooth(rng, *m.shape, 4) > -1.7)
        s.put(m, int(c), True, int(rng.uniform(-0.2, 0.95) * H), int(rng.uniform(-0.2, 0.95) * W))
    conf = {}
    for k in range(K):
        lo, hi = (0, nth) if k < nth else (nth, K)
        conf[k] = tuple(rng.integers(lo, hi, 3))
    return s, conf


def warp(a, dy, dx):
    """Labels read at displaced places."""
    H, W = a.shape
    yy, xx = np.mgrid[0:H, 0:W]
    return a[
        np.clip(np.rint(yy + dy), 0, H - 1).astype(int),
        np.clip(np.rint(xx + dx), 0, W - 1).astype(int),
    ]


def make(kind, H, W, seed, level):
    """Draw an instance.

    Returns:
        dict: ``node_costs`` float32 (H W, K), ``edge_costs`` float32 (D, 2, H, W) as the solver
        takes them, ``dist`` (D,), ``partitionable`` bool (K,), and the truth ``gt_class`` and
        ``gt_inst`` (H, W), 0 on stuff.
    """
    rng = np.random.default_rng(seed * 7919 + H * 31 + W)
    ms, ss, sp, bf, ma, sa, sap, wa, bad = LEVELS[level]
    if kind == "city":
        s, conf, K, dist = city(H, W, rng), CONF_CITY, 19, CITY_DISTANCES
        part = np.zeros(K, bool)
        part[11:] = True
    else:
        K, dist = 133, COCO_DISTANCES
        s, conf = coco(H, W, rng)
        part = np.zeros(K, bool)
        part[:80] = True
    gc, gi = s.c, s.i
    # Class logits: boundaries displaced by a smooth warp and blurred, smooth and pixel noise, blobs
    # of a wrong class.
    dy, dx = (wa * (smooth(rng, H, W, 3) * 0.7 + smooth(rng, H, W, 12) * 0.5) for _ in range(2))
    wc = warp(gc, dy, dx)
    present = np.unique(gc)
    z = np.full((K, H, W), -0.55 * ms, np.float32)
    for k in present:
        z[k] += ms * ndi.gaussian_filter((wc == k).astype(np.float32), 1.0)
    for k in range(K):
        # classes that are absent get noise too, but the shared low-rank part makes errors coherent
        amp = ss if (k in present or K < 40) else ss * 0.8
        z[k] += amp * multi(rng, H, W, (2, 6, 20), (0.4, 0.6, 0.7)) + sp * rng.standard_normal(
            (H, W)
        ).astype(np.float32)
    fld = multi(rng, H, W, (4, 10), (0.6, 0.8))
    blob = fld > np.quantile(fld, 1 - bf)
    lab, _ = ndi.label(blob)
    for b, sl in enumerate(ndi.find_objects(lab), 1):
        m = lab[sl] == b
        c = np.bincount(gc[sl][m]).argmax()
        c2 = conf[int(c)][rng.integers(len(conf[int(c)]))]
        g = ndi.gaussian_filter(m.astype(np.float32), 1.0) * ms * rng.uniform(0.5, 1.3)
        z[c2][sl] += g
        z[c][sl] -= 0.4 * g
    # whole-instance class confusion (car <-> truck), partial strength
    for n in range(1, s.n + 1):
        if rng.random() < bad:
            m = gi == n
            c = s.cls_of[n]
            c2 = conf[c][rng.integers(len(conf[c]))]
            part_m = m & (smooth(rng, H, W, 8) > rng.normal() * 0.7)
            z[c2][part_m] += ms * rng.uniform(0.6, 1.1)
    # Affinities, from a displaced and partly wrong instance map.
    key = np.where(gi > 0, gi + 1000, gc)
    bad_i = key.copy()
    nxt = int(key.max()) + 1
    for n in range(1, s.n + 1):
        u = rng.random()
        m = gi == n
        if not m.any():
            continue
        if u < bad:  # false split along a random line
            y, x = np.nonzero(m)
            a = rng.uniform(0, np.pi)
            side = (
                (np.mgrid[0:H, 0:W][0] - y.mean()) * np.sin(a)
                + (np.mgrid[0:H, 0:W][1] - x.mean()) * np.cos(a)
            ) > rng.normal() * 2
            bad_i[m & side] = nxt
            nxt += 1
        elif u < 2 * bad:  # false merge with a touching same-class instance
            d = ndi.binary_dilation(m, iterations=2) & ~m & (gi > 0) & (gc == s.cls_of[n])
            if d.any():
                o = np.bincount(gi[d]).argmax()
                bad_i[m] = key[gi == o][0]
    E = np.zeros((len(dist), 2, H, W), np.float32)
    size = np.bincount(gi.ravel(), minlength=s.n + 1).astype(np.float32)
    ext = np.where(gi > 0, np.sqrt(size[gi]), 1e3)  # rough extent of the object under the pixel
    conf_f = smooth(rng, H, W, 10)  # shared confidence field
    for di, d in enumerate(dist):
        wd = wa * (1 if d == 1 else 1.3 if d == 4 else 2.0)
        ddy, ddx = (dy + wd * 0.6 * smooth(rng, H, W, 5), dx + wd * 0.6 * smooth(rng, H, W, 5))
        k0, kb = warp(key, ddy, ddx), warp(bad_i, ddy, ddx)
        mg = ma * (1.0, 0.95, 0.85, 0.75, 0.7, 0.65)[di]
        for dr in range(2):
            sl0 = (slice(None), slice(0, W - d)) if dr == 0 else (slice(0, H - d), slice(None))
            sl1 = (slice(None), slice(d, W)) if dr == 0 else (slice(d, H), slice(None))
            if d >= (W if dr == 0 else H):
                continue
            same = (k0[sl0] == k0[sl1]).astype(np.float32) * 0.35 + (kb[sl0] == kb[sl1]) * 0.65
            v = 2 * same - 1
            if d == 1:  # boundary response is blurred along the image
                v = np.minimum(1, ndi.gaussian_filter(v, 0.7) * 1.35)
            sm = np.minimum(1, np.minimum(ext[sl0], ext[sl1]) / (d + 2.0))
            lone = 0.35 + 0.65 * sm  # long range responses of small things are weak
            cf = np.clip(1 + 0.35 * (conf_f[sl0] + conf_f[sl1]) / 2, 0.2, 2)
            n_s = (
                sa
                * (
                    0.6 * smooth(rng, H, W, 2.5)
                    + 0.6 * smooth(rng, H, W, 9)
                    + 0.5 * smooth(rng, H, W, 30)
                )[sl0]
            )
            # positive long edges are common in wide stuff, negative ones certain far from home
            E[di, dr][sl0] = (
                mg * v * np.where(v > 0, lone, 1) * cf
                + n_s
                + 0.15 * mg
                + sap * rng.standard_normal(v.shape)
            )
    return dict(
        node_costs=np.ascontiguousarray(-z.reshape(K, -1).T),
        edge_costs=E,
        dist=np.array(dist, np.int32),
        partitionable=part,
        gt_class=gc.astype(np.int16),
        gt_inst=gi.astype(np.int32),
    )
