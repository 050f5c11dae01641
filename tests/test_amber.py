"""AMBER: nouns and counters of descriptions, tables of questions, the benchmark."""

import json

import numpy as np
import pytest
from goldens import SHARED, golden, needs_published, published
from PIL import Image

from sightline.evaluation import amber
from sightline.evaluation.amber import Amber, Counts, count, parse, read_tables
from sightline.evaluation.benchmark import Prediction

# A small world of our own, in the published form.
RELATION = {
    "sky": [],
    "ship": ["boat"],
    "lake": ["water", "pond"],
    "sea": ["water"],
    "bird": [],
    "can": [],
    "pants": [],
}
SAFE = ["light"]
FORMS = {"forms": {"boats": "boat", "birds": "bird", "ships": "ship", "cans": "can"}}
TABLES = read_tables(RELATION, SAFE, FORMS)
PRINTED = {
    "all": "Descriminative Task",
    "existence": "Exsitence",
    "attribute": "Attribute",
    "attribute-state": "State",
    "attribute-number": "Number",
    "attribute-action": "Action",
    "relation": "Relation",
}


def note(truth, hallu):
    return {"id": 1, "type": "generative", "truth": truth, "hallu": hallu}


def written(path, content):
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def paths():
    folder = SHARED / "data" / "amber"
    return [folder / name for name in ("relation.json", "safe_words.txt", "noun_forms.json")]


def similarity_of(table):
    """The similarity that stands in for spaCy's in the golden run."""
    pairs = {frozenset((a, b)): value for a, b, value in table["pairs"]}

    def similarity(a, b):
        return table["same_word"] if a == b else pairs.get(frozenset((a, b)), table["default"])

    return similarity


# The published results


@pytest.fixture(scope="module")
def results():
    """Hand-made responses with AMBER's own rows for the same ids."""
    inputs, expected = golden("amber")
    return inputs | published("golden/amber/inputs.json"), expected


@needs_published
def test_golden_counters_from_given_nouns(results):
    inputs, expected = results
    notes = {row["id"]: row for row in inputs["annotations"]}
    tables, similarity = read_tables(*paths()), similarity_of(inputs["similarity"])
    for row in expected["generative"]:
        counts = count(row["nouns"], notes[row["id"]], tables, similarity)
        assert counts == Counts(
            nouns=row["chair_num"],
            invented=row["chair_score"],
            covered=row["safe_cover_score"],
            truth=row["safe_cover_num"],
            likely_named=row["hallu_cover_score"],
            likely=row["hallu_cover_num"],
        ), row["id"]
        assert (counts.invented == 0) == row["non_hallu_score"]
        kept = [noun for noun in row["nouns"] if noun in tables.vocabulary]
        assert kept == row["nouns_in_vocabulary"]


@needs_published
def test_golden_table_of_descriptions(results):
    inputs, expected = results
    rows = [{"id": row["id"], "nouns": row["nouns"]} for row in expected["generative"]]
    similarity = similarity_of(inputs["similarity"])
    score = amber.score_generative(rows, inputs["annotations"], *paths(), similarity)
    wanted = expected["printed"]["Generative Task"]
    assert (score.chair, score.cover) == (wanted["CHAIR"], wanted["Cover"])
    assert (score.hal, score.cog) == (wanted["Hal"], wanted["Cog"])
    assert score.sums.invented == expected["counters"]["chair_score"]
    assert score.sums.covered == expected["counters"]["safe_cover_score"]
    assert score.sums.likely_named == expected["counters"]["hallu_cover_score"]
    assert (score.noun_step, score.similarity) == ("given nouns", "similarity")


@needs_published
def test_golden_nouns_by_table(results):
    """All nouns that the tagger finds, and four words that it takes for no noun there."""
    inputs, expected = results
    extra = {1: ["forest"], 3: ["tree"], 60: ["watch"], 1000: ["net"]}
    tables = read_tables(*paths())
    responses = {row["id"]: row["response"] for row in inputs["responses"]}
    for row in expected["generative"]:
        found = tables.nouns(responses[row["id"]])
        more = extra.get(row["id"], [])
        assert [noun for noun in found if noun not in more] == row["nouns_in_vocabulary"]
        assert all(noun in found for noun in more)


