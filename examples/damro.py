"""DAMRO: the patches that the vision tower's class token attends to most, and the answer without
what would be said of these alone."""

from dataclasses import dataclass

from transformers import AutoModelForImageTextToText, AutoProcessor

from sightline import DAMRO, Contrastive, Recipe, answer
from sightline.decoders.damro.outliers import OutlierImage, outliers
from sightline.lab import CHECKPOINT, IMAGES

model = AutoModelForImageTextToText.from_pretrained(CHECKPOINT)
processor = AutoProcessor.from_pretrained(CHECKPOINT)
image = IMAGES / "corner.png"


@dataclass(frozen=True)
class Shown(OutlierImage):
    """The same contrast; it draws each image's patches, those that the amateur sees as #."""

    def scores(self, expert, model):
        scores = super().scores(expert, model)
        for patches in scores:  # [N], higher is more of an outlier
            chosen = set(outliers(patches, self.k).tolist())
            side = int(len(patches) ** 0.5)
            for row in range(side):
                places = range(row * side, (row + 1) * side)
                print("  " + " ".join("#" if place in chosen else "." for place in places))
        return scores


print("plain:  ", answer(model, processor, image, "Describe the image."))
for k in (1, 8):
    decoder = DAMRO(k=k)
    print(f"k = {k}:  ", answer(model, processor, image, "Describe the image.", decoder))
    recipe = Recipe(contrasts=(Shown(k),), rule=Contrastive(decoder.alpha, decoder.beta))
    answer(model, processor, image, "Describe the image.", recipe, max_new_tokens=1)
