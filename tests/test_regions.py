"""Worked numbers of CARVE's note (section 5), float64, and the images made of its masks."""

import time

import numpy as np
import pytest
import torch
from PIL import Image
from torch import tensor
from torch.nn.functional import interpolate

from sightline.decoders.carve.regions import components, contrasted, enlarged, kept_regions, refined

SIX_DIGITS = dict(atol=1.5e-6, rtol=0)  # float64
GRID = (3, 4)
SMOOTHING = 1e-8


def attention(*steps):
    return tensor(steps, dtype=torch.float64) / 100  # [T, layers, N]


def alike(value, **others):
    row = [value] * 12
    for token, other in others.items():
        row[int(token[1:])] = other
    return row


QUESTION = attention(
    [[1, 1, 2, 1, 1, 6, 5, 1, 1, 1, 1, 1], alike(1, t5=4, t6=4, t11=3)],
    [alike(1, t5=8, t6=6), alike(1, t0=2, t5=5, t6=6, t11=4)],
)
GENERAL = attention(
    [alike(2, t5=3), alike(2)],
    [alike(2, t5=4), alike(2, t6=3)],
    [alike(9), alike(9)],  # a step that the question did not take
)


def relevance(*weights):
    steps = contrasted(QUESTION, GENERAL[: len(QUESTION)], SMOOTHING).sum(dim=1)
    grid = (tensor(weights, dtype=torch.float64)[:, None] * steps).sum(dim=0).view(1, 1, *GRID)
    return interpolate(grid, size=(6, 8), mode="bilinear")[0, 0]


FULL, START, END = (1.0, 2.0), (1.0, 0.0), (0.0, 1.0)


def close(actual, expected):
    torch.testing.assert_close(actual, tensor(expected, dtype=torch.float64), **SIX_DIGITS)


def box(mask):
    rows, columns = mask.nonzero(as_tuple=True)
    return tuple(int(x) for x in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))


def test_the_contrast():
    ratios = contrasted(QUESTION, GENERAL[:2], SMOOTHING)
    half = {(step, layer): alike(0.5) for step in (0, 1) for layer in (0, 1)}
    half[0, 0] = alike(0.5, t2=1.0, t5=1.999999, t6=2.499999)
    half[0, 1] = alike(0.5, t5=1.999999, t6=1.999999, t11=1.499999)
    half[1, 0] = alike(0.5, t5=2.000000, t6=2.999999)
    half[1, 1] = alike(0.5, t0=1.0, t5=2.499999, t6=1.999999, t11=1.999999)
    for (step, layer), expected in half.items():
        close(ratios[step, layer], expected)