@needs_published
def test_golden_tables_of_questions(results):
    """The originals know only `Yes` and `No`; the two word rules are other repositories'."""
    inputs, expected = results
    normalised = expected["discriminative_normalised"]
    printed = {
        "official": expected["printed"],
        "opera": normalised["avisc"]["printed"],
        "lmms-eval": normalised["lmms_eval"]["printed"],
    }
    for parser, tables in printed.items():
        scores = amber.score_discriminative(inputs["responses"], inputs["annotations"], parser)
        assert set(scores) == set(PRINTED)
        for group, score in scores.items():
            wanted = tables[PRINTED[group]]
            assert (score.accuracy, score.precision) == (wanted["Accuracy"], wanted["Precision"])
            assert (score.recall, score.f1) == (wanted["Recall"], wanted["F1"]), (parser, group)


@pytest.mark.parametrize(("parser", "name"), [("opera", "avisc"), ("lmms-eval", "lmms_eval")])
def test_golden_parsers(parser, name):
    inputs, expected = golden("amber")
    described = {row["id"] for row in expected["generative"]}
    asked = [row for row in inputs["responses"] if row["id"] not in described]
    wanted = expected["discriminative_normalised"][name]["responses"]
    for row, verdict in zip(asked, wanted, strict=True):
        assert parse(row["response"], parser) == verdict.lower(), row["response"]


@needs_published
def test_published_files_are_read():
    folder = SHARED / "data" / "amber"
    notes = amber.read_annotations(folder / "annotations.images1-20.json")
    queries = amber.read_queries(folder / "query_all.images1-20.json")
    assert len(notes) == len(queries) == 337
    tables = read_tables(*paths())
    assert (len(tables.association), len(tables.vocabulary), len(tables.safe_words)) == (
        340,
        418,
        9,
    )


# Parsers


@pytest.mark.parametrize(
    ("answer", "word", "official", "opera", "lmms_eval"),
    [
        ("Yes", "yes", "yes", "yes", "yes"),
        ("No", "no", "no", "no", "no"),
        ("no", "no", None, "no", "no"),
        ("Yes.", "yes", None, "yes", "yes"),
        (" No", "no", None, "no", "no"),
        ("There is not.", None, None, "no", "no"),
        ("It isn't.", None, None, "no", None),
        ("I know", None, None, "yes", "no"),
        ("Yes, no doubt", "yes", None, "no", "yes"),
        ("Its eyes are blue", None, None, "yes", "yes"),
        ("", None, None, "yes", None),
    ],
)
def test_parsers(answer, word, official, opera, lmms_eval):
    assert parse(answer) == word
    assert parse(answer, "official") == official
    assert parse(answer, "opera") == opera
    assert parse(answer, "lmms-eval") == lmms_eval


def test_an_unknown_parser_lists_what_there_is():
    with pytest.raises(ValueError, match=r"word.*official.*opera.*lmms-eval"):
        parse("yes", "strict")


# Nouns


@pytest.mark.parametrize(
    ("response", "nouns"),
    [
        ("Two boats and a bird on the lake.", ["boat", "bird", "lake"]),
        ("Boats. Lake.", []),  # as written: a capital is another word
        ("the boat, the boat", ["boat", "boat"]),
        ("it can swim in cans", []),  # "can" is hardly ever a noun in a caption
        ("the boat's pants", ["boat", "pants"]),
        ("a tree", []),
    ],
)
def test_nouns(response, nouns):
    assert TABLES.nouns(response) == nouns


def test_nouns_without_a_table_of_forms():
    tables = read_tables(RELATION, SAFE)
    assert tables.nouns("boats, ponds and skies; pants") == ["boat", "pond", "sky", "pants"]
    assert tables.noun_step == "sightline plurals"


# Counters, by hand


def counted(nouns, truth, hallu, similarity=amber.exact):
    counts = count(nouns, note(truth, hallu), TABLES, similarity)
    return counts.nouns, counts.invented, counts.covered, counts.likely_named


def test_a_word_that_goes_with_an_object_covers_it():
    assert counted(["boat"], ["sky", "ship"], []) == (1, 0, 1, 0)


def test_a_word_of_two_objects_covers_the_first_alone():
    assert counted(["water", "water"], ["sea", "lake"], []) == (2, 0, 1, 0)
    assert counted(["water", "sea", "lake"], ["sea", "lake"], []) == (3, 0, 2, 0)


def test_objects_listed_twice_count_twice_and_are_covered_once():
    counts = count(["ship", "boat"], note(["ship", "ship"], ["sea", "sea"]), TABLES)
    assert (counts.covered, counts.truth, counts.likely) == (1, 2, 2)


