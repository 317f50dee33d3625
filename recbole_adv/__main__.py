"""``python -m recbole_adv`` is ``recbole-adv``."""

import sys

from recbole_adv.cli import main

sys.exit(main())
