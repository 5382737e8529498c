"""TFDS without TensorFlow: real builders, real idx files, and no network anywhere."""

import gzip
import hashlib
import http.server
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from sae.core.types import UserError
from sae.data import idx
from sae.data.tfds import Tfds

N_TRAIN, N_TEST = 300, 70
FILES = [file for pair in idx.SPLITS.values() for file in pair]


def idx_bytes(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def digits(n: int, seed: int) -> np.ndarray:
    """[n, 28, 28], uint8, dark at the border like MNIST."""
    images = np.zeros((n, 28, 28), np.uint8)
    images[:, 4:24, 4:24] = np.random.default_rng(seed).integers(0, 256, (n, 20, 20))
    return images


def write_idx(folder: Path, n_train: int = N_TRAIN, n_test: int = N_TEST, packed=FILES) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    arrays = []
    for seed, n in enumerate([n_train, n_test]):
        arrays += [digits(n, seed), (np.arange(n) % 10).astype(np.uint8)]
    for file, array in zip(FILES, arrays, strict=True):
        data = idx_bytes(array)
        if file in packed:
            (folder / file).write_bytes(gzip.compress(data))
        else:
            (folder / file.removesuffix(".gz")).write_bytes(data)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Every request goes to a proxy that refuses it at once, on machines with a network too."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def mnist_dir(tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("mnist")
    write_idx(data_dir / "mnist", packed=FILES[:2])
    Tfds(name="mnist", data_dir=str(data_dir)).load()
    return str(data_dir)


def numbers(n: int, seed: int) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=(n, 2, 3)).astype(np.float32)
    x[:, 0, 0] = np.arange(n)  # TFDS shuffles when it writes
    return x


def scene(i: int) -> np.ndarray:
    """[12, 10, 3]: every window is found in one scene and place only."""
    return np.random.default_rng(i).integers(0, 256, (12, 10, 3), dtype=np.uint8)


def photo(i: int) -> np.ndarray:
    return np.random.default_rng(i).integers(0, 256, (5 + i % 7, 9 - i % 4), dtype=np.uint8)


with tfds.core.registered.skip_registration():

    class Mixed(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.2.0")
        url_infos = {}

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(
                    {
                        "acts": tfds.features.Tensor(shape=(2, 3), dtype=np.float32),
                        "counts": tfds.features.Sequence(np.int64, length=4),
                        "words": tfds.features.Sequence(np.int64),
                        "scene": tfds.features.Image(shape=(12, 10, 3)),
                        "photo": tfds.features.Image(shape=(None, None, 1)),
                        "odd": tfds.features.Image(shape=(4, 4, 3)),
                        "label": tfds.features.ClassLabel(num_classes=3),
                        "text": tfds.features.Text(),
                    }
                ),
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(0, 40), "rest": self._generate_examples(40, 55)}

        def _generate_examples(self, start, stop):
            for i, acts in zip(range(start, stop), numbers(stop - start, start), strict=True):
                yield (
                    i,
                    {
                        "acts": acts,
                        "counts": [i, 0, 1, 2],
                        "words": [1] * (i % 5),
                        "scene": Image.fromarray(scene(i)),
                        "photo": Image.fromarray(photo(i)),
                        "odd": Image.new("RGBA", (4, 4)),
                        "label": i % 3,
                        "text": "a",
                    },
                )


@pytest.fixture(scope="module")
def mixed_dir(tmp_path_factory):
    data_dir = str(tmp_path_factory.mktemp("mixed"))
    Mixed(data_dir=data_dir).download_and_prepare(file_format="array_record")
    return data_dir


def mixed(data_dir: str, **fields) -> Tfds:
    return Tfds(**{"name": "mixed", "data_dir": data_dir, "held_out_split": "rest", "normalize": "none"} | fields)


