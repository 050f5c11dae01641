"""A malformed line of a question file: an error row, and the run of the other lines unchanged."""

import io
import json

import pytest
from coco import lay_out
from rich.console import Console

from sightline.evaluation import report, runner
from sightline.evaluation.amber import Amber
from sightline.evaluation.batches import cut
from sightline.evaluation.chair import ChairBenchmark
from sightline.evaluation.lab import WORDINGS
from sightline.evaluation.mme import MME
from sightline.evaluation.pope import Pope
from sightline.evaluation.runner import Run
from sightline.lab import CHECKPOINT

needs_weights = pytest.mark.skipif(
    not (CHECKPOINT / "model.safetensors").exists(), reason="the lab's weights are not there"
)
BAD = ('{"question_id": 4, "image":', "{}", "[1]")
MEASURED = ("ms", "first_ms", "peak_mb")
COUNTED = ("errors", "questions", "malformed", "cost")  # of a task's summary


@pytest.fixture(scope="module")
def laid_out(tmp_path_factory):
    return lay_out(tmp_path_factory.mktemp("published"), scenes=4)


@pytest.fixture(scope="module")
def benchmarks(laid_out, tmp_path_factory):
    """POPE's questions of two files, whole, and with malformed lines in the first of them."""
    folder = tmp_path_factory.mktemp("spoilt")
    whole = [laid_out.pope / f"coco_pope_{split}.json" for split in ("random", "popular")]
    lines = whole[0].read_text().splitlines()
    twice = lines[0]
    spoilt = [BAD[0], *lines[:3], BAD[1], twice, *lines[3:], BAD[2]]
    path = folder / whole[0].name
    path.write_text("\n".join(spoilt))
    images = laid_out.coco / "val2014"
    return Pope(whole, images), Pope([path, whole[1]], images)


def evaluate(benchmark, out, **changes):
    return runner.evaluate(
        benchmark,
        ["vdd", "vdd+sample"],
        Run(seed=1, batch_size=4),
        out,
        wordings=WORDINGS,
        **changes,
    )


def answers(out):
    """What was answered, in order and without what a clock says, and the error rows."""
    rows = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    kept = [{k: v for k, v in row.items() if k not in MEASURED} for row in rows]
    return [r for r in kept if r["error"] is None], [r for r in kept if r["error"] is not None]


@pytest.fixture(scope="module")
def runs(benchmarks, tmp_path_factory):
    """Folder, summary and what was said, of the whole file and of the spoilt one."""
    made = []
    for benchmark in benchmarks:
        out, said = tmp_path_factory.mktemp("run") / "run", io.StringIO()
        console = Console(file=said, width=300)
        made.append((out, evaluate(benchmark, out, console=console), said.getvalue()))
    return made


@needs_weights
def test_the_other_lines_are_answered_and_scored_as_without_it(benchmarks, runs):
    (whole, expected, _), (spoilt, found, _) = runs
    answered, errors = answers(spoilt)
    assert answers(whole) == (answered, [])
    [last] = [f["rows"] for f in benchmarks[1].files if f["task"] == "random"]
    ids = ["line 1", "line 5", "line 6", f"line {last}"]
    assert [(e["task"], e["id"]) for e in errors if e["decoder"] == "greedy"] == [
        ("random", f"coco_pope_random.json, {line}") for line in ids
    ]
    assert all(e["error"].startswith(e["id"]) and e["answer"] == "" for e in errors)
    assert len(errors) == 4 * 3
    for name in expected["tasks"]:
        one, other = expected["tasks"][name], found["tasks"][name]
        assert [one[k] for k in one if k not in COUNTED] == [
            other[k] for k in other if k not in COUNTED
        ]
    for name in ("units", "differences"):
        assert found[name] == expected[name]


@needs_weights
def test_they_are_counted_once_at_the_start_in_the_summary_and_in_the_table(runs):
    (whole, expected, silent), (spoilt, found, said) = runs
    task = found["tasks"]["random"]
    assert (task["malformed"], task["errors"]) == (4, 4)
    assert task["questions"] == expected["tasks"]["random"]["questions"] + 4
    assert found["tasks"]["popular"]["malformed"] == 0
    saved = json.loads((spoilt / "summary.json").read_text())
    assert saved["tasks"]["random"]["malformed"] == 4
    table = (spoilt / "table.md").read_text()
    assert table.count("Malformed lines of the question files: those of 4 questions") == 1
    assert "Images that could not be read" not in table
    del saved["tasks"]["random"]["malformed"]  # as older versions wrote it
    assert "those of 4 questions" in report.markdown(saved)
    assert said.count("malformed lines: 4 of") == 1
    assert "The first: coco_pope_random.json, line 1: not JSON" in said
    assert "alformed" not in silent + (whole / "table.md").read_text()


