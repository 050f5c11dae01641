"""Which tokens belong to an image: without a processor by rules, with one as it writes them."""

import warnings
from types import SimpleNamespace

import pytest
import torch
from chat_models import CHAT_MODELS, unpadded, within

from sightline import M3ID, PAI, VDD, PromptCached, Recipe, answer
from sightline.chat import processor_for
from sightline.engine.chat_prompts import PromptEditor
from sightline.engine.image_spans import BareRow, named_markers, rows_of
from sightline.engine.processor_probe import writing_of
from sightline.engine.prompt_edits import image_columns
from sightline.engine.prompt_text import WrittenRow

# A vocabulary of 640 ids: text from 30 on, special tokens from 600 on.
IMAGE, VIDEO, TILE, FAKE, OPEN, CLOSE, USER = 610, 611, 550, 609, 608, 612, 590
AND, THEN, LINE = 40, 41, 42
BOS, EOS = 1, 2


def bare(ids, starts, named=()):
    def is_near(token):
        return token not in (IMAGE, VIDEO) and abs(token - IMAGE) <= 8

    return BareRow(ids, {IMAGE, VIDEO}, {VIDEO}, set(starts), set(named), is_near, {BOS, EOS})


def left(row, replacement=()):
    return [row.ids[n] if token is None else token for n, token in row.without_images(replacement)]


def placed(ids):
    """Numbers at which a run of image tokens begins."""
    return [n for n, t in enumerate(ids) if t == IMAGE and (n == 0 or ids[n - 1] != IMAGE)]


# Without a processor


def test_rows_of_one_image_go_with_what_is_between_them():
    """Pixtral's: an entry of the encoder is an image, and marks stand between its rows."""
    ids = [1, IMAGE, IMAGE, FAKE, IMAGE, IMAGE, CLOSE, AND, 2]
    row = bare(ids, [1])
    assert left(row) == [1, CLOSE, AND, 2]
    assert left(row, (7,)) == [1, 7, CLOSE, AND, 2]
    two = [1, IMAGE, FAKE, IMAGE, CLOSE, AND, IMAGE, FAKE, IMAGE, CLOSE, 2]
    assert left(bare(two, [1, 6]), (7,)) == [1, 7, CLOSE, AND, 7, CLOSE, 2]


@pytest.mark.parametrize("entries", ["tiles", "rows of a batch"])
def test_tiles_of_one_image_go_and_text_between_images_stays(entries):
    """Idefics3's: an entry is a tile, or all images of a row."""
    tiled = [FAKE, TILE, IMAGE, FAKE, TILE + 1, IMAGE, LINE, FAKE, TILE + 2, IMAGE, FAKE]
    for ids, wanted in (
        ([1, *tiled, AND], [1, FAKE, TILE, 7, FAKE, AND]),
        ([1, *tiled, *tiled, AND], [1, *[FAKE, TILE, 7, FAKE] * 2, AND]),
        ([1, *tiled, AND, THEN, *tiled], [1, FAKE, TILE, 7, FAKE, AND, THEN, FAKE, TILE, 7, FAKE]),
    ):
        starts = placed(ids) if entries == "tiles" else [3]
        assert left(bare(ids, starts), (7,)) == wanted


def test_tiles_side_by_side_are_one_image_where_markers_stand_around():
    """InternVL's."""
    ids = [1, OPEN, IMAGE, IMAGE, IMAGE, CLOSE, LINE, OPEN, IMAGE, CLOSE, AND]
    row = bare(ids, [2, 3, 4, 8])
    assert left(row, (7,)) == [1, OPEN, 7, CLOSE, LINE, OPEN, 7, CLOSE, AND]
    assert row.left_over() == {OPEN, CLOSE}


def test_images_side_by_side_are_two_where_nothing_stands_around():
    """LLaVA-OneVision's."""
    ids = [1, AND, IMAGE, IMAGE, IMAGE, LINE, AND]
    row = bare(ids, [2, 4])
    assert left(row, (7,)) == [1, AND, 7, 7, LINE, AND]
    assert row.left_over() == set()


