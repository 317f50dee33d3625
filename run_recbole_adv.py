"""RecBole's run_recbole.py for recbole_adv: ``python run_recbole_adv.py --model EIIL --dataset ml-100k``."""

import sys

from recbole_adv.cli import run_main

if __name__ == "__main__":
    sys.exit(run_main())
