"""lm-eval's own command line with headcount's model class, and with the benchmark package where the hub does not answer."""

import sys
from collections.abc import Sequence

from headcount.tasks.quiet import replaced
from headcount.tasks.sources import data_sources, hub_reachable


def run_lm_eval(arguments: Sequence[str]) -> None:
    """Run ``lm-eval ARGUMENTS``: its options, output and results file, and ``headcount`` among its models.

    Tasks take their data from the hub when it answers, else from the benchmark package, local files and the hub's local cache.

    Raises:
        SystemExit: as lm-eval ends, for arguments that it does not understand too.
        TaskError: a task whose data cannot be had, or whose few-shot examples the package lacks.
        HeadcountError: what ``HeadcountLM`` refuses.
    """
    from lm_eval._cli import HarnessCLI
    from lm_eval.config.evaluate_config import EvaluatorConfig
    from lm_eval.utils import setup_logging

    from headcount.evaluation.language_model import HeadcountLM  # noqa: F401 - importing it registers it

    setup_logging()
    with replaced(sys, argv=["lm-eval", *arguments]):
        command = HarnessCLI()
        asked = command.parse_args()
        if getattr(asked, "command", None) != "run":
            return command.execute(asked)
        shots = EvaluatorConfig.from_cli(asked).num_fewshot
        with data_sources(use_hub=hub_reachable(), offline=None, num_fewshot=shots):
            command.execute(asked)
