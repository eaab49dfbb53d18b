"""The other fine-grained sets: Flowers-102, FGVC-Aircraft, Stanford Cars (all over torchvision) and Stanford Dogs.

They are read from folders in torchvision's own layout. Boxes of Aircraft and Cars count pixels from 1 as published;
they are given from 0 here, both ends inclusive.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.io import loadmat
from torch import Tensor
from torchvision import datasets

from wsol_lib.data.ilsvrc import read_annotation
from wsol_lib.data.openimages import mask_box
from wsol_lib.data.pictures import Pictures, cut_at_image, find, find_folder, read_sizes, remedy
from wsol_lib.data.source import Source, locate
from wsol_lib.types import DataCorrupt, DataMissing

LAYOUTS = {
    "flowers": (("flowers-102",), "setid.mat"),
    "aircraft": (("fgvc-aircraft-2013b", "fgvc-aircraft"), "data/images_box.txt"),
    "cars": (("stanford_cars",), "devkit/cars_meta.mat"),
    "dogs": (("stanford-dogs", "StanfordDogs", "stanford_dogs"), "train_list.mat"),
}
DOG_FOLDERS = (*LAYOUTS["dogs"][0], "stanford-dogs-images", "stanford-dogs-annotation")
BLUE = (0, 0, 254)  # the background of the published segmentations of Flowers-102
BLUE_DISTANCE = 60  # largest channel difference that JPEG noise makes


def locate_source(name: str, root: Path) -> Source:
    """The folder of the data set (an archive too for "dogs"); raises DataMissing."""
    stems, marker = LAYOUTS[name]
    return find(name, root, stems, marker) if name == "dogs" else find_folder(name, root, stems, marker)


class Flowers(Pictures):
    """Flowers; mask and box come from the published segmentations, where these are on this machine."""

    segmentations: Source | None = None

    def _mask(self, i: int) -> Tensor | None:
        if self.segmentations is None:
            return None
        file = "segmim/" + self.image_ids[i].replace("image_", "segmim_")
        return not_blue(self.segmentations.picture(file))

    def _boxes(self, i: int) -> Tensor:
        mask = self._mask(i)
        if mask is None:
            raise DataMissing("flowers has boxes only with its segmentations: run `wsol data get flowers`")
        return mask_box(mask)


def not_blue(picture: object) -> Tensor:
    """The object in a published segmentation: the pixels that are not the blue of the background, Bool[H,W]."""
    distance = np.abs(np.asarray(picture, dtype=np.int16) - np.array(BLUE, dtype=np.int16)).max(axis=2)
    return torch.from_numpy(distance > BLUE_DISTANCE)


def _official(kind: Any, name: str, split: str, source: Source) -> Any:
    """The data set as torchvision reads it, from the folder above the source."""
    try:
        return kind(str(source.path.parent), split=split)
    except (RuntimeError, OSError) as error:
        raise DataCorrupt(f"{source.path} is incomplete or damaged: {remedy(name)}") from error


def read_flowers(name: str, split: str, root: Path) -> Pictures:
    """Split train (1,020), val (1,020) or test (6,149)."""
    source = locate_source(name, root)
    official = _official(datasets.Flowers102, name, split, source)
    paths = [f"jpg/{Path(file).name}" for file in official._image_files]
    source.require(paths, remedy(name))
    data = Flowers(name, split, source, paths, official._labels, official.classes, image_ids=[p[4:] for p in paths])
    data.segmentations = locate(root, ("flowers-102", "flowers-102-segmentations"), "segmim")
    return data


def read_aircraft(name: str, split: str, root: Path) -> Pictures:
    """100 variants; split train (3,334), val (3,333) or test (3,333). The lowest 20 rows name the owner."""
    source = locate_source(name, root)
    official = _official(datasets.FGVCAircraft, name, split, source)
    ids = [Path(file).name for file in official._image_files]
    corners = dict(line.split(maxsplit=1) for line in source.lines("data/images_box.txt"))
    boxes = [torch.tensor([[float(v) for v in corners[i.removesuffix(".jpg")].split()]]) - 1 for i in ids]
    return _checked(name, split, source, [f"data/images/{i}" for i in ids], official._labels, official.classes, boxes)


def read_cars(name: str, split: str, root: Path) -> Pictures:
    """196 models; split train (8,144) or test (8,041)."""
    source = locate_source(name, root)
    official = _official(datasets.StanfordCars, name, split, source)
    file = "devkit/cars_train_annos.mat" if split == "train" else "cars_test_annos_withlabels.mat"
    rows = np.atleast_1d(loadmat(BytesIO(source.read(file)), squeeze_me=True)["annotations"])
    corners = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")
    boxes = [torch.tensor([[float(row[key]) for key in corners]]) - 1 for row in rows]
    paths = [Path(path).relative_to(source.path).as_posix() for path, _ in official._samples]
    return _checked(name, split, source, paths, [label for _, label in official._samples], official.classes, boxes)


def read_dogs(name: str, split: str, root: Path) -> Pictures:
    """120 breeds of ImageNet; split train (12,000) or test (8,580); boxes as published in the XML files."""
    source = locate_source(name, root)
    table = loadmat(BytesIO(source.read(f"{split}_list.mat")), squeeze_me=True)
    files, labels = [str(f) for f in np.atleast_1d(table["file_list"])], np.atleast_1d(table["labels"]).astype(int) - 1
    pictures = find(name, root, DOG_FOLDERS, "Images")
    annotations = find(name, root, DOG_FOLDERS, "Annotation")
    folders, files = pictures.listing("Images"), [file.removesuffix(".jpg") for file in files]
    annotations.require([f"Annotation/{file}" for file in files], remedy(name))
    boxes = [read_annotation(annotations, f"Annotation/{file}")[2] for file in files]
    breeds = [folder.split("-", 1)[1].replace("_", " ") for folder in folders]
    data = _checked(name, split, pictures, [f"Images/{file}.jpg" for file in files], labels.tolist(), breeds, boxes)
    data.wnids = tuple(folder.split("-", 1)[0] for folder in folders)
    return data


def _checked(
    name: str, split: str, source: Source, paths: list[str], labels: list[int], classes: list[str], boxes: list[Tensor]
) -> Pictures:
    source.require(paths, remedy(name))
    sizes = read_sizes(source, paths)
    ids = [path.rsplit("/", 1)[-1] for path in paths]
    return Pictures(
        name, split, source, paths, labels, classes,
        boxes=cut_at_image(boxes, sizes, ids, name), image_sizes=sizes, image_ids=ids,
    )  # fmt: skip
