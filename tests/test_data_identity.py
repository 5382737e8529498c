"""The data are part of what a run is: other data under the same name are refused, and a line says what changed."""

import shutil

import numpy as np
import pytest

import sae
from sae import Arrays, Digits, ImagePatches, Orthonormal, Superposition, UserError
from sae.core.files import read_checked, write_checked
from sae.core.types import Interrupted
from sae.data.rows import table_fingerprint


def values(d=32, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(400, d)).astype(np.float32)


@pytest.fixture
def experiment(tiny, tmp_path):
    np.save(tmp_path / "x.npy", values())
    return sae.replace(tiny, {"data": Arrays(path=str(tmp_path / "x.npy"))})


def run(experiment, tmp_path, quiet, **options):
    return sae.run(experiment, out=tmp_path / "run", wandb="off", console=quiet, **options)


def changed(rows: np.ndarray, how: str) -> np.ndarray:
    return {
        "other columns": rows[:, :16],
        "more rows": np.concatenate([rows, rows]),
        "another type": rows.astype(np.float64),
        "other values": rows + 1,
        "the last row": np.concatenate([rows[:-1], rows[-1:] + 1]),
    }[how]


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("other columns", "training rows: was 360 x 32 float32, is 360 x 16 float32"),
        ("more rows", "training rows: was 360 x 32 float32, is 720 x 32 float32"),
        ("another type", "training rows: was 360 x 32 float32, is 360 x 32 float64"),
        ("other values", "sample of training rows: was "),
        ("the last row", "sample of held-out rows: was "),
    ],
)
def test_a_finished_run_is_not_finished_with_other_data(experiment, tmp_path, quiet, how, said):
    run(experiment, tmp_path, quiet)
    before = (tmp_path / "run/members.parquet").read_bytes()
    np.save(tmp_path / "x.npy", changed(values(), how))
    with pytest.raises(UserError, match="run: the data have changed since it began: ") as error:
        run(experiment, tmp_path, quiet)
    assert said in str(error.value) and "--fresh moves the run aside" in str(error.value)
    assert (tmp_path / "run/members.parquet").read_bytes() == before
    with pytest.raises(UserError, match="the data have changed"):  # the report and measures ask for the data like this
        sae.load(tmp_path / "run").data(0)
    np.save(tmp_path / "x.npy", values())
    assert run(experiment, tmp_path, quiet).finished and len(sae.load(tmp_path / "run").data(0).train) == 360


def test_fresh_is_the_way_out(experiment, tmp_path, quiet):
    first = run(experiment, tmp_path, quiet).members
    np.save(tmp_path / "x.npy", values(seed=1))
    second = run(experiment, tmp_path, quiet, fresh=True).members
    assert (tmp_path / "run.old-1").is_dir() and first["eval/fvu"][0] != second["eval/fvu"][0]


def test_a_stopped_run_does_not_go_on_with_other_data(experiment, tmp_path, quiet, monkeypatch):
    from sae.runner import training

    calls = []

    def stop_once(self, since_save):
        calls.append(since_save)
        return (2, True) if len(calls) == 3 else (0, False)

    monkeypatch.setattr(training.Work, "orders", stop_once)
    with pytest.raises(Interrupted):
        run(experiment, tmp_path, quiet, chunk_steps=10)
    np.save(tmp_path / "x.npy", values(seed=1))
    with pytest.raises(UserError, match="sample of training rows: was"):
        run(experiment, tmp_path, quiet, chunk_steps=10)
    np.save(tmp_path / "x.npy", values())
    assert run(experiment, tmp_path, quiet, chunk_steps=10).finished


def test_a_finished_run_may_have_lost_its_data(experiment, tmp_path, quiet):
    run(experiment, tmp_path, quiet)
    (tmp_path / "x.npy").unlink()
    assert run(experiment, tmp_path, quiet).finished
    assert "whether its data are still the same cannot be seen" in quiet.file.getvalue()


def test_a_run_older_than_fingerprints_is_read_as_before(experiment, tmp_path, quiet):
    run(experiment, tmp_path, quiet)
    path = tmp_path / "run/definition.json"
    definition = read_checked(path)
    assert definition.pop("data") == [{"member": 0, "fingerprint": experiment.data.fingerprint()}]
    write_checked(path, definition)
    assert run(experiment, tmp_path, quiet).finished and sae.load(tmp_path / "run").data(0).d_in == 32


@sae.definition
class Read:
    """A source of one's own that reads a file, without a word on what identifies it."""

    path: str = sae.static()

    def load(self):
        x = np.load(self.path)
        return sae.rows(x[:300], x[300:], "centre", "Read")


def test_a_source_of_ones_own_is_told_by_its_rows(tiny, experiment, tmp_path, quiet):
    own = sae.replace(tiny, {"data": Read(path=experiment.data.path)})
    run(own, tmp_path, quiet)
    np.save(tmp_path / "x.npy", values(seed=1))
    with pytest.raises(UserError, match="sample of training rows: was"):
        run(own, tmp_path, quiet)


def test_each_source_is_loaded_once(tiny, experiment, tmp_path, quiet, monkeypatch):
    calls = []
    load = Arrays.load
    monkeypatch.setattr(Arrays, "load", lambda self: calls.append(self) or load(self))
    run(experiment, tmp_path, quiet)
    assert len(calls) == 1
    own, read = sae.replace(experiment, {"data": Read(path=experiment.data.path)}), []
    load_own = type(own.data).load
    monkeypatch.setattr(type(own.data), "load", lambda self: read.append(self) or load_own(self))
    for _ in range(2):  # a source that says nothing of its data is loaded once more to see that they are the same
        sae.run(own, out=tmp_path / "own", wandb="off", console=quiet)
    assert len(read) == 2


def test_fingerprints_of_the_sources():
    assert Superposition().fingerprint() == Orthonormal().fingerprint() == {}
    assert Digits().fingerprint() == Digits(n_held_out=10).fingerprint() != {}  # its file; the definition says the rest
    assert ImagePatches().fingerprint()["images"] == "11"
    assert ImagePatches(colour=True).fingerprint()["images"] == "7"


def test_the_fingerprint_of_a_folder_of_images(tmp_path):
    from PIL import Image

    draw = lambda seed: np.random.default_rng(seed).integers(0, 255, (16, 16), np.uint8)
    for i in range(3):
        Image.fromarray(draw(i)).save(tmp_path / f"{i}.bmp")
    source = ImagePatches(folder=str(tmp_path))
    before = source.fingerprint()
    shutil.copytree(tmp_path, tmp_path.with_name("moved"))
    assert ImagePatches(folder=str(tmp_path.with_name("moved"))).fingerprint() == before
    Image.fromarray(draw(9)).save(tmp_path / "1.bmp")
    assert {name for name, value in source.fingerprint().items() if value != before[name]} == {"sample of images"}


def test_a_fingerprint_reads_few_rows():
    class Counted:
        shape, read = (10**9, 4), []

        def __len__(self):
            return self.shape[0]

        def __getitem__(self, index):
            self.read.append(index)
            return np.outer(index, np.ones(4, np.float32))

    table = Counted()
    found = table_fingerprint(table, "training")
    assert found["training rows"] == "1000000000 x 4 float64" and sum(map(len, table.read)) == 256
    assert table.read[0][0] == 0 and table.read[0][-1] == 10**9 - 1
