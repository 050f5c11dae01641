"""A recipe of one's own parts: two amateurs and the plausibility cut, and its ablations."""

from dataclasses import replace

from transformers import AutoModelForImageTextToText, AutoProcessor

from sightline import Contrastive, NoImage, NoisyImage, Plausibility, Recipe, answer
from sightline.lab import CHECKPOINT, IMAGES

model = AutoModelForImageTextToText.from_pretrained(CHECKPOINT)
processor = AutoProcessor.from_pretrained(CHECKPOINT)

# The mean of a model that sees no image and one that sees a ruined one is taken off.
both = Recipe(contrasts=(NoImage(), NoisyImage(noise_step=900)), rule=Contrastive(1.0, 0.1))
recipes = {
    "no contrast": Recipe(),
    "plausibility only": Recipe(rule=Plausibility(0.1)),
    "no image": replace(both, contrasts=(NoImage(),)),
    "noisy image": replace(both, contrasts=(NoisyImage(noise_step=900),)),
    "both": both,
    "both, no cut": replace(both, rule=Contrastive(1.0, beta=0)),
}
for name, recipe in recipes.items():
    text = answer(model, processor, IMAGES / "corner.png", "Describe the image.", recipe)
    print(f"{name:18} {text}")
