"""Arrays of the user's own: what comes in comes out, nothing is read before it is asked for, errors name the fix."""

import dataclasses
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from sae.core.types import UserError
from sae.data.arrays import Arrays
from sae.data.formats import Shards
from sae.data.rows import _pieces

N, D = 50, 6


def values(dtype=np.float32, shape=(N, D)) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 20, shape).astype(dtype)


def write_safetensors(path: Path, entry: dict, data: bytes) -> None:
    """By hand, for what the library does not write: bfloat16, and headers that lie."""
    header = json.dumps({"x": entry}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)


def write_shards(folder: Path, shards: list[np.ndarray]) -> str:
    folder.mkdir()
    for i, shard in enumerate(shards):
        np.save(folder / f"shard_{i}.npy", shard)
    return str(folder)


def message(source: Arrays) -> str:
    with pytest.raises(UserError) as caught:
        source.load()
    text = str(caught.value)
    assert "\n" not in text and len(text) < 400
    return text


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8", "uint16", "int64", ">f4"])
@pytest.mark.parametrize("form", ["npy", "npz", "safetensors", "folder"])
def test_values_round_trip(tmp_path, form, dtype):
    x = values(np.uint16 if dtype == "uint16" else np.int8 if dtype == "int8" else np.float64).astype(dtype)
    path = str(tmp_path / f"x.{form}")
    if form == "npy":
        np.save(path, x)
    elif form == "npz":
        np.savez(path, x)
    elif form == "safetensors":
        if dtype == ">f4":
            pytest.skip("the format is little-endian")
        safetensors.numpy.save_file({"x": x}, path)
    else:
        write_shards(Path(path), [x[:7], x[7:40], x[40:]])
    rows = Arrays(path=path, normalize="none").load()
    assert rows.d_in == D and rows.train.shape == (45, D) and rows.held_out.shape == (5, D)
    assert rows.train.dtype == rows.held_out.dtype == x.dtype  # not converted before it is used
    np.testing.assert_array_equal(rows.examples(rows.train[:]), x[:45].astype(np.float32))
    np.testing.assert_array_equal(rows.examples(rows.held_out[:]), x[45:].astype(np.float32))  # the tail, in order
    np.testing.assert_allclose(rows.mean, x[:45].mean(0, dtype=np.float64), rtol=1e-6, atol=1e-6)


def test_bfloat16_safetensors(tmp_path):
    x = values(ml_dtypes.bfloat16)
    entry = {"dtype": "BF16", "shape": [N, D], "data_offsets": [0, x.nbytes]}
    write_safetensors(tmp_path / "x.safetensors", entry, x.tobytes())
    rows = Arrays(path=str(tmp_path / "x.safetensors"), normalize="none").load()
    assert rows.train.dtype == ml_dtypes.bfloat16 and isinstance(rows.train, np.memmap)
    np.testing.assert_array_equal(rows.examples(rows.train[:]), x[:45].astype(np.float32))


def test_one_of_several_tensors_is_read_at_its_offset(tmp_path):
    tensors = {"odd": np.arange(3, dtype=np.uint8), "a": values(), "b": values() + 1}  # a and b are not aligned
    safetensors.numpy.save_file(tensors, str(tmp_path / "x.safetensors"), metadata={"made": "here"})
    np.savez(tmp_path / "x.npz", **tensors)
    for suffix in ("safetensors", "npz"):
        for key in ("a", "b"):
            rows = Arrays(path=str(tmp_path / f"x.{suffix}"), key=key, normalize="none").load()
            np.testing.assert_array_equal(rows.train[:], tensors[key][:45])


