"""The tiny models of every family: that they answer, see, and get images as their processors."""

import importlib
from functools import cache

import numpy as np
import pytest
import tiny_families
import torch
from models import BOS, EOS, IMAGE, PAD, PROMPTS, VISION_END, VISION_START
from PIL import Image
from tiny_families import GRID, PATCH, SIDE, TOKENS, Family, Tiny, by_family, cut, families
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from sightline import ICD, VDGD

FAMILIES = families()
BUILT = [name for name, family in FAMILIES.items() if not family.why_untested]
STEPS = 12
family = pytest.mark.parametrize("name", by_family(BUILT))
made = cache(Tiny.of)


def answered(tiny_families, inputs, steps):
    """The answers without what follows their ends, `[B]` lists, and `[B, steps, V]` logits."""
    asked = dict(max_new_tokens=steps, do_sample=False, return_dict_in_generate=True)
    output = tiny_families.model.generate(**inputs, **asked, output_logits=True)
    logits = torch.stack(output.logits, dim=1)
    tokens = output.sequences[:, -logits.shape[1] :].tolist()
    return [row[: row.index(EOS) + 1] if EOS in row else row for row in tokens], logits


def first(tiny_families, inputs):
    return answered(tiny_families, inputs, 1)[1][:, 0]


def given(name, text):
    """The reason that a record gives; the test is left out."""
    if text:
        pytest.skip(f"{name}: {text}")


def test_every_family_of_the_mapping_has_a_record():
    names = set(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES) & set(CONFIG_MAPPING)
    assert set(FAMILIES) == names
    for record in FAMILIES.values():
        assert (record.layout is None) == bool(record.reason)
    assert len(BUILT) >= 60


def test_a_family_without_a_record_is_an_untested_row(monkeypatch):
    monkeypatch.delitem(tiny_families.RECORDS, "llava")
    assert "untested" in families()["llava"].why_untested
    with pytest.raises(ValueError, match="no tiny model of llava: untested"):
        Tiny.of("llava")


def test_a_package_that_is_missing_is_the_reason():
    assert (
        "needs no_such_package"
        in Family(tiny_families.squares, needs="no_such_package").why_untested
    )
    assert not Family(tiny_families.squares, needs="torch").why_untested


@family
def test_its_answers_are_decided_and_not_one_token_repeated(name):
    answers, logits = answered(made(name), made(name).inputs(PROMPTS), STEPS)
    best = logits.topk(2).values
    for row, answer in enumerate(answers):
        gaps = best[row, : len(answer), 0] - best[row, : len(answer), 1]
        assert gaps.min() > 1e-3
        assert len(set(answer)) > 1


@family
def test_it_sees_its_image(name):
    model, counts = made(name), [1, 1]
    inputs = model.inputs(PROMPTS)
    other = {**inputs, **model.arranged(-model.drawn(PROMPTS), counts)}
    changed = (first(model, inputs) - first(model, other)).abs().amax(dim=-1)
    assert (changed > 1e-3).all()


@family
def test_it_is_small_and_in_full_precision(name):
    weights = list(made(name).model.parameters())
    assert {w.dtype for w in weights} == {torch.float32}
    assert sum(w.numel() for w in weights) < 12_000_000


@family
def test_two_images_in_a_row_beside_one(name):
    given(name, made(name).family.single)
    rows = [[BOS, IMAGE, 12, IMAGE, 13], [BOS, 8, IMAGE, 9]]
    together = first(made(name), made(name).inputs(rows))
    alone = torch.cat([first(made(name), made(name).inputs([row])) for row in rows])
    apart = (together - alone).abs().max()
    assert (apart > 1e-3) if made(name).family.mixed else (apart < 1e-3)


@family
def test_a_row_without_an_image_beside_one_with(name):
    given(name, made(name).family.every)
    rows = [[BOS, IMAGE, 12, 13], [BOS, 20, 21]]
    given(name, made(name).family.mixed)
    together = first(made(name), made(name).inputs(rows))
    alone = torch.cat([first(made(name), made(name).inputs([row])) for row in rows])
    torch.testing.assert_close(together, alone, atol=1e-3, rtol=0)


@family
def test_what_a_record_says_that_it_does_not_take_fails_in_generate(name):
    record = made(name).family
    if record.single:
        with pytest.raises((RuntimeError, ValueError)):
            first(made(name), made(name).inputs([[BOS, IMAGE, 12, IMAGE, 13], [BOS, IMAGE, 9]]))
    if record.every:
        with pytest.raises((TypeError, ValueError)):
            first(made(name), made(name).inputs([[BOS, 20, 21]]))