def message(source: Tfds) -> str:
    start = time.monotonic()
    with pytest.raises(UserError) as caught:
        source.load()
    assert time.monotonic() - start < 10
    text = str(caught.value)
    assert "\n" not in text and len(text) < 1000
    return text


def sorted_rows(array: np.ndarray) -> np.ndarray:
    array = array.reshape(len(array), -1)
    return array[np.lexsort(array.T[::-1])]


class TestMnist:
    def test_every_pixel_arrives(self, mnist_dir):
        rows = Tfds(name="mnist", data_dir=mnist_dir, normalize="none").load()
        assert rows.train.shape == (N_TRAIN, 784) and rows.held_out.shape == (N_TEST, 784)
        assert rows.image_shape == (28, 28) and rows.train.dtype == np.uint8
        np.testing.assert_array_equal(sorted_rows(rows.train), sorted_rows(digits(N_TRAIN, 0)))
        np.testing.assert_array_equal(sorted_rows(rows.held_out), sorted_rows(digits(N_TEST, 1)))

    def test_stock_tfds_opens_what_was_prepared(self, mnist_dir):
        rows = Tfds(name="mnist", data_dir=mnist_dir).load()
        stock = tfds.data_source("mnist", split="train", data_dir=mnist_dir)
        np.testing.assert_array_equal(
            np.stack([example["image"] for example in stock]).reshape(N_TRAIN, -1), rows.train
        )
        label_of = {image.tobytes(): i % 10 for i, image in enumerate(digits(N_TRAIN, 0))}
        assert all(label_of[example["image"].tobytes()] == example["label"] for example in stock)
        assert tfds.builder("mnist", data_dir=mnist_dir).info.features["label"].num_classes == 10

    def test_scaled_to_0_1_under_each_normalisation(self, mnist_dir):
        x = digits(N_TRAIN, 0).reshape(N_TRAIN, 784) / 255
        loaded = {}
        for normalize in ("none", "centre", "unit-mean-norm"):
            rows = Tfds(name="mnist", data_dir=mnist_dir, normalize=normalize).load()
            loaded[normalize] = sorted_rows(rows.examples(rows.train))
            np.testing.assert_allclose(rows.mean, loaded[normalize].mean(0), atol=1e-6)
        assert loaded["none"].dtype == np.float32
        np.testing.assert_allclose(loaded["none"], sorted_rows(x), atol=1e-7)
        np.testing.assert_allclose(loaded["centre"], sorted_rows(x - x.mean(0)), atol=1e-6)
        np.testing.assert_allclose(
            loaded["unit-mean-norm"], sorted_rows(x / np.linalg.norm(x, axis=1).mean()), rtol=1e-5, atol=1e-7
        )

    def test_sub_splits(self, mnist_dir):
        whole = Tfds(name="mnist", data_dir=mnist_dir).load()
        part = Tfds(name="mnist", data_dir=mnist_dir, split="train[:90%]", held_out_split="train[90%:]").load()
        np.testing.assert_array_equal(part.train, whole.train[:270])
        np.testing.assert_array_equal(part.held_out, whole.train[270:])
        both = Tfds(name="mnist", data_dir=mnist_dir, split="train[:10]+test[:5]", held_out_split="test[5:]").load()
        np.testing.assert_array_equal(both.train, np.concatenate([whole.train[:10], whole.held_out[:5]]))

    def test_tfds_data_dir_is_honoured(self, mnist_dir, monkeypatch):
        monkeypatch.setenv("TFDS_DATA_DIR", mnist_dir)
        assert len(Tfds(name="mnist").load().train) == N_TRAIN

    @pytest.mark.parametrize(
        "name, folder", [("fashion_mnist", "downloads/manual/fashion_mnist"), ("kmnist", "kmnist")]
    )
    def test_the_drop_in_replacements(self, tmp_path, name, folder):
        write_idx(tmp_path / folder, 20, 10)
        rows = Tfds(name=name, data_dir=str(tmp_path)).load()
        assert rows.train.shape == (20, 784) and rows.held_out.shape == (10, 784)
        assert len(tfds.data_source(name, split="test", data_dir=tmp_path)) == 10

    def test_another_process_prepares_at_the_same_time(self, mnist_dir, tmp_path):
        """The other's data set appears while this one is being written."""
        write_idx(tmp_path / "mnist", 1000, 10)
        shutil.copytree(f"{mnist_dir}/mnist/3.0.1", tmp_path / "theirs")

        def other():
            while not list((tmp_path / "mnist").glob("incomplete*/*")):
                time.sleep(0.001)
            (tmp_path / "theirs").rename(tmp_path / "mnist/3.0.1")

        thread = threading.Thread(target=other)
        thread.start()
        rows = Tfds(name="mnist", data_dir=str(tmp_path)).load()
        thread.join()
        assert len(rows.train) == N_TRAIN  # theirs: whole, and not mixed with ours
        assert [p.name for p in (tmp_path / "mnist").iterdir() if p.is_dir()] == ["3.0.1"]

    def test_killed_while_preparing_then_prepared_in_silence(self, tmp_path):
        write_idx(tmp_path / "mnist", 3000, 10)
        killed = in_process(tmp_path)
        while not list((tmp_path / "mnist").glob("incomplete*/*")):
            assert killed.poll() is None
            time.sleep(0.001)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert list((tmp_path / "mnist").glob("incomplete*/*")) and not (tmp_path / "mnist/3.0.1").exists()
        again = in_process(tmp_path)
        assert (*again.communicate(), again.returncode) == ("3000\n", "", 0)


