"""Depth maps of little scenes: two things before a camera, rendered from real meshes by PyBullet.

`examples/add_depth_modality.py` uses it. The set that ships was made by it, once:

    pip install pybullet
    python examples/depth_scenes.py registry/safe_framework_registry/data/depth
"""

import argparse
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

MESHES: Mapping[str, str] = {
    "ball": "soccerball.urdf",
    "car": "racecar/racecar.urdf",
    "duck": "duck_vhacd.urdf",
    "mug": "objects/mug.urdf",
    "robot": "r2d2.urdf",
    "table": "table_square/table_square.urdf",
}
"""What may be seen, and its model in the package `pybullet_data`."""

DISTANCES: Mapping[str, float] = {
    "one metre": 1.0,
    "two metres": 2.0,
    "three metres": 3.0,
}
NEAREST, HOW_FAR = "What is nearest?", "How far away is it?"
TRAIN, TEST = 14, 4  # scenes of each thing at each distance
WIDTH, FAR, VIEW = 112, 6.0, 50.0  # pixels, metres, degrees
SPREAD = 0.25  # metres by which a distance may differ from the one in the answer
BEHIND = 0.6  # metres by which the other thing is at least farther away
LARGEST = 0.8  # metres of a thing's longest side
LEAST = 60  # pixels of either thing that must be seen
MILLIMETRES = 8  # to which a depth is rounded


class Scene(NamedTuple):
    """One map, and what is true of it. A depth of 0 is nothing that was seen."""

    depth: np.ndarray  # (height, width), whole millimetres
    nearest: str
    distance: str
    seed: str


def scenes(split: str, count: int) -> Iterator[Scene]:
    """`count` scenes of each thing at each distance; no two splits share a scene."""
    import pybullet

    client = pybullet.connect(pybullet.DIRECT)
    try:
        things = {name: _Thing(pybullet, client, path) for name, path in MESHES.items()}
        for name in MESHES:
            for distance in DISTANCES:
                for number in range(count):
                    yield _scene(pybullet, client, things, (split, name, distance, str(number)))
    finally:
        pybullet.disconnect(client)


def _scene(p: Any, client: int, things: Mapping[str, "_Thing"], words: tuple[str, ...]) -> Scene:
    """Draw until the thing is seen, nearest, and as far away as it shall be."""
    _, name, distance, _ = words
    seed = ":".join(words)
    draw = np.random.default_rng(int(hashlib.sha256(seed.encode()).hexdigest()[:16], 16))
    others = [other for other in MESHES if other != name]
    while True:
        near = DISTANCES[distance] + draw.uniform(-SPREAD, SPREAD)
        far = near + draw.uniform(BEHIND, BEHIND + 1.5)
        other = others[draw.integers(len(others))]
        side = draw.choice([-1, 1])
        for thing in things.values():
            thing.stand(-20.0, 0.0, 0.0)  # behind the camera
        turns = draw.uniform(0, 2 * math.pi, 2)
        things[name].stand(near + LARGEST / 2, side * draw.uniform(0.0, 0.4), turns[0])
        things[other].stand(far + LARGEST / 2, -side * draw.uniform(0.3, 0.9), turns[1])
        depth, mask = _look(p, client, draw)
        seen = [depth[mask == things[which].body] for which in (name, other)]
        if min(map(len, seen)) < LEAST:
            continue
        first, second = (float(np.quantile(pixels, 0.02)) for pixels in seen)
        if abs(first - DISTANCES[distance]) <= SPREAD and second - first >= BEHIND:
            known = np.where(depth < FAR * 0.99, depth, 0.0)
            steps = np.rint(1000 * known / MILLIMETRES) * MILLIMETRES
            return Scene(steps.astype(np.uint16), name, distance, seed)


def _look(p: Any, client: int, draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Depth along the camera's axis in metres, and which body each pixel shows."""
    height, near = draw.uniform(0.7, 1.0), 0.05
    eye, target = [0, 0, height], [0, 2.0, draw.uniform(0.2, 0.5)]
    view = p.computeViewMatrix(eye, target, [0, 0, 1], physicsClientId=client)
    lens = p.computeProjectionMatrixFOV(VIEW, 1, near, FAR, physicsClientId=client)
    _, _, _, z, mask = p.getCameraImage(
        WIDTH, WIDTH, view, lens, renderer=p.ER_TINY_RENDERER, physicsClientId=client
    )
    z = np.reshape(z, (WIDTH, WIDTH)).astype(np.float64)
    return FAR * near / (FAR - (FAR - near) * z), np.reshape(mask, (WIDTH, WIDTH))


class _Thing:
    """A loaded model, scaled so that its longest side is `LARGEST`."""

    def __init__(self, p: Any, client: int, path: str) -> None:
        import pybullet_data

        self._p, self._client = p, client
        file = str(Path(pybullet_data.getDataPath(), path))
        unscaled = self._load(file, 1.0)
        low, high = self._box(unscaled)
        p.removeBody(unscaled, physicsClientId=client)
        self.body = self._load(file, LARGEST / float((high - low).max()))
        low, high = self._box(self.body)
        start, _ = p.getBasePositionAndOrientation(self.body, physicsClientId=client)
        self._centre = (low + high) / 2 - start  # metres from the body's own origin
        self._bottom = float(low[2] - start[2])

    def stand(self, forward: float, sideways: float, turn: float) -> None:
        """Put it on the ground, so many metres before the camera and to its right."""
        cosine, sine = math.cos(turn), math.sin(turn)
        x = sideways - cosine * self._centre[0] + sine * self._centre[1]
        y = forward - sine * self._centre[0] - cosine * self._centre[1]
        self._p.resetBasePositionAndOrientation(
            self.body,
            [x, y, -self._bottom],
            self._p.getQuaternionFromEuler([0, 0, turn]),
            physicsClientId=self._client,
        )

    def _load(self, file: str, scale: float) -> int:
        body: int = self._p.loadURDF(
            file, globalScaling=scale, useFixedBase=True, physicsClientId=self._client
        )
        return body

    def _box(self, body: int) -> tuple[np.ndarray, np.ndarray]:
        parts = range(-1, self._p.getNumJoints(body, physicsClientId=self._client))
        boxes = [self._p.getAABB(body, part, physicsClientId=self._client) for part in parts]
        return np.min([low for low, _ in boxes], 0), np.max([high for _, high in boxes], 0)


def write(folder: Path) -> None:
    """Write both splits: a map a scene, and two questions a map."""
    (folder / "maps").mkdir(parents=True, exist_ok=True)
    for split, count in {"train": TRAIN, "test": TEST}.items():
        rows = []
        for number, scene in enumerate(scenes(split, count)):
            file = f"maps/{split}-{number:03d}.npz"
            np.savez_compressed(folder / file, depth=scene.depth)
            asked = (("nearest", NEAREST, scene.nearest), ("distance", HOW_FAR, scene.distance))
            for kind, question, answer in asked:
                row = {"depth": file, "kind": kind, "question": question, "answer": answer}
                rows.append(row)
        text = "".join(f"{json.dumps(row)}\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(text, "utf-8")
        print(f"{split}: {len(rows)} questions about {len(rows) // 2} maps")


def main() -> None:
    """Read the command line and write the set."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="for train.jsonl, test.jsonl and maps/")
    write(parser.parse_args().folder)


if __name__ == "__main__":
    main()
