"""VAF: scores on image keys scaled, or raised by a share of their size, in the middle layers."""

from transformers import AutoModelForImageTextToText, AutoProcessor

from sightline import VAF
from sightline.chat import prompt_inputs, reply
from sightline.lab import CHECKPOINT, IMAGES

model = AutoModelForImageTextToText.from_pretrained(CHECKPOINT)
processor = AutoProcessor.from_pretrained(CHECKPOINT)
image = IMAGES / "corner.png"
described = prompt_inputs(model, processor, image, "Describe the image.")
asked = prompt_inputs(model, processor, image, "Is there a bus in the image?")
yes = processor.tokenizer.convert_tokens_to_ids("Yes")

# "scale" lowers an image key whose score is negative, which looks harder at what is already looked
# at; "abs" raises every image key. The default layers are few in a model as small as this one.
every_layer = (0, model.config.text_config.num_hidden_layers)
decoders = {
    "plain": None,
    "scale": VAF(enhance=0.5, mode="scale"),
    "abs": VAF(enhance=0.5, mode="abs"),
    "scale, every layer": VAF(enhance=0.5, mode="scale", layers=every_layer),
    "abs, every layer": VAF(enhance=0.5, mode="abs", layers=every_layer),
    "abs, two heads": VAF(enhance=0.5, mode="abs", layers=every_layer, heads=(0, 1)),
}
for name, decoder in decoders.items():
    output = model.generate(
        **asked,
        max_new_tokens=1,
        custom_generate=decoder,
        output_scores=True,
        return_dict_in_generate=True,
    )
    bus = output.scores[0].softmax(dim=-1)[0, yes]
    print(f"{name:18}  a bus: {bus:.3f}  {reply(model, processor, described, decoder)}")
