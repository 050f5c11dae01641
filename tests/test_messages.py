"""Messages of errors tell enough of a user's value to be recognised, and lists are no texts."""

import collections.abc
import inspect
import types
from typing import Any, Union, get_args, get_origin, get_type_hints

import pytest
import torch
from transformers import AutoProcessor

import sightline
from sightline import lab
from sightline.chat import check_arguments, check_question, parse_arguments, prompt_inputs
from sightline.checkpoints import check_device, load_processor
from sightline.evaluation import amber, chair, files, hallusionbench, mme, pope
from sightline.evaluation.setups import parse_contenders
from sightline.messages import clipped, enumerated, short
from sightline.setting_text import STAND_IN
from sightline.specs import parse_spec, parse_specs

LONGEST = 500
MEGABYTE = "xy z," * 200_000


def test_values_are_cut_in_their_middle():
    assert short("cat") == "'cat'"
    assert short({"a": [1, 2]}) == "{'a': [1, 2]}"
    assert clipped("cat", 5) == "cat" and clipped("abcdefghi", 7) == "ab...hi"
    assert enumerated(["a", "b", "c"], 2) == "a, b, ..."
    for value in (MEGABYTE, MEGABYTE.encode(), [MEGABYTE] * 1000, {MEGABYTE: MEGABYTE}, 10**5000):
        assert len(short(value)) <= 200
    assert len(enumerated([MEGABYTE] * 1000)) <= 300


class Verbose:
    def __repr__(self):
        return MEGABYTE


VALUES = (MEGABYTE, MEGABYTE.encode(), [MEGABYTE] * 100, {MEGABYTE: 1}, Verbose(), 10**400)
# What decoders hand to parts, and an error.
INTERNAL = {"Branch", "KeyWeights", "Needs", "State", "UnsupportedModelError"}
NEEDED = {"processor": STAND_IN, "tokens": (3,), "weight": torch.ones(2), "prompt_length": 1}


def parameters():
    """(class, parameter, its type, arguments that the class needs) of all that users make."""
    for name in sorted(set(sightline.__all__) - INTERNAL):
        kind = getattr(sightline, name)
        if not inspect.isclass(kind) or inspect.isabstract(kind):
            continue
        hints = get_type_hints(kind.__init__)
        signature = inspect.signature(kind).parameters.values()
        needed = {
            p.name: NEEDED.get(p.name, 1)
            for p in signature
            if p.default is inspect.Parameter.empty or p.name == "processor"
        }
        for parameter in signature:
            if parameter.name in hints:
                yield kind, parameter.name, hints[parameter.name], needed


def holds_several(hint: Any) -> bool:
    if get_origin(hint) in (Union, types.UnionType):
        return any(map(holds_several, get_args(hint)))
    if hasattr(hint, "__metadata__"):
        return holds_several(get_args(hint)[0])
    return get_origin(hint) in (tuple, list, collections.abc.Sequence)


ALL = [pytest.param(*each, id=f"{each[0].__name__}.{each[1]}") for each in parameters()]
SEVERAL = [each for each in ALL if holds_several(each.values[2])]


def message_of(action, *errors):
    """What an action is refused with; "" where it is not."""
    try:
        action()
    except Exception as error:
        assert not errors or isinstance(error, errors), repr(error)[:LONGEST]
        return str(error)
    return ""


def test_there_are_settings_that_hold_several():
    names = {each.id for each in SEVERAL}
    assert {"MVP.labels", "PostHocDebias.labels", "VDD.markers", "VAF.heads"} <= names


@pytest.mark.parametrize(("kind", "name", "hint", "needed"), SEVERAL)
@pytest.mark.parametrize("text", ["yes,no", "12", "1,2", "yn", b"12"])
def test_a_text_is_no_list(kind, name, hint, needed, text):
    """Its letters are not taken for the members, and the message names the setting."""
    message = message_of(lambda: kind(**{**needed, name: text}), ValueError, TypeError)
    assert (name.rstrip("s") in message) and "not supported" not in message


@pytest.mark.parametrize(("kind", "name", "hint", "needed"), ALL)
def test_no_setting_is_echoed_whole(kind, name, hint, needed):
    for value in VALUES:
        assert len(message_of(lambda value=value: kind(**{**needed, name: value}))) <= LONGEST


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(lab.CHECKPOINT)