def test_images_of_a_row_differ_and_depend_on_its_text_alone():
    row = [BOS, IMAGE, 12, IMAGE]
    pixels = Tiny.drawn([row, [BOS, 7], [BOS, IMAGE]])
    assert pixels.shape == (3, 3, SIDE, SIDE)
    assert pixels.min() >= -1 and pixels.max() <= 1
    assert not torch.equal(pixels[0], pixels[1])
    torch.testing.assert_close(pixels[:2], Tiny.drawn([row]))
    torch.testing.assert_close(pixels[2:], Tiny.drawn([[IMAGE, BOS]]))


def counted(images):
    """`[N, 3, SIDE, SIDE]`, in which a value tells its place."""
    return torch.arange(images * 3 * SIDE * SIDE, dtype=torch.float).view(-1, 3, SIDE, SIDE)


def place(image, colour, line, column):
    return ((image * 3 + colour) * SIDE + line) * SIDE + column


def test_patches_of_a_token_follow_each_other():
    """Patch 6 is the third of the second token: in the second line of patches, third column."""
    patches = cut(counted(2), PATCH, group=2)
    assert patches.shape == (2, 16, 3, PATCH, PATCH)
    assert patches[1, 6, 2, 3, 5] == place(1, 2, 1 * PATCH + 3, 2 * PATCH + 5)
    assert patches[0, 13, 0, 0, 0] == place(0, 0, 2 * PATCH, 3 * PATCH)


def test_patches_in_reading_order():
    patches = cut(counted(2), PATCH)
    assert patches[1, 6, 2, 3, 5] == place(1, 2, 1 * PATCH + 3, 2 * PATCH + 5)
    assert patches[0, 13, 0, 0, 0] == place(0, 0, 3 * PATCH, 1 * PATCH)


def test_qwen_repeats_a_still_frame_between_colour_and_line():
    made_of = made("qwen2_vl").arranged(counted(2), [2])
    rows = made_of["pixel_values"]
    assert rows.shape == (32, 3 * 2 * PATCH * PATCH)
    assert made_of["image_grid_thw"].tolist() == [[1, 4, 4]] * 2
    for frame in (0, 1):
        value = rows[16 + 6, ((2 * 2 + frame) * PATCH + 3) * PATCH + 5]
        assert value == place(1, 2, PATCH + 3, 2 * PATCH + 5)


def test_tiles_hold_the_halves_of_the_image_in_its_middle():
    pixels = counted(1)
    whole, left, right = made("llava_next").arranged(pixels, [1])["pixel_values"][0]
    half = SIDE // 2
    assert torch.equal(whole, pixels[0])
    assert torch.equal(left[..., half:], pixels[0, ..., :half]) and (left[..., :half] == -1).all()
    assert torch.equal(right[..., :half], pixels[0, ..., half:]) and (right[..., half:] == -1).all()


def test_a_row_with_fewer_images_gets_zeros():
    pixels = counted(3) + 1
    shown = made("idefics3").arranged(pixels, [1, 0, 2])["pixel_values"]
    assert shown.shape == (3, 2, 3, SIDE, SIDE)
    assert torch.equal(shown[0, 0], pixels[0]) and torch.equal(shown[2], pixels[1:])
    assert not shown[0, 1].any() and not shown[1].any()


def test_a_token_looks_at_the_last_image_before_it():
    ids = torch.tensor([[BOS, IMAGE, 12, IMAGE, 13], [PAD, BOS, 20, IMAGE, 21]])
    first_row = [[0, 0], [1, 0], [1, 0], [0, 1], [0, 1]]
    second_row = [[0, 0], [0, 0], [0, 0], [1, 0], [1, 0]]
    assert tiny_families.latest(ids, [2, 1]).tolist() == [first_row, second_row]


