"""Worked numbers of mvp.md 5, and how an answer is found in a text."""

import itertools
import random

import numpy as np
import pytest
import torch
from torch import tensor

from sightline.decoders.mvp.votes import (
    FirstToken,
    Path,
    SaidLabel,
    affirmative,
    certainty,
    check_surfaces,
    covering_token,
    decide,
    find_answer,
    first_tokens,
    gaps,
    spokesman,
    tally,
    view_totals,
    vote,
)

SIX_DIGITS = 1.5e-6  # float32
YES_NO = {"Yes": ("yes",), "No": ("no",)}
VOCABULARY = ["Yes", "No", "The", "There", "yes", "no"]
VIEWS = ("bottom-up", "top-down", "regular")
WEIGHTS = dict(zip(VIEWS, (0.4, 0.4, 0.2), strict=True))
FIRST = tensor([[2, 1.6, 1.8, 0.2, -2, -2], [1, 1.9, 0.3, 1.5, -2, -2], [1.8, 0.4, 2.3, 1, -2, -2]])
LATER = {
    ("bottom-up", "The"): [-1, -1, 0, 0, 0.4, 2.4],
    ("top-down", "There"): [-1, -1, 0, 0, 0.1, 1.1],
    ("regular", "There"): [-1, -1, 0, 0, 1.6, 1.0],
}


def near(value):
    return pytest.approx(value, abs=SIX_DIGITS)


def starts(logits, k=3, vocabulary=VOCABULARY, **settings):
    return first_tokens(logits, k, vocabulary.__getitem__, YES_NO, **settings)


def voted(policy="skip", k=3):
    """The paths of the worked example, greedy after the first token."""
    for view, row in zip(VIEWS, starts(FIRST, k), strict=True):
        for first in row:
            said = VOCABULARY[first.token]
            if first.label is not None:
                yield Path(view, first.probability, first.label, None, said)
                continue
            prefixes, sure = [said], [0.0]
            if (view, said) in LATER:
                logits = tensor(LATER[view, said])
                prefixes.append(f"{said} {VOCABULARY[logits.argmax()]}")
                sure.append(float(gaps(logits)))
            found = find_answer(prefixes[-1], YES_NO)
            if found is None and policy == "affirmative":
                found = affirmative(prefixes[-1])
            if found is None:
                yield Path(view, first.probability, None, None, prefixes[-1])
            else:
                sure = certainty(found, prefixes, sure)
                yield Path(view, first.probability, found.label, sure, prefixes[-1])


def test_first_tokens_of_the_worked_example():
    wanted = [
        [("Yes", 0.371612), ("The", 0.304250), ("No", 0.249099)],
        [("No", 0.431170), ("There", 0.289022), ("Yes", 0.175301)],
        [("The", 0.486436), ("Yes", 0.295038), ("There", 0.132569)],
    ]
    for row, expected in zip(starts(FIRST), wanted, strict=True):
        assert [(VOCABULARY[f.token], f.probability) for f in row] == [
            (word, near(p)) for word, p in expected
        ]
        assert [f.label for f in row] == [w if w in YES_NO else None for w, _ in expected]


def test_gaps_of_the_worked_example():
    later = tensor(list(LATER.values()))
    assert gaps(later).tolist() == [near(0.624976), near(0.277424), near(0.214734)]
    best = later.softmax(-1).topk(2).values
    assert best[0].tolist() == [near(0.722795), near(0.097820)]
    heated = [near(0.828380), near(0.433316), near(0.343346)]  # the trap: of T = 0.7
    assert gaps(later / 0.7).tolist() == heated


def test_votes_of_the_worked_example():
    totals = view_totals(voted(), YES_NO)
    assert totals == {
        "bottom-up": {"Yes": near(0.371612), "No": near(0.439248)},
        "top-down": {"Yes": near(0.175301), "No": near(0.511352)},
        "regular": {"Yes": near(0.323506), "No": 0},
    }
    votes = [path.vote for path in voted()]
    assert votes[1] == near(0.190149)
    assert votes[4] == near(0.080182)
    assert votes[8] == near(0.028467)
    assert votes[6] == 0


def test_totals_of_the_worked_example():
    totals = tally(voted(), WEIGHTS, YES_NO)
    assert totals == {"Yes": near(0.283466), "No": near(0.380240)}
    assert decide(totals) == "No"
    said = spokesman(voted(), WEIGHTS, "No")
    assert (said.view, said.text) == ("top-down", "No")


