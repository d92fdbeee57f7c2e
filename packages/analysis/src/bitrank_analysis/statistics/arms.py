"""Summary of each arm: quality with intervals over examples and over seeds, and costs."""

from __future__ import annotations

import pandas as pd

from bitrank_analysis.metrics import metric_of
from bitrank_analysis.statistics.examples import ArmResults, load_arms
from bitrank_analysis.statistics.paired import paired_test
from bitrank_analysis.statistics.seeds import over_seeds
from bitrank_analysis.study import Study

_COSTS = [
    "model_mib",
    "adapter_mib",
    "bits",
    "peak_mib",
    "import_mib",
    "adapter_params",
    "trainable_percent",
    "rank",
    "train_tok_s",
    "seconds",
    "plan_s",
]


def arms(study: Study, task: str, alpha: float = 0.05) -> pd.DataFrame:
    """Return one row per config with its quality, intervals and mean costs over seeds.

    Columns: config, metric, seeds (count), n, quality, low, high, seed_low, seed_high (NaN with one seed),
    zero, and means over seeds of model_mib, adapter_mib, bits, peak_mib, import_mib, adapter_params,
    trainable_percent, rank, train_tok_s, seconds and plan_s (NaN for an arm that is not planned). stored_mib
    is the sum of model_mib and adapter_mib.

    Accuracy is the mean over seeds with Wilson's interval for n examples. With several seeds this interval is
    conservative, because averaging over seeds can only reduce the variance of an example. Perplexity is that
    of the mean log-perplexity, with the interval that inverts the sign-flip test over documents (NaN for
    fewer than six, whose flips allow no test at 5 %). ``zero`` is the same mean of the quality before
    training, NaN if it was not measured.
    """
    runs = study.runs[study.runs["task"] == task]
    return pd.DataFrame(
        [_row(arm, runs[runs["config"] == config], alpha) for config, arm in load_arms(study, task).items()]
    )


def example_interval(arm: ArmResults, alpha: float = 0.05) -> tuple[float, float]:
    """Confidence interval of an arm's metric over examples."""
    metric = metric_of(arm.metric)
    interval = paired_test(metric.test).interval
    low, high = interval(arm.values_SN.mean(axis=0), arm.weights_N, alpha)
    return metric.of_mean(low), metric.of_mean(high)


def _row(arm: ArmResults, runs: pd.DataFrame, alpha: float) -> dict[str, object]:
    low, high = example_interval(arm, alpha)
    seed_low, seed_high = over_seeds(arm.values_SN.sum(axis=1) / arm.weights_N.sum(), alpha)
    metric = metric_of(arm.metric)
    seed_low, seed_high = metric.of_mean(seed_low), metric.of_mean(seed_high)
    row: dict[str, object] = {
        "config": arm.config,
        "metric": arm.metric,
        "seeds": len(arm.seeds),
        "n": arm.n,
        "quality": arm.quality(),
    }
    row |= {
        "low": low,
        "high": high,
        "seed_low": seed_low,
        "seed_high": seed_high,
        "zero": metric.over_runs(runs["zero"]),
    }
    costs = {name: float(runs[name].mean()) for name in _COSTS}
    return row | costs | {"stored_mib": costs["model_mib"] + costs["adapter_mib"]}
