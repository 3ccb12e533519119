"""What simulators of driving and of a scene do that are told words, weather, boxes and maps; adds to `results.json`.

    python experiments/simulators/run.py CLAIM --runs runs/simulators

Claims train what they need in folders of ``--runs``, and go on where a training was stopped. Of `drive`:

    pose      open loop under true and shuffled actions: pictures, and where the car is in them
    boxes     agents where their boxes say, in clips from nothing
    weather   clips from nothing in all weathers at all hours, also those that no training episode had together
    cameras   what both cameras see, made together against made apart
    maps      video from segmentation
    edit      other weather over the same road, by how much noise is put on the clip
    shots     weather that switches in the middle of a dream
    policy    an actor that learns in the simulator against one that learns in the real world
    requests  a car that cuts in, a walker that crosses, both in fog, as boxes and weather ask for
    rare      labels of clear days alone, and the same clips made again in other weathers
    doubt     whether dreams differ more under actions that no training had

Of `scene`:

    text         clips from words, also words that no training episode had together
    scene_shots  words that switch in the middle of a dream
    loop         a camera turns away and back: the same view, the same spheres
    trace        paint stays where it was

Of `several`:

    one_for_all  a model of four worlds against a model of each

Figures are read from pictures by a judge that has learned on real ones (`judge.py`); what it reads from the real
pictures of the same episodes stands beside them.
"""

import argparse
import json
import pathlib

import numpy as np

from experiments.record import head, read, write
from experiments.runs import Runs
from experiments.simulators import driving, episodes, policies, scenes, together, uses

HERE = pathlib.Path(__file__).parent
RUNS = {
    "drive": ("diffusion_drive.yaml", "data_drive", []),
    "cameras": ("diffusion_cameras.yaml", "data_cameras", []),
    "scene": ("diffusion_scene.yaml", "data_scene", []),
    **together.table(),
}
CLAIMS = {**driving.CLAIMS, **policies.CLAIMS, **uses.CLAIMS, **scenes.CLAIMS, **together.CLAIMS}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("claim", choices=CLAIMS)
    parser.add_argument("--runs", type=pathlib.Path, required=True, help="for the run folders, outside the work tree")
    arguments = parser.parse_args()
    runs = SimulatorRuns(arguments.runs, RUNS)
    result = {"runs": runs.facts, **rounded(CLAIMS[arguments.claim](runs))}
    about = head(f"python experiments/simulators/run.py {arguments.claim}", seed=0)
    path = HERE / "results.json"
    write(path, {**read(path), arguments.claim: {**result, **about}})
    print(json.dumps(result, indent=1))


class SimulatorRuns(Runs):
    """`Runs` that learn from episodes without what is to be kept from them; see `episodes.py`."""

    def __call__(self, name, *overrides, title=None):
        """See `Runs`."""
        settings = self.config(name, *overrides).data
        path = pathlib.Path(settings.path)
        if settings.generate.world.name in episodes.WORLDS and not path.exists():
            episodes.write(path, settings.generate)
        return super().__call__(name, *overrides, title=title)


def rounded(values):
    """Numbers and arrays of a tree as floats of three digits."""
    if isinstance(values, dict):
        return {name: rounded(value) for name, value in values.items()}
    if isinstance(values, str | int):
        return values
    return [round(float(x), 3) for x in values] if np.ndim(values) else round(float(values), 3)


if __name__ == "__main__":
    main()