def test_one_unresolved_path_turns_the_example():
    totals = tally(voted("affirmative"), WEIGHTS, YES_NO)
    assert totals == {"Yes": near(0.380753), "No": near(0.380240)}
    assert decide(totals) == "Yes"


def test_the_order_of_views_and_paths_does_not_matter():
    """To the last bit: a tie must not depend on it."""
    draw = random.Random(0)
    equal = dict.fromkeys(VIEWS, 1 / 3)
    for _ in range(20):
        paths = [Path(v, draw.random() / 3, draw.choice(["Yes", "No"])) for v in VIEWS * 3]
        for order in itertools.permutations(VIEWS):
            renamed = dict(zip(VIEWS, order, strict=True))
            moved = [Path(renamed[path.view], path.first_probability, path.label) for path in paths]
            draw.shuffle(moved)
            assert tally(moved, equal, YES_NO) == tally(paths, equal, YES_NO)


def test_with_one_path_the_likeliest_first_tokens_decide():
    generator = torch.Generator().manual_seed(0)
    answers = set()
    for _ in range(30):
        logits = torch.randn(3, 6, generator=generator)
        logits[:, :2] += 5  # first tokens that answer
        firsts = [row[0] for row in starts(logits, k=1)]
        paths = [Path(v, f.probability, f.label) for v, f in zip(VIEWS, firsts, strict=True)]
        p = np.exp(logits.double().numpy())
        p /= p.sum(axis=1, keepdims=True)
        best = p * (p == p.max(axis=1, keepdims=True))
        weighted = np.array([0.4, 0.4, 0.2]) @ best
        answer = decide(tally(paths, WEIGHTS, YES_NO))
        assert answer == VOCABULARY[weighted.argmax()]
        answers.add(answer)
    assert answers == {"Yes", "No"}


def test_variants_of_a_label_share_one_slot():
    """Of its likeliest variant, whatever its case and the space before it."""
    words = ["Yes", " yes", "The", "YES", "No", "▁No"]
    logits = tensor([[3.0, 2.5, 2.0, 1.5, 1.0, 0.5]])
    p = logits.softmax(-1)[0].tolist()
    assert starts(logits, vocabulary=words) == [
        [
            FirstToken(0, near(p[0]), "Yes"),
            FirstToken(2, near(p[2]), None),
            FirstToken(4, near(p[4]), "No"),
        ]
    ]
    separate = starts(logits, vocabulary=words, dedup=False)[0]
    assert [f.token for f in separate] == [0, 1, 2]
    assert [f.label for f in separate] == ["Yes", "Yes", None]


def test_a_rare_beginning_is_dropped_unless_it_answers():
    logits = tensor([[0.0005, 0.9, 0.0009, 0.0986, 1e-5, 1e-6]]).log()
    kept = starts(logits, k=4)[0]
    assert [f.token for f in kept] == [1, 3, 0]  # the third slot, "The", stays empty
    assert [f.token for f in starts(logits, k=4, threshold=0)[0]] == [1, 3, 2, 0]


def test_more_paths_than_tokens():
    assert len(starts(FIRST, k=99, threshold=0)[0]) == 4


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Yes, there is a chair.", ("Yes", 0, 3)),
        ("The answer is no.", ("No", 14, 16)),
        ("No, yes you can", ("No", 0, 2)),
        ("**NO**", ("No", 2, 4)),
        ("_yes_", ("Yes", 1, 4)),
        ("There is nothing known", None),
        ("no-one is there", None),
        ("Eyes and noses", None),
        ("no2", None),
        ("İ yes", ("Yes", 2, 5)),
        ("", None),
    ],
)
def test_the_first_whole_word_answers(text, found):
    assert find_answer(text, YES_NO) == (found and SaidLabel(*found))


def test_the_longest_of_labels_that_begin_together():
    labels = {"light": ("traffic light", "lights"), "jam": ("traffic",)}
    assert find_answer("A traffic\nlight.", labels) == SaidLabel("light", 2, 15)
    assert find_answer("A traffic jam", labels) == SaidLabel("jam", 2, 9)


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("No", None),
        ("No-", None),
        ("No\u2019", None),
        ("No,", "No"),
        ("No th", "No"),
        ("I no", None),
    ],
)
def test_an_answer_is_settled_when_its_word_has_ended(text, label):
    found = find_answer(text, YES_NO, ended=False)
    assert (found.label if found else None) == label


