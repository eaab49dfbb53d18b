"""Readers: official layouts written by hand, as folders and as archives, and the real data where they are."""

from __future__ import annotations

import hashlib
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torch.utils.data import DataLoader
from torchvision import datasets as official

from wsol_lib.data import SPLITS, available, collate, data_root, datasets, load, load_metadata, where
from wsol_lib.data.geometry import Frame
from wsol_lib.data.ilsvrc import imagenet_classes
from wsol_lib.data.openimages import mask_box
from wsol_lib.data.pictures import cut_at_image
from wsol_lib.data.source import Folder, Zip, locate
from wsol_lib.data.subsets import cut, short_side
from wsol_lib.data.verify import damaged
from wsol_lib.types import DataCorrupt, DataMissing, SupervisionError


def picture(path: Path, size: tuple[int, int], mode: str = "RGB", seed: int = 0, **options: object) -> None:
    """A picture of noise in a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(path, **options)


def mask_file(path: Path, size: tuple[int, int], box: tuple[int, int, int, int], value: int = 255) -> None:
    """A grey PNG with a bright half-open box."""
    path.parent.mkdir(parents=True, exist_ok=True)
    grid = np.zeros((size[1], size[0]), np.uint8)
    grid[box[1] : box[3], box[0] : box[2]] = value
    Image.fromarray(grid).save(path)


def text(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def zipped(folder: Path, compression: int = zipfile.ZIP_STORED) -> Path:
    """The folder as an archive beside it; the folder is moved away."""
    archive = folder.with_name(f"{folder.name}.zip")
    with zipfile.ZipFile(archive, "w", compression) as file:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                file.write(path, path.relative_to(folder.parent).as_posix())
    folder.rename(folder.with_name(f"{folder.name}-moved-away"))
    return archive


def packed(folder: Path, how: str) -> None:
    if how == "zip":
        zipped(folder)


def tiny(root: Path) -> Path:
    top = root / "tiny-imagenet-200"
    text(top / "wnids.txt", "n02", "n01")
    text(top / "words.txt", "n01\tgoldfish, Carassius auratus", "n02\tEgyptian cat", "n03\tunused")
    for k, wnid in enumerate(("n02", "n01")):
        text(top / f"train/{wnid}/{wnid}_boxes.txt", f"{wnid}_0.JPEG\t0\t1\t63\t63", f"{wnid}_200.JPEG\t5\t6\t5\t60")
        for n in (0, 200):
            picture(top / f"train/{wnid}/images/{wnid}_{n}.JPEG", (64, 64), seed=10 * k + n)
    text(top / "val/val_annotations.txt", "val_0.JPEG\tn01\t0\t32\t44\t62", "val_1.JPEG\tn02\t1\t2\t3\t4")
    picture(top / "val/images/val_0.JPEG", (64, 64), "L")
    picture(top / "val/images/val_1.JPEG", (64, 64))
    return top


CUB_NAMES = tuple(f"{k:03d}.{'Black_footed_Albatross' if k == 1 else f'Bird_{k}'}" for k in range(1, 201))


def cub(root: Path) -> Path:
    """Four birds: species 1 (train and test), 2 (test), 51 (test); pictures of 40x30, and of 448x300 for the last."""
    top = root / "CUB_200_2011"
    files = [f"{CUB_NAMES[k - 1]}/bird_{i}.jpg" for i, k in enumerate((1, 1, 2, 51), 1)]
    text(top / "images.txt", *(f"{i} {f}" for i, f in enumerate(files, 1)))
    text(top / "image_class_labels.txt", "1 1", "2 1", "3 2", "4 51")
    text(top / "train_test_split.txt", "1 1", "2 0", "3 0", "4 0")
    text(
        top / "bounding_boxes.txt",
        "1 3.0 4.0 10.0 12.0",
        "2 0.0 0.0 40.0 30.0",
        "3 30.0 20.0 13.5 8.0",
        "4 44.0 30.0 88.0 90.0",
    )
    text(top / "classes.txt", *(f"{k} {name}" for k, name in enumerate(CUB_NAMES, 1)))
    for i, f in enumerate(files):
        picture(top / "images" / f, (448, 300) if i == 3 else (40, 30), seed=i)
    return top


def metadata(root: Path, part: str, split: str, rows: dict[str, tuple[int, tuple[int, int], list[str]]]) -> None:
    """rows: picture -> (label, size, lines of localization without the picture)."""
    top = root / "wsol-metadata" / "metadata"
    folder = top / part / split
    text(top / "CUB/test/image_ids.txt", *(rows if (part, split) == ("CUB", "test") else ()))
    text(folder / "image_ids.txt", *rows)
    text(folder / "class_labels.txt", *(f"{k},{row[0]}" for k, row in rows.items()))
    text(
        folder / "image_sizes.txt", *(f"{k},{row[1][0]},{row[1][1]}" for k, row in rows.items() if part != "OpenImages")
    )
    text(folder / "localization.txt", *(f"{k},{line}" for k, row in rows.items() for line in row[2]))


both = pytest.mark.parametrize("how", ["folder", "zip"])


# --- the door ---------------------------------------------------------------------------------------------------------


def test_unknown_names_get_the_nearest_right_one():
    with pytest.raises(ValueError, match=r"did you mean 'tiny-imagenet'"):
        load("tiny-imagnet", "val")
    with pytest.raises(ValueError, match=r"no split of tiny-imagenet 'test'.*there are: train, val"):
        load("tiny-imagenet", "test")
    with pytest.raises(ValueError, match=r"did you mean 'oracle'"):
        load("tiny-imagenet", "val", supervision="oracl")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"did you mean 'cub'"):
        available("cubs")
    with pytest.raises(ValueError, match=r"not both"):
        load("cub", "test", size=3, view=object())  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [n for n in datasets() if n != "scenes"])
def test_missing_data_say_what_to_run(name, tmp_path):
    assert not available(name, tmp_path)
    for split in SPLITS[name]:
        with pytest.raises(DataMissing, match=r"wsol data get"):
            load(name, split, root=tmp_path)


def test_root_order(tmp_path, monkeypatch):
    monkeypatch.setenv("WSOL_DATA", str(tmp_path / "env"))
    assert data_root(tmp_path / "given") == tmp_path / "given"
    assert data_root() == tmp_path / "env"
    monkeypatch.delenv("WSOL_DATA")
    assert data_root().name in ("data", "wsol")


def test_scenes_splits_and_seeds_never_overlap(monkeypatch):
    from wsol_lib.data import scenes

    seeds = []
    monkeypatch.setattr(scenes, "make", lambda n, seed, **knobs: seeds.append(seed) or type("Stub", (), {})())
    for seed in range(5):
        for split in SPLITS["scenes"]:
            load("scenes", split, n=2, seed=seed)
    assert len(set(seeds)) == 15


def test_scenes_keep_the_rule():
    train, test = load("scenes", "train", n=3), load("scenes", "test", n=3, size=32, context_bias=0.0)
    with pytest.raises(SupervisionError):
        train.boxes(0)
    assert "boxes" not in train[0]
    assert test[0]["image"].shape == (3, 32, 32) and len(test[0]["boxes"]) == 1
    assert len(load("scenes", "test", n=0)) == 0


# --- Tiny-ImageNet ----------------------------------------------------------------------------------------------------


@both
def test_tiny(tmp_path, how):
    packed(tiny(tmp_path), how)
    data = load("tiny-imagenet", "val", root=tmp_path)
    assert data.classes == ("Egyptian cat", "goldfish") and data.wnids == ("n02", "n01")
    assert data.labels.tolist() == [1, 0] and data.image_ids == ("val_0.JPEG", "val_1.JPEG")
    assert data.boxes(0).tolist() == [[0, 32, 44, 62]] and data.image_size(0) == (64, 64)
    assert data[0]["image"].shape == (3, 64, 64) and torch.equal(data[0]["image"][0], data[0]["image"][2])  # grey
    train = load("tiny-imagenet", "train", root=tmp_path, size=32)
    assert train.labels.tolist() == [0, 0, 1, 1] and "boxes" not in train[0] and train[0]["image"].shape == (3, 32, 32)
    oracle = load("tiny-imagenet", "train", root=tmp_path, supervision="oracle", size=32)
    assert oracle[1]["boxes"].tolist() == [[2.5, 3, 2.5, 30]]  # a one-pixel box is legal and moves with the picture


@both
def test_training_split_leaks_nothing(tmp_path, how):
    packed(tiny(tmp_path), how)
    train = load("tiny-imagenet", "train", root=tmp_path)
    for view in (train, train.subset([2, 0])):
        for ask in (view.boxes, view.mask):
            with pytest.raises(SupervisionError, match=r"oracle"):
                ask(0)
        assert set(view[0]) == {"image", "label", "index"}


def test_subset_follows_its_indices(tmp_path):
    tiny(tmp_path)
    data = load("tiny-imagenet", "val", root=tmp_path)
    part = data.subset([1])
    assert part.image_ids == ("val_1.JPEG",) and part.labels.tolist() == [0] and part[0]["index"] == 0
    assert torch.equal(part.boxes(0), data.boxes(1)) and torch.equal(part[0]["image"], data[1]["image"])
    assert part.image_sizes.tolist() == [[64, 64]] and len(data) == 2


def test_archive_works_in_data_loader_workers(tmp_path):
    packed(tiny(tmp_path), "zip")
    data = load("tiny-imagenet", "train", root=tmp_path)
    first = collate([data[i] for i in range(4)])  # opens the archive in this process first
    batch = next(iter(DataLoader(data, batch_size=4, num_workers=2, collate_fn=collate)))  # type: ignore[arg-type]
    assert torch.equal(batch["image"], first["image"])
    assert torch.equal(pickle.loads(pickle.dumps(data))[3]["image"], data[3]["image"])


def test_every_process_opens_the_archive_for_itself(tmp_path, monkeypatch):
    source = Zip(zipped(tiny(tmp_path)))
    handle = source.archive
    assert source.archive is handle
    monkeypatch.setattr("os.getpid", lambda: -1)  # as in a forked worker
    assert source.archive is not handle


def test_unknown_class_is_named(tmp_path):
    top = tiny(tmp_path)
    text(top / "val/val_annotations.txt", "val_0.JPEG\tn09\t0\t0\t1\t1")
    with pytest.raises(DataCorrupt, match=r"unknown class 'n09'.*did you mean 'n0"):
        load("tiny-imagenet", "val", root=tmp_path)


@both
def test_missing_picture_is_counted_and_named(tmp_path, how):
    top = tiny(tmp_path)
    (top / "val/images/val_1.JPEG").unlink()
    packed(top, how)
    with pytest.raises(
        DataCorrupt, match=r"1 of 2 files are missing, the first is val/images/val_1.JPEG.*wsol data get"
    ):
        load("tiny-imagenet", "val", root=tmp_path)


def test_truncated_picture_is_named_and_found_by_verify(tmp_path):
    top = tiny(tmp_path)
    path = top / "val/images/val_1.JPEG"
    path.write_bytes(path.read_bytes()[:900])
    data = load("tiny-imagenet", "val", root=tmp_path)
    with pytest.raises(DataCorrupt, match=r"val_1.JPEG"):
        data[1]
    (sentence,) = damaged("tiny-imagenet", tmp_path)
    assert "val_1.JPEG" in sentence


def test_truncated_archive_is_one_sentence(tmp_path):
    archive = zipped(tiny(tmp_path))
    archive.write_bytes(archive.read_bytes()[:-200])
    with pytest.raises(DataCorrupt, match=r"not a whole zip archive"):
        load("tiny-imagenet", "val", root=tmp_path)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_damaged_member_of_an_archive_is_named(tmp_path, compression):
    archive = zipped(tiny(tmp_path), compression)
    data = load("tiny-imagenet", "val", root=tmp_path)
    info = zipfile.ZipFile(archive).getinfo("tiny-imagenet-200/val/images/val_0.JPEG")
    content = bytearray(archive.read_bytes())
    content[info.header_offset + 30 + len(info.filename)] ^= 0xFF  # the first byte: of the picture, or of its coding
    archive.write_bytes(bytes(content))
    with pytest.raises(DataCorrupt, match=r"val_0.JPEG"):
        pickle.loads(pickle.dumps(data)).picture(0)


@pytest.mark.parametrize("box", ["64 0 70 5", "5 5 4 9", "-9 0 -2 5"])
def test_box_outside_the_picture_is_named(tmp_path, box):
    text(tiny(tmp_path) / "val/val_annotations.txt", f"val_0.JPEG n01 {box}")
    with pytest.raises(DataCorrupt, match=r"val_0.JPEG lies outside its picture of 64x64"):
        load("tiny-imagenet", "val", root=tmp_path)


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "RGBA", "1", "LA"])
def test_every_colour_mode_becomes_rgb(tmp_path, mode):
    suffix = "JPEG" if mode in ("L", "CMYK") else "PNG"
    path = tmp_path / f"a.{suffix}"
    picture(path, (7, 5), mode)
    shown = Folder(tmp_path).picture(path.name)
    assert shown.mode == "RGB" and shown.size == (7, 5)
    assert Frame(14, 10).image(shown).shape == (3, 10, 14)


# --- CUB --------------------------------------------------------------------------------------------------------------


@both
def test_cub(tmp_path, how):
    packed(cub(tmp_path), how)
    test = load("cub", "test", root=tmp_path)
    assert len(test.classes) == 200 and test.classes[0] == "Black footed Albatross"
    assert test.labels.tolist() == [0, 1, 50] and test.image_sizes.tolist() == [[40, 30], [40, 30], [448, 300]]
    assert test.boxes(0).tolist() == [[0, 0, 40, 30]]  # x, y, x+w, y+h
    assert test.boxes(1).tolist() == [[30, 20, 40, 28]]  # overreaches by 3.5 pixels: cut at the image
    assert test.mask(0) is None
    train = load("cub", "train", root=tmp_path)
    assert train.image_ids == (f"{CUB_NAMES[0]}/bird_1.jpg",)
    assert load("cub", "train", root=tmp_path, supervision="oracle").boxes(0).tolist() == [[3, 4, 13, 16]]


@pytest.mark.parametrize(
    "where_masks", ["CUB_200_2011/segmentations", "segmentations", "cub-segmentations/segmentations"]
)
def test_cub_masks(tmp_path, where_masks):
    cub(tmp_path)
    for k, i in ((1, 1), (1, 2), (2, 3), (51, 4)):
        size = (448, 300) if i == 4 else (40, 30)
        mask_file(tmp_path / where_masks / CUB_NAMES[k - 1] / f"bird_{i}.png", size, (5, 6, 20, 10 + i), value=153)
    test = load("cub", "test", root=tmp_path, size=20)
    mask = test.mask(1)
    assert mask is not None and mask.shape == (30, 40) and mask_box(mask).tolist() == [[5, 6, 20, 13]]
    assert test.subset([1, 0]).mask(0).sum() == mask.sum()
    assert collate([test[0], test[1]])["masks"].shape == (2, 20, 20)
    with pytest.raises(SupervisionError):
        load("cub", "train", root=tmp_path).mask(0)


def test_cub_sizes_from_the_metadata_open_no_picture(tmp_path):
    top = cub(tmp_path)
    rows = {f"{CUB_NAMES[k - 1]}/bird_{i}.jpg": (k - 1, (77, 66), ["0,0,5,5"]) for k, i in ((1, 2), (2, 3), (51, 4))}
    metadata(tmp_path, "CUB", "test", rows)
    for path in top.rglob("*.jpg"):
        path.write_bytes(b"")
    assert load("cub", "test", root=tmp_path).image_sizes.tolist() == [[77, 66]] * 3


def test_cub_validation_is_cubv2(tmp_path):
    cub(tmp_path)
    rows = {f"{name}/{k}.jpg": (k, (50, 40), ["1,2,30,39"]) for k, name in enumerate(CUB_NAMES)}
    metadata(tmp_path, "CUB", "val", rows)
    with pytest.raises(DataMissing, match=r"wsol data get cub-v2"):
        load("cub", "val", root=tmp_path)
    for file in rows:
        picture(tmp_path / "CUBV2" / file, (50, 40))
    data = load("cub", "val", root=tmp_path)
    assert (
        len(data) == 200 and data.boxes(7).tolist() == [[1, 2, 30, 39]] and data.classes[0] == "Black footed Albatross"
    )


def test_cub_50_out_of_the_whole_and_never_the_reverse(tmp_path):
    top = cub(tmp_path)
    data = load("cub-50", "test", root=tmp_path)
    assert len(data.classes) == 50 and data.labels.tolist() == [0, 1]
    text(top / "classes.txt", *(f"{k} {name}" for k, name in enumerate(CUB_NAMES[:50], 1)))
    assert not available("cub", tmp_path)
    with pytest.raises(DataMissing, match=r"fewer than 200 species"):
        load("cub", "test", root=tmp_path)


# --- ImageNet ---------------------------------------------------------------------------------------------------------


def annotation(path: Path, wnid: str, size: tuple[int, int], *boxes: tuple[int, int, int, int]) -> None:
    """An XML file in the format of PASCAL VOC."""
    rows = "".join(
        f"<object><name>{wnid}</name><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax><ymax>{d}</ymax></bndbox></object>"
        for a, b, c, d in boxes
    )
    text(path, f"<annotation><size><width>{size[0]}</width><height>{size[1]}</height></size>{rows}</annotation>")


def ilsvrc(root: Path, top: str = "ILSVRC", by_class: bool = False) -> Path:
    """Two training pictures of class 1, and two validation pictures of classes 1 and 999."""
    wnids, _ = imagenet_classes()
    for n in (1, 2):
        picture(root / top / f"train/{wnids[1]}/{wnids[1]}_{n}.JPEG", (30 + n, 20))
    for n, k in ((1, 1), (2, 999)):
        inner = f"{wnids[k]}/" if by_class else ""
        picture(root / top / f"val/{inner}ILSVRC2012_val_0000000{n}.JPEG", (50, 40), seed=n)
    return root / "ILSVRC"


ILSVRC_TEST = {
    "val/ILSVRC2012_val_00000001.JPEG": (1, (50, 40), ["1,2,30,39", "4,5,6,7"]),
    "val/ILSVRC2012_val_00000002.JPEG": (999, (50, 40), ["0,0,49,39"]),
}


@both
@pytest.mark.parametrize(("top", "by_class"), [("ILSVRC", False), ("ILSVRC", True), ("ILSVRC/Data/CLS-LOC", False)])
def test_ilsvrc(tmp_path, how, top, by_class):
    packed(ilsvrc(tmp_path, top, by_class), how)
    metadata(tmp_path, "ILSVRC", "test", ILSVRC_TEST)
    wnids, _ = imagenet_classes()
    test = load("ilsvrc", "test", root=tmp_path, size=100)
    assert test.labels.tolist() == [1, 999] and test.wnids == wnids and test.classes[1] == "goldfish"
    assert test.boxes(0).tolist() == [[1, 2, 30, 39], [4, 5, 6, 7]]
    assert test[0]["boxes"].tolist() == [[2, 5, 60, 97.5], [8, 12.5, 12, 17.5]]
    train = load("ilsvrc", "train", root=tmp_path)
    assert train.labels.tolist() == [1, 1] and train.image_size(1) == (32, 20)
    with pytest.raises(SupervisionError):
        train.boxes(0)
    with pytest.raises(DataMissing, match=r"no boxes of ilsvrc train"):
        load("ilsvrc", "train", root=tmp_path, supervision="oracle").boxes(0)


def test_ilsvrc_boxes_from_the_official_xml(tmp_path):
    ilsvrc(tmp_path)
    wnids, _ = imagenet_classes()
    with pytest.raises(DataMissing, match=r"wsol data get wsol-metadata"):
        load("ilsvrc", "test", root=tmp_path)
    folder = tmp_path / "ILSVRC2012_bbox_val_v3/val"
    annotation(folder / "ILSVRC2012_val_00000001.xml", wnids[1], (50, 40), (1, 2, 30, 40))
    annotation(folder / "ILSVRC2012_val_00000002.xml", wnids[999], (50, 40), (0, 0, 9, 9), (5, 5, 50, 40))
    data = load("ilsvrc", "test", root=tmp_path)
    assert data.labels.tolist() == [1, 999] and data.boxes(1).tolist() == [[0, 0, 9, 9], [5, 5, 50, 40]]
    text(folder / "ILSVRC2012_val_00000002.xml", "<annotation><size>")
    with pytest.raises(DataCorrupt, match=r"annotation .*00000002.xml"):
        load("ilsvrc", "test", root=tmp_path)


def test_ilsvrc_refuses_an_unknown_class_folder(tmp_path):
    picture(ilsvrc(tmp_path) / "train/n99999999/x.JPEG", (5, 5))
    with pytest.raises(DataCorrupt, match=r"unknown class 'n99999999'"):
        load("ilsvrc", "train", root=tmp_path)


@pytest.mark.parametrize("folder", ["imagenetv2/imagenetv2-threshold0.7-format-val", "imagenetv2", "ILSVRC/val2"])
def test_ilsvrc_validation_is_imagenet_v2(tmp_path, folder):
    metadata(
        tmp_path,
        "ILSVRC",
        "val",
        {"val2/0/7.jpeg": (0, (50, 40), ["1,2,30,39"]), "val2/12/3.jpeg": (12, (9, 9), ["0,0,8,8"])},
    )
    picture(tmp_path / folder / "0/7.jpeg", (50, 40))
    picture(tmp_path / folder / "12/3.jpeg", (9, 9))
    data = load("ilsvrc", "val", root=tmp_path)
    assert (
        data.labels.tolist() == [0, 12]
        and data.picture(1).size == (9, 9)
        and data.boxes(0).tolist() == [[1, 2, 30, 39]]
    )


def test_mini_brings_squashed_pictures_and_original_boxes_together(tmp_path):
    top = tmp_path / "ilsvrc-val-mini"
    picture(top / "images/a.JPEG", (227, 227))
    text(
        top / "boxes.tsv",
        "image\tclass\twnid\torig_w\torig_h\tboxes",
        "a.JPEG\t1\tn01\t500\t400\t50,40,250,399;0,0,499,20",
    )
    text(top / "synset_words.txt", "n00 tench, Tinca", "n01 goldfish, Carassius")
    data = load("ilsvrc-mini", "test", root=tmp_path, size=100)
    assert (
        data.image_size(0) == (500, 400)
        and data.picture(0).size == (227, 227)
        and data.classes == ("tench", "goldfish")
    )
    assert data[0]["image"].shape == (3, 100, 100)
    torch.testing.assert_close(data[0]["boxes"], torch.tensor([[10, 10, 50, 99.75], [0, 0, 99.8, 5]]))


# --- OpenImages and the fine-grained sets -----------------------------------------------------------------------------


def openimages(root: Path) -> Path:
    top = root / "OpenImages"
    for split in ("train", "val", "test"):
        for k, mid in enumerate(("01226z", "0bt_c3")):
            picture(top / split / mid / "p.jpg", (40, 20), seed=k)
    for name, box in (("a", (0, 0, 10, 10)), ("b", (5, 5, 20, 12)), ("ignore", (8, 8, 30, 20))):
        mask_file(top / f"test/01226z/p_{name}.png", (40, 20), box)
    mask_file(top / "test/0bt_c3/p_a.png", (20, 10), (2, 2, 6, 5))
    at = "test/01226z/p_"
    lines = [f"{at}a.png,{at}ignore.png", f"{at}b.png,{at}ignore.png"]
    rows = {"test/01226z/p.jpg": (0, (0, 0), lines), "test/0bt_c3/p.jpg": (1, (0, 0), ["test/0bt_c3/p_a.png,"])}
    metadata(root, "OpenImages", "test", rows)
    metadata(
        root, "OpenImages", "train", {f"train/{m}/p.jpg": (k, (0, 0), []) for k, m in enumerate(("01226z", "0bt_c3"))}
    )
    return top


@both
def test_openimages(tmp_path, how):
    packed(openimages(tmp_path), how)
    data = load("openimages30k", "test", root=tmp_path, size=40)
    assert data.classes == ("/m/01226z", "/m/0bt_c3") and data.image_sizes.tolist() == [[40, 20], [40, 20]]
    mask, ignore = data.mask(0), data.ignore(0)
    assert mask.sum() == 100 + 15 * 7 - 5 * 5  # the union
    assert not (mask & ignore).any() and ignore.sum() == 22 * 12 - (2 * 2 + 12 * 4 - 2 * 2)
    assert data.boxes(0).tolist() == [[0, 0, 10, 10], [5, 5, 20, 12]]
    assert data.boxes(1).tolist() == [[4, 4, 12, 10]]  # masks of half the size: boxes in pixels of the picture
    batch = collate([data[0], data[1]])
    assert batch["masks"].shape == batch["ignore"].shape == (2, 40, 40)  # type: ignore[typeddict-item]
    train = load("openimages30k", "train", root=tmp_path, size=40)
    assert set(train[0]) == {"image", "label", "index"}
    with pytest.raises(SupervisionError):
        train.ignore(0)


def test_openimages_without_its_masks(tmp_path):
    top = openimages(tmp_path)
    (top / "test/01226z/p_b.png").unlink()
    with pytest.raises(DataCorrupt, match=r"p_b.png"):
        load("openimages30k", "test", root=tmp_path)


def test_flowers(tmp_path, monkeypatch):
    top = tmp_path / "flowers-102"
    for i in range(1, 7):
        picture(top / f"jpg/image_{i:05d}.jpg", (40, 30), seed=i)
    savemat(top / "imagelabels.mat", {"labels": np.array([[1, 2, 1, 2, 1, 2]])})
    savemat(top / "setid.mat", {"trnid": np.array([[1, 2]]), "valid": np.array([[3, 4]]), "tstid": np.array([[5, 6]])})
    with pytest.raises(DataCorrupt, match=r"wsol data get flowers"):
        load("flowers", "test", root=tmp_path)  # torchvision checks the hashes of the two tables
    hashes = {
        k: (n, hashlib.md5((top / n).read_bytes()).hexdigest())
        for k, n in (("label", "imagelabels.mat"), ("setid", "setid.mat"))
    }
    monkeypatch.setattr(official.Flowers102, "_file_dict", hashes)
    with pytest.raises(DataMissing, match=r"segmentations"):
        load("flowers", "test", root=tmp_path).boxes(0)
    blue = np.zeros((30, 40, 3), np.uint8) + np.array([0, 0, 254], np.uint8)
    blue[10:20, 5:25] = (200, 40, 120)
    (tmp_path / "flowers-102-segmentations/segmim").mkdir(parents=True)
    Image.fromarray(blue).save(tmp_path / "flowers-102-segmentations/segmim/segmim_00006.jpg", quality=90)
    data = load("flowers", "test", root=tmp_path)
    assert data.labels.tolist() == [0, 1] and data.image_ids[1] == "image_00006.jpg" and len(data.classes) == 102
    assert (data.boxes(1) - torch.tensor([[5, 10, 25, 20]])).abs().max() <= 2  # JPEG blurs the edge
    with pytest.raises(SupervisionError):
        load("flowers", "train", root=tmp_path).mask(0)


def test_aircraft(tmp_path):
    top = tmp_path / "fgvc-aircraft" / "fgvc-aircraft-2013b" / "data"
    text(top / "variants.txt", "707-320", "A380")
    text(top / "images_box.txt", "0000001 1 1 40 30", "0000002 5 6 20 21")
    for split, line in (("train", "0000001 A380"), ("val", "0000002 707-320"), ("test", "0000002 707-320")):
        text(top / f"images_variant_{split}.txt", line)
    for i in (1, 2):
        picture(top / f"images/000000{i}.jpg", (40, 30))
    data = load("aircraft", "test", root=tmp_path)
    assert (
        data.labels.tolist() == [0]
        and data.boxes(0).tolist() == [[4, 5, 19, 20]]
        and data.classes == ("707-320", "A380")
    )
    (top / "images_variant_val.txt").unlink()
    with pytest.raises(DataCorrupt, match=r"aircraft-2013b is incomplete or damaged: run `wsol data get aircraft`"):
        load("aircraft", "val", root=tmp_path)
    oracle = load("aircraft", "train", root=tmp_path, supervision="oracle")
    assert oracle.labels.tolist() == [1] and oracle.boxes(0).tolist() == [[0, 0, 39, 29]]


def test_cars(tmp_path):
    top = tmp_path / "stanford_cars"
    (top / "devkit").mkdir(parents=True)
    kind = [(key, object) for key in ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname")]
    savemat(top / "devkit/cars_meta.mat", {"class_names": np.array(["AM General Hummer", "Acura RL"], dtype=object)})
    for file, folder in (
        ("devkit/cars_train_annos.mat", "cars_train"),
        ("cars_test_annos_withlabels.mat", "cars_test"),
    ):
        rows = np.array([(2, 3, 30, 20, 2, "00001.jpg"), (1, 1, 40, 30, 1, "00002.jpg")], dtype=kind)
        savemat(top / file, {"annotations": rows})
        for i in (1, 2):
            picture(top / folder / f"0000{i}.jpg", (40, 30))
    data = load("cars", "test", root=tmp_path)
    assert data.classes == ("AM General Hummer", "Acura RL") and data.labels.tolist() == [1, 0]
    assert data.boxes(0).tolist() == [[1, 2, 29, 19]] and "boxes" not in load("cars", "train", root=tmp_path)[0]


@pytest.mark.parametrize("split_up", [False, True])
def test_dogs(tmp_path, split_up):
    top = tmp_path / "stanford-dogs"
    pictures, notes = (tmp_path / f"stanford-dogs{s}" for s in (("-images", "-annotation") if split_up else ("", "")))
    for breed in ("n02085620-Chihuahua", "n02085782-Japanese_spaniel"):
        picture(pictures / f"Images/{breed}/{breed[:9]}_7.jpg", (40, 30))
        annotation(notes / f"Annotation/{breed}/{breed[:9]}_7", "dog", (40, 30), (1, 2, 39, 29))
    top.mkdir(exist_ok=True)
    for split, breed, label in (("train", "n02085620-Chihuahua", 1), ("test", "n02085782-Japanese_spaniel", 2)):
        file = np.array([[f"{breed}/{breed[:9]}_7.jpg"]], dtype=object)
        savemat(top / f"{split}_list.mat", {"file_list": file, "labels": np.array([[label]])})
    data = load("dogs", "test", root=tmp_path)
    assert data.classes == ("Chihuahua", "Japanese spaniel") and data.wnids == ("n02085620", "n02085782")
    assert data.labels.tolist() == [1] and data.boxes(0).tolist() == [[1, 2, 39, 29]] and len(data[0]["boxes"]) == 1


# --- parts ------------------------------------------------------------------------------------------------------------


def test_cut_at_image_keeps_pictures_apart():
    boxes = [torch.tensor([[0.0, 0, 12, 5], [1, 1, 1, 4]]), torch.zeros(0, 4), torch.tensor([[-3.0, 2, 5, 9]])]
    cutted = cut_at_image(boxes, torch.tensor([[10, 20], [1, 1], [5, 8]]), "abc", "x")
    assert [b.tolist() for b in cutted] == [[[0, 0, 10, 5], [1, 1, 1, 4]], [], [[0, 2, 5, 8]]]


@both
def test_source(tmp_path, how):
    text(tmp_path / "set" / ("inner" if how == "folder" else "") / "a/b.txt", "x", "", "y")
    packed(tmp_path / "set", how)
    source = locate(tmp_path, ("none", "set"), "a/b.txt")  # one folder down
    assert isinstance(source, Zip if how == "zip" else Folder)
    assert source.exists("a") and source.exists("a/b.txt") and not source.exists("b.txt")
    assert source.lines("a/b.txt") == ["x", "y"] and source.listing("") == ("a",) and source.listing("nowhere") == ()
    with pytest.raises(DataCorrupt, match=r"b\.png"):
        source.read("a/b.png")


def test_metadata_training_boxes_need_the_oracle(tmp_path):
    metadata(tmp_path, "CUB", "train", {"a/b.jpg": (3, (50, 40), ["1,2,30,39"])})
    with pytest.raises(SupervisionError):
        load_metadata("cub", "train", root=tmp_path)
    known = load_metadata("cub", "train", root=tmp_path, supervision="oracle")
    assert known.labels.tolist() == [3] and known.boxes[0].tolist() == [[1, 2, 30, 39]]
    text(tmp_path / "wsol-metadata/metadata/CUB/train/class_labels.txt", "a/c.jpg,3")
    with pytest.raises(DataCorrupt, match=r"disagree on a/b.jpg"):
        load_metadata("cub", "train", root=tmp_path, supervision="oracle")


# --- subsets ----------------------------------------------------------------------------------------------------------


def test_subset_tiny_is_the_first_200_byte_for_byte(tmp_path):
    top = tiny(tmp_path)
    archive = cut("tiny-imagenet", tmp_path / "out", tmp_path)
    train = load("tiny-imagenet", "train", root=tmp_path / "out")
    assert (
        train.image_ids == ("n02_0.JPEG", "n01_0.JPEG")
        and len(load("tiny-imagenet", "val", root=tmp_path / "out")) == 2
    )
    path = "train/n02/images/n02_0.JPEG"
    assert zipfile.ZipFile(archive).read(f"tiny-imagenet-200/{path}") == (top / path).read_bytes()
    assert cut("tiny-imagenet", tmp_path / "again", tmp_path).read_bytes() == archive.read_bytes()
    assert {info.date_time for info in zipfile.ZipFile(archive).infolist()} == {(1980, 1, 1, 0, 0, 0)}
    with pytest.raises(ValueError, match=r"exists already and is never overwritten"):
        cut("tiny-imagenet", tmp_path / "out", tmp_path / "out")  # the official archive may lie there


def test_subset_cub_50_scales_boxes_with_pictures(tmp_path):
    top = cub(tmp_path)
    text(top / "image_class_labels.txt", "1 1", "2 1", "3 2", "4 50")
    cut("cub-50", tmp_path / "out", tmp_path)
    data = load("cub-50", "test", root=tmp_path / "out")
    assert data.labels.tolist() == [0, 1, 49] and data.image_size(2) == (335, 224) == short_side((448, 300))
    x, y = 335 / 448, 224 / 300
    torch.testing.assert_close(data.boxes(2), torch.tensor([[44 * x, 30 * y, 132 * x, 120 * y]]), atol=2e-3, rtol=0)
    assert not available("cub", tmp_path / "out")


def test_subset_ilsvrc_mini(tmp_path):
    ilsvrc(tmp_path)
    metadata(tmp_path, "ILSVRC", "test", ILSVRC_TEST)
    cut("ilsvrc-mini", tmp_path / "out", tmp_path)
    data = load("ilsvrc-mini", "test", root=tmp_path / "out")
    assert data.picture(0).size == (227, 227) and data.image_size(1) == (50, 40) and data.labels.tolist() == [1, 999]
    assert data.boxes(0).tolist() == [[1, 2, 30, 39], [4, 5, 6, 7]] and data.wnids == imagenet_classes()[0]


# --- the real data ----------------------------------------------------------------------------------------------------


@pytest.mark.needs("tiny-imagenet")
def test_real_tiny(wsol_data):
    val, train = (load("tiny-imagenet", s, root=wsol_data, supervision="oracle") for s in ("val", "train"))
    assert len(val) == 10_000 and torch.equal(torch.bincount(val.labels), torch.full((200,), 50))
    assert len(train) in (40_000, 100_000) and len(set(train.wnids)) == 200
    assert val.boxes(0).tolist() == [[0, 32, 44, 62]] and val.classes[0] == "Egyptian cat"
    boxes = torch.cat([val.boxes(i) for i in range(len(val))])
    assert boxes.min() == 0 and boxes.max() == 63 and len(boxes) == 10_000
    assert ((boxes[:, 0] == boxes[:, 2]) | (boxes[:, 1] == boxes[:, 3])).sum() == 41
    assert where("tiny-imagenet", wsol_data).exists()


@pytest.mark.needs("cub")
def test_real_cub_50(wsol_data):
    test, train = (load("cub-50", s, root=wsol_data, supervision="oracle") for s in ("test", "train"))
    assert (len(test), len(train)) == (1389, 1500) and len(test.classes) == 50
    for data in (test, train):
        boxes = torch.cat([data.boxes(i) for i in range(len(data))])
        assert (
            (boxes >= 0).all()
            and (boxes <= data.image_sizes.repeat(1, 2)).all()
            and (boxes[:, 2:] > boxes[:, :2]).all()
        )
    assert test.image_ids[0] == "001.Black_footed_Albatross/Black_Footed_Albatross_0046_18.jpg"
    torch.testing.assert_close(test.boxes(0), torch.tensor([[40.08, 18.054, 257.18, 221.326]]))
    assert test.picture(0).size == test.image_size(0) == (334, 224)


@pytest.mark.needs("cub")
@pytest.mark.needs("wsol-metadata")
def test_real_cub_50_boxes_agree_with_the_metadata(wsol_data):
    """Scaled back to the original size, each box is the published one, but for the cut at W-1, H-1 there."""
    test, known = load("cub-50", "test", root=wsol_data), load_metadata("cub", "test", root=wsol_data)
    assert known.image_ids[: len(test)] == test.image_ids and torch.equal(known.labels[: len(test)], test.labels)
    originals = known.image_sizes[: len(test)]
    ours = torch.cat([test.boxes(i) for i in range(len(test))]) * (originals / test.image_sizes).repeat(1, 2)
    cut = torch.minimum(ours, (originals - 1).repeat(1, 2))
    assert (cut - torch.cat(known.boxes[: len(test)])).abs().max() < 0.02


@pytest.mark.needs("ilsvrc")
@pytest.mark.needs("wsol-metadata")
def test_real_ilsvrc_mini_agrees_with_the_metadata(wsol_data):
    data, known = load("ilsvrc-mini", "test", root=wsol_data), load_metadata("ilsvrc", "test", root=wsol_data)
    row = {image_id.removeprefix("val/"): i for i, image_id in enumerate(known.image_ids)}
    assert (
        len(data) == 1300 and sum(len(data.boxes(i)) for i in range(1300)) == 1943 and len(data.labels.unique()) == 725
    )
    for i, image_id in enumerate(data.image_ids):
        there = row[image_id]
        assert torch.equal(data.boxes(i), known.boxes[there]) and torch.equal(
            data.image_sizes[i], known.image_sizes[there]
        )
        assert data.labels[i] == known.labels[there]
    assert data.wnids == imagenet_classes()[0] and data.picture(0).size == (227, 227)


@pytest.mark.needs("wsol-metadata")
@pytest.mark.parametrize(
    ("name", "split", "pictures", "boxes"),
    [
        ("cub", "test", 5794, 5794),
        ("cub", "val", 1000, 1000),
        ("ilsvrc", "test", 50_000, 80_477),
        ("ilsvrc", "val", 10_000, 18_532),
    ],
)
def test_real_metadata(wsol_data, name, split, pictures, boxes):
    known = load_metadata(name, split, root=wsol_data)
    assert len(known.image_ids) == len(known.labels) == len(known.image_sizes) == pictures
    flat, sizes = (
        torch.cat(known.boxes),
        torch.repeat_interleave(known.image_sizes, torch.tensor([len(b) for b in known.boxes]), dim=0),
    )
    assert len(flat) == boxes and (flat >= 0).all() and (flat <= (sizes - 1).repeat(1, 2)).all()
    assert known.labels.unique().tolist() == list(range(200 if name == "cub" else 1000))


@pytest.mark.needs("tiny-imagenet")
def test_real_archive_is_never_copied(wsol_data, tmp_path):
    data = load("tiny-imagenet", "val", root=wsol_data, size=224)
    batch = collate([data[i] for i in range(4)])
    assert batch["image"].shape == (4, 3, 224, 224) and batch["image"].min() >= 0 and batch["image"].max() <= 1
    torch.testing.assert_close(batch["boxes"][0], torch.tensor([[0, 32, 44, 62]]) * 3.5)


def test_per_class_keeps_the_first_pictures_of_each_class_in_their_order():
    whole = load("scenes", "train", n=60, classes=4)
    few = load("scenes", "train", n=60, classes=4, per_class=3)
    wanted = [i for i in range(60) if (whole.labels[:i] == whole.labels[i]).sum() < 3]
    assert few.image_ids == tuple(whole.image_ids[i] for i in wanted)
    assert few.labels.bincount().tolist() == [3, 3, 3, 3]
    with pytest.raises(ValueError, match="per_class is at least 1"):
        load("scenes", "train", n=60, per_class=0)
