"""VASparse: its contrast as a plain logits processor, its parts one by one, the paper's preset."""

from transformers import AutoModelForImageTextToText, AutoProcessor

from sightline import EmbeddingContrast, VASparse
from sightline.chat import prompt_inputs, reply
from sightline.lab import CHECKPOINT, IMAGES

model = AutoModelForImageTextToText.from_pretrained(CHECKPOINT)
processor = AutoProcessor.from_pretrained(CHECKPOINT)
inputs = prompt_inputs(model, processor, IMAGES / "corner.png", "Describe the image.")
print("plain:                 ", reply(model, processor, inputs))

# The contrast needs ids and scores only, so no decoder: the stock generate, a list of processors.
contrast = EmbeddingContrast(model, alpha=0.5, beta=0.1)
print("as a processor:        ", reply(model, processor, inputs, logits_processor=[contrast]))
last = inputs["input_ids"][:, -1]  # what is taken off after it, whatever the image
likely = contrast.prior(last)[0].topk(3).indices
print("  after the prompt's last token, the head on its embedding would say:", end=" ")
print(", ".join(processor.tokenizer.convert_ids_to_tokens(likely)))

off = VASparse(alpha=0, beta=0, keep=1, sink=0)
parts = {
    "the same as a decoder: ": VASparse(alpha=0.5, keep=1),
    "selection alone:       ": VASparse(alpha=0, beta=0, keep=0.5, every=4),
    "sink penalty alone:    ": VASparse(alpha=0, beta=0, keep=1, sink=0.5),
    "all switched off:      ": off,
}
for name, decoder in parts.items():
    print(name, reply(model, processor, inputs, decoder))

# Selection cuts the cache, so it must be a dynamic one (the default of generate), also under beams.
print("paper, 3 beams:        ", reply(model, processor, inputs, VASparse.paper(), num_beams=3))