def test_a_likely_invention_is_invented_and_marked():
    assert counted(["bird", "bird"], ["sky"], ["bird", "sea"]) == (2, 2, 0, 1)


def test_a_noun_in_neither_list_is_invented():
    assert counted(["bird"], ["sky"], ["sea"]) == (1, 1, 0, 0)


def test_a_noun_outside_the_vocabulary_is_not_counted():
    assert counted(["tree"], ["sky"], ["sea"]) == (0, 0, 0, 0)


def test_a_safe_word_is_counted_and_never_judged():
    relation = {**RELATION, "light": []}
    tables = read_tables(relation, SAFE, FORMS)
    counts = count(["light"], note(["light"], ["light"]), tables)
    assert (counts.nouns, counts.invented, counts.covered, counts.likely_named) == (1, 0, 0, 0)


def alike(*pairs):
    return lambda a, b: (
        1.0 if a == b else max((v for x, y, v in pairs if {x, y} == {a, b}), default=0)
    )


def test_a_similar_safe_word_rescues_the_noun_which_still_counts_as_likely():
    assert counted(["bird"], ["sky"], ["bird"], alike(("bird", "sky", 0.81))) == (1, 0, 1, 1)


def test_a_noun_in_the_likely_list_may_mark_an_earlier_object_too():
    similarity = alike(("bird", "ship", 0.9))
    assert counted(["bird"], ["sky"], ["ship", "bird"], similarity) == (1, 1, 0, 2)
    assert counted(["bird"], ["sky"], ["bird", "ship"], similarity) == (1, 1, 0, 1)


def test_similarity_must_be_above_the_threshold():
    assert counted(["bird"], ["sky"], [], alike(("bird", "sky", 0.8))) == (1, 1, 0, 0)


def test_an_object_that_the_table_lacks_is_an_error():
    with pytest.raises(ValueError, match=r"'tree' of an annotation is not in the relation table"):
        count([], note(["tree"], []), TABLES)


# Published figures, by hand


def test_descriptions_by_hand():
    rows = [
        {"id": 2, "response": "a bird over the sea"},  # bird is invented, sea is there
        {"id": 1, "response": "a ship on the lake"},
    ]
    notes = [note(["ship", "lake"], ["bird"]), {**note(["sea"], ["bird", "sky"]), "id": 2}]
    score = amber.score_generative(rows, notes, RELATION, SAFE, FORMS)
    assert score.chair == round(1 / 4.001 * 100, 1) == 25.0
    assert score.cover == round(3 / 3.001 * 100, 1) == 100.0
    assert score.hal == round(100 - 1 / 2.001 * 100, 1) == 50.0
    assert score.cog == round(1 / 3.001 * 100, 1) == 33.3
    assert (score.responses, score.noun_step, score.similarity) == (2, "word forms", "exact")


def test_small_denominators_show_their_beginning():
    """1 / 1.001 prints 99.9, and a table of nothing prints 0."""
    bird = [{"id": 1, "response": "a bird"}]
    score = amber.score_generative(bird, [note(["sky"], ["bird"])], RELATION, SAFE, FORMS)
    assert (score.chair, score.cover, score.hal, score.cog) == (99.9, 0.0, 100.0, 99.9)
    empty = [{"id": 1, "response": ""}]
    score = amber.score_generative(empty, [note([], [])], RELATION, SAFE, FORMS)
    assert (score.chair, score.cover, score.cog) == (0.0, 0.0, 0.0)
    assert score.hal == round(100 - 100 / 1.001, 1) == 0.1


def asked(*rows):
    """Responses and annotations of (type, truth, response)."""
    notes = [{"id": n, "type": t, "truth": truth} for n, (t, truth, _) in enumerate(rows)]
    return [{"id": n, "response": r} for n, (_, _, r) in enumerate(rows)], notes


def test_no_is_the_positive_class():
    kind = "discriminative-attribute-state"
    scores = amber.score_discriminative(
        *asked(
            (kind, "no", "no"),
            (kind, "no", "yes"),
            (kind, "no", "perhaps"),
            (kind, "yes", "no"),
            (kind, "yes", "yes"),
        )
    )
    score = scores["attribute-state"]
    assert score.precision == 50.0  # 1 of 2 answers no
    assert score.recall == 33.3  # 1 of 3 questions whose truth is no
    assert score.accuracy == 40.0
    assert score.f1 == round(2 * 0.5 * 0.333 / (0.833 + 0.0001) * 100, 1) == 40.0
    assert (score.yes_rate, score.unparsed, score.questions) == (40.0, 20.0, 5)
    assert set(scores) == {"all", "attribute", "attribute-state"}


