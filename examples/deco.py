"""DeCo: how many candidates each step has, and how much an earlier layer changes their scores."""

from transformers import AutoModelForImageTextToText, AutoProcessor

from sightline import DeCo
from sightline.chat import prompt_inputs
from sightline.lab import CHECKPOINT, IMAGES

model = AutoModelForImageTextToText.from_pretrained(CHECKPOINT)
processor = AutoProcessor.from_pretrained(CHECKPOINT)
inputs = prompt_inputs(model, processor, IMAGES / "corner.png", "Describe the image.")
blocks = model.config.text_config.num_hidden_layers

decoders = {
    "candidates alone": DeCo(alpha=0),
    "default": DeCo(),
    "stronger": DeCo(alpha=1.5),
    "by shares": DeCo(alpha=1.5, layers=(0.25, 0.5)),  # of the depth
    "by numbers": DeCo(alpha=1.5, layers=(blocks - 1, blocks - 1)),  # the last but one
}
for name, decoder in decoders.items():
    output = model.generate(
        **inputs,
        custom_generate=decoder,
        output_scores=True,
        output_logits=True,
        return_dict_in_generate=True,
    )
    new = output.sequences[0, inputs["input_ids"].shape[1] :]
    print(f"{name}: {processor.decode(new, skip_special_tokens=True).strip()}")
    candidates = [int(scores.isfinite().sum()) for scores in output.scores]
    # Scores are what was decoded from, logits what the last layer said: one [1, V] per step.
    steps = zip(output.scores, output.logits, strict=True)
    turned = sum(int(scores.argmax() != logits.argmax()) for scores, logits in steps)
    print(f"  candidates: {candidates}; another best token at {turned} of {len(new)} steps")
