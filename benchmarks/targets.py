"""What the decoders' speed is to reach, and whether a run reaches it.

`TARGETS` is the whole list. A target is decided by every row of a run that it names, each by its
median over rounds; what a run does not measure is said to be unmeasured.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from timing import Spread, ratios, spread

EAGER_AND_COMPILED = ("dynamic", "compiled")


@dataclass(frozen=True)
class Target:
    """One target.

    Args:
        text: In words.
        rows: Keys of the rows that are held to it.
        limit: What the median is to reach.
        device: "cuda" or "cpu".
        model, dtypes, batches: Of the runs that it is set for; no batches: all.
        caches: Of the rows.
        measure: "per_token" and "first" are time over that of `against`, "speedup" is the time of
            `against` over the row's, per token; "memory" is what the peak is above greedy's, in
            caches of the row's amateurs.
        against: Key of the row to compare with, in the same rounds.
        against_cache: Its cache; None: the row's own.
        head: Whether one read of the LM head comes on top of the limit.
    """

    text: str
    rows: tuple[str, ...]
    limit: float
    device: str
    model: str
    dtypes: tuple[str, ...] = ("bf16",)
    batches: tuple[int, ...] = (1,)
    caches: tuple[str, ...] = ("dynamic",)
    measure: str = "per_token"
    against: str = "greedy"
    against_cache: str | None = None
    head: bool = False

    @property
    def sense(self) -> str:
        return ">=" if self.measure == "speedup" else "<="

    def is_set_for(self, run: dict[str, Any], device: str) -> bool:
        return (
            device == self.device
            and run["model"] == self.model
            and run["dtype"] in self.dtypes
            and (not self.batches or run["batch"] in self.batches)
        )

    def reached(self, measured: float, limit: float) -> bool:
        return measured >= limit if self.sense == ">=" else measured <= limit


def gpu(text: str, rows: tuple[str, ...], limit: float, **further: Any) -> Target:
    return Target(text, rows, limit, "cuda", "7b", **{"caches": EAGER_AND_COMPILED} | further)


def cpu(text: str, rows: tuple[str, ...], limit: float, **further: Any) -> Target:
    return Target(text, rows, limit, "cpu", "0.25b", **further)


CONTRASTS = ("vdd", "vdd-both", "vcd", "damro", "icd", "m3id", "agla", "sid", "pai")
BOTH = ("bf16", "fp32")
TARGETS = (
    gpu("a shorter or cut amateur: 1.08x a token", ("vdd", "damro", "icd", "m3id"), 1.08),
    gpu("a whole amateur or edited keys: 1.10x a token", ("vcd", "agla", "sid", "pai"), 1.10),
    gpu("edited keys alone: 1.05x a token", ("pai-alone", "vaf"), 1.05),
    gpu("earlier layers: 1.05x a token and a read of the head", ("deco", "dola"), 1.05, head=True),
    gpu(
        "the last embedding: 1.05x a token and a read of the head",
        ("vasparse", "vasparse-sink"),
        1.05,
        head=True,
        caches=("dynamic",),  # it takes keys out, which a static cache cannot lose
    ),
    gpu(
        "compiled, faster than plain eager greedy",
        ("vdd",),
        2.0,
        caches=("compiled",),
        measure="speedup",
        against_cache="dynamic",
    ),
    gpu(
        "compiled, faster than two eager forwards in turn",
        ("vdd",),
        4.0,
        caches=("compiled",),
        measure="speedup",
        against="vdd-in-turn",
        against_cache="dynamic",
    ),
    gpu("batch 16: 1.6x a token", ("vdd",), 1.6, batches=(16,)),
    gpu("first token: 1.2x plain", ("vdd",), 1.2, measure="first", caches=("dynamic",)),
    gpu("peak: 1.1 caches of the amateurs", CONTRASTS, 1.1, measure="memory", batches=()),
    gpu(
        "a gate is kept: faster than without",
        ("vdd-sixth",),
        1.15,
        batches=(16,),
        caches=("dynamic",),
        measure="speedup",
        against="vdd",
    ),
    cpu("1.35x a token", ("vdd", "vcd"), 1.35),
    cpu("first token: 1.2x plain", ("vdd",), 1.2, dtypes=BOTH, measure="first"),
    *(
        cpu(text, rows, limit, dtypes=dtypes, measure="speedup", against=against)
        for limit, dtypes, beginning in ((1.0, BOTH, "as fast as"), (1.5, ("bf16",), "faster than"))
        for text, rows, against in (
            (f"{beginning} two forwards in turn", ("vdd",), "vdd-in-turn"),
            (f"{beginning} two forwards in turn", ("vcd",), "vcd-in-turn"),
            (f"{beginning} mitigv", ("vcd",), "mitigv"),
        )
    ),
    cpu("peak: 1.1 caches of the amateurs", CONTRASTS, 1.1, dtypes=BOTH, measure="memory"),
    cpu(
        "a gate is kept: faster than without",
        ("vdd-sixth",),
        1.15,
        dtypes=BOTH,
        measure="speedup",
        against="vdd",
    ),
)


def verdicts(result: dict[str, Any], device: str | None = None) -> list[dict[str, Any]]:
    """A line for each target and each row of a run that it is set for.

    Args:
        device: Whose targets, "cuda" or "cpu"; None: those of the machine that was measured.
    """
    machine = result["machine"]
    device = device or ("cuda" if "cuda" in machine else "cpu")
    return [
        line
        for target in TARGETS
        for run in result["runs"]
        if target.is_set_for(run, device) and "rows" in run
        for line in lines(target, run, machine["copy_gb_per_s"])
    ]


def lines(target: Target, run: dict[str, Any], copy_gb_per_s: float) -> Iterator[dict[str, Any]]:
    rows = {(row["key"], row["cache"]): row for row in run["rows"]}
    limit = target.limit
    for cache in target.caches:
        if target.head and ("greedy", cache) in rows:
            greedy = rows["greedy", cache]["token_ms"]["median"]
            limit = target.limit + run["head_bytes"] / copy_gb_per_s / 1e6 / greedy
        for key in target.rows:
            found = measured(target, rows, key, cache)
            yield {
                "target": target.text,
                **{name: run[name] for name in ("model", "dtype", "batch", "tokens")},
                "row": key,
                "against": "amateurs" if target.measure == "memory" else target.against,
                "cache": cache,
                "measure": target.measure,
                "sense": target.sense,
                "limit": limit,
                "measured": found and found.median,
                "low": found and found.low,
                "high": found and found.high,
                "verdict": verdict(target, found and found.median, limit),
            }


def measured(
    target: Target, rows: dict[tuple[str, str], dict[str, Any]], key: str, cache: str
) -> Spread | None:
    """What is held against the limit; None where a row that it needs was not measured."""
    row = rows.get((key, cache))
    base = rows.get((target.against, target.against_cache or cache))
    if row is None or base is None:
        return None
    if target.measure == "memory":
        return spread([row["beyond"]])
    if target.measure == "speedup":
        row, base = base, row
    name = "first" if target.measure == "first" else "per_token"
    return spread(ratios(row["rounds"][name], base["rounds"][name]))


def verdict(target: Target, found: float | None, limit: float) -> str:
    if found is None:
        return "not measured"
    if target.reached(found, limit):
        return "reached"
    return f"missed by {abs(found - limit):.2f}"
