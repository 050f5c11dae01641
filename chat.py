"""Questions about images: from images and text to a model's inputs, and back to text."""

import inspect
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from sightline.messages import check_characters, enumerated, short
from sightline.model_protocol import Model, UnsupportedModelError
from sightline.vision.images import listed, open_image, user_turn

WORDS = {"true": True, "false": False, "none": None, "null": None}


def answer(
    model: Model,
    processor: Any,
    images: Any,
    text: str,
    decoder: Any = None,
    *,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    processor_kwargs: Mapping[str, Any] | None = None,
    **generate_kwargs: Any,
) -> str:
    """What the model says of one or several images.

    Args:
        model: Model image-text-to-text model of transformers.
        processor: Its processor, with a chat template, or one that writes prompts by itself.
        images: One image or a list of them: PIL images, paths, bytes or open files. Decoders that
            look at the image again get it too.
        text: The question or instruction, put after the images.
        decoder: What `generate` takes as `custom_generate`; None: the model's own decoding.
        chat_template_kwargs: Arguments of the chat template besides the messages, as
            `apply_chat_template` takes them: `{"enable_thinking": False}`.
        processor_kwargs: Arguments of the processor's call: `{"max_pixels": 500_000}`. Decoders
            that look at the image again get them too.
        generate_kwargs: Further arguments of `generate`. `streamer=` works with and without a
            decoder here (with one, it is passed on as `token_streamer=`).

    Returns:
        The new text without special tokens; the first one where several sequences are returned.
    """
    check_question(text)
    opened = [open_image(image) for image in listed(images)]
    told: dict[str, Any] = dict(
        chat_template_kwargs=chat_template_kwargs, processor_kwargs=processor_kwargs
    )
    inputs = prompt_inputs(model, processor, opened, text, **told)
    return reply(model, processor, inputs, decoder, opened, **told, **generate_kwargs)


