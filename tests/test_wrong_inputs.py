"""What a person gets to read after a mistake: one line that says what came and what was expected, and status 2."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import yaml
from toy_family import toy_values

from jaxwm import cli

TRAIN = "train good.yaml --run new"

MISTAKES = {
    # -------------------------------------------------------------------------------------------- command line
    "no such command": ("trian good.yaml", "No such command 'trian'. Did you mean 'train'? (see jaxwm --help)"),
    "no such option": ("imagine toy --horizn 5", "No such option: --horizn"),
    "missing argument": ("train", "Missing argument"),
    "not a number": ("imagine toy --horizon far", "Invalid value for '--horizon'"),
    "out of range": ("evaluate toy --episodes 0", "Invalid value for '--episodes'"),
    "no such choice": ("evaluate toy --estimate median", "Invalid value for '--estimate'"),
    "no such platform": ("export toy --platform abacus", "Invalid value for '--platform'"),
    # ------------------------------------------------------------------------------------------- configuration
    "no such file": ("train nowhere.yaml", "nowhere.yaml: cannot read this configuration (No such file or directory)"),
    "a folder": ("train toy", "toy: cannot read this configuration (Is a directory)"),
    "not YAML": ("train broken.yaml", "broken.yaml: not valid YAML"),
    "not text": ("train binary.yaml", "binary.yaml: not a text file"),
    "not a mapping": ("train list.yaml", "list.yaml: expected a mapping with the keys seed, model, data, stages"),
    "unknown section": (
        f"{TRAIN} trainning.keep=1",
        "trainning={'keep': 1} is an unknown key; did you mean 'training'?",
    ),
    "unknown key": (f"{TRAIN} model.fad=1.0", "model.fad=1.0 is an unknown key; did you mean 'fade'?"),
    "wrong type": (f"{TRAIN} data.batch=many", "data.batch='many': input should be a valid integer"),
    "impossible value": (f"{TRAIN} data.length=1", "data.length=1: input should be greater than or equal to 2"),
    "negative": (f"{TRAIN} model.fade=-1.0", "model.fade=-1.0: input should be greater than 0"),
    "no such family": (f"{TRAIN} model.family=toi", "model.family: 'toi' is unknown; did you mean 'toy'?"),
    "no such world": (
        f"{TRAIN} data.generate.world.name=bonce",
        "data.generate.world.name: 'bonce' is unknown; did you mean 'bounce'?",
    ),
    "no such stage": (f"{TRAIN} stages.trane.steps=3", "stages.trane: toy has no such stage; did you mean 'train'?"),
    "no such optimiser": (f"{TRAIN} stages.train.optimizer.name=sgd", "stages.train.optimizer.name='sgd'"),
    "not an override": (f"{TRAIN} model.fade", "'model.fade': an override has the form section.key=value"),
    "override through a value": (f"{TRAIN} data.batch.x=1", "data.batch.x: batch is the value 4, not a section"),
    "impossible world": (
        f"{TRAIN} data.generate.world.balls=40",
        "data.generate.world.balls=40: input should be less",
    ),
    # -------------------------------------------------------------------------------------------------- episodes
    "no episodes": (f"{TRAIN} data.generate=null", "data.path: there are no episodes in nothing-here"),
    "episodes made otherwise": (
        f"{TRAIN} data.path=data data.generate.world.size=32",
        "data: these data were generated differently: world.size is 16 in the data, 32 in the configuration",
    ),
    "episodes of another version": ("evaluate toy --data future", "future/spec.json: format version 99 is unknown"),
    "damaged spec": ("evaluate toy --data damaged", "damaged/spec.json: cannot read this file"),
    "no such folder": ("evaluate toy --data nodata", "nodata: there are no episodes here (no spec.json)"),
    "no such split": ("evaluate toy --data data --split valid", "data: there is no split 'valid'; known: test, train"),
    "episodes of another world": (
        "imagine toy --data small",
        "small: these episodes have image uint8[12, 12, 3] and 2 actions",
    ),
    "no such episode": ("imagine toy --start 6", "episodes 6..6: test has the episodes 0..5"),
    "too long a horizon": (
        "evaluate toy --horizon 10",
        "horizon is 10, but the longest of these episodes has 12 steps",
    ),
    "too long a dream": (
        "imagine toy --horizon 10",
        "horizon is 10, but only 9 recorded actions follow a context of 3",
    ),
    "no such world to generate": ("data generate bonce --out d", "there is no world 'bonce'; did you mean 'bounce'?"),
    "no such parameter": ("data generate bounce --out d world.bals=2", "bounce.bals is no parameter of this world"),
    "too full a box": ("data generate bounce --out d world.radius=[0.6,0.6]", "bounce.radius is (0.6, 0.6)"),
    "no such policy": ("data generate bounce --out d --policy clever", "policy 'clever' is unknown"),
    "a taken folder": ("data generate bounce --out data --train 1 --test 1", "data: there is something already"),
    "nothing to inspect": ("data inspect nodata", "nodata: there are no episodes here (no spec.json)"),
    "nothing to import": ("data import nodata --out d", "nodata"),
    "no such data command": ("data generat", "No such command 'generat'. Did you mean 'generate'?"),
    # ------------------------------------------------------------------------------------------------------ runs
    "no such run": ("evaluate toi", "toi: there is no such run; did you mean 'toy'?"),
    "not a run": ("report data", "data: there is no run in this folder (no format.json)"),
    "run of another version": ("imagine later", "later: this run has format 99, this version of jaxwm reads format 1"),
    "no such checkpoint": ("evaluate toy --step 77", "toy: there is no checkpoint 77; there are 0 and 'best'"),
    "not a checkpoint": ("evaluate toy --step latest", "--step is 'latest', expected a number or 'best'"),
    "no checkpoint at all": ("imagine hollow", "hollow: this run has no checkpoint yet"),
    "damaged checkpoint": ("imagine torn", "torn: checkpoint 0 cannot be read"),
    "damaged description": ("imagine scratched", "scratched/spec.json: not valid JSON"),
    "another run in the folder": (
        "train good.yaml --run toy model.fade=0.5",
        "toy was begun with another configuration: model.fade: checkpoint 0.9, now 0.5",
    ),
    "overrides of a run": (
        "bench toy data.batch=2",
        "data.batch=2: overrides need a configuration file, toy is a run",
    ),
    # ------------------------------------------------------------------------------------------ actions and files
    "no such actions": ("imagine toy --actions randm", "did you mean 'random'?"),
    "no such action file": ("imagine toy --actions none.csv", "none.csv: cannot read these actions"),
    "actions of another shape": (
        "imagine toy --actions wide.npy",
        "wide.npy: actions have the shape [4, 3], expected [T, 2]",
    ),
    "actions out of bounds": (
        "imagine toy --actions far.npy",
        "far.npy: the action of step 0, [9.0, 9.0], is not within",
    ),
    "actions that are objects": ("imagine toy --actions object.npy", "object.npy: not a table of numbers"),
    "too few actions": ("imagine toy --actions push.npy --horizon 9", "horizon is 9, but push.npy has only 4 actions"),
    "unknown suffix": ("imagine toy --out dream.avi", "--out dream.avi: .avi is not one of .gif, .mp4, .png, .npz"),
    "no suffix": ("imagine toy --out dream", "--out dream: no suffix is not one of"),
    "sheet as video": ("imagine toy --sheet sheet.gif", "--sheet sheet.gif: .gif is not one of .png, .jpg, .webp"),
    "folder that is a file": ("imagine toy --out good.yaml/dream.gif", "good.yaml/dream.gif: cannot make its folder"),
    "negative temperature": ("imagine toy --temperature -1", "temperature is -1.0, expected at least 0"),
    "samples of a mode": ("evaluate toy --samples 4", "samples is 4, expected 1, a mode is one"),
    "report as PDF": ("report toy --out page.pdf", "page.pdf: a report is an .html file"),
}


@pytest.fixture(scope="module")
def desk(tmp_path_factory, toy_run_dir):
    """A folder with good and bad files of every kind."""
    from jaxwm import data
    from jaxwm.worlds import Bounce

    path = tmp_path_factory.mktemp("desk")
    values = toy_values("nothing-here")
    (path / "good.yaml").write_text(yaml.safe_dump(values))
    (path / "broken.yaml").write_text("model: {family: toy")
    (path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    (path / "list.yaml").write_text("[1, 2]")
    data.generate_dataset(path / "data", Bounce(size=16), train=8, test=6, length=12)
    small = data.Episode(
        observation={"image": np.zeros((12, 12, 12, 3), np.uint8)},
        action=np.zeros((12, 2), np.float32),
        reward=np.zeros(12, np.float32),
        **data.step_flags(12),
    )
    data.write_episodes(path / "small", Bounce(size=12).spec, {"train": [small], "test": [small]}, "small")
    shutil.copytree(path / "data", path / "future")
    header = json.loads((path / "future" / "spec.json").read_text())
    (path / "future" / "spec.json").write_text(json.dumps({**header, "version": 99}))
    shutil.copytree(path / "data", path / "damaged")
    (path / "damaged" / "spec.json").write_text('{"version": 1, ')
    for name in ("toy", "later", "hollow", "torn", "scratched"):
        shutil.copytree(toy_run_dir, path / name)
        config = yaml.safe_load((path / name / "config.yaml").read_text())
        config["data"]["path"] = "nothing-here"
        (path / name / "config.yaml").write_text(yaml.safe_dump(config))
    (path / "later" / "format.json").write_text('{"format": 99}')
    shutil.rmtree(path / "hollow" / "checkpoints")
    for file in (path / "torn" / "checkpoints").rglob("*"):
        if file.is_file() and "commit" not in file.name and file.parent.name != "0":
            file.write_bytes(b"")
    (path / "scratched" / "spec.json").write_text("{")
    np.save(path / "push.npy", np.zeros((4, 2)))
    np.save(path / "wide.npy", np.zeros((4, 3)))
    np.save(path / "far.npy", np.full((4, 2), 9.0))
    np.save(path / "object.npy", np.array([{}]), allow_pickle=True)
    return path


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_status_2(mistake, desk, monkeypatch, capsys):
    command, expected = MISTAKES[mistake]
    monkeypatch.chdir(desk)
    before = files(desk)
    status = cli.main(command.split())
    captured = capsys.readouterr()
    assert status == 2, captured.err
    # A command that had begun may have said so; what went wrong is the last line, and only that.
    *before_it, line = captured.err.splitlines()
    assert line.startswith("jaxwm: ") and not any(other.startswith("jaxwm: ") for other in before_it)
    assert "Traceback" not in captured.err
    assert expected in line and len(line) < 1000
    assert files(desk) == before, "a mistake leaves no files behind"


def files(folder):
    """All files but the description of the new run, which may stand there before its data are looked at."""
    return sorted(path for path in folder.rglob("*") if folder / "new" not in (path, *path.parents))
