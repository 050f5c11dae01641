"""The plugin of lmms-eval on a stand-in for the harness, which is not installed here."""

import abc
import importlib.util
import sys
import types
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from sightline import VCD, VDD, answer
from sightline.lab import CHECKPOINT, IMAGES
from sightline.setting_text import STAND_IN

FOLDER = Path(__file__).parent.parent / "examples" / "lmms-eval"
YARD = IMAGES / "yard.png"
needs_weights = pytest.mark.skipif(
    not (CHECKPOINT / "model.safetensors").exists(), reason="the lab's weights are not there"
)


class Harness(abc.ABC):
    """What the model guide of lmms-eval says of `lmms`: its methods and the tasks' documents."""

    def __init__(self):
        self.task_dict = {}

    @abc.abstractmethod
    def loglikelihood(self, requests): ...

    @abc.abstractmethod
    def generate_until(self, requests): ...

    @abc.abstractmethod
    def generate_until_multi_round(self, requests): ...


Manifest = namedtuple("Manifest", "model_id simple_class_path")


@pytest.fixture
def plugin(monkeypatch):
    for name, content in (
        ("lmms_eval", {}),
        ("lmms_eval.api", {}),
        ("lmms_eval.api.model", {"lmms": Harness}),
        ("lmms_eval.models", {}),
        ("lmms_eval.models.registry_v2", {"ModelManifest": Manifest}),
    ):
        module = types.ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    path = FOLDER / "sightline_lmms_eval.py"
    spec = importlib.util.spec_from_file_location("sightline_lmms_eval", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def asked(text, generation, visuals=lambda doc: [doc]):
    """A request as the harness puts it to a simple model."""
    return SimpleNamespace(args=(text, generation, visuals, 0, "lab", "test"))


def test_the_entry_point_leads_to_the_class(plugin):
    made = plugin.manifest()
    assert made == ("sightline", "sightline_lmms_eval.Sightline")
    assert issubclass(plugin.Sightline, Harness) and plugin.Sightline.is_simple
    declared = (FOLDER / "pyproject.toml").read_text()
    assert 'sightline = "sightline_lmms_eval:manifest"' in declared


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("", None),
        ("vdd", VDD(processor=STAND_IN)),
        ("vcd:alpha=0.5", VCD(alpha=0.5)),
        ('"vcd:alpha=0.5,beta=0.2"', VCD(alpha=0.5, beta=0.2)),
        ("'VCD.pope_paper'", VCD(noise_step=999)),
    ],
)
def test_a_decoder_by_name(plugin, text, made):
    assert plugin.decoder_named(text, STAND_IN) == made


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("vdx", "did you mean v[cd]d"),
        ("vdd:alfa=1", r"did you mean alpha\?"),
        ("vdd,vcd", "names 2 decoders"),
    ],
)
def test_a_decoder_that_does_not_exist(plugin, text, message):
    with pytest.raises(ValueError, match=message):
        plugin.decoder_named(text, STAND_IN)


def test_settings_of_a_task_become_keywords(plugin):
    greedy = {"max_new_tokens": 16, "do_sample": False, "num_beams": 1}
    task = {"max_new_tokens": 16, "temperature": 0, "top_p": 1.0, "num_beams": 1, "until": ["\n"]}
    assert plugin.generate_keywords(task) == greedy
    assert plugin.generate_keywords({"max_new_tokens": 16, "temperature": None}) == greedy
    assert plugin.generate_keywords({"temperature": 0.7, "num_beams": 2}) == {
        "max_new_tokens": 128,
        "do_sample": True,
        "temperature": 0.7,
        "top_p": 1.0,
        "num_beams": 2,
    }


@pytest.mark.parametrize(
    ("stops", "left"), [((), "a b. c"), (".", "a b"), (["x", " c", "b"], "a "), (["", "a"], "")]
)
def test_text_ends_at_a_stop_string(plugin, stops, left):
    assert plugin.cut_at("a b. c", stops) == left


@needs_weights
def test_requests_are_answered_as_answer_does(plugin):
    model = AutoModelForImageTextToText.from_pretrained(CHECKPOINT, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(CHECKPOINT)
    text = "Describe the image."
    says = {
        name: answer(model, processor, YARD, text, made, max_new_tokens=64, do_sample=False)
        for name, made in (("", None), ("vdd:alpha=3", VDD(alpha=3.0)))
    }
    assert says[""] != says["vdd:alpha=3"]  # so that the name is seen to matter
    for name, said in says.items():
        harness = plugin.Sightline(str(CHECKPOINT), name, "cpu", "float32", batch_size=1)
        harness.task_dict = {"lab": {"test": [YARD]}}
        requests = [asked(f"<image>\n{text}", {"max_new_tokens": 64}), asked(text, {"until": ","})]
        whole, first = harness.generate_until(requests)
        assert whole == said
        assert first == said.partition(",")[0]


@needs_weights
def test_what_a_decoder_cannot_do_is_refused(plugin):
    harness = plugin.Sightline(str(CHECKPOINT), device="cpu")
    with pytest.raises(NotImplementedError, match="choose tasks of generate_until"):
        harness.loglikelihood([])
    with pytest.raises(NotImplementedError, match="one round"):
        harness.generate_until_multi_round([])
    with pytest.raises(TypeError, match="decodr"):
        plugin.Sightline(str(CHECKPOINT), decodr="vdd")
