"""The named subsets, cut from the official data as zip archives whose bytes depend on nothing but the pictures."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from wsol_lib.data import load
from wsol_lib.data.pictures import Pictures, check_known

DATE = (1980, 1, 1, 0, 0, 0)
PER_CLASS = 200  # training pictures of Tiny-ImageNet
SHORT_SIDE, QUALITY = 224, 88  # cub-50
MINI_COUNT, MINI_SIDE = 1300, 227  # ilsvrc-mini

Files = Iterator[tuple[str, bytes]]


def cut(name: str, folder: Path, root: Path | None = None) -> Path:
    """Cut "tiny-imagenet", "cub-50" or "ilsvrc-mini" from the official data below root, as an archive in `folder`.

    Raises:
        ValueError: unknown subset, or the archive is there already: it may be the official one.
        DataMissing: the official data are not on this machine.
    """
    check_known("subset", name, CUTS)
    stem, maker = CUTS[name]
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{stem}.zip"
    if target.exists():
        raise ValueError(f"{target} exists already and is never overwritten: choose another folder, or move it away")
    part = target.with_name(target.name + ".part")
    with zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:
        for file, data in sorted(tqdm(maker(root), desc=target.name, unit="file", disable=None)):
            archive.writestr(zipfile.ZipInfo(file, DATE), data)
    part.replace(target)
    return target


def _tiny(root: Path | None) -> Files:
    """Pictures 0 to 199 of each class, their boxes, and all of val, byte for byte."""
    data = _official("tiny-imagenet", "train", root)
    top = "tiny-imagenet-200"
    for wnid in data.wnids:
        lines = data.source.lines(f"train/{wnid}/{wnid}_boxes.txt")
        kept = [line for line in lines if int(line.split("_", 1)[1].split(".")[0]) < PER_CLASS]
        yield f"{top}/train/{wnid}/{wnid}_boxes.txt", _text(kept)
        for file in (line.split()[0] for line in kept):
            yield f"{top}/train/{wnid}/images/{file}", data.source.read(f"train/{wnid}/images/{file}")
    validation = _official("tiny-imagenet", "val", root).paths
    for file in ("wnids.txt", "words.txt", "val/val_annotations.txt", *validation):
        yield f"{top}/{file}", data.source.read(file)


def _cub(root: Path | None) -> Files:
    """The first 50 species: short side 224, boxes scaled with the picture, original sizes in sizes.txt."""
    source = _official("cub", "test", root).source
    wanted = {i for i, label in _rows(source.lines("image_class_labels.txt")) if int(label) <= 50}
    images = {i: path for i, path in _rows(source.lines("images.txt")) if i in wanted}
    boxes, sizes = [], []
    for i, corners in _rows(source.lines("bounding_boxes.txt")):
        if i in wanted:
            picture = source.picture(f"images/{images[i]}")
            small = picture.resize(short_side(picture.size), Image.Resampling.LANCZOS)
            scale = (small.width / picture.width, small.height / picture.height) * 2
            boxes.append(" ".join([i, *(f"{float(v) * s:.3f}" for v, s in zip(corners.split(), scale, strict=True))]))
            sizes.append(f"{i} {picture.width} {picture.height}")
            yield f"CUB_200_2011/images/{images[i]}", _jpeg(small)
    yield "CUB_200_2011/bounding_boxes.txt", _text(boxes)
    yield "CUB_200_2011/sizes.txt", _text(sizes)
    yield "CUB_200_2011/classes.txt", _text(source.lines("classes.txt")[:50])
    for file in ("images.txt", "image_class_labels.txt", "train_test_split.txt"):
        yield f"CUB_200_2011/{file}", _text([line for line in source.lines(file) if line.split()[0] in wanted])


def short_side(size: tuple[int, int]) -> tuple[int, int]:
    """(width, height) with the short side at 224 and the aspect ratio kept; smaller pictures stay as they are."""
    scale = min(1.0, SHORT_SIDE / min(size))
    return round(size[0] * scale), round(size[1] * scale)


def _ilsvrc(root: Path | None) -> Files:
    """1,300 pictures evenly spread over the official order, squashed to 227x227."""
    data = _official("ilsvrc", "test", root)
    chosen = data.subset(torch.linspace(0, len(data) - 1, min(MINI_COUNT, len(data))).long())
    top, rows = "ilsvrc-val-mini", ["image\tclass\twnid\torig_w\torig_h\tboxes"]
    for i, (file, label) in enumerate(zip(chosen.image_ids, chosen.labels.tolist(), strict=True)):
        boxes = ";".join(",".join(f"{v:g}" for v in box) for box in chosen.boxes(i).tolist())
        rows.append("\t".join([file, str(label), data.wnids[label], *map(str, chosen.image_size(i)), boxes]))
        yield f"{top}/images/{file}", _jpeg(chosen.picture(i).resize((MINI_SIDE, MINI_SIDE), Image.Resampling.LANCZOS))
    yield f"{top}/boxes.tsv", _text(rows)
    yield f"{top}/synset_words.txt", _text([f"{w} {name}" for w, name in zip(data.wnids, data.classes, strict=True)])


def _official(name: str, split: str, root: Path | None) -> Pictures:
    data = load(name, split, root=root)
    assert isinstance(data, Pictures)
    return data


def _rows(lines: list[str]) -> Iterator[list[str]]:
    return (line.split(maxsplit=1) for line in lines)


def _text(lines: list[str]) -> bytes:
    return ("\n".join(lines) + "\n").encode()


def _jpeg(picture: Image.Image) -> bytes:
    stream = BytesIO()
    picture.save(stream, "JPEG", quality=QUALITY, optimize=True)
    return stream.getvalue()


CUTS: dict[str, tuple[str, Callable[[Path | None], Files]]] = {
    "tiny-imagenet": ("tiny-imagenet-200", _tiny),
    "cub-50": ("cub-50", _cub),
    "ilsvrc-mini": ("ilsvrc-val-mini", _ilsvrc),
}
