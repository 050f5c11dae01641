"""What is marked in answers: changes, objects found, invented and missed."""

import subprocess
import sys

import pytest
from PIL import Image

from sightline import lab
from sightline.highlights import (
    Span,
    cut,
    known_truth,
    listed,
    missed,
    named_words,
    new_words,
    remarks,
    spans,
)

FIRST = "The image contains a fork, two traffic lights, a cup and a dog."
SECOND = "The image contains a fork, a clock and a dog."
TRUTH = frozenset({"fork", "dog", "bird"})


def cuts(text, found):
    """The spans' own texts with their kinds, in order."""
    return [(text[span.start : span.end], set(span.kinds)) for span in found]


def test_objects_are_found_or_invented_by_their_places():
    words = ["A", "fork,", "two", "traffic", "lights", "and", "(dogs)."]
    found, invented = named_words(words, TRUTH)
    assert found == [range(1, 2), range(6, 7)]
    assert invented == [range(3, 5)]
    assert named_words(words, None) == ([], [])
    assert named_words([], TRUTH) == ([], [])


def test_a_name_begins_with_its_own_first_word():
    found, invented = named_words(["old", "red", "traffic", "light"], frozenset({"traffic light"}))
    assert (found, invented) == ([range(2, 4)], [])


def test_spans_of_the_first_answer_name_objects():
    assert cuts(FIRST, spans(FIRST, FIRST, TRUTH)) == [
        ("fork", {"found"}),
        ("traffic lights", {"invented"}),
        ("cup", {"invented"}),
        ("dog", {"found"}),
    ]
    assert spans(FIRST, FIRST, TRUTH)[0] == Span(21, 25, frozenset({"found"}))


def test_one_span_has_all_that_is_to_be_said_of_it():
    assert cuts(SECOND, spans(SECOND, FIRST, TRUTH)) == [
        ("fork", {"found"}),
        ("clock", {"new", "invented"}),
        ("dog", {"found"}),
    ]
    assert cuts(SECOND, spans(SECOND, FIRST, None)) == [("clock", {"new"})]


def test_alike_words_are_one_span_with_their_blanks_and_without_punctuation():
    text = "A cup,  some old\nchairs, yes.\n\n(A dog!)"
    assert cuts(text, spans(text, "A cup.", frozenset({"dog"}))) == [
        ("cup", {"invented"}),
        ("some old", {"new"}),
        ("chairs", {"new", "invented"}),
        ("yes", {"new"}),
        ("A", {"new"}),
        ("dog", {"new", "found"}),
    ]


def test_two_names_side_by_side_are_two_spans():
    text = "cup bird traffic light traffic light"
    assert cuts(text, spans(text, text, frozenset({"bird"}))) == [
        ("cup", {"invented"}),
        ("bird", {"found"}),
        ("traffic light", {"invented"}),
        ("traffic light", {"invented"}),
    ]
    half = "traffic light"
    assert cuts(half, spans(half, "traffic", TRUTH)) == [
        ("traffic", {"invented"}),
        ("light", {"invented", "new"}),
    ]


@pytest.mark.parametrize("text", [FIRST, SECOND, " a  cup ...\n", "-", "", "(a)(b) --c--"])
def test_spans_are_in_order_and_within_the_text(text):
    found = spans(text, "a dog", TRUTH)
    places = [place for span in found for place in (span.start, span.end)]
    assert places == sorted(places) and all(0 <= place <= len(text) for place in places)
    for span in found:
        assert text[span.start : span.end].strip() == text[span.start : span.end] != ""


def test_blanks_before_the_text_shift_the_places():
    assert spans("  cup", "cup", TRUTH) == [Span(2, 5, frozenset({"invented"}))]


def test_new_words_are_those_that_the_first_answer_has_not_there():
    assert new_words(["A", "Dog", "and", "a", "cup."], ["a", "dog,", "a", "cup"]) == {2}
    assert new_words(["a", "b"], []) == {0, 1}
    assert new_words([], ["a"]) == set()


@pytest.mark.parametrize(
    ("word", "parts"),
    [("(cup),", ("(", "cup", "),")), ("it's", ("", "it's", "")), ("--", ("", "--", ""))],
)
def test_punctuation_is_cut_off(word, parts):
    assert cut(word) == parts


def test_missed_objects():
    assert missed(FIRST, TRUTH) == {"bird"}
    assert missed("Dogs, birds and forks", TRUTH) == frozenset()
    assert missed(FIRST, None) == frozenset()


def test_remarks_on_what_marks_cannot_show():
    assert remarks(FIRST, FIRST, TRUTH) == ["missed: bird"]
    assert remarks(SECOND, FIRST, TRUTH) == [
        "missed: bird",
        "no longer invented: cup, traffic light",
    ]
    assert remarks("A bird, a dog and a fork.", SECOND, TRUTH) == ["no longer invented: clock"]
    assert remarks(FIRST, FIRST, None) == []


def test_names_are_listed_by_the_alphabet():
    assert listed({"dog", "cup"}) == "cup, dog"
    assert listed([]) == "none"


def test_truth_is_known_of_lab_images_unless_the_question_names_an_object():
    with Image.open(lab.IMAGES / "table.png") as table:
        table.load()
    assert known_truth(table, "Describe the image.") == lab.truth(table) != frozenset()
    assert known_truth(table, "Is there a fork?") is None
    assert known_truth(Image.new("RGB", (8, 8)), "Describe the image.") is None


def test_marks_wait_neither_for_torch_nor_for_images():
    code = "import sys, sightline.highlights; print({'torch', 'PIL', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
