"""ILSVRC2012 (its validation set is the test split here, ImageNetV2 the validation split) and `ilsvrc-mini`.

Boxes come from the metadata of the common evaluation where they are on this machine, else from the official XML
files. Labels follow the sorted WordNet numbers, the usual order of ImageNet-1k.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from xml.etree import ElementTree

import torch
from torch import Tensor

from wsol_lib.data.metadata import MARKER as METADATA_MARKER
from wsol_lib.data.metadata import STEMS as METADATA_STEMS
from wsol_lib.data.metadata import Metadata, find_metadata, read_metadata
from wsol_lib.data.pictures import Pictures, class_number, cut_at_image, find, remedy
from wsol_lib.data.source import Source, locate
from wsol_lib.types import DataCorrupt, DataMissing

STEMS = ("ILSVRC", "ilsvrc", "ILSVRC2012", "ilsvrc2012", "imagenet", "ImageNet")
PICTURES = ("", "Data/CLS-LOC/")  # where train/ and val/ lie: at the top, or as the Kaggle archive has it
XML_STEMS = ("ILSVRC2012_bbox_val_v3", "ilsvrc-boxes", *STEMS)
XML_FOLDERS = ("Annotations/CLS-LOC/val", "bbox_val", "val")
V2_STEMS = ("ImageNetV2", "imagenetv2", "imagenetv2-threshold0.7", "imagenetv2-threshold0.7-format-val", "val2", *STEMS)
MINI_STEMS = ("ilsvrc-val-mini", "ilsvrc-mini")


@cache
def imagenet_classes() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """WordNet numbers of the 1,000 classes in the usual order, and the first name of each."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    wnids = tuple(info.label_names())
    return wnids, tuple(info.label_name_to_description(wnid).split(",")[0] for wnid in wnids)


def locate_source(name: str, root: Path) -> Source:
    """The archive or folder of "ilsvrc" or "ilsvrc-mini"; raises DataMissing."""
    if name == "ilsvrc-mini":
        return find(name, root, MINI_STEMS, "boxes.tsv")
    found = (locate(root, STEMS, f"{top}{folder}") for folder in ("train", "val") for top in PICTURES)
    return next((s for s in found if s is not None), None) or find(name, root, STEMS, "train")


def read(name: str, split: str, root: Path) -> Pictures:
    """ "ilsvrc": train (1,281,167), val (ImageNetV2, 10,000), test (50,000); "ilsvrc-mini": test (1,300)."""
    if name == "ilsvrc-mini":
        return _read_mini(name, locate_source(name, root))
    return {"train": _read_train, "val": _read_v2, "test": _read_test}[split](name, root)


def _pictures_folder(name: str, folder: str, root: Path) -> tuple[Source, str]:
    for top in PICTURES:
        source = locate(root, STEMS, f"{top}{folder}")
        if source is not None:
            return source, f"{top}{folder}"
    raise DataMissing(f"{name} has no folder {folder!r} in {root}: {remedy(name)} says where to get it")


def _read_train(name: str, root: Path) -> Pictures:
    source, folder = _pictures_folder(name, "train", root)
    wnids, classes = imagenet_classes()
    number = {wnid: k for k, wnid in enumerate(wnids)}
    paths, labels = [], []
    for wnid in source.listing(folder):
        label = class_number(number, wnid, source.where(folder))
        files = [file for file in source.listing(f"{folder}/{wnid}") if file.lower().endswith((".jpeg", ".jpg"))]
        paths += [f"{folder}/{wnid}/{file}" for file in files]
        labels += [label] * len(files)
    ids = [path.rsplit("/", 1)[-1] for path in paths]
    return Pictures(name, "train", source, paths, labels, classes, image_ids=ids, wnids=wnids)


def _read_test(name: str, root: Path) -> Pictures:
    source, folder = _pictures_folder(name, "val", root)
    files = _val_files(source, folder)
    metadata = find_metadata(root)
    known = read_metadata(metadata, "ilsvrc", "test") if metadata else _read_xml(name, root, sorted(files))
    ids = [image_id.rsplit("/", 1)[-1] for image_id in known.image_ids]
    source.require([files.get(i, f"{folder}/{i}") for i in ids], remedy(name))
    wnids, classes = imagenet_classes()
    return Pictures(
        name, "test", source, [files[i] for i in ids], known.labels, classes,
        boxes=cut_at_image(known.boxes, known.image_sizes, ids, name),
        image_sizes=known.image_sizes, image_ids=ids, wnids=wnids,
    )  # fmt: skip