def test_named_markers_go_and_end_images():
    """Qwen's, and one of which the opening marker alone is named."""
    ids = [1, OPEN, IMAGE, CLOSE, OPEN, IMAGE, CLOSE, AND]
    row = bare(ids, [2, 5], {OPEN, CLOSE})
    assert left(row, (7,)) == [1, 7, 7, AND]
    assert row.left_over() == set()
    ids = [1, 500, IMAGE, 500, IMAGE, AND]
    assert left(bare(ids, [2, 4], {500}), (7,)) == [1, 7, 7, AND]


def test_text_between_frames_stays_and_a_row_without_images_is_left():
    assert left(bare([1, VIDEO, AND, VIDEO, THEN], [1]), (7,)) == [1, 7, AND, THEN]
    assert left(bare([1, OPEN, AND], [], {OPEN})) == [1, OPEN, AND]


def test_a_role_before_an_image_is_no_marker_that_stays():
    for ids in ([OPEN, IMAGE, AND], [BOS, OPEN, IMAGE, AND], [BOS, AND, EOS, OPEN, IMAGE, AND]):
        assert bare(ids, placed(ids)).left_over() == set()
    assert bare([1, OPEN, IMAGE, CLOSE], [2]).left_over() == {OPEN, CLOSE}


def test_a_marker_that_opens_images_alone_is_told_of():
    """Behind words of the template's or the user's, or behind another image."""
    for ids in ([BOS, USER, LINE, OPEN, IMAGE, AND], [BOS, OPEN, IMAGE, OPEN, IMAGE, AND]):
        assert bare(ids, placed(ids)).left_over() == {OPEN}


def test_markers_are_named_by_inner_configs_too():
    inner = SimpleNamespace(boi_token_id=5, sub_configs={})
    config = SimpleNamespace(eoi_token_id=6, vision_config=inner, sub_configs={"vision_config": 0})
    assert set(named_markers(config)) == {5, 6}


# With one


def blind(vlm, inputs, contrast, processor=None):
    """The prompts of an image-free branch, without padding."""

    given = {} if processor is None else {"processor": processor}
    found = []

    def prepare(expert, model):
        found.append(contrast(expert, model))
        return expert

    recipe = Recipe(preparations=(prepare,))
    vlm.model.generate(**inputs, **given, custom_generate=recipe, max_new_tokens=1)
    return unpadded(found[0].input_ids, found[0].attention_mask)


def test_with_and_without_the_processor_the_same_where_the_config_names_all(vlm):
    """Of a padded batch: one image, two with text between them, none."""
    one, two, none = "Is there a cup?", ["One.", None, "Two.", None, "Which?"], ["Hello"]
    prompts = [vlm.chat(one), vlm.chat(two), vlm.chat(none)]
    inputs = vlm.inputs(prompts, vlm.images)
    without = [vlm.chat([one]), vlm.chat(["One.", "Two.", "Which?"]), vlm.chat(none)]
    wanted = vlm.inputs(without)
    wanted = unpadded(wanted["input_ids"], wanted["attention_mask"])
    (contrast,) = VDD().recipe().contrasts
    (exact,) = VDD(processor=vlm.processor).recipe().contrasts
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for found in (
            blind(vlm, inputs, exact),
            blind(vlm, inputs, contrast, vlm.processor),
            blind(vlm, inputs, contrast),
        ):
            decode = vlm.processor.tokenizer.batch_decode
            assert decode(found) == decode(wanted)
        assert blind(vlm, inputs, exact) == wanted


SHOWN = "'<|vision_start|><|image_pad|><|vision_end|>'"
NUMBER = "(images.seen | string)"
ALWAYS = f"{{%- set images.seen = images.seen + 1 -%}}{{{{- 'Figure ' + {NUMBER} + ': ' -}}}}"
LABELS = {
    "always": ALWAYS,
    "where asked": f"{{%- if numbered is defined and numbered -%}}{ALWAYS}{{%- endif -%}}",
    "where there are more": (
        "{%- set ends = messages | tojson -%}{%- if ends.count('\"image\"') > 1 -%}"
        "{%- set images.seen = images.seen + 1 -%}"
        f"{{{{- 'Image-' + {NUMBER} + '\n' -}}}}{{%- endif -%}}"
    ),
}


