"""ICD: an amateur that is told to be careless, and what it would have said."""

from transformers import AutoModelForImageTextToText, AutoProcessor

from sightline import ICD
from sightline.chat import prompt_inputs
from sightline.lab import CHECKPOINT, IMAGES

model = AutoModelForImageTextToText.from_pretrained(CHECKPOINT)
processor = AutoProcessor.from_pretrained(CHECKPOINT)
inputs = prompt_inputs(model, processor, IMAGES / "corner.png", "Describe the image.")

default = ICD(processor=processor)
# The lab's model follows no instructions; of the first it does not even know the words.
for decoder in (
    default,
    ICD(processor=processor, alpha=3.0),
    ICD(processor=processor, instruction="Is there a bus?"),
):
    output = model.generate(
        **inputs, custom_generate=decoder, output_logits=True, return_dict_in_generate=True
    )
    new = output.sequences[0, inputs["input_ids"].shape[1] :]
    print(f"alpha {decoder.alpha}, {decoder.instruction!r}:")
    print("  answer:", processor.decode(new, skip_special_tokens=True).strip())
    # One tensor per step, [branches, rows, vocabulary]; the expert comes first.
    for step, logits in enumerate(output.branch_logits):
        expert, amateur = logits[:, 0].argmax(dim=-1).tolist()
        if expert != amateur:
            words = (repr(processor.decode([token])) for token in (expert, amateur))
            print("  token {}: as asked {}, told to be careless {}".format(step, *words))
