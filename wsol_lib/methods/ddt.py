"""Deep descriptor transforming: what the pictures of a class have in common, as a map (equations: `wsol_lib.pseudo`).

Nothing is trained. The first principal component of a class needs one look at its training pictures; after that, a map
is a projection, for new pictures too.
"""

from __future__ import annotations

from functools import reduce
from operator import add

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from wsol_lib.backbones import Backbone
from wsol_lib.data.dataset import WsolDataset, by_class, collate
from wsol_lib.methods.cam import CAM
from wsol_lib.pseudo import Moments, project
from wsol_lib.training import device_of
from wsol_lib.types import Frozen, Localization, Localizer, RecipeError


class DDT(Localizer):
    """A mean and a direction of descriptors for each class, and the map of their projection. `fit` or `from_data`.

    Args:
        backbone: frozen; None takes the classifier's.
        classes: number K of classes.
        stage: where descriptors are read.
        classifier: frozen; gives the logits, and names the class of a picture without a label.

    Raises:
        RecipeError: neither backbone nor classifier, or a stage that the backbone does not return.
    """

    mean: Tensor  # [K,C]
    direction: Tensor  # [K,C]

    def __init__(
        self,
        backbone: Backbone | None = None,
        *,
        classes: int,
        stage: str = "last",
        classifier: CAM | None = None,
    ) -> None:
        super().__init__()
        if backbone is None and classifier is None:
            raise RecipeError("DDT needs a backbone, or a classifier whose backbone it takes")
        network = classifier.network if backbone is None else backbone  # type: ignore[union-attr]
        if stage not in network.channels:
            raise RecipeError(f"the backbone returns no map {stage!r}: create it with stages=({stage!r}, ...)")
        self.classes, self.stage = classes, stage
        self.backbone = Frozen(network)
        self.classifier = None if classifier is None else Frozen(classifier)
        for name in ("mean", "direction"):
            self.register_buffer(name, torch.zeros(classes, network.channels[stage]))

    @classmethod
    def from_data(
        cls,
        data: WsolDataset,
        backbone: Backbone | None = None,
        *,
        stage: str = "last",
        classifier: CAM | None = None,
    ) -> DDT:
        """A localizer fitted to the pictures and labels of `data`; arguments as for the constructor and `fit`."""
        return cls(backbone, classes=len(data.classes), stage=stage, classifier=classifier).fit(data)

    @torch.no_grad()
    def fit(self, data: WsolDataset) -> DDT:
        """Find the first component of each class, class by class, so that one C x C matrix is held at a time.

        Of several processes each looks at all pictures, and finds the same.

        Args:
            data: pictures of one size, with some of every class.

        Raises:
            ValueError: a class has no picture.
        """
        members = by_class(data.labels, torch.arange(len(data)))
        absent = [name for i, name in enumerate(data.classes) if i >= len(members) or not len(members[i])]
        if absent:
            raise ValueError(f"no picture of class {absent[0]!r} is there to find its component in")
        for label, indices in enumerate(members):
            batches = DataLoader(data.subset(indices), batch_size=32, collate_fn=collate)
            moments = reduce(add, (Moments.of(self.features(batch["image"])) for batch in batches))
            self.mean[label], self.direction[label] = moments.component()
        return self

    def features(self, images: Tensor) -> Tensor:
        """Descriptors Float[B,C,h,w] of pictures Float[B,3,H,W] in [0,1], on the backbone's device."""
        found: Tensor = self.backbone(images.to(device_of(self.backbone.module)))[self.stage]
        return found

    @torch.no_grad()
    def localize(self, images: Tensor, labels: Tensor | None = None) -> Localization:
        """The map of each picture's class, and the classifier's logits where there is one.

        Raises:
            ValueError: neither labels nor a classifier to name the class.
        """
        network, found = self.backbone.module, self.backbone(images)
        logits = None if self.classifier is None else self.classifier.module.logits(images, network, found)
        if labels is None and logits is None:
            raise ValueError("DDT draws the map of a class: give labels, or make it with a classifier that names it")
        chosen = logits.argmax(1) if labels is None else labels  # type: ignore[union-attr]
        return Localization(logits, project(found[self.stage], self.mean[chosen], self.direction[chosen]))