def prompt_inputs(
    model: Model,
    processor: Any,
    images: Any,
    text: str,
    *,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    processor_kwargs: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The inputs of `generate` for a user's turn: images first, then text.

    Tensors are on the model's device (`input_device`), and pixels in its dtype. Without a chat
    template the prompt is what the processor itself makes of images and text (PaliGemma's),
    where it puts the images into it.
    """
    check_question(text)
    check_processor(processor)
    opened = [open_image(image) for image in listed(images)]
    arguments = check_arguments(processor, chat_template_kwargs)
    if has_template(processor):
        turn = user_turn(opened, text)
        inputs = templated(processor, turn, arguments, **(processor_kwargs or {}))
    else:
        inputs = untemplated(processor, [opened], [text], **(processor_kwargs or {}))
    return dict(inputs.to(input_device(model), model.dtype))


def templated(
    processor: Any,
    messages: Sequence[Any],
    arguments: Mapping[str, Any],
    **processor_kwargs: Any,
) -> Any:
    """The processor's output for one chat or several, through its template, on the CPU.

    The token that begins a sequence stands there once: the tokenizer adds none where the template
    writes it.

    Args:
        processor: With a chat template.
        messages: A chat, or a list of chats.
        arguments: Of the template.
        processor_kwargs: Arguments of the processor.
    """
    import torch

    texts = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=False, **arguments
    )
    if begins_by_itself(processor.tokenizer, texts if isinstance(texts, str) else texts[0]):
        processor_kwargs["add_special_tokens"] = False
    with torch.device("cpu"):  # whatever the caller's default device is
        return processor.apply_chat_template(
            messages,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs=processor_kwargs,
            **arguments,
        )


def begins_by_itself(tokenizer: Any, text: str) -> bool:
    """Whether a text begins with the token that the tokenizer puts before every text."""
    added = tokenizer("")["input_ids"]
    ids = tokenizer(text.lstrip(), add_special_tokens=False)["input_ids"]
    return bool(added) and ids[:1] == added[:1]


def check_arguments(
    processor: Any, chat_template_kwargs: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The arguments of a chat template, or `ValueError` for one that it does not know."""
    if chat_template_kwargs is not None and not isinstance(chat_template_kwargs, Mapping):
        raise TypeError(
            "chat_template_kwargs must be a mapping such as {'enable_thinking': False}, got "
            f"{short(chat_template_kwargs)}"
        )
    arguments = dict(chat_template_kwargs or {})
    if not arguments:
        return {}
    if not has_template(processor):
        raise ValueError(
            f"{type(processor).__name__} has no chat template that would take "
            f"{enumerated(arguments)}: leave chat_template_kwargs out"
        )
    template = processor.chat_template
    texts = list(template.values()) if isinstance(template, Mapping) else [template]
    reserved = inspect.signature(processor.apply_chat_template).parameters
    for name in arguments:
        known = any(re.search(rf"\b{re.escape(str(name))}\b", text) for text in texts)
        if name in reserved or not known:
            raise ValueError(
                f"the chat template of {type(processor).__name__} takes no argument {short(name)}: "
                "leave it out of chat_template_kwargs"
            )
    return arguments


def parse_arguments(assignments: Sequence[str]) -> dict[str, Any]:
    """`["enable_thinking=false"]` -> `{"enable_thinking": False}`, or `ValueError`.

    A value is read as JSON, in any case of true, false and null (none), else it is text.
    """
    found: dict[str, Any] = {}
    for assignment in assignments:
        name, sign, text = assignment.partition("=")
        if not (sign and name.strip()):
            raise ValueError(
                f"an argument of the chat template is written NAME=VALUE, got {short(assignment)}"
            )
        if name.strip() in found:
            raise ValueError(f"the argument {short(name.strip())} is given twice")
        found[name.strip()] = _value(text.strip())
    return found


def written_argument(name: str, value: Any) -> str:
    """`enable_thinking=false`, which `parse_arguments` reads as the same value."""
    is_plain = isinstance(value, str) and _value(value) == value
    return f"{name}={value if is_plain else json.dumps(value, allow_nan=False)}"


def _value(text: str) -> Any:
    if text.lower() in WORDS:
        return WORDS[text.lower()]
    try:
        return json.loads(text, parse_constant=str)
    except (ValueError, RecursionError):  # no JSON, or none that can be read
        return text


def untemplated(
    processor: Any,
    images: Sequence[Sequence[Any]],
    texts: Sequence[str],
    **processor_kwargs: Any,
) -> Any:
    """What a processor without a chat template makes of images and texts by itself, on the CPU.

    Args:
        processor: Puts images into a prompt, or finds their tokens in the text.
        images: Of each text.
        texts: One for each prompt.
        processor_kwargs: Arguments of the processor.
    """
    import torch

    kind = type(processor).__name__
    refusal = (
        f"{kind} has no chat template, and by itself it puts no image into a prompt: use a "
        "checkpoint tuned for chat, or set processor.chat_template"
    )
    try:
        with torch.device("cpu"):  # whatever the caller's default device is
            inputs = processor(
                images=[list(own) for own in images],
                text=list(texts),
                return_tensors="pt",
                **processor_kwargs,
            )
    except (ValueError, TypeError, IndexError) as error:
        raise UnsupportedModelError(refusal) from error
    image_token = getattr(processor, "image_token_id", None)
    if image_token is None or not bool((inputs["input_ids"] == image_token).any()):
        raise UnsupportedModelError(refusal)
    inputs.pop("labels", None)  # PaliGemma's, for training
    return inputs


def input_device(model: Model) -> Any:
    """The device on which a model takes its inputs.

    `model.device` is where its first weights are, and that is "meta" if they are offloaded: then
    the device of the first that are not, or the CPU, from where they are fetched.
    """
    import torch

    if model.device.type != "meta":
        return model.device
    devices = (weights.device for weights in model.parameters())
    return next((device for device in devices if device.type != "meta"), torch.device("cpu"))


def reply(
    model: Model,
    processor: Any,
    inputs: dict[str, Any],
    decoder: Any = None,
    images: Any = None,
    *,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    processor_kwargs: Mapping[str, Any] | None = None,
    **generate_kwargs: Any,
) -> str:
    """The text that the model puts after a prompt of `prompt_inputs`; arguments as in `answer`.

    `images`, `chat_template_kwargs` and `processor_kwargs` are the prompt's, for decoders that look
    at the images again or ask something else in the same template; all others do without.
    """
    if decoder is not None:
        generate_kwargs["custom_generate"] = decoder
        if getattr(decoder, "needs_images", False):
            generate_kwargs["images"] = images
        told = processor_for(decoder, processor, chat_template_kwargs, processor_kwargs)
        generate_kwargs = {**told, **generate_kwargs}
        # transformers 5 drops `streamer` when a callable decodes.
        if "streamer" in generate_kwargs:
            generate_kwargs["token_streamer"] = generate_kwargs.pop("streamer")
    output = model.generate(**inputs, **generate_kwargs)
    tokens = getattr(output, "sequences", output)[0]
    if not model.config.is_encoder_decoder:
        tokens = tokens[inputs["input_ids"].shape[1] :]
    return processor.decode(tokens, skip_special_tokens=True).strip()


def processor_for(
    decoder: Any,
    processor: Any,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    processor_kwargs: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The keywords of `generate` that tell a decoder how a prompt was written.

    By the processor it knows what belongs to an image in a prompt. What the decoder does not take
    is left out, and so are arguments of the template and of the processor where there are none.
    """
    taken = inspect.signature(decoder).parameters if callable(decoder) else {}
    told = {"processor": processor}
    if chat_template_kwargs:
        told["chat_template_kwargs"] = chat_template_kwargs
    if processor_kwargs:
        told["processor_kwargs"] = processor_kwargs
    return {name: value for name, value in told.items() if name in taken}


def check_question(text: Any) -> None:
    """Raises `ValueError` unless there are words to answer."""
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"a question or instruction in words is needed, got {short(text)}")
    check_characters(text, "the question")


def has_template(processor: Any) -> bool:
    return getattr(processor, "chat_template", None) is not None


def check_template(processor: Any) -> None:
    """Raises `ValueError` unless the processor has a chat template."""
    check_processor(processor)
    if not has_template(processor):
        raise UnsupportedModelError(
            f"{type(processor).__name__} has no chat template, in which this decoder would ask: "
            "use a checkpoint tuned for chat, or set processor.chat_template"
        )


def check_processor(processor: Any) -> None:
    """Raises `ValueError` unless the processor can make a prompt of images and text."""
    kind = type(processor).__name__
    if not hasattr(processor, "image_processor"):
        raise ValueError(
            f"a processor of images and text is needed, got {kind}: load it with AutoProcessor "
            "from a checkpoint that holds one"
        )