def in_process(data_dir: Path) -> subprocess.Popen:
    """Print the number of training rows of mnist."""
    code = f"from sae.data.tfds import Tfds; print(len(Tfds(name='mnist', data_dir={str(data_dir)!r}).load().train))"
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", code], env=env, stdout=pipe, stderr=pipe, text=True)


class TestIdx:
    @pytest.mark.parametrize("name", ["x.gz", "x"])
    @pytest.mark.parametrize("shape", [(3,), (2, 4, 5), (0, 28, 28)])
    def test_round_trip(self, tmp_path, name, shape):
        x = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
        path = tmp_path / name
        path.write_bytes(gzip.compress(idx_bytes(x)) if name == "x.gz" else idx_bytes(x))
        np.testing.assert_array_equal(idx.read_idx(path), x)

    @pytest.mark.parametrize(
        "name, data, problem",
        [
            ("x", b"", "not an idx file"),
            ("x", b"\0\0\x08\x03\0\0", "not an idx file"),
            ("x", b"<html>not found</html>", "not an idx file"),
            ("x", b"\0\0\x0d\x01\0\0\0\x01\0\0\0\0", "not an idx file"),  # floats
            ("x", idx_bytes(digits(3, 0))[:-1], "2351 values where its header says (3, 28, 28)"),
            ("x.gz", gzip.compress(idx_bytes(digits(3, 0)))[:-20], "cannot be unpacked"),
            ("x.gz", b"<html>not found</html>", "cannot be unpacked"),
        ],
    )
    def test_broken_files(self, tmp_path, name, data, problem):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match="download it again") as caught:
            idx.read_idx(tmp_path / name)
        assert problem in str(caught.value) and "\n" not in str(caught.value)

    def test_files_that_do_not_fit_together(self, tmp_path):
        folder = tmp_path / "mnist"
        write_idx(folder, 20, 10)
        source = Tfds(name="mnist", data_dir=str(tmp_path))
        (folder / FILES[1]).write_bytes(gzip.compress(idx_bytes(np.zeros(19, np.uint8))))
        assert "shape [19]" in message(source) and "each of the 20 images" in message(source)
        (folder / FILES[1]).write_bytes(gzip.compress(idx_bytes(np.full(20, 11, np.uint8))))
        assert "largest label 11" in message(source)
        (folder / FILES[0]).write_bytes(gzip.compress(idx_bytes(np.zeros((20, 32, 32), np.uint8))))
        assert "shape [20, 32, 32], allowed: [n >= 1, 28, 28]" in message(source)
        assert not list(folder.glob("*3.0.1"))  # nothing that looks prepared


