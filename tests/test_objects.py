"""The package's own vocabulary of COCO's 80 objects."""

import pytest
from goldens import SHARED, golden, needs_published, published

from sightline.evaluation import objects
from sightline.evaluation.chair import Chair, read_synonyms

OWN = objects.own()


@pytest.fixture(scope="module")
def chair():
    return Chair()


@needs_published
def test_the_objects_are_cocos_categories():
    content = published("data/chair/coco_categories.json")
    names = {category["name"] for category in content["categories"]}
    assert set(objects.OBJECTS) == names
    assert set(OWN.nodes.values()) == names


def test_there_are_80_objects_and_each_is_named_by_its_own_name(chair):
    assert len(objects.OBJECTS) == 80
    for node in objects.OBJECTS:
        assert chair.nodes(f"there is a {node} here") == [node]


def test_every_category_of_an_instances_file_is_known(chair):
    names = [{"id": n, "name": node} for n, node in enumerate(objects.OBJECTS)]
    rows = [{"image_id": 1, "category_id": n} for n in range(80)]
    assert chair.truth_from_coco([{"categories": names, "annotations": rows}]) == {
        1: set(objects.OBJECTS)
    }


def test_every_word_names_one_object_and_stands_there_once():
    words = [name for line in objects.OBJECTS.values() for name in objects.names(line)]
    assert len(words) == len(set(words))
    assert all(word == word.strip().lower() and word for word in words)


def test_every_word_and_its_plural_name_the_object(chair):
    for node, line in objects.OBJECTS.items():
        for name in objects.names(line):
            assert chair.nodes(f"a {name}.") == [node], name
            *first, last = name.split()
            for plural in objects.plurals(last):
                assert chair.nodes(" ".join(["two", *first, plural])) == [node], plural


def test_no_inflected_form_is_a_word_itself():
    known = {part for name in (*OWN.nodes, *OWN.compounds) for part in name.split()}
    assert not known & set(OWN.forms)


def test_compounds_name_nothing_and_would_otherwise(chair):
    compounds = objects.names(objects.COMPOUNDS)
    assert len(compounds) == len(set(compounds))
    for compound in compounds:
        assert chair.nodes(f"the {compound} is there") == [], compound
        assert any(chair.nodes(word) for word in compound.split()), f"{compound} needs no entry"


AMBIGUOUS = (
    "male, female, pitcher, walker, camper, liner, vessel, turkey, cocker, brindle, mustang, bow, "
    "container, sub, seat, notebook"
)
MISSPELT = "solider, knive, televison, phon"


@needs_published
def test_words_of_the_published_table_name_the_same_objects(chair):
    """All but those that mean something else as often, and its spelling mistakes."""
    differ = {
        word
        for node, *words in read_synonyms(SHARED / "data/chair/synonyms.txt")
        for word in map(str.strip, words)
        if chair.nodes(f"the {word} there") != [node]
    }
    assert differ == {*objects.names(AMBIGUOUS), *objects.names(MISSPELT)}


PART_OF = ("computer monitor", "ski lift", "ski resort", "toilet paper")
"""Names that hold a word of the published table and mean another thing or none."""


@needs_published
def test_objects_that_the_published_table_finds_in_the_golden_captions_are_found(chair):
    data = SHARED / "data/chair"
    tables = [data / name for name in ("synonyms.txt", "double_words.json", "word_forms.json")]
    reference = Chair(*tables, variant="noun_only")
    inputs = golden("chair")[0], published("golden/chair/real_inputs.json")
    captions = [row["caption"] for rows in inputs for row in rows["captions"]]
    assert len(captions) == 61
    for caption in captions:
        ours = [(m.node, m.start, m.end) for m in chair.mentions(caption)]
        for theirs in reference.mentions(caption):
            named = any(
                node == theirs.node and start <= theirs.start and theirs.end <= end
                for node, start, end in ours
            )
            around = caption[max(theirs.start - 10, 0) : theirs.end + 10].lower()
            assert named or any(name in around for name in PART_OF), (theirs, around)


@pytest.mark.parametrize(
    ("word", "plural"),
    [
        ("dog", "dogs"),
        ("bus", "buses"),
        ("bench", "benches"),
        ("toothbrush", "toothbrushes"),
        ("box", "boxes"),
        ("puppy", "puppies"),
        ("boy", "boys"),
        ("knife", "knives"),
        ("calf", "calves"),
        ("potato", "potatoes"),
        ("man", "men"),
        ("policewoman", "policewomen"),
        ("human", "humans"),
        ("child", "children"),
        ("mouse", "mice"),
        ("goose", "geese"),
        ("person", "people"),
    ],
)
def test_plurals(word, plural):
    assert plural in objects.plurals(word)


def test_humans_are_no_humen():
    assert "humen" not in objects.plurals("human")


@pytest.mark.parametrize(
    ("caption", "nodes"),
    [
        ("Two hot dogs and a dog", ["hot dog", "dog"]),
        ("a teddy bear beside a bear", ["teddy bear", "bear"]),
        ("traffic lights and street lights", ["traffic light", "traffic light"]),
        ("a desk lamp on a computer desk", ["dining table"]),
        ("a baby animal, a cub and an adult cub", []),
        ("Men, women and children", ["person", "person", "person"]),
        ("mice near a computer mouse", ["mouse", "mouse"]),
        ("knives and wine glasses", ["knife", "wine glass"]),
        ("two glasses of wine and a glass of orange juice", ["wine glass", "cup"]),
        ("glasses on his nose", []),
        ("a baby elephant and a baby", ["elephant", "person"]),
        ("baby elephants with a mother duck", ["elephant", "bird"]),
        ("the train tracks near the train", ["train"]),
        ("a bus driver at the bus stop", ["person"]),
        ("a zebra crosses at the zebra crossing", ["zebra"]),
        ("toilet paper beside the toilet", ["toilet"]),
        ("the toilet seat is up", ["toilet"]),
        ("a carrot cake with carrots", ["cake", "carrot"]),
        ("a catcher's mitt", ["baseball glove"]),
        ("He skis past a ski lift", ["skis"]),
        ("a pair of scissors", ["scissors"]),
        ("a stuffed teddy bear", ["teddy bear"]),
        ("seated people waiting", ["person"]),
        ("A BUS, two buses.", ["bus", "bus"]),
    ],
)
def test_captions_by_hand(chair, caption, nodes):
    assert chair.nodes(caption) == nodes


def test_the_longer_compound_wins(chair):
    """ "stuffed teddy bear" holds "teddy bear", "stove top oven" holds "stove top"."""
    assert chair.nodes("a stove top oven") == ["oven"]
    assert chair.nodes("a stove top, an oven") == ["oven", "oven"]


@pytest.mark.parametrize("caption", ["an orange cat", "no cat and an orange"])
def test_what_a_list_of_words_cannot_tell(chair, caption):
    """The color fires the fruit, and a negation fires the object: known limits."""
    assert sorted(chair.nodes(caption)) == ["cat", "orange"]


def test_a_form_that_stands_in_a_name_is_left_alone():
    """ "sports" is no plural of a word "sport" where "sports ball" is a name."""
    assert objects.inflections(["sport", "sports ball"]) == {"balls": "ball"}
