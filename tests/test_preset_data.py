"""The images and networks of presets: CIFAR's files and their checksums, augmentation, sizes of networks."""

from __future__ import annotations

import hashlib
import io
import math
import pickle
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from sharpkern.train.data import augment, autoaugment, cifar, flip_labels
from sharpkern.train.data.images import SOURCES, Images, load
from sharpkern.train.networks import NETWORKS, make
from sharpkern.train.protocol import Request, run
from sharpkern.train.protocol.ledger import read


@pytest.fixture(autouse=True)
def one_thread(threads: None) -> None:
    torch.set_num_threads(1)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# CIFAR

RECORDS = 3  # in every fake file
Fake = dict[str, tuple[np.ndarray, list[int]]]


def fake(files: cifar.Published, records: int = RECORDS) -> Fake:
    random = np.random.default_rng(0)
    names = (*files.train, *files.test)
    return {
        name: (
            random.integers(0, 256, (records, cifar.PIXELS), dtype=np.uint8),
            random.integers(0, 10, records).tolist(),
        )
        for name in names
    }


def pickled(files: cifar.Published, content: Fake) -> dict[str, bytes]:
    return {name: pickle.dumps({"data": data, files.label: labels}) for name, (data, labels) in content.items()}


def unpacked(folder: Path, files: cifar.Published, content: Fake) -> dict[str, str]:
    (folder / files.folder).mkdir()
    for name, raw in pickled(files, content).items():
        (folder / files.folder / name).write_bytes(raw)
    return {name: hashlib.md5(raw).hexdigest() for name, raw in pickled(files, content).items()}


def archive(path: Path, members: dict[str, bytes]) -> str:
    with tarfile.open(path, "w:gz") as file:
        for name, raw in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(raw)
            file.addfile(entry, io.BytesIO(raw))
    return hashlib.md5(path.read_bytes()).hexdigest()


def packed(folder: Path, files: cifar.Published, content: Fake) -> dict[str, str]:
    raw = pickled(files, content)
    archive(folder / files.archive, {f"{files.folder}/{name}": member for name, member in raw.items()})
    return {name: hashlib.md5(member).hexdigest() for name, member in raw.items()}


def binary(folder: Path, files: cifar.Published, content: Fake) -> dict[str, str]:
    members = {}
    for name, (data, labels) in zip((*files.binary_train, *files.binary_test), content.values(), strict=True):
        coarse = [[99]] * RECORDS if files.label_bytes == 2 else [[]] * RECORDS
        rows = [bytes([*first, label]) + row.tobytes() for first, label, row in zip(coarse, labels, data, strict=True)]
        members[name] = b"".join(rows)
    return {files.binary: archive(folder / files.binary, members)}