class TestDownload:
    @pytest.fixture
    def server(self, tmp_path, monkeypatch):
        """A web server, and a proxy for every http address: what is asked for is looked up by its last part."""
        served = tmp_path / "served"
        served.mkdir()

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                path = served / self.path.split("/")[-1]
                self.send_response(200 if path.is_file() else 404)
                data = path.read_bytes() if path.is_file() else b""
                self.send_header("Content-Length", str(len(data) + ("cut" in self.path)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            address = f"http://127.0.0.1:{server.server_port}"
            monkeypatch.setenv("http_proxy", address)
            yield address, served
            server.shutdown()

    def test_the_first_address_that_has_the_right_bytes(self, server, tmp_path):
        address, served = server
        for name, data in [("good", b"digits"), ("bad", b"other"), ("cut", b"digits")]:
            (served / name).write_bytes(data)
        target, sha256 = tmp_path / "new" / "file.gz", hashlib.sha256(b"digits").hexdigest()
        wrong = [f"{address}/none", f"{address}/bad", f"{address}/cut"]
        why = idx.download(wrong, sha256, target)
        assert "Not Found" in why and "wrong checksum" in why and "IncompleteRead" in why
        assert not target.parent.exists()
        assert idx.download([*wrong, f"{address}/good"], sha256, target) is None
        assert [p.name for p in target.parent.iterdir()] == ["file.gz"] and target.read_bytes() == b"digits"

    def test_downloaded_then_prepared(self, server, tmp_path, monkeypatch):
        """Through TFDS's own address of Fashion-MNIST. Only the checksums are those of small files."""
        _, served = server
        write_idx(served, 20, 10)
        url = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
        sums = {
            url + file: tfds.download.checksums.UrlInfo(
                size=(served / file).stat().st_size,
                checksum=hashlib.sha256((served / file).read_bytes()).hexdigest(),
                filename=file,
            )
            for file in FILES
        }
        assert set(sums) == set(idx._checksums("fashion_mnist"))
        monkeypatch.setattr(idx, "_checksums", lambda name: sums)
        rows = Tfds(name="fashion_mnist", data_dir=str(tmp_path), normalize="none").load()
        np.testing.assert_array_equal(sorted_rows(rows.train), sorted_rows(digits(20, 0)))
        assert sorted(p.name for p in (tmp_path / "downloads/fashion_mnist").iterdir()) == sorted(FILES)

    @pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "kmnist"])
    def test_no_network(self, tmp_path, name):
        text = message(Tfds(name=name, data_dir=str(tmp_path)))
        assert "the download failed" in text and all(file in text for file in FILES)
        assert f"in {tmp_path / name} (or {tmp_path}/downloads/manual/{name}" in text
        assert not list(tmp_path.rglob("*.gz*"))

    def test_only_what_is_missing_is_asked_for(self, tmp_path):
        write_idx(tmp_path / "mnist", 20, 10, packed=FILES[:3])
        (tmp_path / "mnist" / FILES[2]).unlink()
        assert f"put {FILES[2]} (.gz or unpacked) in" in message(Tfds(name="mnist", data_dir=str(tmp_path)))

    def test_hosts_that_never_answer(self, tmp_path, monkeypatch):
        assert 2 * idx.PATIENCE < 10  # two mirrors at most
        monkeypatch.setattr(idx, "PATIENCE", 1.0)
        with socket.create_server(("127.0.0.1", 0)) as silent:
            monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{silent.getsockname()[1]}")
            start = time.monotonic()
            text = message(Tfds(name="mnist", data_dir=str(tmp_path)))
        assert text.count("no answer in 1 s") == 2 and 1.9 < time.monotonic() - start < 4