def labelled(vlm, monkeypatch, kind):
    """The arguments with which its template now puts numbers before images."""
    template = vlm.processor.chat_template
    place = "{%- if part['type'] == 'image' -%}"
    template = template.replace(place, place + LABELS[kind])
    template = "{%- set images = namespace(seen=0) -%}" + template
    monkeypatch.setattr(vlm.processor, "chat_template", template)
    return {"numbered": True} if kind == "where asked" else {}


def written(vlm, arguments, *contents):
    """One user's turn by the template: words, None for an image."""
    parts = [{"type": "text", "text": part} if part else {"type": "image"} for part in contents]
    return vlm.processor.apply_chat_template(
        [{"role": "user", "content": parts}],
        add_generation_prompt=True,
        tokenize=False,
        **arguments,
    )


@pytest.mark.parametrize("kind", LABELS)
def test_labels_that_the_template_gives_images_go_with_them(monkeypatch, kind):
    vlm = CHAT_MODELS["qwen"]()
    arguments = labelled(vlm, monkeypatch, kind)
    user = "Image-7 and Figure 1: so."  # the user's own words stay
    for shown, said in (
        ([None, user], [user]),
        ([user, None, "Why?"], [user, "Why?"]),
        ([None, "And ", None, user], ["And ", user]),
        ([None, None, None, user], [user]),
    ):
        images = vlm.images[: shown.count(None)]
        inputs = vlm.inputs([written(vlm, arguments, *shown)], images)
        given = {**inputs, "chat_template_kwargs": arguments}
        wanted = vlm.inputs([written(vlm, arguments, *said)])["input_ids"].tolist()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = blind(vlm, given, VDD(processor=vlm.processor).recipe().contrasts[0])
        assert found == wanted


@pytest.mark.parametrize("kind", LABELS)
def test_prompts_with_a_second_image_have_the_labels_of_the_template(monkeypatch, kind):
    vlm = CHAT_MODELS["qwen"]()
    arguments = labelled(vlm, monkeypatch, kind)
    inputs = vlm.inputs([written(vlm, arguments, None, "Why?")], vlm.images[:1])

    def second(expert, model):
        chat = PromptEditor(vlm.processor, model, arguments)
        return chat.rows(expert)[0].as_asked(chat.shown(2))

    assert within(vlm, inputs, second) == written(vlm, arguments, None, None, "Why?")