@pytest.mark.parametrize("write", [unpacked, packed, binary])
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_comes_out_as_it_is_written(
    name: str, write: Callable[..., dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = cifar.PUBLISHED[name]
    content = fake(files)
    sums = write(tmp_path, files, content)
    known = replace(
        files,
        train={member: sums.get(member, "") for member in files.train},
        test={member: sums.get(member, "") for member in files.test},
        binary_md5=sums.get(files.binary, ""),
    )
    monkeypatch.setitem(cifar.PUBLISHED, name, known)  # type: ignore[arg-type]
    data = load(name, tmp_path)
    pixels = np.concatenate([content[member][0] for member in files.train]).reshape(-1, 3, 32, 32)
    assert torch.equal(data.train_images, torch.from_numpy(pixels))
    assert data.train_labels.tolist() == [label for member in files.train for label in content[member][1]]
    (test,) = files.test
    assert torch.equal(data.test_images, torch.from_numpy(content[test][0].reshape(-1, 3, 32, 32)))
    assert data.test_labels.tolist() == content[test][1]
    assert data.train_images.dtype == torch.uint8
    assert data.train_labels.dtype == torch.int64


@pytest.mark.parametrize("write", [unpacked, packed, binary])
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_files_that_are_not_the_published_ones_are_refused(
    name: str, write: Callable[..., dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = cifar.PUBLISHED[name]
    found = next(iter(write(tmp_path, files, fake(files)).values()))
    wanted = files.binary_md5 if write is binary else next(iter(files.train.values()))
    monkeypatch.setattr(pickle, "loads", lambda *args, **kwargs: pytest.fail("unpickled before the check"))
    with pytest.raises(cifar.DataError, match=f"its MD5 sum is {found}, that of the published file {wanted}"):
        load(name, tmp_path)


def test_an_archive_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    files = cifar.PUBLISHED["cifar10"]
    packed(tmp_path, files, fake(files))
    path = tmp_path / files.archive
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(cifar.DataError, match="not a whole archive"):
        load("cifar10", tmp_path)


def test_a_preset_runs_on_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = cifar.PUBLISHED["cifar10"]
    sums = unpacked(tmp_path, files, fake(files, 30))
    known = replace(files, train={name: sums[name] for name in files.train}, test={n: sums[n] for n in files.test})
    monkeypatch.setitem(cifar.PUBLISHED, "cifar10", known)  # type: ignore[arg-type]
    names = {"presets": ("fisher-sam-table-1",), "networks": ("resnet20",), "methods": ("fishersam",)}
    screen = io.StringIO()
    request = Request(**names, data="cifar10", data_dir=tmp_path, epochs=1, seeds=1, out=tmp_path / "out")
    run(request, Console(file=screen, width=80))
    assert "  here" in screen.getvalue()
    (row,) = read(tmp_path / "out" / "results.csv")
    assert (row["data"], row["network"], row["options"]) == ("cifar10", "resnet20", "rho=0.1 eta=1")
    assert 0 < float(row["train_loss"]) < 10


def test_missing_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(cifar.DataError, match=r"cifar10 needs --data-dir FOLDER, a folder with the folder cifar-10-b"):
        load("cifar10", None)
    with pytest.raises(
        cifar.DataError, match=r"put there the folder cifar-100-python \(with train, test\), or cifar-100"
    ):
        load("cifar100", tmp_path)


def test_the_checksums_are_md5_sums_of_as_many_files_as_published() -> None:
    sums = [sum for files in cifar.PUBLISHED.values() for sum in (*files.train.values(), *files.test.values())]
    sums += [files.binary_md5 for files in cifar.PUBLISHED.values()]
    assert len(set(sums)) == len(sums) == 10
    assert all(len(bytes.fromhex(sum)) == 16 for sum in sums)


# Digits, noise, standardisation


def test_digits_are_those_of_the_demo() -> None:
    data = load("digits", None)
    source = data.source
    assert data.train_images.shape == (source.train, *source.shape)
    assert data.test_images.shape == (source.test, *source.shape)
    train = data.standardise(data.train_images)
    assert train.mean().item() == pytest.approx(0, abs=1e-5)
    assert train.std().item() == pytest.approx(1, abs=1e-5)
    half = data.classes_below(5)
    assert half.train_labels.max() == 4
    assert half.source.train == len(half.train_images) == int((data.train_labels < 5).sum())


def test_channels_are_standardised_apart() -> None:
    pixels = torch.randint(256, (50, 3, 4, 4), generator=seeded(), dtype=torch.uint8)
    pixels[:, 1] //= 8
    labels = torch.zeros(50, dtype=torch.int64)
    images = Images(SOURCES["cifar10"], pixels, labels, pixels, labels).standardise(pixels)
    assert images.mean((0, 2, 3)).abs().max() < 1e-5
    assert (images.std((0, 2, 3)) - 1).abs().max() < 1e-5


def test_flips_reach_all_of_a_hundred_classes() -> None:
    labels = torch.zeros(20_000, dtype=torch.int64)
    flipped = flip_labels(labels, 0.5, seeded(), 100)
    assert int((flipped != labels).sum()) == 10_000
    assert len(flipped.unique()) == 100


# Augmentation


def colours(n: int) -> torch.Tensor:
    return torch.randint(1, 256, (n, 3, 32, 32), generator=seeded(9), dtype=torch.uint8)


def test_crops_move_by_up_to_the_padding_and_fill_with_zeros() -> None:
    image = torch.zeros(400, 1, 8, 8, dtype=torch.uint8)
    image[:, 0, 3, 4] = 7
    cropped = augment.crop(image, 2, seeded())
    assert cropped.shape == image.shape
    assert cropped.dtype == torch.uint8
    where = {tuple(place) for place in cropped.nonzero()[:, 2:].tolist()}
    assert where == {(y, x) for y in range(1, 6) for x in range(2, 7)}
    assert int((cropped == 7).sum()) == 400


def test_half_of_the_images_are_mirrored() -> None:
    images = colours(400)
    flipped = augment.flip(images, seeded())
    same = (flipped == images).flatten(1).all(1)
    mirrored = (flipped == images.flip(-1)).flatten(1).all(1)
    assert bool((same | mirrored).all())
    assert abs(int(mirrored.sum()) - 200) < 5 * math.sqrt(100)


def test_cutout_blanks_a_square_that_the_border_cuts() -> None:
    cut = augment.cutout(torch.ones(500, 3, 32, 32), 16, seeded()) == 0
    assert bool((cut[:, 0] == cut[:, 2]).all())
    heights, widths = cut[:, 0].any(2).sum(1), cut[:, 0].any(1).sum(1)
    assert torch.equal(cut[:, 0].sum((1, 2)), heights * widths)
    assert (int(heights.min()), int(heights.max())) == (8, 16)


def test_autoaugment_draws_what_the_policy_says(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(autoaugment.POLICY) == 25
    assert {name for pair in autoaugment.POLICY for name, _, _ in pair} == set(autoaugment._OPERATIONS)
    images = colours(4)

    def always(name: str, strength: int) -> tuple[autoaugment.Operation, autoaugment.Operation]:
        return (name, 1.0, strength), ("Invert", 0.0, 0)

    monkeypatch.setattr(autoaugment, "POLICY", (always("Invert", 0),))
    assert torch.equal(autoaugment.autoaugment(images, seeded()), 255 - images)
    monkeypatch.setattr(autoaugment, "POLICY", (always("TranslateX", 9),))
    grey = (autoaugment.autoaugment(images, seeded()) == 128).all(1).all(1).sum(1)
    assert grey.tolist() == [int(150 / 331 * 32)] * 4
    monkeypatch.setattr(autoaugment, "POLICY", (always("Posterize", 9),))
    assert torch.equal(autoaugment.autoaugment(images, seeded()), images & 0xF0)


def test_every_operation_keeps_the_shape() -> None:
    images = colours(300)
    changed = autoaugment.autoaugment(images, seeded())
    assert changed.shape == images.shape
    assert changed.dtype == torch.uint8
    assert 0.5 < (changed != images).flatten(1).any(1).float().mean() < 1


def test_augmentation_repeats_itself_and_none_changes_nothing() -> None:
    images = colours(16)
    labels = torch.zeros(16, dtype=torch.int64)
    data = Images(SOURCES["cifar10"], images, labels, images, labels)
    one, same, other = (augment.augmented(data, images, "auto", seeded(seed)) for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(augment.augmented(data, images, "none", seeded()), data.standardise(images))


def test_digits_are_never_mirrored_nor_cut() -> None:
    data = load("digits", None)
    one = augment.augmented(data, data.train_images, "auto", seeded())
    assert torch.equal(one, data.standardise(augment.crop(data.train_images, 1, seeded())))


def test_an_epoch_holds_every_image_at_most_once() -> None:
    data = load("digits", None)
    names = torch.arange(data.source.train)
    seen = torch.cat([labels for _, labels in augment.batches(data, names, 100, "basic", seeded())])
    assert len(seen) == len(seen.unique()) == 1100


# Networks

WEIGHTS = {  # with ten classes; He et al. print 0.27M, 0.46M and 0.85M, Zagoruyko and Komodakis 1.5M and 36.5M
    "small": 9_978,
    "tiny-vit": 102_218,
    "resnet20": 269_722,
    "resnet32": 464_154,
    "resnet56": 853_018,
    "wrn28-2": 1_467_610,
    "wrn28-10": 36_479_194,
    "vgg19-bn": 20_040_522,
    "vit-b16": 85_806_346,
}


@pytest.mark.parametrize("name", NETWORKS)
def test_sizes_and_shapes(name: str) -> None:
    shape = SOURCES["digits" if name in {"small", "tiny-vit"} else "cifar10"].shape
    with torch.device("meta"):
        model = NETWORKS[name].make(shape[0], 10)
        assert model(torch.zeros(2, *shape)).shape == (2, 10)
    assert sum(p.numel() for p in model.parameters()) == WEIGHTS[name]


@pytest.mark.parametrize("name", ["tiny-vit", "resnet20", "wrn28-2"])
def test_the_seed_fixes_the_initial_weights_and_nothing_else(name: str) -> None:
    before = torch.get_rng_state()
    channels = 1 if name == "tiny-vit" else 3
    one, same, other = (make(name, channels, 10, seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)


def test_a_residual_block_starts_near_the_identity_that_it_adds() -> None:
    from sharpkern.train.networks.resnet import Block

    block = Block(2, 4, stride=2).eval()
    torch.nn.init.zeros_(block.conv2.weight)
    x = torch.rand(1, 2, 4, 4, generator=seeded())
    assert torch.equal(block(x), torch.cat([torch.zeros(1, 1, 2, 2), x[:, :, ::2, ::2], torch.zeros(1, 1, 2, 2)], 1))