class TestFeatures:
    def test_numbers_round_trip(self, mixed_dir):
        rows = mixed(mixed_dir, feature="acts").load()
        assert rows.train.shape == (40, 6) and rows.train.dtype == np.float32 and rows.image_shape is None
        np.testing.assert_array_equal(sorted_rows(rows.examples(rows.train)), numbers(40, 0).reshape(40, 6))
        np.testing.assert_array_equal(sorted_rows(rows.examples(rows.held_out)), numbers(15, 40).reshape(15, 6))

    def test_integers_are_not_scaled(self, mixed_dir):
        rows = mixed(mixed_dir, feature="counts").load()
        assert rows.train.dtype == np.int64
        np.testing.assert_array_equal(sorted_rows(rows.examples(rows.train)), [[i, 0, 1, 2] for i in range(40)])

    def test_colour_images(self, mixed_dir):
        rows = mixed(mixed_dir, feature="scene").load()
        assert rows.image_shape == (12, 10, 3) and rows.d_in == 360
        np.testing.assert_array_equal(sorted_rows(rows.train), sorted_rows(np.stack([scene(i) for i in range(40)])))

    def test_version_in_the_name(self, mixed_dir):
        assert len(mixed(mixed_dir, name="mixed:1.2.0", feature="acts").load().train) == 40

    @pytest.mark.parametrize("feature, make, channels", [("scene", scene, 3), ("photo", photo, 1)])
    def test_patches_are_windows_of_the_images_of_their_split(self, mixed_dir, feature, make, channels):
        rows = mixed(mixed_dir, feature=feature, patch_size=4, n_patches=2000).load()
        assert rows.train.shape == (2000, 16 * channels) and rows.held_out.shape == (200, 16 * channels)
        assert rows.image_shape == ((4, 4) if channels == 1 else (4, 4, 3))

        def windows(images):
            return {
                image[y : y + 4, x : x + 4].tobytes()
                for image in images
                for y in range(image.shape[0] - 3)
                for x in range(image.shape[1] - 3)
            }

        train, held_out = windows(map(make, range(40))), windows(map(make, range(40, 55)))
        drawn = {row.tobytes() for row in rows.train}
        assert drawn <= train and {row.tobytes() for row in rows.held_out} <= held_out
        assert len(drawn) > 0.5 * min(len(train), 2000)  # from everywhere

    def test_patches_belong_to_their_seed(self, mixed_dir):
        a, b, c = (
            mixed(mixed_dir, feature="scene", patch_size=3, n_patches=500, split_seed=seed).load() for seed in (1, 1, 2)
        )
        np.testing.assert_array_equal(a.train, b.train)
        np.testing.assert_array_equal(a.held_out, b.held_out)
        assert (a.train != c.train).any() and (a.held_out != c.held_out).any()

    def test_patches_are_in_random_order(self, mixed_dir):
        rows = mixed(mixed_dir, feature="photo", patch_size=4, n_patches=2000).load()
        image_of = {}
        for i in range(40):
            for y in range(photo(i).shape[0] - 3):
                for x in range(photo(i).shape[1] - 3):
                    image_of[photo(i)[y : y + 4, x : x + 4].tobytes()] = i
        order = np.array([image_of[row.tobytes()] for row in rows.train])
        assert (np.diff(order) < 0).mean() > 0.4


