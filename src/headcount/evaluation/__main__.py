"""lm-eval's own command line with headcount's model class registered, as ``headcount lm-eval`` is.

python -m headcount.evaluation run --model headcount --model_args pretrained=demo,policy=ahon_ln@0.4 --tasks piqa
"""

import sys

from headcount.evaluation.harness import run_lm_eval

if __name__ == "__main__":
    run_lm_eval(sys.argv[1:])