def test_one_warning_of_labels_of_a_template_whose_arguments_are_not_given(monkeypatch):
    vlm = CHAT_MODELS["qwen"]()
    arguments = labelled(vlm, monkeypatch, "where asked")
    contrast = VDD(processor=vlm.processor).recipe().contrasts[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        users = written(vlm, {}, "Picture 1: ", None, "Why?")
        blind(vlm, vlm.inputs([users], vlm.images[:1]), contrast)
    inputs = vlm.inputs([written(vlm, arguments, None, "Why?")], vlm.images[:1])
    with pytest.warns(UserWarning, match=r"'Figure 1: '.*chat_template_kwargs="):
        blind(vlm, inputs, contrast)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        blind(vlm, inputs, contrast)


def test_text_that_an_edit_does_not_touch_keeps_its_tokens(vlm):
    """Tokens that the tokenizer would not make itself, elsewhere in the prompt."""
    tokenizer = vlm.processor.tokenizer
    letters = [tokenizer.convert_tokens_to_ids(letter) for letter in "cup"]
    prompt = vlm.chat([None, "Look."], "No", "Why?")
    ids = vlm.inputs([prompt], vlm.images[:1])["input_ids"][0].tolist()
    said = tokenizer("No", add_special_tokens=False)["input_ids"][0]
    place = ids.index(said)
    ids[place : place + 1] = letters
    writing = writing_of(vlm.processor, vlm.model.config)
    row = WrittenRow(ids, {vlm.image}, set(), writing)
    kept = [token for token in left(row)]
    at = kept.index(letters[0])
    assert kept[at : at + 3] == letters
    assert vlm.image not in kept


def test_markers_that_are_named_go_though_no_image_has_them(vlm):
    """A video's, around one that the processor was not asked about."""
    inputs = vlm.inputs([vlm.chat("Why?")], vlm.images[:1])
    ids = inputs["input_ids"][0].tolist()
    writing = writing_of(vlm.processor, vlm.model.config)
    plain = WrittenRow(ids, {vlm.image}, set(), writing)
    unused = vlm.processor.tokenizer.unk_token_id or 6  # <|video_pad|>
    before = ids.index(vlm.image) - 1
    more = [*ids[:before], unused, *ids[before:], unused]
    assert left(WrittenRow(more, {vlm.image}, set(), writing, {unused})) == left(plain)


def test_a_processor_is_asked_once_for_its_settings(vlm, monkeypatch):
    processor, config = vlm.processor, vlm.model.config
    first = writing_of(processor, config)
    assert writing_of(processor, config) is first
    template = processor.chat_template
    monkeypatch.setattr(processor, "chat_template", template + " ")
    assert writing_of(processor, config) is not first


def test_images_are_counted_where_the_features_are_not_known(vlm):
    inputs = vlm.inputs([vlm.chat([None, "One.", None, "Which?"])], vlm.images[:2])
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    for processor in (vlm.processor, None):
        (row,) = rows_of(ids, mask, None, vlm.model, processor)
        assert len(row.images) == 2


@pytest.mark.parametrize("build", [VDD, M3ID, PAI, lambda: PromptCached(VDD())])
def test_what_is_made_without_a_processor_gets_the_one_of_answer(vlm, build):
    decoder = build()

    assert processor_for(decoder, vlm.processor) == {"processor": vlm.processor}
    assert processor_for(None, vlm.processor) == {}
    assert processor_for("a folder", vlm.processor) == {}
    image = vlm.images[0]
    said = answer(vlm.model, vlm.processor, image, "Why?", decoder, max_new_tokens=2)
    assert isinstance(said, str)


def test_one_warning_for_a_model_of_markers_that_stay(monkeypatch):
    vlm = CHAT_MODELS["qwen"]()
    inputs = vlm.asked(["Is there a cup?"])
    monkeypatch.setattr("sightline.engine.image_spans.MARKERS", ())
    (contrast,) = VDD().recipe().contrasts
    with pytest.warns(UserWarning, match=r"pass processor=.*markers="):
        blind(vlm, inputs, contrast)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        blind(vlm, inputs, contrast)
        blind(vlm, inputs, VDD(processor=vlm.processor).recipe().contrasts[0])


def test_what_a_preparation_finds_of_a_row(vlm):
    """Columns of each image in a padded batch."""
    inputs = vlm.inputs(
        [vlm.chat("Is there a cup?"), vlm.chat(["AttentionMap", None, "!", None])],
        vlm.images,
    )
    images = within(vlm, inputs, lambda e, m: image_columns(e, m, vlm.processor))
    assert [len(row) for row in images] == [1, 2]
    for row, own in enumerate(images):
        columns = [column for image in own for column in image]
        places = torch.nonzero(inputs["input_ids"][row] == vlm.image)[:, 0].tolist()
        assert columns == places


@pytest.mark.parametrize(("videos", "kept"), [(set(), [1, 30, 27, 31]), ({5}, [1, 30, 27, 31])])
def test_words_between_two_images_of_one_entry_stay(videos, kept):
    """The encoder's output has one entry for a row, and no marker stands around its images."""
    ids = [1, 5, 5, 30, 27, 5, 5, 31]
    row = BareRow(ids, {5}, videos, {1}, set(), lambda token: False, {1})
    assert [ids[number] for number, new in row.without_images(()) if new is None] == kept
    assert len(row.images) == (1 if videos else 2)