class TestErrors:
    def test_feature(self, mixed_dir):
        for feature in ("label", "text", "image"):
            text = message(mixed(mixed_dir, feature=feature))
            assert f"got '{feature}'" in text and "acts [2, 3]" in text and "scene [12, 10, 3]" in text
            assert "label [" not in text and "text [" not in text

    def test_sizes_that_differ(self, mixed_dir):
        assert "set patch_size" in message(mixed(mixed_dir, feature="photo"))
        assert "choose another feature" in message(mixed(mixed_dir, feature="words"))

    def test_patches(self, mixed_dir):
        assert "leave out patch_size" in message(mixed(mixed_dir, feature="acts", patch_size=2))
        assert "choose a smaller patch_size" in message(mixed(mixed_dir, feature="photo", patch_size=6))

    def test_images_that_differ_from_their_feature(self, mixed_dir):
        assert "has shape [4, 4, 4] where the feature 'odd' says [4, 4, 3]" in message(mixed(mixed_dir, feature="odd"))
        assert "has shape [4, 4, 4]" in message(mixed(mixed_dir, feature="odd", patch_size=2))

    @pytest.mark.parametrize("split", ["trian", "train[:0]", "train[:500]", "train[:", "train[:200%]", "", "all[:3]"])
    def test_split(self, mixed_dir, split):
        for field in ("split", "held_out_split"):
            text = message(mixed(mixed_dir, feature="acts", **{field: split}))
            assert f"{field}: got {split!r}" in text and "allowed: train (40), rest (15), or a slice" in text

    @pytest.mark.parametrize("held_out", ["train", "train[90%:]", "rest[:3]+train[:1]", "all"])
    def test_splits_that_share_examples(self, mixed_dir, held_out):
        assert "share examples" in message(mixed(mixed_dir, feature="acts", held_out_split=held_out))

    def test_too_large(self, mixed_dir):
        text = message(mixed(mixed_dir, feature="scene", max_gib=1e-5))
        assert "uint8 [40, 360], allowed: max_gib = 1e-05" in text and "Arrays" in text
        text = message(mixed(mixed_dir, feature="scene", patch_size=8, n_patches=10**9))
        assert "train takes 179 GiB as uint8 [1000000000, 192]" in text

    def test_names(self, mixed_dir):
        assert "tfds build cifar10 --file_format=array_record" in message(mixed(mixed_dir, name="cifar10"))
        assert "close names: mnist" in message(mixed(mixed_dir, name="mnits"))
        assert "close names: mixed" in message(mixed(mixed_dir, name="mixes"))  # prepared, and in no list of TFDS
        assert "where there is mixed/1.2.0" in message(mixed(mixed_dir, name="mixed:2.0.0"))
        assert "www.tensorflow.org/datasets/catalog" in message(mixed(mixed_dir, name="qqqqqqqqq"))
        for name in ("", "a b", "../mixed", "hf:mixed"):
            assert f"name: got {name!r}, allowed: like mnist" in message(mixed(mixed_dir, name=name))

    def test_tfrecord(self, mixed_dir, tmp_path):
        shutil.copytree(mixed_dir, tmp_path / "d")
        folder = tmp_path / "d/mixed/1.2.0"
        for path in folder.glob("*array_record*"):
            path.rename(folder / path.name.replace("array_record", "tfrecord"))
        info = folder / "dataset_info.json"
        info.write_text(info.read_text().replace("array_record", "tfrecord"))
        text = message(mixed(str(tmp_path / "d"), feature="acts"))
        assert "as tfrecord; allowed: array_record" in text and f"--dataset_version_dir={folder}" in text

    @pytest.mark.parametrize("damage", ["info", "features", "no features", "shard", "no shard"])
    def test_broken_data_set(self, mixed_dir, tmp_path, damage):
        shutil.copytree(mixed_dir, tmp_path / "d")
        folder = tmp_path / "d/mixed/1.2.0"
        file = {"info": "dataset_info.json", "shard": "mixed-train.array_record-00000-of-00001"}.get(
            damage.split()[-1], "features.json"
        )
        if damage.startswith("no"):
            (folder / file).unlink()
        else:
            (folder / file).write_bytes((folder / file).read_bytes()[:300])
        text = message(mixed(str(tmp_path / "d"), feature="acts"))
        assert "prepare" in text and "mixed" in text
