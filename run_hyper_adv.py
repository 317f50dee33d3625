"""RecBole's run_hyper.py for recbole_adv: ``python run_hyper_adv.py --model EIIL --dataset ml-100k``."""

import sys

from recbole_adv.cli import main

if __name__ == "__main__":
    sys.exit(main(["sweep", *sys.argv[1:]]))