def test_relation_has_two_names():
    scores = amber.score_discriminative(
        *asked(("relation", "no", "no"), ("discriminative-relation", "yes", "yes"))
    )
    assert scores["relation"].questions == 2


def test_existence_is_all_no_and_always_no_is_right():
    rows = [("discriminative-hallucination", "no", "No")] * 1000
    score = amber.score_discriminative(*asked(*rows))["existence"]
    assert (score.accuracy, score.precision, score.recall) == (100.0, 100.0, 100.0)
    assert score.f1 == round(2 / 2.001 * 100, 1) == 100.0


def test_an_attribute_adds_up_its_three_denominators():
    rows = [("discriminative-attribute-number", "no", "No")]
    scores = amber.score_discriminative(*asked(*rows))
    assert scores["attribute-number"].accuracy == round(100 / 1.001, 1) == 99.9
    assert scores["attribute"].accuracy == round(100 / 1.003, 1) == 99.7
    assert scores["all"].accuracy == 99.9


def test_rows_of_other_tasks_are_left_out():
    rows, notes = asked(("discriminative-hallucination", "no", "No"))
    rows.append({"id": 9, "response": "a bird"})
    notes.append({**note(["sky"], ["bird"]), "id": 9})
    assert amber.score_discriminative(rows, notes)["all"].questions == 1
    assert amber.score_generative(rows, notes, RELATION, SAFE, FORMS).responses == 1


# Bad input


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ((), r"vocabulary.*data/relation\.json in github\.com/junyangwang0410/AMBER"),
        ((RELATION,), r"safe words.*data/safe_words\.txt"),
        (({"sky": "ship"}, SAFE), r"object -> list of words"),
        ((RELATION, SAFE, {"forms": {}}), r"no table of forms.*WordNetLemmatizer"),
    ],
)
def test_descriptions_need_the_published_tables(tables, message):
    with pytest.raises(ValueError, match=message):
        amber.score_generative([{"id": 1, "response": ""}], [note([], [])], *tables)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"id": 2, "response": ""}], "id 2 is not in the annotations"),
        ([{"id": 1, "response": ""}, {"id": "1", "response": ""}], "id 1 is answered twice"),
        ([{"id": 1, "response": ""}] * 2, "id 1 is answered twice"),
        ([{"id": 1, "answer": ""}], 'a row is {"id", "response"}'),
        ([], "none of 0 rows belongs to generative"),
    ],
)
def test_rows_that_do_not_fit_are_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        amber.score_generative(rows, [note([], [])], RELATION, SAFE, FORMS)


@pytest.mark.parametrize("given", [1, "1"])
@pytest.mark.parametrize("published", [1, "1"])
def test_ids_are_numbers_or_texts(given, published):
    rows, notes = [{"id": given, "response": ""}], [{**note([], []), "id": published}]
    assert amber.score_generative(rows, notes, RELATION, SAFE, FORMS).responses == 1


def test_nouns_are_given_for_all_rows_or_none():
    rows = [{"id": 1, "nouns": []}, {"id": 2, "response": ""}]
    notes = [note([], []), {**note([], []), "id": 2}]
    with pytest.raises(ValueError, match="1 of 2 rows have nouns"):
        amber.score_generative(rows, notes, RELATION, SAFE, FORMS)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": 1, "type": "counting", "truth": "no"}, "type must be one of generative"),
        ({"id": 1, "type": "relation", "truth": "maybe"}, "truth must be one of yes, no"),
        ({"id": 1, "type": "generative", "truth": ["sky"]}, "truth and hallu must be lists"),
        ({"type": "relation", "truth": "no"}, "the field id is missing"),
    ],
)
def test_annotations_are_checked(tmp_path, row, message):
    with pytest.raises(ValueError, match=rf"annotations\.json, row 1: {message}"):
        amber.read_annotations(written(tmp_path / "annotations.json", [row]))