@pytest.mark.parametrize("several", [False, True])
def test_folders_of_safetensors(tmp_path, several):
    """Shards of bfloat16 with one tensor each, or with two of which one is asked for; leading axes become rows."""
    x = values(ml_dtypes.bfloat16, (7, 10, D))
    for i, part in enumerate((x[:2], x[2:3], x[3:])):
        header = {"acts": {"dtype": "BF16", "shape": part.shape, "data_offsets": [0, part.nbytes]}}
        if several:
            header["tokens"] = {"dtype": "U8", "shape": [7], "data_offsets": [part.nbytes, part.nbytes + 7]}
        head = json.dumps(header).encode()
        data = len(head).to_bytes(8, "little") + head + part.tobytes() + bytes(7 * several)
        (tmp_path / f"{i}.safetensors").write_bytes(data)
    if several:
        assert "0.safetensors: holds 2 arrays; set key to one of: acts, tokens" in message(Arrays(path=str(tmp_path)))
    rows = Arrays(path=str(tmp_path), key="acts" if several else None, normalize="none").load()
    assert rows.train.dtype == ml_dtypes.bfloat16 and rows.train.shape == (63, D)
    np.testing.assert_array_equal(rows.examples(rows.train[:]), x.reshape(-1, D)[:63].astype(np.float32))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int64"])
def test_tensors_of_torch(tmp_path, dtype):
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(values(shape=(7, 10, D))).to(getattr(torch, dtype)).requires_grad_("float" in dtype)
    torch.save(x, tmp_path / "x.pt")
    torch.save({"acts": x, "tokens": torch.arange(7)}, tmp_path / "named.pt")
    (tmp_path / "shards").mkdir()
    for i, part in enumerate((x[:2], x[2:3], x[3:])):
        torch.save(part.clone(), tmp_path / "shards" / f"{i}.pt")
    for name, key in (("x.pt", None), ("named.pt", "acts"), ("shards", None)):
        rows = Arrays(path=str(tmp_path / name), key=key, normalize="none").load()
        assert rows.train.dtype.name == dtype and rows.train.shape == (63, D)
        np.testing.assert_array_equal(rows.examples(rows.train[:]), x.detach().float().numpy().reshape(-1, D)[:63])


@pytest.mark.parametrize("form", ["npy", "safetensors", "folder"])
def test_leading_axes_become_rows_without_a_copy(tmp_path, form):
    x = values(shape=(5, 10, D))
    path = str(tmp_path / f"x.{form}")
    if form == "npy":
        np.save(path, x)
    elif form == "safetensors":
        safetensors.numpy.save_file({"x": x}, path)
    else:
        write_shards(Path(path), [x[:2], x[2:]])
    rows = Arrays(path=path, normalize="none").load()
    np.testing.assert_array_equal(rows.train[:], x.reshape(N, D)[:45])
    if form != "folder":
        assert isinstance(rows.train, np.memmap) and not rows.train.flags.owndata


def test_matrices_in_fortran_order_are_read_right(tmp_path):
    np.save(tmp_path / "x.npy", np.asfortranarray(values()))
    rows = Arrays(path=str(tmp_path / "x.npy"), normalize="none").load()
    np.testing.assert_array_equal(rows.train[:], values()[:45])


def test_held_out_rows(tmp_path):
    np.save(tmp_path / "train.npy", values())
    np.save(tmp_path / "test.npy", values()[:9] + 1)
    path = str(tmp_path / "train.npy")
    rows = Arrays(path=path, held_out_path=str(tmp_path / "test.npy")).load()
    assert rows.train.shape == (N, D)
    np.testing.assert_array_equal(rows.held_out[:], values()[:9] + 1)
    rows = Arrays(path=path, held_out_fraction=0.5).load()
    assert len(rows.train) == len(rows.held_out) == 25
    assert len(Arrays(path=path, held_out_fraction=0.0001).load().held_out) == 1  # never none


def test_normalize(tmp_path):
    np.save(tmp_path / "x.npy", values() + 30)
    path = str(tmp_path / "x.npy")
    centred = Arrays(path=path).load()  # the default
    np.testing.assert_allclose(centred.examples(centred.train[:]).mean(0), np.zeros(D), atol=1e-4)
    np.testing.assert_array_equal(centred.mean, np.zeros(D, np.float32))
    unit = Arrays(path=path, normalize="unit-mean-norm").load()
    assert np.linalg.norm(unit.examples(unit.train[:]), axis=1).mean() == pytest.approx(1, rel=1e-6)


