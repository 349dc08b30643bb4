"""lm-eval's own command line with headcount's model class registered.

python -m headcount.evaluation run --model headcount --model_args pretrained=demo,policy=ahon_ln@0.4 --tasks piqa
"""

from lm_eval.__main__ import cli_evaluate

from headcount.evaluation import HeadcountLM  # noqa: F401 - importing it registers it

if __name__ == "__main__":
    cli_evaluate()
