"""SID: an amateur that sees only the image tokens it attends to least, and what it would say."""

from transformers import AutoModelForImageTextToText, AutoProcessor

from sightline import SID
from sightline.chat import prompt_inputs
from sightline.lab import CHECKPOINT, IMAGES

model = AutoModelForImageTextToText.from_pretrained(CHECKPOINT)
processor = AutoProcessor.from_pretrained(CHECKPOINT)
inputs = prompt_inputs(model, processor, IMAGES / "corner.png", "Describe the image.")
images = int((inputs["input_ids"] == model.config.image_token_id).sum())

for ratio in (0.1, 0.5, 1.0):  # at 1 the amateur is the expert, and nothing is taken off
    output = model.generate(
        **inputs,
        custom_generate=SID(ratio=ratio),
        output_logits=True,
        return_dict_in_generate=True,
    )
    new = output.sequences[0, inputs["input_ids"].shape[1] :]
    print(f"The amateur keeps {ratio:.0%} of {images} image tokens from layer {SID().start} on:")
    print("  answer:", processor.decode(new, skip_special_tokens=True).strip())
    # One tensor per step, [branches, rows, vocabulary]; the expert comes first.
    favourites = [logits[:, 0].argmax(dim=-1).tolist() for logits in output.branch_logits]
    other = [(expert, amateur) for expert, amateur in favourites if expert != amateur]
    print(
        f"  the amateur would have said something else at {len(other)} of {len(favourites)} steps"
    )
    for pair in other[:3]:
        expert, amateur = (processor.decode([token]).strip() for token in pair)
        print(f"    {amateur} in place of {expert}")