def test_shards_index_like_one_array(tmp_path):
    x = values(shape=(40, 3))
    write_shards(tmp_path / "s", [x[:1], x[1:20], x[20:27], x[27:]])
    shards = Shards([tmp_path / "s" / f"shard_{i}.npy" for i in range(4)])
    assert shards.shape == (40, 3) and len(shards) == 40 and shards.dtype == np.float32
    rng = np.random.default_rng(1)
    for part, whole in [(shards, x), (shards.part(5, 30), x[5:30]), (shards.part(5, 30).part(3, 20), x[8:25])]:
        n = len(whole)
        assert part.shape == whole.shape
        for index in [
            slice(None), slice(2, 9), slice(-4, None), slice(None, None, -3), slice(9, 2), rng.integers(-n, n, 200),
            np.arange(n)[::-1], np.array([], int), np.array([0, 0, n - 1, 0]), np.array([3], np.int32), [4, 1],
        ]:  # fmt: skip
            np.testing.assert_array_equal(part[index], whole[index])
        for outside in (n, -n - 1):
            with pytest.raises(IndexError, match=str(n - 1)):
                part[np.array([0, outside])]
    for wrong in (3, np.array([0.5]), np.zeros(40, bool)):
        with pytest.raises(TypeError):
            shards[wrong]


