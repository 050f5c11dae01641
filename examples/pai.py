"""PAI: the attention part alone, the guidance alone, and both."""

from transformers import AutoModelForImageTextToText, AutoProcessor

from sightline import PAI
from sightline.chat import prompt_inputs, reply
from sightline.lab import CHECKPOINT, IMAGES

model = AutoModelForImageTextToText.from_pretrained(CHECKPOINT)
processor = AutoProcessor.from_pretrained(CHECKPOINT)
inputs = prompt_inputs(model, processor, IMAGES / "corner.png", "Describe the image.")
layers = model.config.text_config.num_hidden_layers

decoders = {
    "plain": None,
    "attention alone": PAI.without_guidance(alpha=0.5),
    "in every layer": PAI(alpha=0.5, gamma=1.0, layers=(0, layers)),
    "guidance alone": PAI(alpha=0, gamma=1.5),
    "both": PAI(alpha=0.5, gamma=1.5),
}
for name, decoder in decoders.items():
    # Guidance compares with the prompt without its image, a second branch; attention needs none.
    branches = len(decoder.recipe().simplified().contrasts) + 1 if decoder else 1
    text = reply(model, processor, inputs, decoder)
    print(f"{name:16} {branches} branch{'es' * (branches > 1):2} {text}")