@pytest.mark.parametrize(
    "labels",
    [
        YES_NO,
        {"light": ("traffic light",), "jam": ("traffic",), "car": ("red car park",), "r": ("car",)},
    ],
)
def test_what_is_settled_does_not_change(labels):
    """Of texts that are written one character at a time."""
    words = ["traffic", "light", "red", "car", "park", "no", "nothing", "yes", "n't", "-", ","]
    draw = random.Random(0)
    settled = 0
    for _ in range(500):
        text = " ".join(draw.choices(words, k=4))
        if draw.random() < 0.5:
            text = text.replace(" ", draw.choice(["", "-", ", "]), 1)
        final = find_answer(text, labels)
        for end in range(len(text)):
            early = find_answer(text[:end], labels, ended=False)
            assert early is None or early == final
            settled += early is not None
    assert settled > 100


def test_the_token_that_says_the_answer():
    prefixes = ["The", "The answer", "The answer is", "The answer is ", "The answer is no"]
    assert covering_token(prefixes, 14) == 4
    assert covering_token(prefixes, 0) == 0
    assert covering_token(prefixes, 3) == 1
    with pytest.raises(ValueError, match="character 16 is beyond the text"):
        covering_token(prefixes, 16)


def test_certainty_of_an_answer():
    prefixes = ["A", "A traf", "A traffic", "A traffic light", "A traffic light."]
    gaps = [0.9, 0.6, 0.8, 0.1, 0.2]
    assert certainty(SaidLabel("light", 2, 15), prefixes, gaps) == pytest.approx(0.5)
    assert certainty(SaidLabel("light", 10, 15), prefixes, gaps) == 0.1
    assert certainty(SaidLabel("a", 0, 1), prefixes, gaps) is None
    assert certainty(SaidLabel("Yes"), prefixes, gaps) == 1


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("There is a dog", SaidLabel("Yes")),
        ("There isn't a dog", SaidLabel("No", 8, 11)),
        ("İt ISN\u2019T there", SaidLabel("No", 5, 8)),
        ("It is NOT there", SaidLabel("No", 6, 9)),
        ("I cannot see one", SaidLabel("No", 2, 8)),
        ("A street without dogs", SaidLabel("No", 9, 16)),
        ("None.", SaidLabel("No", 0, 4)),
        ("No, a cat", SaidLabel("No", 0, 2)),
        ("A knot, a note, nothing", SaidLabel("Yes")),
        ("is n't", SaidLabel("No", 3, 6)),
        ("", SaidLabel("Yes")),
    ],
)
def test_a_text_without_yes_or_no_affirms_unless_it_negates(text, answer):
    assert affirmative(text) == answer


def test_a_vote():
    assert vote(0.5) == 0.5
    assert vote(0.5, 0.4) == 0.2
    assert Path("regular", 0.5, None, 0.4).vote == 0
    assert Path("regular", 0.5, "No", 0.0).vote == 0


def test_who_decides():
    assert decide({"Yes": 0.2, "No": 0.2}, tie="No") == "No"
    assert decide({"Yes": 0.2, "No": 0.2}) == "Yes"
    assert decide({"Yes": 0.3, "No": 0.2}, tie="No") == "Yes"
    assert decide({"A": 0.2, "B": 0.2, "No": 0.1}, tie="No") == "A"
    assert decide({"Yes": 0.0, "No": 0.0}, tie="No") is None
    assert spokesman([], WEIGHTS, "No") is None


def test_the_spokesman_is_of_a_view_that_weighs():
    paths = [Path("regular", 0.5, "Yes", text="a"), Path("top-down", 0.4, "Yes", text="b")]
    assert spokesman(paths, WEIGHTS, "Yes").text == "b"


@pytest.mark.parametrize(
    ("surfaces", "message"),
    [
        ({"Yes": ("yes",)}, "two or more labels"),
        ({"Yes": ("yes",), "No": ()}, "at least one way to say it"),
        ({"Yes": ("yes",), "No": ("!",)}, "letters or digits"),
        ({"Yes": ("yes",), "No": ("no", " YES")}, "must not be shared by two labels"),
    ],
)
def test_surfaces_are_checked(surfaces, message):
    with pytest.raises(ValueError, match=message):
        check_surfaces(surfaces)
    check_surfaces({"Yes": ("yes", "Yes"), "No": ("no",)})