FLAT = dict(patch_size=PATCH, merge_size=2)
ROUND = {"height": SIDE, "width": SIDE}
PROCESSORS = {
    "cosmos3_edge": ("cosmos3_edge", "Cosmos3Edge", dict(FLAT, temporal_patch_size=1)),
    "ernie4_5_vl_moe": ("ernie4_5_vl_moe", "Ernie4_5_VLMoe", FLAT),
    "glm4v": ("glm4v", "Glm4v", FLAT),
    "hunyuan_vl": ("hunyuan_vl", "HunYuanVL", dict(FLAT, temporal_patch_size=1)),
    "idefics2": ("idefics2", "Idefics2", dict(do_image_splitting=False)),
    "lighton_ocr": ("pixtral", "Pixtral", dict(patch_size=PATCH)),
    "llava_next": (
        "llava_next",
        "LlavaNext",
        dict(
            do_resize=True,
            do_center_crop=False,
            image_grid_pinpoints=[[SIDE, 2 * SIDE]],
            size={"shortest_edge": SIDE},
            crop_size=ROUND,
        ),
    ),
    "minicpmv4_6": (
        "minicpmv4_6",
        "MiniCPMV4_6",
        dict(patch_size=PATCH, slice_mode=False, scale_resolution=SIDE),
    ),
    "mllama": ("mllama", "Mllama", dict(do_resize=True, max_image_tiles=1, size=ROUND)),
    "paddleocr_vl": ("paddleocr_vl", "PaddleOCRVL", dict(FLAT, temporal_patch_size=1)),
    "qwen2_vl": ("qwen2_vl", "Qwen2VL", FLAT),
    "video_llama_3": ("video_llama_3", "VideoLlama3", dict(FLAT, temporal_patch_size=1)),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_images_are_arranged_as_by_the_familys_own_processor(name):
    folder, kind, settings = PROCESSORS[name]
    path = f"transformers.models.{folder}.image_processing_pil_{folder}"
    if name not in FAMILIES or importlib.util.find_spec(path) is None:
        pytest.skip(f"the installed transformers has no image processor of {name} without more")
    processor = getattr(importlib.import_module(path), f"{kind}ImageProcessorPil")
    levels = dict(image_mean=[0.5] * 3, image_std=[0.5] * 3)
    theirs = processor(**{"do_resize": False, **levels, **settings})
    images = [scene(number) for number in range(3)]
    ours = made(name).processor.image_processor(images=images)
    expected = theirs(images=images, return_tensors="pt")
    for key, values in ours.items():
        torch.testing.assert_close(values, expected[key].to(values.dtype), atol=1e-6, rtol=0)


def scene(number, size=SIDE):
    """An image in which no two pixels are known to be equal."""
    levels = np.random.default_rng(number).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return Image.fromarray(levels)


def asking(text, images=1):
    return [
        {
            "role": "user",
            "content": [{"type": "image"}] * images + [{"type": "text", "text": text}],
        }
    ]


def test_the_tokenizer_has_a_token_for_each_id_of_the_models():
    tokenizer = made("llava").processor.tokenizer
    assert len(tokenizer) == 120
    assert tokenizer.convert_ids_to_tokens(list(range(8))) == list(TOKENS)
    assert set(tokenizer.all_special_ids) == set(range(8))
    text = "the Other\n <image> is here~"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert IMAGE in ids and max(ids) < 120
    assert tokenizer.decode(ids) == text


def test_the_processor_writes_prompts_as_the_models_read_them():
    """Letters of ASCII from 9 on, in its order, and a line's end is 8."""
    processor = made("qwen2_vl").processor
    asked = [processor.apply_chat_template(asking(text)) for text in ("a", "bc")]
    assert asked[0] == "<s>Q: <see><image></see>a\nA:"
    batch = processor(text=asked, images=[scene(0), scene(1)])
    before = [BOS, 9 + ord("Q") - 32, 9 + ord(":") - 32, 9]
    shown = [VISION_START, *[IMAGE] * 4, VISION_END]
    after = [8, 9 + ord("A") - 32, 9 + ord(":") - 32]
    letter = [9 + ord(x) - 32 for x in "abc"]
    assert batch["input_ids"].tolist() == [
        [PAD, *before, *shown, letter[0], *after],
        [*before, *shown, letter[1], letter[2], *after],
    ]
    assert batch["attention_mask"][0].tolist() == [0] + [1] * 14
    assert batch["image_grid_thw"].tolist() == [[1, *GRID]] * 2
    assert torch.equal(batch["mm_token_type_ids"], (batch["input_ids"] == IMAGE).long())


def test_the_processor_deals_images_to_rows():
    processor = made("idefics3").processor
    asked = [processor.apply_chat_template(asking("so", images)) for images in (1, 2)]
    shown = processor(text=asked, images=[scene(n, 64) for n in range(3)])["pixel_values"]
    assert shown.shape == (2, 2, 3, SIDE, SIDE)
    small = scene(2, 64).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    expected = torch.tensor(np.array(small)).permute(2, 0, 1) / 127.5 - 1
    torch.testing.assert_close(shown[1, 1], expected)
    assert not shown[0, 1].any()


@pytest.mark.parametrize("decoder", [ICD, VDGD], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "gemma3", "idefics3", "minicpmv4_6"])
def test_what_asks_in_words_runs_on_it(name, decoder):
    processor = made(name).processor
    prompts = [processor.apply_chat_template(asking(text)) for text in ("Red?", "Is it?")]
    inputs = processor(text=prompts, images=[scene(0), scene(1)])
    settings = dict(tokens=4) if decoder is VDGD else dict(alpha=3.0, beta=0.0)
    ruled = dict(
        custom_generate=decoder(processor=processor, **settings), return_dict_in_generate=True
    )
    output = made(name).model.generate(**inputs, max_new_tokens=2, output_scores=True, **ruled)
    width = inputs["input_ids"].shape[1]
    assert torch.equal(output.sequences[:, :width], inputs["input_ids"])
    plain = first(made(name), inputs)
    assert (output.scores[0] - plain).abs().max() > 1e-2