CALLS = {
    "open_image": sightline.open_image,
    "check_question": check_question,
    "setting": lambda value: parse_spec("vdd", [value]),
    "value": lambda value: parse_spec("vdd", [f"alpha={value}"]),
    "word": lambda value: parse_spec("vdd", [f"variant={value}"]).build(None),
    "name": lambda value: parse_spec("vdd", [f"{value}=1"]),
    "preset": lambda value: parse_spec(f"vcd.{value}"),
    "no decoder": lambda value: parse_specs(f"{value}=1"),
    "way's setting": lambda value: parse_specs(f"sample:{value}"),
    "word or term": lambda value: parse_specs(f"vdgd:request={value}+vaf:{value}"),
    "specs": parse_specs,
    "setups": lambda value: parse_contenders([value], None),
    "contenders_settings": lambda value: parse_contenders([f"vdd:alpha={value}"], None),
    "contenders_mode": lambda value: parse_contenders([f"vdd+{value}"], None),
    "arguments": lambda value: parse_arguments([value]),
    "arguments_twice": lambda value: parse_arguments([f"{value}=1"] * 2),
    "pope_file": lambda value: pope.Pope(value, "."),
    "pope_parser": lambda value: pope.parse("yes", value),
    "pope_label": lambda value: pope.implied_prediction("yes", value),
    "pope_score": lambda value: pope.score([value], [value]),
    "mme_folder": lambda value: mme.read_task(value, "count"),
    "mme_task": lambda value: mme.read_task(".", value),
    "mme_tasks": lambda value: mme.MME(".", [value, value]),
    "mme_results": lambda value: mme.read_results(value),
    "hallusionbench": lambda value: hallusionbench.HallusionBench(value, "."),
    "hallusionbench_score": lambda value: hallusionbench.score([{"category": value}]),
    "chair_ids": lambda value: chair.check_listed([value], "ids"),
    "chair_ids_file": chair.read_ids,
    "chair_captions": lambda value: chair.Chair().score({value: "a"}, {1: ["dog"]}),
    "chair_unknown": lambda value: chair.Chair().score({1: value}, {2: ["dog"]}),
    "chair_variant": lambda value: chair.Chair(variant=value),
    "chair_synonyms": lambda value: chair.Chair(value, {"a b": "a"}),
    "chair_truth": lambda value: chair.Chair().truth_from_coco(value),
    "chair_images": lambda value: chair.ChairBenchmark(value, [1], []),
    "amber_tables": lambda value: amber.read_tables(value, ["a"]),
    "amber_rows": lambda value: amber.score_discriminative([{"id": value, "response": value}], []),
    "amber_row": lambda value: amber.score_discriminative([{value: value}], []),
    "amber_file": lambda value: amber.Amber(".", value, value),
    "files_images": lambda value: files.check_images(".", [value] * 5),
    "files_folder": lambda value: files.check_images(value, []),
    "checkpoint": load_processor,
    "checkpoint_folder": lambda value: load_processor(f"./{value}"),
    "device": check_device,
    "files_name": lambda value: files.check_name("parser", value, ["a"]),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_no_value_is_echoed_whole(call):
    for value in (MEGABYTE, MEGABYTE.replace(" ", "").replace(",", "")):
        assert len(message_of(lambda value=value: call(value))) <= LONGEST


@pytest.mark.parametrize("field", ["question_id", "image", "text", "label", "other"])
def test_no_field_of_a_file_is_echoed_whole(tmp_path, field):
    row = files.Row({"question_id": 1, "image": "a", "text": "b", "label": "yes"}, "a.json, line 1")
    for value in (MEGABYTE, [MEGABYTE], {MEGABYTE: 1}):
        row[field] = value
        row.update({MEGABYTE: 1} if field == "other" else {})
        for read in (row.text, row.key, lambda name: row.choice(name, ("yes", "no"))):
            for name in (field, "absent"):
                assert (
                    len(message_of(lambda read=read, name=name: read(name), ValueError)) <= LONGEST
                )
    twice = [files.Row({"id": MEGABYTE}, f"row {n}") for n in (1, 2)]
    said = message_of(lambda: files.check_unique(twice, "id", lambda row: row["id"]), ValueError)
    assert 0 < len(said) <= LONGEST


def test_no_argument_of_a_prompt_is_echoed_whole(processor):
    model = types.SimpleNamespace(device=torch.device("cpu"), dtype=torch.float32)
    for given in (
        (None, MEGABYTE, "What?"),
        (processor, MEGABYTE, "What?"),
        (processor, "data:image/png;base64," + MEGABYTE, "What?"),
        (processor, [MEGABYTE] * 2, "What?"),
        (processor, lab.CHECKPOINT, [MEGABYTE]),
    ):
        said = message_of(lambda given=given: prompt_inputs(model, *given), ValueError, TypeError)
        assert 0 < len(said) <= LONGEST
    for arguments in ({MEGABYTE: 1}, MEGABYTE, [MEGABYTE]):
        said = message_of(lambda a=arguments: check_arguments(processor, a), ValueError, TypeError)
        assert 0 < len(said) <= LONGEST
