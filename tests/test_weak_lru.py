"""What decoders keep between calls: for which weights, how much of it, and between threads."""

import copy
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from chat_models import CHAT_MODELS
from models import BOS, FAMILIES, IMAGE
from test_posthoc import Words

from sightline import MVP, VDD, PostHocDebias, PromptCached
from sightline.vision import token_layout
from sightline.weak_lru import Memory

ROWS = [[BOS, 8, 9, IMAGE, 20, 21, n] for n in range(22, 30)]


class Adapted(torch.nn.Linear):
    """What a layer of PEFT says of its adapters."""

    active_adapters = ("one",)
    merged_adapters = ()
    disable_adapters = False

    def __init__(self):
        super().__init__(2, 2)
        self.scaling = {"one": 1.0}


def small():
    return torch.nn.Sequential(Adapted(), torch.nn.BatchNorm1d(2))


@torch.no_grad()
def written(model):
    model[0].weight.mul_(2)


def trained(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.randn(3, 2)).sum().backward()
    optimizer.step()


def switched_over(model):
    model[0].weight.data = model[0].weight.data.clone()


def merged(model):
    model[0].weight.data += 1  # as PEFT does, uncounted
    model[0].merged_adapters = ("one",)


CHANGES = {
    "written in place": written,
    "trained": trained,
    "another state": lambda model: model.load_state_dict(small().state_dict()),
    "another dtype": lambda model: model.to(torch.bfloat16),
    "another device": lambda model: model.to("meta"),
    "other data": switched_over,
    "another tensor": lambda model: setattr(model[0], "weight", small()[0].weight),
    "a statistic": lambda model: model[1].running_mean.add_(1),
    "another adapter": lambda model: setattr(model[0], "active_adapters", ("two",)),
    "a merged adapter": merged,
    "no adapter": lambda model: setattr(model[0], "disable_adapters", True),
    "an adapter's strength": lambda model: model[0].scaling.update(one=0.5),
}


def asked(memory, owner, *keys):
    """Those of the keys that are not known."""
    found = []

    def find(missing):
        found.extend(missing)
        return [key * 10 for key in missing]

    assert memory.recall(owner, keys, find) == [key * 10 for key in keys]
    return found


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_other_weights_gave_is_not_taken(change):
    model, memory = small(), Memory(8)
    assert asked(memory, model, 1, 2) == [1, 2]
    assert asked(memory, model, 2, 1, 3) == [3]
    change(model)
    assert asked(memory, model, 1, 2) == [1, 2]
    assert asked(memory, model, 1, 2) == []


def test_weights_that_come_back_are_known_again():
    """Adapters are turned off and on between two answers."""
    model, memory = small(), Memory(8)
    for off, missing in ((False, [1]), (True, [1]), (False, []), (True, [])):
        model[0].disable_adapters = off
        assert asked(memory, model, 1) == missing


def test_weights_made_in_inference_mode():
    """Their writes are not counted: `clear` is for them."""
    memory = Memory(8)
    with torch.inference_mode():
        model = small()
        assert asked(memory, model, 1) == [1]
        model[0].weight.mul_(2)
        assert asked(memory, model, 1) == []
    memory.clear()
    assert asked(memory, model, 1) == [1]


def test_offloaded_weights_do_not_count():
    """What is offloaded is another tensor after every forward."""
    model, memory = small(), Memory(8)
    for missing in ([1], []):
        model[0].weight = torch.nn.Parameter(torch.empty(2, 2, device="meta"))
        assert asked(memory, model, 1) == missing


def test_the_oldest_are_forgotten():
    memory, owner = Memory(2), type("Owner", (), {})()
    assert asked(memory, owner, 1, 2, 3) == [1, 2, 3]  # more than are kept
    assert asked(memory, owner, 2, 3) == []
    assert asked(memory, owner, 4, 3, 2) == [4]
    assert asked(memory, owner, 3, 4, 2) == [2]
    memory.clear()
    assert asked(memory, owner, 4) == [4]


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))]
)
def test_a_copy_is_empty(copied):
    memory, owner = Memory(2), small()
    asked(memory, owner, 1)
    other = copied(memory)
    assert other.capacity == 2
    assert asked(other, owner, 1) == [1] and asked(memory, owner, 1) == []


