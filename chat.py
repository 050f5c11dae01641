"""Questions about pictures: from pictures and text to a model's inputs, and back to text."""

import inspect
from collections.abc import Sequence
from typing import Any

from sightline.pictures import listed, open_picture


def answer(
    model: Any,
    processor: Any,
    images: Any,
    text: str,
    decoder: Any = None,
    **generate_kwargs: Any,
) -> str:
    """What the model says of one or several pictures.

    Args:
        model: Any image-text-to-text model of transformers.
        processor: Its processor, with a chat template.
        images: One picture or a list of them: PIL images, paths, bytes or open files. Decoders that
            look at the picture again get it too.
        text: The question or instruction, put after the pictures.
        decoder: What `generate` takes as `custom_generate`; None: the model's own decoding.
        generate_kwargs: Further arguments of `generate`. `streamer=` works with and without a
            decoder here (with one, it is passed on as `token_streamer=`).

    Returns:
        The new text without special tokens; the first one where several sequences are returned.
    """
    check_question(text)
    pictures = [open_picture(image) for image in listed(images)]
    inputs = prompt_inputs(model, processor, pictures, text)
    return reply(model, processor, inputs, decoder, pictures, **generate_kwargs)


def prompt_inputs(model: Any, processor: Any, images: Any, text: str) -> dict[str, Any]:
    """The inputs of `generate` for a user's turn: pictures first, then text.

    Tensors are on the model's device (`input_device`), and pixels in its dtype.
    """
    check_question(text)
    check_processor(processor)
    pictures = [open_picture(image) for image in listed(images)]
    inputs = processor.apply_chat_template(
        user_turn(pictures, text),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    return dict(inputs.to(input_device(model), model.dtype))


def input_device(model: Any) -> Any:
    """The device on which a model takes its inputs.

    `model.device` is where its first weights are, and that is "meta" if they are offloaded: then
    the device of the first that are not, or the CPU, from where they are fetched.
    """
    import torch

    if model.device.type != "meta":
        return model.device
    devices = (weights.device for weights in model.parameters())
    return next((device for device in devices if device.type != "meta"), torch.device("cpu"))


def user_turn(pictures: Sequence[Any], text: str) -> list[dict[str, Any]]:
    """The messages of a chat in which a user shows pictures, then says something of them."""
    content: list[dict[str, Any]] = [{"type": "image", "image": picture} for picture in pictures]
    return [{"role": "user", "content": [*content, {"type": "text", "text": text}]}]


def reply(
    model: Any,
    processor: Any,
    inputs: dict[str, Any],
    decoder: Any = None,
    images: Any = None,
    **generate_kwargs: Any,
) -> str:
    """The text that the model puts after a prompt of `prompt_inputs`; arguments as in `answer`.

    `images` are the prompt's, for decoders that look at them again; all others do without.
    """
    if decoder is not None:
        generate_kwargs["custom_generate"] = decoder
        if getattr(decoder, "needs_images", False):
            generate_kwargs["images"] = images
        generate_kwargs = {**processor_for(decoder, processor), **generate_kwargs}
        # transformers 5 drops `streamer` when a callable decodes.
        if "streamer" in generate_kwargs:
            generate_kwargs["token_streamer"] = generate_kwargs.pop("streamer")
    output = model.generate(**inputs, **generate_kwargs)
    tokens = getattr(output, "sequences", output)[0]
    if not model.config.is_encoder_decoder:
        tokens = tokens[inputs["input_ids"].shape[1] :]
    return processor.decode(tokens, skip_special_tokens=True).strip()


def processor_for(decoder: Any, processor: Any) -> dict[str, Any]:
    """The keyword of `generate` that tells a decoder what belongs to an image in a prompt.

    Empty for what does not take it.
    """
    takes = callable(decoder) and "processor" in inspect.signature(decoder).parameters
    return {"processor": processor} if takes else {}


def check_question(text: str) -> None:
    """Raises `ValueError` unless there are words to answer."""
    if not text or not text.strip():
        raise ValueError(f"a question or instruction in words is needed, got {text!r}")


def check_processor(processor: Any) -> None:
    """Raises `ValueError` unless the processor can make a prompt of pictures and text."""
    kind = type(processor).__name__
    if not hasattr(processor, "image_processor"):
        raise ValueError(
            f"a processor of pictures and text is needed, got {kind}: load it with AutoProcessor "
            "from a checkpoint that holds one"
        )
    if getattr(processor, "chat_template", None) is None:
        raise ValueError(
            f"{kind} has no chat template, so the prompt cannot be built: use a checkpoint tuned "
            "for chat, or set processor.chat_template"
        )
