"""docs/families.md is what the library does, cell by cell."""

from pathlib import Path

import pytest
import torch
import transformers
from conformance import Conformance
from families import COLUMNS, MODES, REAL, Table, cell, outcomes, row_of
from models import PROMPTS
from tiny_families import TELLING, Tiny, by_family, families

from sightline import PostHocDebias
from sightline.decoders import DECODERS

PAGE = Path(__file__).parents[1] / "docs" / "families.md"
TABLE = Table.read(PAGE.read_text())
FAMILIES = families()
BUILT = [name for name, family in FAMILIES.items() if not family.why_untested]
# Of an image that fills one token, CARVE says that the question draws it nowhere.
pytestmark = pytest.mark.filterwarnings("ignore:the question draws no more attention")
IS_SAME_RELEASE = transformers.__version__ == TABLE.transformers


def check_row(name, modes):
    for method, found in row_of(name, modes).items():
        assert not [reason for reason in found.values() if "FAILS" in reason]
        if IS_SAME_RELEASE:
            said = outcomes(*TABLE.cells[name][method])
            assert found == {mode: said[mode] for mode in modes}, method


@pytest.mark.parametrize("name", sorted(TELLING))
def test_a_family_does_what_its_row_says_of_a_padded_batch(name):
    check_row(name, ["padded batch"])


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILT)
def test_a_family_does_what_its_row_says(name):
    check_row(name, list(MODES))


@pytest.mark.parametrize("name", by_family(BUILT))
def test_post_hoc_debias_divides_by_the_answer_without_an_image(name):
    conformance = Conformance(Tiny.of(name))
    tiny = conformance.tiny
    why_not = conformance.outcome("vdd", "padded batch")
    if why_not:
        pytest.skip(f"of the two branches that it reads, {why_not}")
    markers = conformance.method("vdd").strong.markers
    decoder = PostHocDebias(processor=tiny.processor.tokenizer, labels=("a", "b"), markers=markers)
    got = decoder.probabilities(tiny.model, **tiny.inputs(PROMPTS))
    vocabulary = tiny.processor.tokenizer.get_vocab()
    forms = [[vocabulary["a"], vocabulary["A"]], [vocabulary["b"], vocabulary["B"]]]
    for row, tokens in enumerate(PROMPTS):
        seen, blind = (
            torch.stack([logits.softmax(-1)[of].max() for of in forms])
            for logits in conformance.branches("vdd", tokens)[0]
        )
        ratio = (seen / seen.sum()) / (blind / blind.sum() + 1e-4)
        torch.testing.assert_close(got[row], ratio / ratio.sum(), atol=2e-3, rtol=0)  # float32


@pytest.mark.skipif(not IS_SAME_RELEASE, reason="another transformers has other families")
def test_every_family_is_tested_or_explained():
    assert set(TABLE.cells) == set(BUILT)
    assert TABLE.reasons == {n: f.why_untested for n, f in FAMILIES.items() if f.why_untested}
    assert all(TABLE.reasons.values())
    for row in TABLE.cells.values():
        assert list(row) == [*COLUMNS, REAL]
        assert all(text == "yes" or note for text, note in row.values())


def test_telling_families_are_built():
    assert set(BUILT) >= TELLING


def test_every_decoder_has_a_column():
    assert set(DECODERS) - {"posthoc"} <= set(COLUMNS)  # the page says why it has none


def test_the_page_promises_twenty_families():
    serving = [name for name in TABLE.cells if TABLE.serves(name)]
    assert len(serving) >= 20
    assert {"llava", "llava_onevision", "qwen2_5_vl", "qwen3_vl", "glm4v"} <= set(serving)
    more = [name for name in TABLE.cells if TABLE.serves(name, by_norm=True)]
    assert {"internvl", "gemma3", "mistral3", "llama4"} <= set(more)


def test_the_page_is_written_by_its_command():
    """Nobody edits it: read and written again it is the same, down to the words around it."""
    assert Table.read(TABLE.markdown()) == TABLE
    assert TABLE.markdown() == PAGE.read_text()


def test_cells():
    works = dict.fromkeys(MODES, "")
    assert cell(works) == ("yes", "")
    assert cell(dict.fromkeys(MODES, "refused: no image")) == ("no", "refused: no image")
    some = {**works, "3 beams": "refused: a", "two images": "refused: a", "static cache": "b"}
    assert cell(some) == ("3 of 6", "3 beams, two images: refused: a; static cache: b")
    none = {**dict.fromkeys(MODES, "refused: a"), "greedy": "refused: b"}
    assert cell(none)[0] == "no" and cell(none)[1].startswith("greedy: refused: b; sampling, ")
    for row in (works, none, dict.fromkeys(MODES, "refused: no image"), some):
        assert outcomes(*cell(row)) == row
