"""Checkpoints of vision-language models: what can be loaded, and why another one cannot."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Any

from sightline.messages import LONGEST, clipped


class Dtype(str, Enum):
    """What weights are computed in; "auto" is what they are stored in."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"
    auto = "auto"


def load_processor(checkpoint: str) -> Any:
    """The processor of a vision-language checkpoint, or `ValueError`."""
    from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, AutoConfig, AutoProcessor

    from sightline.chat import check_processor
    from sightline.vision.images import path_is

    path = Path(checkpoint)
    is_path = path.is_absolute() or checkpoint.startswith(".") or checkpoint.count("/") > 1
    is_folder = path_is(path, Path.is_dir)
    if is_path and not is_folder:
        raise ValueError(f"--model {clipped(checkpoint, 3 * LONGEST)}: no such folder")
    where = "in this folder" if is_folder else "in a folder or on the hub under this name"
    with refused_as(f"--model {clipped(checkpoint, 3 * LONGEST)}: no usable checkpoint {where}"):
        config = AutoConfig.from_pretrained(checkpoint)
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        raise ValueError(
            f"--model {clipped(checkpoint, 3 * LONGEST)} is a {config.model_type} model: a "
            "vision-language (image-text-to-text) model is needed"
        )
    with refused_as(f"--model {clipped(checkpoint, 3 * LONGEST)}: its processor cannot be loaded"):
        processor = AutoProcessor.from_pretrained(checkpoint)
    check_processor(processor)
    return processor


def load_model(checkpoint: str, device: str, dtype: Dtype) -> Any:
    """The model on its device, or `ValueError`."""
    from safetensors import SafetensorError
    from transformers import AutoModelForImageTextToText

    with refused_as(
        f"--model {clipped(checkpoint, 3 * LONGEST)}: its weights cannot be loaded", SafetensorError
    ):
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            checkpoint, dtype=dtype.value, output_loading_info=True
        )
        model, report = loaded[0].to(device).eval(), loaded[1]
    if missing := sorted(report["missing_keys"]):
        raise ValueError(
            f"--model {clipped(checkpoint, 3 * LONGEST)} is incomplete: {len(missing)} of "
            f"the model's weights are not in it ({missing[0]}, ...)"
        )
    return model


@contextmanager
def refused_as(reason: str, *further: type[Exception]) -> Iterator[None]:
    """What a library raises for an input becomes a `ValueError`: `reason` and one sentence."""
    kinds: tuple[type[Exception], ...] = (OSError, ValueError, RuntimeError, *further)
    try:
        yield
    except kinds as error:
        sentence = re.split(r"(?<=\.)\s|\n", str(error).strip(), maxsplit=1)[0]
        raise ValueError(f"{reason}: {clipped(sentence, 3 * LONGEST)}") from error


def check_device(name: str) -> None:
    """Raises `ValueError` unless tensors can be made on the device."""
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"--device {clipped(name)} cannot be used here: {clipped(error, 2 * LONGEST)}"
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps transformers' notes and bars off the screen, all but the bars of downloads."""
    from huggingface_hub import utils as hub
    from transformers.utils import logging

    levels = logging.get_verbosity(), hub.logging.get_verbosity()
    bars, downloads = logging.is_progress_bar_enabled(), not hub.are_progress_bars_disabled()
    logging.set_verbosity_error()
    hub.logging.set_verbosity_error()
    logging.disable_progress_bar()
    if downloads:
        hub.enable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(levels[0])
        hub.logging.set_verbosity(levels[1])
        if bars:
            logging.enable_progress_bar()
