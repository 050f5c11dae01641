from functools import cache

import pytest
import torch
from chat_models import TALKERS
from models import FAMILIES
from transformers.utils import logging

logging.set_verbosity_error()
torch.set_num_threads(1)  # tiny models: more threads only wait for each other


@pytest.fixture(scope="session", params=sorted(FAMILIES))
def family(request):
    """(name, model, inputs for rows of tokens), for each family of tiny models."""
    build, make_inputs = FAMILIES[request.param]
    return request.param, build(), make_inputs


@pytest.fixture(scope="session")
def llava():
    build, make_inputs = FAMILIES["llava"]
    return build(), make_inputs


@pytest.fixture(scope="session")
def qwen():
    build, make_inputs = FAMILIES["qwen"]
    return build(), make_inputs


@pytest.fixture(scope="session")
def talkers():
    """Each built once for all tests, none of which changes a model."""
    return cache(lambda name: TALKERS[name]())


@pytest.fixture(params=sorted(TALKERS))
def talker(request, talkers):
    return talkers(request.param)


@pytest.fixture
def lab_talker(talkers):
    return talkers("lab")


@pytest.fixture
def qwen_talker(talkers):
    return talkers("qwen")
