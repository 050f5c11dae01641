"""Any decoder by its name inside lmms-eval (EvolvingLMMs-Lab).

    pip install examples/lmms-eval
    lmms-eval --model sightline --tasks pope --batch_size 1 \
        --model_args 'pretrained=llava-hf/llava-1.5-7b-hf,decoder="vcd:alpha=0.5,beta=0.2"'

Without `decoder` the checkpoint answers as it is. Names, settings and presets are those of
`sightline decoders`, sums such as "vdd+vaf" and controls included; quotes keep the commas
between settings from the harness. How an answer is drawn and how long it may be is the task's.

What was not run: lmms-eval itself. What it asks of a model follows its model guide and release 0.7
("simple" models, which get text and images). The tests run this file on a stand-in for its base
class. It answers one request at a time in one process, and gives no likelihoods of answers.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lmms_eval.api.model import lmms
from transformers import AutoModelForImageTextToText, AutoProcessor

from sightline import answer
from sightline.specs import parse_spec

PLACEHOLDER = "<image>"


def manifest() -> Any:
    """What the harness's entry points are asked for."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="sightline", simple_class_path=f"{__name__}.Sightline")


def decoder_named(text: str, processor: Any) -> Any:
    """The decoder that a text names, or None where it is empty.

    Raises:
        ValueError: For what does not exist, listing what does, for two decoders in one text, and
            for a way to take tokens, which a task says.
    """
    if not text:
        return None
    spec = parse_spec(text.strip("'\" "))
    if spec.way is not None:
        raise ValueError(f"a task says how tokens are taken: leave {spec.way} out of {spec.label}")
    return spec.build(processor)


def generate_keywords(task: Mapping[str, Any]) -> dict[str, Any]:
    """A task's generation settings as keywords of `generate`: best token unless it is warm."""
    heat = task.get("temperature") or 0
    mode: dict[str, Any] = {"do_sample": False}
    if heat > 0:
        mode = {"do_sample": True, "temperature": heat, "top_p": task.get("top_p") or 1.0}
    length = task.get("max_new_tokens", 128)
    return {"max_new_tokens": length, "num_beams": task.get("num_beams") or 1, **mode}


def cut_at(text: str, stops: str | Sequence[str]) -> str:
    """The text before the first of the stop strings."""
    for stop in filter(None, [stops] if isinstance(stops, str) else stops):
        text = text.partition(stop)[0]
    return text


class Sightline(lmms):
    """An image-text-to-text checkpoint of transformers, with a decoder or as it is.

    Args:
        pretrained: A folder or a hub id.
        decoder: `name[.preset][:setting=value,...]`.
        device: For the weights.
        dtype: Of the weights; "auto": as stored.
        batch_size: Given by the harness; requests are answered one by one whatever it says.
        max_batch_size: As `batch_size`.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        decoder: str = "",
        device: str = "cuda",
        dtype: str = "auto",
        batch_size: int = 1,
        max_batch_size: int | None = None,
    ):
        super().__init__()
        self.processor = AutoProcessor.from_pretrained(pretrained)
        self.decoder = decoder_named(decoder, self.processor)
        loaded: Any = AutoModelForImageTextToText.from_pretrained(pretrained, dtype=dtype)
        self.model = loaded.to(device).eval()

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """One answer for each request, whose `args` are those of a simple model."""
        return [self.respond(*request.args) for request in requests]

    def respond(
        self,
        context: str,
        generation: Mapping[str, Any],
        doc_to_visual: Callable[[Any], Sequence[Any]],
        doc_id: int,
        task: str,
        split: str,
    ) -> str:
        images = list(doc_to_visual(self.task_dict[task][split][doc_id]))
        question = context.replace(PLACEHOLDER, "").strip()
        keywords = generate_keywords(generation)
        said = answer(self.model, self.processor, images, question, self.decoder, **keywords)
        return cut_at(said, generation.get("until") or ())

    def loglikelihood(self, requests: Sequence[Any]) -> Any:
        raise NotImplementedError(
            "a decoder answers in words and scores no given ones: choose tasks of generate_until"
        )

    def generate_until_multi_round(self, requests: Sequence[Any]) -> Any:
        raise NotImplementedError("one round is answered: choose tasks of generate_until")
