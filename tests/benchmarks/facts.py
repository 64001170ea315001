"""The events that are written: twelve for an experiment, as a campaign writes them.

Payloads are 220 bytes in the mean, the one with ten metrics about 600.
"""

import random
from collections.abc import Iterator
from functools import cache

from aiopt import codec, ids
from aiopt.events import (
    ArtifactBuilt,
    BudgetSpent,
    CampaignStarted,
    CandidateProposed,
    Effect,
    Event,
    ExperimentFinished,
    ExperimentStarted,
    GatePassed,
    PairScheduled,
    PatchRef,
    PluginUsed,
    ProcessRef,
    RunMeasured,
    SourcePrepared,
    StageFinished,
    StageStarted,
    VerdictReached,
)

__all__ = [
    "BLOB",
    "EVENTS",
    "Items",
    "campaign",
    "experiment",
    "experiments",
    "mean_payload",
    "run",
]

Items = list[tuple[str, Event]]

EVENTS = 12
"""Of one experiment."""
BLOB = b"diff --git a/src/table.c b/src/table.c\n"
"""Every patch and every stage log is this one: the benchmarks are about the log."""
_DIGEST = ids.digest(BLOB)
_COMMIT = "5f0c3b1e9d7a48260b1c2d3e4f5061728394a5b6"
_PATCH = PatchRef(name="0007-prefetch-buckets", digest=_DIGEST)
_SUPERVISOR = ProcessRef(
    pid=41327, start_ticks=90114127, boot_id="6e0ba1c6-2f6c-4d0e-9b8e-0a4f3f9d1c57"
)
_METRICS = (
    "throughput_ops",
    "p50_us",
    "p95_us",
    "p99_us",
    "p999_us",
    "rss_mb",
    "cpu_seconds",
    "bytes_written",
    "cache_misses",
    "write_amplification",
)


def campaign(writer: int) -> Items:
    """The event with which a log begins."""
    stream = ids.stream_name("cmp", 1, writer)
    event = CampaignStarted(
        target="kv",
        target_digest=_DIGEST,
        harness=_DIGEST,
        spec={"name": "kv", "stages": {"workload": {"run": ["./workload.sh"]}}},
        base_commit=_COMMIT,
        base_tree=_COMMIT,
        config={"strategy": "greedy", "mode": "fast"},
        rule="signed-rank",
        rule_version=1,
        rule_params={"metrics": {"p99_us": {"role": "primary"}}, "workloads": {"mixed": {}}},
        seed=7,
        environment="local",
        plugins=(PluginUsed(group="backends", name="local", distribution="aiopt", version="0.1"),),
        aiopt_version="0.1.0",
    )
    return [(stream, event)]


@cache
def _samples(seed: int) -> dict[str, tuple[float, ...]]:
    coin = random.Random(seed)
    return {name: (coin.lognormvariate(5, 2),) for name in _METRICS}


def run(number: int) -> RunMeasured:
    """One run with its ten metrics."""
    return RunMeasured(
        purpose="screen",
        workload="mixed",
        index=number % 8,
        attempt=0,
        arm="B",
        position=1,
        metrics=_samples(number % 997),
        texts={},
        covariates={"load1": 0.42, "psi_cpu_some_avg10": 1.37, "steal_jiffies_delta": 3.0},
        log=_DIGEST,
    )


def experiment(number: int, writer: int) -> Items:
    """Everything that is written about one experiment; `campaign` came before."""
    of_campaign = ids.stream_name("cmp", 1, writer)
    stream = ids.stream_name("exp", number, writer)
    candidate = f"{number:012x}"
    own: list[Event] = [
        ExperimentStarted(
            campaign=of_campaign,
            number=number,
            purpose="candidate",
            candidate=candidate,
            genome=(_PATCH,),
            tree=_COMMIT,
            incumbent="000000000000",
            incumbent_tree=_COMMIT,
            environment="local",
            mode="fast",
        ),
        SourcePrepared(tree=_COMMIT, harness_digest=_DIGEST),
        StageStarted(
            stage="build",
            attempt=0,
            argv=("{harness}/build.sh", "release"),
            timeout=600.0,
            supervisor=_SUPERVISOR,
        ),
        StageFinished(
            stage="build",
            attempt=0,
            outcome="ok",
            exit_code=0,
            signal=None,
            seconds=4.119375,
            cpu_seconds=7.820331,
            peak_rss_bytes=312475648,
            log=_DIGEST,
        ),
        ArtifactBuilt(digest=_DIGEST, files=3, incumbent_digest=_DIGEST),
        GatePassed(gate="test"),
        PairScheduled(purpose="screen", workload="mixed", index=number % 8, attempt=0, order="BA"),
        run(number),
        VerdictReached(
            kind="discard_no_effect",
            reason="no primary improved by more than 0.5 %",
            effects=(
                Effect(
                    metric="p99_us",
                    workload="mixed",
                    role="primary",
                    direction="lower",
                    pairs=8,
                    effect=0.003817,
                    low=-0.011204,
                    high=0.019322,
                    p=0.3711,
                    state="unproved",
                ),
            ),
            rule="signed-rank",
            rule_version=1,
        ),
        ExperimentFinished(outcome="judged"),
    ]
    proposed = CandidateProposed(
        number=number,
        candidate=candidate,
        genome=(_PATCH,),
        parents=("000000000000",),
        hypothesis=(
            "prefetching the next bucket while the key is compared hides the cache miss that perf"
            " shows in probe(), 31 % of all samples of the workload; the hash is known by then"
        ),
        proposer="pool",
    )
    spent = BudgetSpent(what="experiments", amount=1.0, unit="experiment")
    return [
        (of_campaign, proposed),
        *((stream, event) for event in own),
        (of_campaign, spent),
    ]


def experiments(first: int, count: int, writer: int) -> Iterator[Items]:
    """`count` of them, numbered from `first`."""
    return (experiment(number, writer) for number in range(first, first + count))


def mean_payload() -> tuple[float, int]:
    """Bytes of a payload in the mean, and of the one with ten metrics."""
    sizes = [len(codec.encode(event)[2]) for _, event in experiment(1234, 987654321)]
    return sum(sizes) / len(sizes), len(codec.encode(run(1234))[2])