@pytest.fixture
def hasty():
    """Threads take turns as often as Python lets them."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_threads_with_a_memory_of_one(hasty):
    memory, owners = Memory(1), [small(), small()]

    def ask(number):
        for turn in range(200):
            first = (number + turn) % 5
            asked(memory, owners[turn % 2], first, first + 1)
            if turn % 50 == 0:
                memory.clear()

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(ask, range(16)))
    assert all(len(known) <= 1 for known in memory.by_owner.values())


@pytest.fixture(scope="module")
def lab():
    return CHAT_MODELS["lab"]()


def calibrated(lab):
    build, make_inputs = FAMILIES["llava"]
    model, debias = build(), PostHocDebias(processor=Words())
    return (
        model,
        debias,
        debias._known,
        lambda n: debias.probabilities(model, **make_inputs([ROWS[n]])),
    )


def reused(lab):
    build, make_inputs = FAMILIES["llava"]
    model, reusing = build(), PromptCached(VDD(1.5, 0.05), capacity=1)

    def run(n):
        return model.generate(**make_inputs([ROWS[n]]), custom_generate=reusing, max_new_tokens=2)

    return model, reusing, reusing.recipe().prompt_cache, run


def captioned(lab):
    image = lab.images[0]
    mvp = MVP(
        processor=lab.processor, k=1, tokens=2, caption_tokens=2, requests=("Say.",), weights=(1.0,)
    )

    def run(n):
        shown = image.rotate(n)
        inputs = lab.asked(["Is there a cow?"], [shown])
        return lab.model.generate(**inputs, images=shown, custom_generate=mvp, max_new_tokens=3)

    return lab.model, mvp, mvp._known, run


DECODERS = pytest.mark.parametrize("make", [calibrated, reused, captioned])


@DECODERS
def test_decoders_between_threads(lab, make, hasty):
    """One decoder, a memory of one entry, many threads: what a single thread gives."""
    _, decoder, memory, run = make(lab)
    alone = []
    for n in range(8):
        decoder.clear()
        alone.append(run(n))
    memory.capacity = 1
    with ThreadPoolExecutor(8) as pool:
        places = [n % 8 for n in range(32)]
        for place, out in zip(places, pool.map(run, places), strict=True):
            assert torch.equal(out, alone[place])


def test_what_was_known_may_be_forgotten_before_it_is_read(lab, monkeypatch):
    """As by another thread, while the batch's other text is asked."""
    model, debias, memory, _ = calibrated(lab)
    _, make_inputs = FAMILIES["llava"]
    memory.capacity = 1
    expected = debias.probabilities(model, **make_inputs(ROWS[:2]))
    own, between = type(debias)._masses, []
    debias.probabilities(model, **make_inputs(ROWS[:1]))

    def interrupted(*given):
        if not between:
            between.append(True)
            debias.probabilities(model, **make_inputs(ROWS[2:3]))
        return own(*given)

    monkeypatch.setattr(type(debias), "_masses", interrupted)
    found = debias.probabilities(model, **make_inputs(ROWS[:2]))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)  # float32, other batches
    assert between


@DECODERS
def test_decoders_forget_when_told_to_and_when_weights_change(lab, make):
    model, decoder, memory, run = make(lab)
    memory.clear()
    run(0)
    kept = len(memory.by_owner[model])
    assert kept > 0
    decoder.clear()
    assert model not in memory.by_owner
    memory.capacity = 8
    run(0)
    run(0)
    assert len(memory.by_owner[model]) == kept
    with torch.no_grad():
        next(model.parameters()).mul_(1)
    run(0)
    assert len(memory.by_owner[model]) == 2 * kept


def test_layouts_between_threads(lab, hasty, monkeypatch):
    monkeypatch.setattr(token_layout.LAYOUTS, "capacity", 1)
    sizes = [(100, 60), (60, 100), (80, 80)]

    def locate(n):
        image = lab.images[0].resize(sizes[n % 3])
        return token_layout.locate(lab.processor, lab.model.config, image, 64).size

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(locate, range(60))) == [sizes[n % 3] for n in range(60)]