@needs_weights
@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9])
def test_a_run_with_malformed_lines_is_resumed(benchmarks, runs, tmp_path, kept):
    source, out = runs[1][0], tmp_path / "run"
    out.mkdir()
    (out / "run.json").write_bytes((source / "run.json").read_bytes())
    content = (source / "answers.jsonl").read_bytes()
    (out / "answers.jsonl").write_bytes(content[: int(len(content) * kept)])
    found = evaluate(benchmarks[1], out, resume=True)
    assert answers(out) == answers(source)
    assert found["differences"] == runs[1][1]["differences"]


def test_batches_are_those_of_the_file_without_malformed_lines(benchmarks):
    def words(texts, **_):
        return {"input_ids": [text.split() for text in texts]}

    whole, spoilt = (cut(b, words, size=3, seed=7) for b in benchmarks)
    asked = [batch for batch in spoilt if not batch.items[0].error]
    assert [(b.task, b.index, b.seed, b.items) for b in asked] == [
        (b.task, b.index, b.seed, b.items) for b in whole
    ]
    left = [[bool(item.error) for item in b.items] for b in spoilt if b not in asked]
    assert left == [[True] * 3, [True]]
    assert len({(b.task.name, b.index) for b in spoilt}) == len(spoilt)


# Other benchmarks' items


def test_a_malformed_query_is_counted_at_the_task_of_the_line_before(tmp_path, laid_out):
    images = laid_out.coco / "val2014"
    image = next(images.iterdir()).name
    kinds = ["discriminative-attribute-state", "relation", "relation"]
    notes = [{"id": n, "type": kind, "truth": "no"} for n, kind in enumerate(kinds, start=1)]
    queries = [{"id": n, "image": image, "query": "Is it?"} for n in (1, 2, 3)]
    (tmp_path / "annotations.json").write_text(json.dumps(notes))
    unknown = {**queries[0], "id": 9}
    placed = [[], queries[0], queries[1], unknown, queries[2], queries[1]]
    (tmp_path / "query.json").write_text(json.dumps(placed))
    made = Amber(images, tmp_path / "query.json", tmp_path / "annotations.json")
    assert [(item.task, item.id) for item in made.items] == [
        ("attribute-state", "query.json, row 1"),
        ("attribute-state", "1"),
        ("relation", "2"),
        ("relation", "query.json, row 4"),
        ("relation", "3"),
        ("relation", "query.json, row 6"),
    ]
    errors = [item.error for item in made.items if item.error]
    assert "row 1: a JSON object is wanted" in errors[0]
    assert "row 4: id 9 is not in the annotations" in errors[1]
    assert "row 6: id 2 comes twice, first in query.json, row 3" in errors[2]
    # The second of two files knows the ids of the first.
    other = tmp_path / "more.json"
    other.write_text(json.dumps([queries[2]]))
    first = tmp_path / "query.json"
    first.write_text(json.dumps(queries[:2]))
    made = Amber(images, [first, other], tmp_path / "annotations.json")
    assert not any(item.error for item in made.items)
    first.write_text(json.dumps(queries))
    with pytest.raises(ValueError, match=r"more\.json, row 1: id 3 comes twice, .* query\.json"):
        Amber(images, [first, other], tmp_path / "annotations.json")


@pytest.mark.parametrize("form", ["lines", "array", "one-list"])
def test_a_malformed_id_is_an_item_with_its_error(laid_out, tmp_path, form):
    ids = [*laid_out.scenes]
    spoilt = [ids[0], "dog.jpg", *ids[1:], ids[0]]
    text = {
        "lines": "\n".join(map(str, spoilt)),
        "array": json.dumps(spoilt),
        "one-list": json.dumps({"ids": spoilt}),
    }[form]
    (tmp_path / "ids.txt").write_text(text)
    published = laid_out.coco / "annotations" / "instances_val2014.json"
    made = ChairBenchmark(laid_out.coco / "val2014", tmp_path / "ids.txt", published)
    whole = ChairBenchmark(laid_out.coco / "val2014", ids, published)
    assert [item for item in made.items if not item.error] == whole.items
    errors = [item.error for item in made.items if item.error]
    assert "is no image id" in errors[0]
    assert f"image id {ids[0]} comes twice, first in ids.txt" in errors[1]
    assert made.fixed()["image_ids"] != whole.fixed()["image_ids"]
    assert made.fixed()["image_ids"]["count"] == len(spoilt)


def test_a_file_of_the_folder_named_twice_is_not_two_pairs(tmp_path, laid_out):
    home = tmp_path / "count"
    home.mkdir()
    pair = "Is it?\tYes\nIs it not?\tNo\n"
    image = next((laid_out.coco / "val2014").iterdir()).read_bytes()
    for name in "ab":
        (home / f"{name}.txt").write_text(pair)
        (home / f"{name}.jpg").write_bytes(image)
    (home / "b.TXT").write_text(pair)
    made = MME(tmp_path, tasks=["count"])
    assert [item.id for item in made.items if not item.error] == [
        f"{name}.jpg#{n}" for name in "ab" for n in (1, 2)
    ]
    assert len([item for item in made.items if item.error]) == 2