def _val_files(source: Source, folder: str) -> dict[str, str]:
    """File name -> its place, for a flat folder of pictures and for one folder a class."""
    files = {}
    for entry in source.listing(folder):
        if entry.endswith(".JPEG"):
            files[entry] = f"{folder}/{entry}"
        elif entry.startswith("n"):
            files |= {file: f"{folder}/{entry}/{file}" for file in source.listing(f"{folder}/{entry}")}
    return files


def _read_xml(name: str, root: Path, files: list[str]) -> Metadata:
    first = files[0].replace(".JPEG", ".xml") if files else "ILSVRC2012_val_00000001.xml"
    found = ((locate(root, XML_STEMS, f"{folder}/{first}"), folder) for folder in XML_FOLDERS)
    source, folder = next(((s, f) for s, f in found if s is not None), (None, ""))
    if source is None:
        raise DataMissing(f"no boxes of {name} are in {root}: run `wsol data get wsol-metadata`")
    rows = [read_annotation(source, f"{folder}/{file.replace('.JPEG', '.xml')}") for file in files]
    number = {wnid: k for k, wnid in enumerate(imagenet_classes()[0])}
    labels = [class_number(number, wnid, file) for (wnid, _, _), file in zip(rows, files, strict=True)]
    return Metadata(
        tuple(files), torch.tensor(labels), torch.tensor([row[1] for row in rows]), [row[2] for row in rows]
    )


def read_annotation(source: Source, file: str) -> tuple[str, tuple[int, int], Tensor]:
    """Class, (width, height) and boxes Float[M,4] as published, from an XML file in the format of PASCAL VOC.

    Raises:
        DataCorrupt: the file is damaged or names no object.
    """
    try:
        tree = ElementTree.fromstring(source.read(file))
        size = (int(tree.findtext("size/width", "")), int(tree.findtext("size/height", "")))
        corners = [
            [float(o.findtext(f"bndbox/{k}", "")) for k in ("xmin", "ymin", "xmax", "ymax")]
            for o in tree.iter("object")
        ]
        return tree.findtext("object/name", ""), size, torch.tensor(corners).reshape(-1, 4)
    except (ElementTree.ParseError, ValueError) as error:
        raise DataCorrupt(f"cannot read the annotation {source.where(file)}: {error}") from error


def _read_v2(name: str, root: Path) -> Pictures:
    known = read_metadata(find("wsol-metadata", root, METADATA_STEMS, METADATA_MARKER), "ilsvrc", "val")
    inside = [image_id.removeprefix("val2/") for image_id in known.image_ids]
    source = locate(root, V2_STEMS, known.image_ids[0])
    paths = list(known.image_ids) if source else inside
    source = source or find("imagenet-v2", root, V2_STEMS, inside[0])
    source.require(paths, remedy("imagenet-v2"))
    wnids, classes = imagenet_classes()
    return Pictures(
        name, "val", source, paths, known.labels, classes,
        boxes=cut_at_image(known.boxes, known.image_sizes, known.image_ids, name),
        image_sizes=known.image_sizes, image_ids=known.image_ids, wnids=wnids,
    )  # fmt: skip


def _read_mini(name: str, source: Source) -> Pictures:
    """Pictures squashed to 227x227; boxes and sizes are those of the originals, and the frame brings both together."""
    rows = [line.split("\t") for line in source.lines("boxes.tsv")[1:]]
    words = [line.split(" ", 1) for line in source.lines("synset_words.txt")]
    ids, sizes = [row[0] for row in rows], torch.tensor([[int(row[3]), int(row[4])] for row in rows])
    source.require([f"images/{i}" for i in ids], remedy(name))
    boxes = [torch.tensor([[float(v) for v in box.split(",")] for box in row[5].split(";")]) for row in rows]
    return Pictures(
        name, "test", source, [f"images/{i}" for i in ids], [int(row[1]) for row in rows],
        [names.split(",")[0] for _, names in words], boxes=cut_at_image(boxes, sizes, ids, name),
        image_sizes=sizes, image_ids=ids, wnids=[wnid for wnid, _ in words],
    )  # fmt: skip
