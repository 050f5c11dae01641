"""What a second row costs in a matrix product alone: the floor under every second branch.

    python benchmarks/product.py

A decoding step multiplies [rows, 1, hidden] by each weight in turn; forty weights of 1024 x 3072
are more than a processor's caches hold, as a model's are.
"""

import statistics
import time

import torch
from torch.nn.functional import linear


def milliseconds(rows: int, weights: list[torch.Tensor], rounds: int = 15) -> float:
    """Median time of one pass over all weights."""
    x = torch.randn(rows, 1, weights[0].shape[1]).to(weights[0].dtype)
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        for weight in weights:
            linear(x, weight)
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[1:])


def main() -> None:
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for dtype in (torch.bfloat16, torch.float32):
        weights = [torch.randn(3072, 1024).to(dtype) for _ in range(40)]
        one, two = milliseconds(1, weights), milliseconds(2, weights)
        print(f"{dtype}: 1 row {one:.1f} ms, 2 rows {two:.1f} ms, {two / one:.2f}x")


if __name__ == "__main__":
    main()