def test_shards_are_in_the_order_of_the_numbers_in_their_names(tmp_path):
    path = write_shards(tmp_path / "s", [np.full((2, 3), i) for i in range(11)])
    rows = Arrays(path=path, normalize="none", held_out_fraction=0.01).load()
    np.testing.assert_array_equal(rows.train[:][:, 0], np.arange(22)[:-1] // 2)


def test_pieces_of_wide_rows_stay_small():
    wide = np.broadcast_to(np.float32(1), (100_000, 4096))  # 1.6 GB of float32, were it stored
    start, piece = next(iter(_pieces(wide)))
    assert start == 0 and piece.nbytes <= 2**26
    narrow = np.arange(20.0).reshape(10, 2)
    pieces = list(_pieces(narrow, n_bytes=25))
    assert [start for start, _ in pieces] == [0, 3, 6, 9]
    np.testing.assert_array_equal(np.concatenate([piece for _, piece in pieces]), narrow)
    assert len(list(_pieces(narrow, n_bytes=1))) == 10  # one row at least


# RLIMIT_DATA bounds what the process allocates, and not the pages of mapped files, which the system takes back when
# memory is short: so these limits hold for real, whatever memory the machine has.
LIMITED = """
import resource, sys
import numpy as np
from sae.data.arrays import Arrays, _open

path, more = sys.argv[1], int(sys.argv[2])
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
limit = int(status["VmData"].split()[0]) * 1024 + more
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
try:
    np.ones(more // 4)  # twice as much
    sys.exit("no limit holds here")
except MemoryError:
    pass

"""


def limited(body: str, path: str, more: int) -> str:
    env = os.environ | {"OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    code = LIMITED + textwrap.dedent(body)
    done = subprocess.run([sys.executable, "-c", code, path, str(more)], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA covers allocations on Linux only")
def test_arrays_far_larger_than_memory_open_and_index(tmp_path):
    """64 GB, sparse on disk, in a process that may allocate 0.5 GB more."""
    n, d_in = 4_000_000, 4096
    tail = np.arange(d_in, dtype=np.float32)
    np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, (n, d_in))[-1] = tail
    entry = {"dtype": "F32", "shape": [n, d_in], "data_offsets": [0, n * d_in * 4]}
    write_safetensors(tmp_path / "x.safetensors", entry, b"")
    with open(tmp_path / "x.safetensors", "r+b") as file:
        file.seek((n - 1) * d_in * 4, os.SEEK_END)
        file.write(tail.tobytes())
    (tmp_path / "shards").mkdir()
    for i in range(4):
        np.lib.format.open_memmap(tmp_path / "shards" / f"{i}.npy", "w+", np.float32, (n // 4, d_in))[-1] = tail
    body = """
    for name in ("x.npy", "x.safetensors", "shards"):
        array = _open(f"{path}/{name}", None)
        rows = array[np.array([len(array) - 1, 0, len(array) // 2])]
        print(array.shape, (rows[0] == np.arange(array.shape[1])).all(), rows[1].any(), rows[2].any())
    """
    assert limited(body, str(tmp_path), 2**29) == f"({n}, {d_in}) True False False\n" * 3


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA covers allocations on Linux only")
def test_load_needs_less_memory_than_the_data(tmp_path):
    """512 MiB of wide rows are measured in a process that may allocate 384 MiB more."""
    array = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float16, (65_536, 4096))
    array[0], array[-1] = 1, 2
    del array
    body = """
    rows = Arrays(path=path).load()
    first = rows.normalization.shift[0]
    print(len(rows.train), rows.held_out[-1][0], rows.mean.max(), round(float(first * len(rows.train)), 3))
    """
    assert limited(body, str(tmp_path / "x.npy"), 384 * 2**20) == "58982 2.0 0.0 1.0\n"


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/fd")
def test_more_shards_than_file_descriptors(tmp_path):
    path = write_shards(tmp_path / "s", [np.full((1, 2), i, np.float32) for i in range(400)])
    body = """
    resource.setrlimit(resource.RLIMIT_NOFILE, (MOST, MOST))
    every = [Arrays(path=path, normalize="none", held_out_fraction=0.1).load() for _ in range(4)]
    for rows in every:
        print((rows.train[np.arange(359, -1, -1)][:, 0] == np.arange(359, -1, -1)).all())
    more = [open(path + "/shard_0.npy") for _ in range(MOST // 2 - 20)]  # as many are left for all else
    """
    for limit in (256, 1024):
        assert limited(body.replace("MOST", str(limit)), path, 2**30) == "True\n" * 4


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/fd")
def test_where_no_file_can_be_opened_the_limit_is_named(tmp_path):
    np.save(tmp_path / "x.npy", values())
    body = """
    from sae.core.types import UserError
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    kept = []
    try:
        while True:
            kept.append(open("/dev/null"))
    except OSError:
        pass
    try:
        _open(path, None)
    except UserError as error:
        kept.clear()
        print(error)
    """
    path = str(tmp_path / "x.npy")
    said = f"{path}: this process may have 64 files open, and has; raise the limit first: ulimit -n 256\n"
    assert limited(body, path, 2**30) == said


def test_loading_twice_is_the_same(tmp_path):
    path = write_shards(tmp_path / "s", [values(), values() + 1])
    a, b = Arrays(path=path).load(), Arrays(path=path).load()
    for one, other in ((a.normalization.shift, b.normalization.shift), (a.mean, b.mean)):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(a.train[:], b.train[:])


def test_is_a_static_definition():
    source = Arrays(path="x.npy")
    assert jax.tree.leaves(source) == [] and hash(source) == hash(Arrays(path="x.npy"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        source.path = "y.npy"


class TestErrors:
    def test_no_such_file(self, tmp_path):
        np.save(tmp_path / "acts_layer3.npy", values())
        assert "close names: acts_layer3.npy" in message(Arrays(path=str(tmp_path / "acts_layer4.npy")))
        assert "nothing is in" in message(Arrays(path=str(tmp_path / "no" / "x.npy")))

    def test_suffix(self, tmp_path):
        (tmp_path / "x.csv").write_text("1,2")
        text = message(Arrays(path=str(tmp_path / "x.csv")))
        assert "got .csv" in text and ".npy, .npz, .safetensors, .pt or a folder" in text

    def test_empty_folder(self, tmp_path):
        assert "without .npy, .safetensors, .pt files" in message(Arrays(path=str(tmp_path)))

    @pytest.mark.parametrize("keep", [0, 5, 60, 500])
    @pytest.mark.parametrize("suffix", ["npy", "npz", "safetensors"])
    def test_truncated(self, tmp_path, suffix, keep):
        path = tmp_path / f"x.{suffix}"
        if suffix == "npy":
            np.save(path, values())
        elif suffix == "npz":
            np.savez(path, values())
        else:
            safetensors.numpy.save_file({"x": values()}, str(path))
        path.write_bytes(path.read_bytes()[:keep])
        assert f"not a whole .{suffix} file" in message(Arrays(path=str(path)))

    @pytest.mark.parametrize("suffix", ["npy", "npz", "safetensors"])
    def test_other_contents(self, tmp_path, suffix):
        path = tmp_path / f"x.{suffix}"
        path.write_bytes(b"PK\x03\x04 or nothing of the kind" * 10)
        assert f"not a whole .{suffix} file" in message(Arrays(path=str(path)))

    def test_pickles_are_refused(self, tmp_path):
        class Bomb:
            def __reduce__(self):
                return os.mkdir, (str(tmp_path / "ran"),)

        objects = np.array([[Bomb(), 1]], dtype=object)
        np.save(tmp_path / "x.npy", objects, allow_pickle=True)
        np.savez(tmp_path / "x.npz", objects, allow_pickle=True)
        for suffix in ("npy", "npz"):
            assert "file of numbers" in message(Arrays(path=str(tmp_path / f"x.{suffix}")))
        assert not (tmp_path / "ran").exists()

    @pytest.mark.parametrize("array", [np.full((4, 2), "a"), np.ones((4, 2), complex), np.zeros((4, 2), "M8[s]")])
    def test_dtype(self, tmp_path, array):
        np.save(tmp_path / "x.npy", array)
        assert "allowed: real numbers" in message(Arrays(path=str(tmp_path / "x.npy")))

    def test_bfloat16_in_npy(self, tmp_path):
        np.save(tmp_path / "x.npy", values(ml_dtypes.bfloat16))
        assert "bfloat16 needs .safetensors" in message(Arrays(path=str(tmp_path / "x.npy")))

    def test_float8(self, tmp_path):
        entry = {"dtype": "F8_E4M3", "shape": [2, 2], "data_offsets": [0, 4]}
        write_safetensors(tmp_path / "x.safetensors", entry, bytes(4))
        assert "x is F8_E4M3; allowed: F64, F32" in message(Arrays(path=str(tmp_path / "x.safetensors")))

    @pytest.mark.parametrize("shape", [(), (5,), (0, 3), (3, 0), (2, 0, 3)])
    @pytest.mark.parametrize("suffix", ["npy", "safetensors"])
    def test_shape(self, tmp_path, shape, suffix):
        path = tmp_path / f"x.{suffix}"
        if suffix == "npy":
            np.save(path, np.ones(shape))
        else:
            safetensors.numpy.save_file({"x": np.ones(shape)}, str(path))
        assert f"shape {list(shape)}, allowed: [..., n >= 1, d_in >= 1]" in message(Arrays(path=str(path)))

    def test_fortran_order_of_three_axes(self, tmp_path):
        np.save(tmp_path / "x.npy", np.asfortranarray(values(shape=(5, 10, D))))
        assert "np.ascontiguousarray" in message(Arrays(path=str(tmp_path / "x.npy")))

    def test_key(self, tmp_path):
        arrays = {"layer_3": values(), "layer_4": values()}
        np.savez(tmp_path / "x.npz", **arrays)
        safetensors.numpy.save_file(arrays, str(tmp_path / "x.safetensors"))
        np.save(tmp_path / "x.npy", values())
        for suffix in ("npz", "safetensors"):
            path = str(tmp_path / f"x.{suffix}")
            assert "holds 2 arrays; set key to one of: layer_3, layer_4" in message(Arrays(path=path))
            assert "close names: layer_4, layer_3" in message(Arrays(path=path, key="layer4"))
        for path in (str(tmp_path / "x.npy"), write_shards(tmp_path / "s", [values()])):
            assert "key: got 'a', but there are no names in it" in message(Arrays(path=path, key="a"))

    def test_a_folder_of_two_kinds(self, tmp_path):
        path = write_shards(tmp_path / "s", [values()])
        safetensors.numpy.save_file({"x": values()}, f"{path}/shard_1.safetensors")
        assert "a folder of .npy and .safetensors files; allowed: shards of one kind" in message(Arrays(path=path))

    def test_a_shard_without_the_key(self, tmp_path):
        for i, name in enumerate(("layer_3", "layer_4")):
            safetensors.numpy.save_file({name: values()}, str(tmp_path / f"{i}.safetensors"))
        text = message(Arrays(path=str(tmp_path), key="layer_3"))
        assert "1.safetensors: key: got 'layer_3'; close names: layer_4" in text

    def test_pt_without_torch(self, tmp_path, monkeypatch):
        (tmp_path / "x.pt").write_bytes(b"PK")
        monkeypatch.setitem(sys.modules, "torch", None)
        text = message(Arrays(path=str(tmp_path / "x.pt")))
        assert "x.pt: .pt files need PyTorch; pip install -e '.[torch]', or save as .safetensors" in text

    def test_pt_that_is_none_and_pickles_in_it(self, tmp_path):
        torch = pytest.importorskip("torch")
        (tmp_path / "x.pt").write_bytes(b"PK\x03\x04 or nothing of the kind" * 10)
        assert "not a whole .pt file of tensors" in message(Arrays(path=str(tmp_path / "x.pt")))

        class Bomb:
            def __reduce__(self):
                return os.mkdir, (str(tmp_path / "ran"),)

        torch.save(Bomb(), tmp_path / "bomb.pt")
        assert "not a whole .pt file of tensors" in message(Arrays(path=str(tmp_path / "bomb.pt")))
        assert not (tmp_path / "ran").exists()
        torch.save({"a": torch.ones(3, 2), "b": torch.ones(3, 2), "layer": 3}, tmp_path / "two.pt")
        assert "holds 2 arrays; set key to one of: a, b" in message(Arrays(path=str(tmp_path / "two.pt")))
        torch.save([torch.ones(3, 2)], tmp_path / "list.pt")
        assert "holds list; allowed: a dense tensor" in message(Arrays(path=str(tmp_path / "list.pt")))
        torch.save(torch.ones(3, 2), tmp_path / "one.pt")
        assert "key: got 'a', but there are no names" in message(Arrays(path=str(tmp_path / "one.pt"), key="a"))

    @pytest.mark.parametrize(
        "entry",
        [
            {"dtype": "F32", "shape": [4, 2], "data_offsets": [0, 31]},
            {"dtype": "F32", "shape": [4, 2], "data_offsets": [8, 40]},
            {"dtype": "F32", "shape": [4, 2], "data_offsets": [-32, 0]},
            {"dtype": "F32", "shape": [-4, -2], "data_offsets": [0, 32]},
            {"dtype": "F32", "shape": "4", "data_offsets": [0, 32]},
            {"dtype": "F32", "shape": [4, 2]},
            [],
        ],
    )
    def test_safetensors_header_that_lies(self, tmp_path, entry):
        write_safetensors(tmp_path / "x.safetensors", entry, bytes(32))
        assert "not a whole .safetensors file" in message(Arrays(path=str(tmp_path / "x.safetensors")))

    def test_shards_that_differ(self, tmp_path):
        assert "shard_1.npy: float32 with 5 columns, where shard_0.npy is float32 with 6" in message(
            Arrays(path=write_shards(tmp_path / "a", [values(), values()[:, :5]]))
        )
        assert "float64 with 6 columns" in message(
            Arrays(path=write_shards(tmp_path / "b", [values(), values(np.float64)]))
        )

    def test_held_out(self, tmp_path):
        np.save(tmp_path / "x.npy", values())
        np.save(tmp_path / "y.npy", values()[:, :5])
        path = str(tmp_path / "x.npy")
        assert "none of its 50 rows are left" in message(Arrays(path=path, held_out_fraction=1.0))
        assert "leave it out" in message(Arrays(path=path, held_out_path=f"{tmp_path}/./x.npy"))
        assert "train has 6 columns and held-out 5" in message(Arrays(path=path, held_out_path=f"{tmp_path}/y.npy"))
        np.save(tmp_path / "one.npy", values()[:1])
        assert "none of its 1 rows are left" in message(Arrays(path=str(tmp_path / "one.npy")))

    def test_not_finite(self, tmp_path):
        x = values()
        x[33, 4] = np.nan
        text = message(Arrays(path=write_shards(tmp_path / "s", [x[:20], x[20:]])))
        assert "nan at row 33, column 4" in text
