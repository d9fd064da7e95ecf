"""Printing, checking and flattening the dictionaries that evaluators return."""

import logging
import pprint
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from detectron2.config.config import CfgNode

__all__ = ["flatten_results_dict", "print_csv_format", "verify_results"]


def print_csv_format(results: Mapping[str, Any]) -> None:
    """Log the main metrics of each task in lines starting "copypaste:", ready for a spreadsheet.

    Metrics with "-" in their name, those of single classes, are left out.
    """
    assert isinstance(results, Mapping) or not len(results), results
    logger = logging.getLogger(__name__)
    for task, metrics in results.items():
        if not isinstance(metrics, Mapping):
            logger.info(f"copypaste: {task}={metrics}")
            continue
        main = {name: value for name, value in metrics.items() if "-" not in name}
        logger.info(f"copypaste: Task: {task}")
        logger.info("copypaste: " + ",".join(main))
        logger.info("copypaste: " + ",".join(f"{value:.4f}" for value in main.values()))


def verify_results(cfg: CfgNode, results: Mapping[str, Any]) -> bool:
    """Compare results with ``cfg.TEST.EXPECTED_RESULTS``; ends the process with status 1 where they differ.

    Args:
        cfg: its rows are [task, metric, expected value, tolerance].
        results: of one data set: {task: {metric: value}}.
    Returns:
        True; it does not return otherwise.
    """
    logger = logging.getLogger(__name__)
    expected_results = cfg.TEST.EXPECTED_RESULTS
    if not expected_results:
        return True
    passed = True
    for task, metric, expected, tolerance in expected_results:
        actual = results.get(task, {}).get(metric)
        # "not (… <= …)" also catches NaN
        if actual is None or not np.isfinite(actual) or not abs(actual - expected) <= tolerance:
            passed = False
            logger.error(f"{task}/{metric} is {actual}, expected {expected} within {tolerance}")
    if not passed:
        logger.error("Result verification failed! Expected: %s", expected_results)
        logger.error("Actual: %s", pprint.pformat(results))
        sys.exit(1)
    logger.info("Results verification passed.")
    return True


def flatten_results_dict(results: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dictionaries as one, whose keys are the paths joined by "/"."""
    flat = {}
    for key, value in results.items():
        if isinstance(value, Mapping):
            flat.update({f"{key}/{inner}": v for inner, v in flatten_results_dict(value).items()})
        else:
            flat[key] = value
    return flat
