"""CARVE: a second image, cut down to what the question looks at, and what it looks like."""

from dataclasses import dataclass

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from sightline import CARVE, Recipe, RefinedImage, answer
from sightline.lab import CHECKPOINT, IMAGES

model = AutoModelForImageTextToText.from_pretrained(CHECKPOINT)
processor = AutoProcessor.from_pretrained(CHECKPOINT)
prepared, image = processor.image_processor, IMAGES / "corner.png"
# The lab's model knows few words: it is asked in these. Others do with the defaults.
words = dict(general="Describe the image.", suffix="")


@dataclass(frozen=True)
class Saved:
    """A preparation around another: saves the refined image as the model gets it."""

    refine: RefinedImage
    needs_images = True  # so that `answer` passes them on

    def __call__(self, expert, model):
        branch = self.refine(expert, model)
        pixels = branch.pixels["pixel_values"][-1]
        mean, std = torch.tensor([prepared.image_mean, prepared.image_std])[..., None, None]
        values = (pixels * std + mean).clamp(0, 1)
        Image.fromarray((255 * values).byte().permute(1, 2, 0).numpy()).save("carved.png")
        print(f"  carved.png: {(values.amax(dim=0) < 0.02).float().mean():.0%} black")
        return branch


for question in ("Is there an orange in the image?", "Describe the image."):
    print(question)
    print("  plain:", answer(model, processor, image, question))
    print(
        "  CARVE:", answer(model, processor, image, question, CARVE(processor=processor, **words))
    )
    for share in (0.4, 1.0):  # at 1 nothing is cut: what a second copy does
        recipe = Recipe(preparations=(Saved(RefinedImage(processor, share=share, **words)),))
        print(f"  {share:.0%} kept:", answer(model, processor, image, question, recipe))