def test_responses_are_checked(tmp_path):
    path = written(tmp_path / "responses.json", [{"id": 1, "response": ""}])
    assert amber.read_responses(path) == [{"id": 1, "response": ""}]
    written(path, [{"id": 1, "response": None}])
    with pytest.raises(ValueError, match=r"row 1: response must be text, got None"):
        amber.read_responses(path)
    written(path, [{"id": 1, "response": ""}] * 2)
    with pytest.raises(ValueError, match=r"row 2: id 1 comes twice"):
        amber.read_responses(path)


# The benchmark


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "image"
    folder.mkdir()
    for name in ("AMBER_1.jpg", "AMBER_2.jpg"):
        Image.new("RGB", (5, 4)).save(folder / name)
    queries = [
        {"id": 1, "image": "AMBER_1.jpg", "query": "Describe this image."},
        {"id": 2, "image": "AMBER_2.jpg", "query": "Describe this image."},
        {"id": 3, "image": "AMBER_1.jpg", "query": "Is the sky blue in this image?"},
        {"id": 4, "image": "AMBER_1.jpg", "query": "Is the sky red in this image?"},
        {"id": 5, "image": "AMBER_2.jpg", "query": "Is the sea red in this image?"},
    ]
    state = "discriminative-attribute-state"
    notes = [
        note(["ship", "lake"], ["bird"]),
        {**note(["sea"], ["bird", "sky"]), "id": 2},
        {"id": 3, "type": state, "truth": "yes"},
        {"id": 4, "type": state, "truth": "no"},
        {"id": 5, "type": state, "truth": "no"},
        {"id": 6, "type": "relation", "truth": "no"},
    ]
    safe = tmp_path / "safe_words.txt"
    safe.write_text("\n".join(SAFE))
    return {
        "images": folder,
        "queries": written(tmp_path / "query_all.json", queries),
        "annotations": written(tmp_path / "annotations.json", notes),
        "relation": written(tmp_path / "relation.json", RELATION),
        "safe_words": safe,
        "noun_forms": written(tmp_path / "noun_forms.json", FORMS),
    }


def said(benchmark, task, texts):
    items = [item for item in benchmark.items if item.task == task]
    return [Prediction(item, text, 4) for item, text in zip(items, texts, strict=True)]


UNITS = {"AMBER_1.jpg": 0, "AMBER_2.jpg": 1}


def test_benchmark_items_and_tasks(files):
    benchmark = Amber(**files)
    assert [task.name for task in benchmark.tasks] == ["generative", "attribute-state"]
    assert [task.yes_no for task in benchmark.tasks] == [False, True]
    assert [task.max_new_tokens for task in benchmark.tasks] == [512, 16]
    assert [(item.task, item.id, item.label) for item in benchmark.items] == [
        ("generative", "1", None),
        ("generative", "2", None),
        ("attribute-state", "3", "yes"),
        ("attribute-state", "4", "no"),
        ("attribute-state", "5", "no"),
    ]
    assert [item.unit for item in benchmark.items] == [item.image for item in benchmark.items]
    assert benchmark.items[2].question == "Is the sky blue in this image?"
    assert benchmark.load_image(benchmark.items[0]).size == (5, 4)
    assert benchmark.prediction(benchmark.items[2], "No, it is not") == "no"


def test_the_suffix_is_for_questions_alone(files):
    benchmark = Amber(**files, suffix="yes-no")
    assert benchmark.items[0].question == "Describe this image."
    ending = "Is the sky blue in this image? Please just answer yes or no."
    assert benchmark.items[2].question == ending


def test_ratios_of_descriptions(files):
    benchmark = Amber(**files)
    texts = ["a ship, a bird and two birds", "the sea, the sea, a bird"]
    answers = said(benchmark, "generative", texts)
    ratios = benchmark.ratios(benchmark.tasks[0], answers, UNITS)
    assert list(ratios) == [metric.name for metric in benchmark.tasks[0].metrics]
    assert ratios["chair"].numerator.tolist() == [2, 1]
    assert ratios["chair"].denominator.tolist() == [3, 3]
    assert ratios["cover"].value == pytest.approx((1 + 1) / (2 + 1))
    assert ratios["hal"].value == 1
    assert ratios["cog"].value == pytest.approx((1 + 1) / (1 + 2))
    assert ratios["tokens"].value == 4