@pytest.mark.parametrize(("smoothing", "ratio"), [(1e-8, 2.0), (1e-3, 1.935), (0.05, 0.750)])
def test_smoothing_as_large_as_the_weights_ends_the_contrast(smoothing, ratio):
    actual = contrasted(tensor([0.06]), tensor([0.03]), smoothing)
    torch.testing.assert_close(actual, tensor([ratio]), atol=5e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_raised_before_the_quotient(dtype):
    """1e-8 is 0 in float16."""
    ratios = contrasted(torch.zeros(3, dtype=dtype), torch.zeros(3, dtype=dtype), SMOOTHING)
    assert ratios.dtype == torch.float32
    assert torch.equal(ratios, torch.zeros(3))


def test_refused_contrasts():
    with pytest.raises(ValueError, match="pair their steps"):
        contrasted(QUESTION, GENERAL, SMOOTHING)
    with pytest.raises(ValueError, match="above 0"):
        contrasted(QUESTION, QUESTION, 0)


def test_the_map_of_all_steps():
    expected = [
        [3.999998, 3.749998, 3.249998, 3.124998, 3.374998, 3.374998, 3.124998, 2.999999],
        [3.749998, 4.187498, 5.062498, 5.687497, 6.062497, 5.437497, 3.812498, 2.999999],
        [3.249998, 5.062498, 8.687496, 10.812495, 11.437495, 9.562496, 5.187498, 2.999999],
        [2.999999, 4.874998, 8.624996, 10.781245, 11.343745, 9.718746, 5.906247, 3.999998],
        [2.999999, 3.624998, 4.874998, 5.593747, 5.781247, 5.906247, 5.968747, 5.999997],
        [2.999999, 2.999999, 2.999999, 2.999999, 2.999999, 3.999998, 5.999997, 6.999997],
    ]
    close(relevance(*FULL), expected)


def test_the_maps_of_one_step():
    start, end = relevance(*START), relevance(*END)
    close(
        start[2],
        [1.000000, 1.562499, 2.687499, 3.374999, 3.624998, 3.062498, 1.687499, 1.000000],
    )
    close(
        end[2],
        [1.124999, 1.749999, 2.999999, 3.718748, 3.906248, 3.249999, 1.749999, 1.000000],
    )
    torch.testing.assert_close(relevance(*FULL), start + 2 * end)


@pytest.mark.parametrize(
    ("share", "regions", "threshold", "sums", "kept", "corners"),
    [
        (0.2, 3, 6.037497, [87.031212, 6.999997], 10, (2, 1, 8, 6)),
        (0.2, 1, 6.037497, [87.031212, 6.999997], 9, (2, 1, 6, 4)),
        (0.4, 2, 5.237498, [146.312434], 19, (2, 1, 8, 6)),
    ],
)
def test_worked_masks(share, regions, threshold, sums, kept, corners):
    scores = relevance(*FULL)
    mask = kept_regions(scores, share, regions)
    assert int(mask.sum()) == kept
    assert box(mask) == corners
    above = scores >= threshold - 1.5e-6
    assert (scores[above].min() > threshold) and (mask <= above).all()
    parts = components(above.numpy())
    found = sorted((scores[parts == part].sum() for part in range(parts.max() + 1)), reverse=True)
    # Sums over up to 19 pixels of numbers given to six digits.
    torch.testing.assert_close(
        torch.stack(found), tensor(sums, dtype=torch.float64), atol=2e-5, rtol=0
    )
    half = kept_regions(scores.float(), share, regions)
    assert torch.equal(half, mask)
    x0, y0, x1, y1 = corners
    scale = {(2, 1, 8, 6): 4 / 3, (2, 1, 6, 4): 2}[corners]
    assert max(8 / (x1 - x0), 6 / (y1 - y0)) == pytest.approx(scale)
    assert refined(Image.new("RGB", (8, 6)), mask).size == (8, 6)


def test_a_threshold_between_two_values_is_interpolated():
    scores = torch.arange(5.0)[None]
    assert kept_regions(scores, 0.3, 1)[0].tolist() == [False, False, False, True, True]
    assert kept_regions(scores, 0.24, 1)[0].tolist() == [False] * 4 + [True]
    assert kept_regions(scores, 1.0, 1).all()


def test_at_most_as_many_regions_as_asked_by_relevance_not_by_size():
    scores = torch.zeros(5, 40)
    scores[0, ::4] = torch.arange(10.0) + 1  # ten single pixels
    scores[4, :6] = 1.4  # the widest, and third by its sum
    mask = kept_regions(scores, 0.08, 3)
    assert mask.nonzero().tolist() == [[0, 32], [0, 36]] + [[4, column] for column in range(6)]


def test_regions_touch_by_sides_only():
    scores = tensor([[5.0, 0, 0], [0, 4, 4], [0, 0, 0]])
    assert kept_regions(scores, 1 / 3, 1).tolist() == [
        [False, False, False],
        [False, True, True],
        [False, False, False],
    ]


def test_what_the_tower_did_not_see_is_neither_counted_nor_kept():
    scores = torch.arange(16.0).view(2, 8).contiguous()
    covered = torch.zeros(2, 8, dtype=torch.bool)
    covered[:, 2:6] = True
    mask = kept_regions(scores, 0.25, 3, covered)
    assert mask.nonzero().tolist() == [[1, 4], [1, 5]]
    scores[~covered] = float("nan")
    assert torch.equal(kept_regions(scores, 0.25, 3, covered), mask)


@pytest.mark.parametrize("value", [0.0, 1.0, 1e-6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_flat_map_masks_nothing_and_says_so(value, dtype):
    scores = torch.full((6, 8), value, dtype=dtype)
    covered = torch.ones(6, 8, dtype=torch.bool)
    covered[:, 0] = False
    with pytest.warns(UserWarning, match="all of it is kept"):
        assert kept_regions(scores, 0.2, 3).all()
    with pytest.warns(UserWarning, match="all of it is kept"):
        assert torch.equal(kept_regions(scores, 0.2, 3, covered), covered)


def test_equal_attention_is_flat_up_to_the_smoothing():
    same = torch.logspace(-4.9, -2, 48).view(6, 8)
    scores = contrasted(same, same, SMOOTHING)
    assert scores.min() < scores.max()
    with pytest.warns(UserWarning, match="all of it is kept"):
        assert kept_regions(scores, 0.2, 3).all()


def test_refused_maps():
    scores = torch.rand(4, 4)
    for share in (0, 1.1):
        with pytest.raises(ValueError, match="share"):
            kept_regions(scores, share, 3)
    with pytest.raises(ValueError, match="regions"):
        kept_regions(scores, 0.2, 0)
    with pytest.raises(ValueError, match="covered"):
        kept_regions(scores, 0.2, 3, torch.ones(4, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match="saw none"):
        kept_regions(scores, 0.2, 3, torch.zeros(4, 4, dtype=torch.bool))
    scores[1, 1] = float("nan")
    with pytest.raises(ValueError, match="finite"):
        kept_regions(scores, 0.2, 3)


def flooded(mask):
    """Components by flood fill, numbered in reading order."""
    labels, count = np.full(mask.shape, -1), 0
    for seed in zip(*mask.nonzero(), strict=True):
        if labels[seed] >= 0:
            continue
        labels[seed], front = count, [seed]
        while front:
            row, column = front.pop()
            for down, right in ((-1, 0), (1, 0), (0, -1), (0, 1)):
                y, x = row + down, column + right
                inside = 0 <= y < mask.shape[0] and 0 <= x < mask.shape[1]
                if inside and mask[y, x] and labels[y, x] < 0:
                    labels[y, x] = count
                    front.append((y, x))
        count += 1
    return labels


@pytest.mark.parametrize("density", [0.05, 0.4, 0.6, 0.9])
def test_components_equal_a_flood_fill(density):
    generator = np.random.default_rng(0)
    for shape in ((1, 1), (1, 17), (17, 1), (23, 31), (40, 7)):
        mask = generator.random(shape) < density
        np.testing.assert_array_equal(components(mask), flooded(mask))


def serpent(size):
    """One path that fills half of a square, from side to side and back."""
    mask = np.zeros((size, size), dtype=bool)
    mask[::2] = True
    mask[1::4, -1] = mask[3::4, 0] = True
    return mask[: size - 1] if size % 2 == 0 else mask


def test_winding_components_are_one():
    for mask in (serpent(31), serpent(31).T, serpent(31)[::-1]):
        assert components(mask).max() == 0
    assert components(np.zeros((4, 4), dtype=bool)).max() == -1


@pytest.mark.parametrize("name", ["noise", "checkers", "serpent", "serpent on its side"])
def test_components_of_a_megapixel_take_less_than_half_a_second(name):
    rows, columns = np.indices((1000, 1000))
    mask = {
        "noise": np.random.default_rng(0).random((1000, 1000)) < 0.59,
        "checkers": (rows + columns) % 2 == 0,
        "serpent": serpent(1000),
        "serpent on its side": np.ascontiguousarray(serpent(1000).T),
    }[name]
    seconds = []
    for _ in range(3):
        begin = time.process_time()  # of one core, whatever else the machine does
        components(mask)
        seconds.append(time.process_time() - begin)
    assert min(seconds) < 0.5


def test_of_equal_regions_the_first_ones_stay():
    """Values whose sums depend on the order of adding: every region is added in the same order."""
    scores = torch.zeros(300, 300)
    dot = tensor([[0.1, 0.7], [0.3, 0.9]])
    dots = scores.unfold(0, 2, 3).unfold(1, 2, 3)  # [100, 100, 2, 2]
    dots.copy_(dot.expand(100, 100, 2, 2))
    dots[:, ::3] *= 2
    mask = kept_regions(scores, 4 / 9, 3)
    expected = torch.zeros_like(mask)
    expected.unfold(0, 2, 3).unfold(1, 2, 3)[0, [0, 3, 6]] = True
    assert torch.equal(mask, expected)


def photograph(width, height):
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def test_keeping_all_changes_nothing():
    image = photograph(20, 15)
    same = refined(image, torch.ones(15, 20, dtype=torch.bool))
    assert np.array_equal(np.asarray(same), np.asarray(image))


@pytest.mark.parametrize("fill", ["black", "mean", "blur"])
def test_two_regions_share_one_box_and_what_is_between_them_is_filled(fill):
    image = photograph(64, 48)
    mask = torch.zeros(48, 64, dtype=torch.bool)
    mask[:, :8] = mask[:, 56:] = True
    before = np.asarray(image).copy()
    out = np.asarray(refined(image, mask, fill))  # the box is all of the image: not resized
    keep = mask.numpy()
    assert np.array_equal(out[keep], before[keep])
    assert np.array_equal(np.asarray(image), before)
    if fill == "black":
        assert not out[~keep].any()
    elif fill == "mean":
        assert np.array_equal(out[~keep], np.broadcast_to(out[0, 20], out[~keep].shape))
        assert np.abs(out[0, 20] - before.mean(axis=(0, 1))).max() <= 0.5
    else:
        assert 0 < out[~keep].std() < before[~keep].std() / 4
        assert abs(out[~keep].mean() - before.mean()) < 10


def test_the_crop_is_the_masked_image_enlarged_with_lanczos():
    image = photograph(40, 30)
    mask = torch.zeros(30, 40, dtype=torch.bool)
    mask[6:18, 10:26] = True
    mask[6, 10] = False
    expected = image.crop((10, 6, 26, 18))
    expected.putpixel((0, 0), (0, 0, 0))
    expected = expected.resize((40, 30), Image.Resampling.LANCZOS)
    assert np.array_equal(np.asarray(refined(image, mask)), np.asarray(expected))


def test_a_thin_region_stays_bounded():
    """Eight pixels high, it would become 60,000 x 800."""
    mask = torch.zeros(800, 1000, dtype=torch.bool)
    mask[400:408, 100:700] = True
    out = refined(photograph(1000, 800), mask)
    assert out.size == (7745, 103)
    assert out.width * out.height <= 1000 * 800


def test_sizes_of_all_crops():
    """Never more pixels than the image, never less than the crop, and the crop's own aspect."""
    whole = (37, 23)
    for w in range(1, 38):
        for h in range(1, 24):
            width, height = enlarged((w, h), whole)
            assert width >= w and height >= h
            assert width * height <= 37 * 23
            assert abs(width / w * h - height) < max(1, h / w) + 1e-9  # fractions are cut off
    assert enlarged((37, 23), whole) == whole
    assert enlarged((4, 3), (8, 6)) == (8, 6)
    assert enlarged((308, 231), (640, 480)) == (640, 480)  # 639 x 479 in floating point


def test_refused_images():
    image, mask = Image.new("RGB", (8, 6)), torch.ones(6, 8, dtype=torch.bool)
    with pytest.raises(ValueError, match="fill"):
        refined(image, mask, "white")
    with pytest.raises(ValueError, match="its mask"):
        refined(image, mask.T)
    with pytest.raises(ValueError, match="keeps nothing"):
        refined(image, ~mask)


def test_other_modes_become_rgb():
    mask = torch.ones(6, 8, dtype=torch.bool)
    assert refined(Image.new("L", (8, 6), 7), mask).mode == "RGB"