def test_ratios_are_the_published_figures_up_to_their_denominators(files):
    benchmark = Amber(**files)
    texts = ["a ship and two birds", "the sea, the sea, a bird"]
    answers = said(benchmark, "generative", texts)
    ratios = benchmark.ratios(benchmark.tasks[0], answers, UNITS)
    rows = [{"id": n, "response": text} for n, text in enumerate(texts, start=1)]
    notes = amber.read_annotations(files["annotations"])
    tables = files["relation"], files["safe_words"], files["noun_forms"]
    score = amber.score_generative(rows, notes, *tables)
    for name in ("chair", "cover", "hal", "cog"):
        # 0.001 on a denominator of 2 or more, and one decimal of percent
        assert ratios[name].value * 100 == pytest.approx(getattr(score, name), abs=0.1)


def test_ratios_of_questions(files):
    benchmark = Amber(**files)
    answers = said(benchmark, "attribute-state", ["No.", "no", "it seems red"])
    ratios = benchmark.ratios(benchmark.tasks[1], answers, UNITS)
    assert set(ratios) == {metric.name for metric in benchmark.tasks[1].metrics}
    values = {name: ratio.value for name, ratio in ratios.items()}
    assert values == pytest.approx(
        {
            "accuracy": 1 / 3,
            "precision": 1 / 2,
            "recall": 1 / 2,
            "f1": 1 / 2,
            "yes_rate": 0,
            "unparsed": 1 / 3,
        }
    )
    assert ratios["recall"].denominator.tolist() == [1, 1]


def test_ratios_of_nothing_have_no_value(files):
    benchmark = Amber(**files)
    answers = said(benchmark, "attribute-state", ["yes", "yes", "yes"])
    ratios = benchmark.ratios(benchmark.tasks[1], answers, UNITS)
    assert np.isnan(ratios["precision"].value)
    assert (ratios["recall"].value, ratios["f1"].value, ratios["yes_rate"].value) == (0, 0, 1)


def test_the_parser_decides(files):
    benchmark = Amber(**files, parser="opera")
    assert benchmark.prediction(benchmark.items[2], "It isn't") == "no"
    assert benchmark.fixed()["parser"] == "opera"


def test_fixed_tells_what_decides_the_figures(files, tmp_path):
    fixed = Amber(**files, max_new_tokens=64).fixed()
    assert (fixed["queries"][0]["name"], fixed["queries"][0]["rows"]) == ("query_all.json", 5)
    assert (fixed["annotations"]["rows"], fixed["relation"]["rows"]) == (6, 7)
    assert fixed["max_new_tokens"] == {"generative": 64, "attribute-state": 16}
    assert (fixed["noun_step"], fixed["similarity"]) == ("word forms", "exact")
    assert str(tmp_path) not in json.dumps(fixed)
    plain = Amber(**{**files, "noun_forms": None}).fixed()
    assert (plain["noun_step"], plain["noun_forms"]) == ("sightline plurals", None)


def test_questions_alone_need_no_tables(files, tmp_path):
    rows = json.loads(files["queries"].read_text())[2:]
    queries = written(tmp_path / "query_discriminative.json", rows)
    benchmark = Amber(files["images"], [queries], files["annotations"])
    assert [task.name for task in benchmark.tasks] == ["attribute-state"]
    assert "similarity" not in benchmark.fixed()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"relation": None}, r"data/relation\.json"),
        ({"parser": "strict"}, "official"),
        ({"suffix": "please"}, "yes-no"),
        ({"max_new_tokens": 0}, "at least 1"),
        ({"answer_tokens": 0}, "at least 1"),
    ],
)
def test_benchmark_refuses(files, changed, message):
    with pytest.raises(ValueError, match=message):
        Amber(**{**files, **changed})


def test_questions_of_other_annotations_are_refused(files):
    written(files["annotations"], [note(["sky"], [])])
    with pytest.raises(ValueError, match=r"query_all\.json, row 2: id 2 is not in the annotations"):
        Amber(**files)


def test_objects_of_another_version_are_refused_before_anything_runs(files):
    written(files["relation"], {name: RELATION[name] for name in ("sky", "sea", "ship", "lake")})
    with pytest.raises(ValueError, match=r"'bird' of an annotation is not in the relation table"):
        Amber(**files)


def test_questions_of_two_files_must_differ(files):
    with pytest.raises(ValueError, match="id 1 comes twice"):
        Amber(**{**files, "queries": [files["queries"], files["queries"]]})


def test_a_missing_image_is_named(files):
    (files["images"] / "AMBER_2.jpg").unlink()
    with pytest.raises(ValueError, match=r"1 of 2 images are not in .*AMBER_2\.jpg"):
        Amber(**files)
